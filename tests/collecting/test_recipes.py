"""The recipes of data: they fill their configuration and name games that can be played so."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jowa import games
from jowa.cli import composed, config_folder
from jowa.collecting.behaviours import Tier
from jowa.collecting.teachers import TEACHERS
from jowa.models.released import PRETRAINED_GAMES

RECIPES = sorted(path.parent.name for path in config_folder().glob("experiment/*/collect.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_collected_data_is_whole(name: str) -> None:
    config = OmegaConf.to_object(composed("collect", [f"experiment={name}"]))
    tiers = [Tier(**vars(tier)) for tier in config.tiers]
    assert sum(tier.share for tier in tiers) == pytest.approx(1)
    chosen = [games.get(name).name for name in config.games]
    assert len(set(chosen)) == len(chosen) > 0
    if any(tier.behaviour == "scripted" for tier in tiers):
        assert set(chosen) <= set(TEACHERS)


def test_the_recipes_are_of_the_games_they_say() -> None:
    assert set(composed("collect", ["experiment=teachers"]).games) == set(TEACHERS)
    twenty = composed("collect", ["experiment=learner_20"])
    assert set(twenty.games) > set(PRETRAINED_GAMES) and len(twenty.games) == 20
    for name in ("learner_5", "learner_20"):
        (tier,) = OmegaConf.to_object(composed("collect", [f"experiment={name}"])).tiers
        assert tier.behaviour == "learner" and tier.learner.steps >= 1_000_000
        # whole episodes come from all of the learning
        assert composed("collect", [f"experiment={name}"]).transitions <= tier.learner.steps
    assert Path(composed("collect", ["experiment=learner_5"]).root).name == "learner_5"
