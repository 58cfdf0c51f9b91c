"""A trained agent as the player of a tier."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jowa
from jowa.collecting import playing
from jowa.collecting.behaviours import Tier, behaviour_of
from jowa.collecting.collect import collect
from jowa.collecting.scene import Scene
from jowa.data.episodes import EpisodeFile
from jowa.envs import AtariEnv
from jowa.errors import UserError
from jowa.games import get
from jowa.learning.checkpoint import Checkpoint, find, save
from jowa.models.tokenizers import to_state
from jowa.planning import decode
from jowa.planning.config import PlannerConfig

SETTINGS: dict[str, Any] = {
    "transitions": 120,
    "short_episode_steps": 15,
    "short_share": 0.5,
    "max_frames": 80,
    "seed": 0,
}


@pytest.fixture
def run(tmp_path: Path, make_tokenizer: Callable[..., Any], make_model: Callable[..., Any]) -> Path:
    """A run directory of an untrained agent that knows Pong."""
    tokenizer, model = make_tokenizer(), make_model(scale=5.0)
    state = {
        "tokenizer": to_state(tokenizer.config),
        "model": dataclasses.asdict(model.config),
        "games": ["Pong"],
    }
    tensors = {"model": model.state_dict(), "tokenizer": tokenizer.state_dict()}
    save(tmp_path / "run", Checkpoint(0, state, tensors), keep=1)
    return tmp_path / "run"


def collected(root: Path, run: Path, epsilon: float = 0.0) -> EpisodeFile:
    tier = Tier("agent", "agent", 1.0, epsilon=epsilon, checkpoint=str(run))
    collect(["Pong"], root, tiers=[tier], **SETTINGS)
    return EpisodeFile(root / "Pong.h5")


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_lockstep_play_is_what_the_agent_does_alone(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, epsilon: float
) -> None:
    monkeypatch.setattr(playing, "_LANE_STEPS", 15)  # four games at once
    agent = jowa.load(run)
    same: list[bool] = []
    with collected(tmp_path / "data", run, epsilon) as file:
        games = np.array([file.game.id])
        for start, stop in zip(file.episode_starts[:-1], file.episode_starts[1:], strict=True):
            agent.reset(np.array([True]))
            for row in range(start, stop):
                same.append(agent.act(file.frames(np.array([row])), games)[0] == file.actions[row])
                agent.executed(file.actions[row : row + 1].astype(np.int64))
        assert len(set(file.actions)) > 1, "the test must be able to fail"
        assert file.num_episodes >= 8 and "a trained agent" in file.source
    # What noise replaced is known to the agent: it goes on from what was really done.
    assert np.mean(same) == pytest.approx(1.0 - epsilon * 5 / 6, abs=0.1 if epsilon else 0.0)


def test_the_clock_has_no_say_in_what_a_planner_plays(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing the ways to decode a frame would round otherwise on another day."""

    def clock(device: torch.device) -> float:
        raise AssertionError("something was timed")

    planner = PlannerConfig(beam_width=2, horizon=1, context=2)
    tier = Tier("agent", "agent", 1.0, checkpoint=str(find(run)), planner=planner)
    monkeypatch.setattr(decode, "_now", clock)
    behaviour = behaviour_of(tier, get("Pong"), np.random.default_rng(0), 1, "cpu")
    env = AtariEnv(get("Pong"))
    scene = Scene(env, env.reset(0), None)
    assert behaviour.act({0: scene})[0] in get("Pong").action_ids


def test_the_weights_name_an_agent_wherever_they_lie(tmp_path: Path, run: Path) -> None:
    with collected(tmp_path / "data", run) as file:
        (tier,) = file.provenance["tiers"]
        assert set(tier["checkpoint"]) == {"model", "tokenizer"}
        assert file.facts["checkpoints"]["agent"].startswith(str(run))
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    tiers = [Tier("agent", "agent", 1.0, checkpoint=str(moved))]
    kept = collect(["Pong"], tmp_path / "data", tiers=tiers, **SETTINGS)
    assert kept["Pong"]["status"] == "kept"


def test_an_agent_does_not_play_what_it_never_saw(tmp_path: Path, run: Path) -> None:
    tiers = [Tier("agent", "agent", 1.0, checkpoint=str(run))]
    with pytest.raises(UserError, match="never trained on Breakout"):
        collect(["Pong", "Breakout"], tmp_path / "data", tiers=tiers, **SETTINGS)
    with pytest.raises(UserError, match="device"):
        collect(["Pong"], tmp_path / "data", tiers=tiers, **SETTINGS, device="gpu")
    assert not (tmp_path / "data").exists()
