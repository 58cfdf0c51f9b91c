"""The recipes of data: they fill their configuration and name games that can be played so."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from jowa import games
from jowa.cli import composed, config_folder
from jowa.collecting.behaviours import Tier
from jowa.collecting.learner import LearnerConfig
from jowa.collecting.recipe import Recipe
from jowa.collecting.teachers import TEACHERS
from jowa.models.released import PRETRAINED_GAMES
from jowa.planning.config import PlannerConfig

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
    fifteen = composed("collect", ["experiment=learner_15"])
    assert tuple(fifteen.games) == PRETRAINED_GAMES
    held_out = composed("collect", ["experiment=learner_15_expert"]).games
    assert held_out == composed("convert dqn_replay", ["experiment=dqn_replay_expert"]).games
    assert len(held_out) == 5 and not set(held_out) & set(PRETRAINED_GAMES)
    for name in ("learner_5", "learner_15", "learner_15_expert"):
        (tier,) = OmegaConf.to_object(composed("collect", [f"experiment={name}"])).tiers
        assert tier.behaviour == "learner" and tier.learner.steps >= 1_000_000
        # whole episodes come from all of the learning
        assert composed("collect", [f"experiment={name}"]).transitions <= tier.learner.steps
        assert Path(composed("collect", [f"experiment={name}"]).root).name == name


def test_experts_have_learned_and_as_the_others_did() -> None:
    (expert,) = composed("collect", ["experiment=learner_15_expert"]).tiers
    (other,) = composed("collect", ["experiment=learner_15"]).tiers
    assert expert.learner.last == 0.05 and other.learner.last == 1.0
    other.learner.last = 0.05
    assert expert.learner == other.learner


def test_a_recipe_from_before_a_learner_could_be_an_expert_is_the_same() -> None:
    def learners(last: float) -> Recipe:
        tier = Tier("learner", "learner", 1.0, learner=LearnerConfig(last=last))
        return Recipe(100, (tier,), 50, 0.0, 4000, 0, 50)

    assert "last" not in learners(1.0).provenance()["tiers"][0]["learner"]
    assert learners(1.0).digest() != learners(0.5).digest()


def test_a_recipe_from_before_planners_could_be_cautious_is_the_same() -> None:
    def agents(**options: float) -> Recipe:
        tier = Tier("agent", "agent", 1.0, checkpoint="x", planner=PlannerConfig(**options))
        return Recipe(100, (tier,), 50, 0.0, 4000, 0, 50)

    planner = agents().provenance()["tiers"][0]["planner"]
    assert not {"rewards", "reward_weight", "caution"} & set(planner)
    assert agents().digest() != agents(caution=1.0).digest()


def test_a_recipe_from_before_teachers_could_be_slow_is_the_same() -> None:
    def teachers(**options: int) -> Recipe:
        return Recipe(100, (Tier("slow", "scripted", 1.0, **options),), 50, 0.0, 4000, 0, 50)

    assert "reaction_steps" not in teachers().provenance()["tiers"][0]
    assert teachers().digest() != teachers(reaction_steps=3).digest()
