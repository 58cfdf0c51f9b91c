"""Which checkpoints stay, by what score, and that a stop does not change the choice."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from jowa.learning.checkpoint import Checkpoint, complete, save
from jowa.learning.retention import Score, best, kept


def scored(step: int, mean: float | None, phase: str = "a", **more: Any) -> Checkpoint:
    state = {
        "position": {"phase": phase, "done": more.pop("done", [])},
        "score": {"metric": more.pop("metric", "loss/total"), "mean": mean},
    }
    return Checkpoint(step, state, {"model": {"x": torch.zeros(1)}})


def steps(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in complete(run)]


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    means = {1: 5.0, 2: 1.0, 3: 2.0, 4: None, 5: 3.0, 6: 0.5, 7: 9.0, 8: 9.0}
    expected = {
        1: [1],
        2: [1, 2],
        3: [2, 3],
        4: [2, 3, 4],
        5: [2, 3, 5],
        6: [2, 6],
        7: [2, 6, 7],
        8: [2, 6, 8],
    }
    for step, mean in means.items():
        save(tmp_path, scored(step, mean), keep=1, keep_best=2)
        assert steps(tmp_path) == expected[step]
    chosen = best(complete(tmp_path))
    assert chosen is not None and chosen.name == "step_00000006"


def test_the_choice_is_that_among_all_that_ever_were(tmp_path: Path) -> None:
    """What was pruned early is never missed later; of equals the earlier one stays."""
    rng = random.Random(0)
    means = {step: rng.choice([1.0, 2.0, 3.0, 4.0]) for step in range(1, 30)}
    for step, mean in means.items():
        save(tmp_path, scored(step, mean), keep=2, keep_best=3)
        ever = sorted(range(1, step + 1), key=lambda s: (means[s], s))
        assert set(steps(tmp_path)) == {*ever[:3], step, max(1, step - 1)}


def test_phases_and_metrics_are_ranked_by_themselves(tmp_path: Path) -> None:
    save(tmp_path, scored(1, 0.1, "a"), 1, 1)
    save(tmp_path, scored(2, 0.2, "a"), 1, 1)
    save(tmp_path, scored(3, 7.0, "b", done=["a"]), 1, 1)
    save(tmp_path, scored(4, 8.0, "b", done=["a"]), 1, 1)
    assert steps(tmp_path) == [1, 3, 4]
    assert best(complete(tmp_path)) == complete(tmp_path)[1]
    # From here on another metric decides, and says nothing against those of the old one.
    save(tmp_path, scored(5, 100.0, "b", metric="q/td"), 1, 1)
    save(tmp_path, scored(6, 200.0, "b", metric="q/td"), 1, 1)
    assert steps(tmp_path) == [1, 3, 5, 6]
    assert best(complete(tmp_path)) == complete(tmp_path)[2]


def test_the_end_of_a_phase_stays(tmp_path: Path) -> None:
    save(tmp_path, scored(1, 1.0, "a"), 1)
    save(tmp_path, scored(2, 2.0, "a", done=["a"]), 1)
    for step in (3, 4, 5):
        save(tmp_path, scored(step, 3.0, "b", done=["a"]), 1)
    assert steps(tmp_path) == [2, 5]


def test_a_damaged_checkpoint_is_never_the_best_and_stops_nothing(tmp_path: Path) -> None:
    for step, mean in ((1, 0.1), (2, 0.2), (3, 0.3)):
        save(tmp_path, scored(step, mean), keep=3)
    (complete(tmp_path)[0] / "state.json").write_text('{"position": ')
    assert best(complete(tmp_path)) == complete(tmp_path)[1]
    save(tmp_path, scored(4, 0.4), keep=1, keep_best=1)
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("keep_best", [0, 3])
def test_the_newest_always_stays(tmp_path: Path, keep_best: int) -> None:
    for step in range(1, 8):
        save(tmp_path, scored(step, float(step)), 1, keep_best)
        assert steps(tmp_path)[-1] == step
    assert complete(tmp_path)[-1] in kept(complete(tmp_path), 1, keep_best)


VALUES = [0.1, 0.7, 1e-9, 3.3, 0.30000000000000004, 2.0]


@pytest.mark.parametrize("stops", list(itertools.combinations(range(1, 6), 2)))
def test_a_score_goes_on_through_stops_bit_for_bit(stops: tuple[int, int]) -> None:
    straight = Score("loss/total")
    for value in VALUES:
        straight.add({"loss/total": value, "other": 9.0})
    broken = Score("loss/total")
    for step, value in enumerate(VALUES):
        if step in stops:
            saved = json.loads(json.dumps(broken.state(scheduled=False)))
            assert saved["mean"] is None
            broken = Score.going_on("loss/total", saved)
        broken.add({"loss/total": value})
    assert broken.state(scheduled=True) == straight.state(scheduled=True)
    assert straight.state(True)["mean"] == sum(VALUES) / len(VALUES)


def test_a_score_starts_anew_after_a_scheduled_checkpoint_or_with_another_metric() -> None:
    score = Score("loss/total")
    assert score.state(scheduled=True)["mean"] is None
    score.add({"loss/total": 2.0})
    score.add({"q/td": 5.0})
    assert score.state(scheduled=True)["mean"] == 2.0
    fresh = Score("loss/total")
    assert Score.going_on("loss/total", score.state(scheduled=True)) == fresh
    assert Score.going_on("q/td", score.state(scheduled=False)) == Score("q/td")
    assert Score.going_on("loss/total", None) == fresh
