"""What a run keeps: scores of its checkpoints, the best of them, and a record of every start."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch

from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.learning.checkpoint import complete, load, newest
from jowa.learning.record import starts
from jowa.learning.trainer import Stopped, Trainer

Experiment = Callable[..., Trainer]
STEPS = 7  # of each phase


def scores(run: Path) -> dict[int, float | None]:
    """Of every checkpoint there is, by its step."""
    return {saved.step: saved.state["score"]["mean"] for saved in map(load, complete(run))}


def test_the_score_is_the_mean_over_the_steps_since_the_checkpoint_before(
    tmp_path: Path, two_phases: Experiment
) -> None:
    two_phases(tmp_path / "run", keep=99)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss/total"] for line in lines]
    expected = {step: sum(losses[first:step]) / (step - first) for first, step in SPANS}
    assert scores(tmp_path / "run") == pytest.approx(expected, rel=1e-12)


SPANS = [(0, 3), (3, 6), (6, 7), (7, 10), (10, 13), (13, 14)]


@pytest.mark.parametrize("stop", [2, 3, 8])
def test_stops_do_not_change_which_checkpoints_are_the_best(
    tmp_path: Path, two_phases: Experiment, stop: int
) -> None:
    keeping = {"keep": 1, "keep_best": 2, "best_metric": "world_model/reward"}
    two_phases(tmp_path / "all", keep=99, best_metric="world_model/reward")
    two_phases(tmp_path / "straight", **keeping)

    def terminate(step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        two_phases(tmp_path / "stopped", terminate, **keeping)
    two_phases(tmp_path / "stopped", **keeping)
    every = scores(tmp_path / "all")
    first = sorted((mean, step) for step, mean in every.items() if step <= STEPS)
    second = sorted((mean, step) for step, mean in every.items() if step > STEPS)
    stay = {step for _, step in first[:2] + second[:2]} | {STEPS, 2 * STEPS}
    assert scores(tmp_path / "straight") == {step: every[step] for step in sorted(stay)}
    assert scores(tmp_path / "stopped") == scores(tmp_path / "straight")


def test_a_metric_that_is_not_logged_is_refused_at_once(
    tmp_path: Path, two_phases: Experiment
) -> None:
    with pytest.raises(UserError, match=r"'q/tdd', which first does not log: .*loss/total") as told:
        two_phases(tmp_path / "run", keep_best=1, best_metric="q/tdd")
    assert "\n" not in str(told.value)
    assert newest(tmp_path / "run") is None
    # Where the best are not kept it does not matter.
    two_phases(tmp_path / "run", best_metric="q/tdd")
    assert set(scores(tmp_path / "run").values()) == {None}


def test_every_start_is_written_down(
    tmp_path: Path, two_phases: Experiment, data: list[EpisodeFile]
) -> None:
    def terminate(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        two_phases(tmp_path / "run", terminate)
    (first,) = starts(tmp_path / "run")
    two_phases(tmp_path / "run")
    two_phases(tmp_path / "run")  # finished: nothing starts
    again, second = starts(tmp_path / "run")
    assert again == first
    assert (first["step"], first["phase"]) == (0, "first")
    assert (second["step"], second["phase"]) == (9, "second")
    assert first["data"] == {file.game.name: file.fingerprint for file in data}
    assert first["command"] == sys.argv and first["seed"] == 1
    assert first["versions"]["torch"] == torch.__version__
    assert first["device"] == "cpu" and first["processes"] == 1
    assert first["machine"]["cores"] >= 1 and first["machine"]["cpu"]
    assert datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 3}', '{"start": []}'])
def test_a_damaged_record_is_not_overwritten(
    tmp_path: Path, two_phases: Experiment, content: str
) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        two_phases(tmp_path)
    assert (tmp_path / "run.json").read_text() == content
