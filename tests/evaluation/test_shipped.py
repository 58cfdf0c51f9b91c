"""The agent that comes with jowa plays, straight after install, better than chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jowa
from jowa.cli import main
from jowa.evaluation.baselines import RandomPolicy
from jowa.evaluation.rollout import play
from jowa.learning.checkpoint import load, shipped

NAME = "nano"
# By game, how far its mean score must be above random play's on the same seeds. Measured: 15.9
# against -3.5 in Boxing, 9.6 against 1.1 in Breakout.
MARGINS = {"Boxing": 10.0, "Breakout": 5.0}
EPISODES = 8
MAX_FRAMES = 2_000
SEED = 1000
CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]


def test_it_is_small_and_says_what_it_is() -> None:
    file = shipped()[NAME]
    assert file.stat().st_size < 12_000_000
    state = load(file).state
    assert set(MARGINS) <= set(state["games"]) <= set(jowa.games.GAMES)
    assert state["position"]["step"] > 0 and len(state["versions"]["git"]) == 40


@pytest.mark.parametrize("game", MARGINS)
def test_it_plays_better_than_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, game: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing is called like it
    limits = [f"episodes={EPISODES}", f"max_frames={MAX_FRAMES}", f"seed={SEED}"]
    command = ["evaluate", f"checkpoint={NAME}", f"games=[{game}]", "planner=greedy"]
    assert main([*command, *limits, "baselines=false", "out=scores.json", *CPU]) == 0
    (evaluation,) = json.loads(Path("scores.json").read_text())["evaluations"]
    assert evaluation["checkpoint"] == NAME
    scores = evaluation["games"][game]["scores"]
    protocol = {"episodes": EPISODES, "envs_per_game": 8, "max_frames": MAX_FRAMES}
    random = play(RandomPolicy(SEED), [jowa.games.get(game)], seed=SEED, **protocol)
    chance = [result.score for result in random]
    assert np.mean(scores) > np.mean(chance) + MARGINS[game], (scores, chance)
