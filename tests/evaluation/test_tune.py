"""Choosing settings: the rule, seeds of its own, and what an evaluation says of the choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jowa.cli import main
from jowa.evaluation import journal, tune
from jowa.evaluation.tune import Setting, choose

GREEDY, SMALL, LARGE = Setting(4, 1, 0), Setting(4, 2, 1), Setting(4, 4, 2)
CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]
RunMaker = Callable[..., Path]


def chosen(scores: dict[Setting, dict[str, list[float]]], confidence: float = 0.95) -> Setting:
    candidates = list(scores)
    arrays = [{g: np.array(raw) for g, raw in each.items()} for each in scores.values()]
    return candidates[choose(candidates, arrays, confidence)]


def test_costs_are_imagined_frames_and_then_context() -> None:
    assert [s.imagined_frames for s in (GREEDY, SMALL, LARGE, Setting(4, 2, 3))] == [0, 2, 20, 10]
    assert Setting(2, 2, 1).cost < SMALL.cost < Setting(8, 4, 1).cost < LARGE.cost


def test_only_a_clear_gain_pays_for_a_dearer_setting() -> None:
    base = [10.0, 40.0, 20.0, 30.0, 25.0, 15.0, 35.0, 22.0]
    noisy = {"Pong": [28.0, 22.0, 38.0, 14.0, 44.0, 3.0, 30.0, 25.0]}
    better = {"Pong": [score + 1.0 for score in base]}
    assert np.mean(noisy["Pong"]) > np.mean(base)
    plain = {"Pong": base}
    assert chosen({LARGE: noisy, GREEDY: plain}) == GREEDY
    # In pairs a small gain is clear though it is far less than the spread of the scores.
    assert chosen({LARGE: better, GREEDY: plain}) == LARGE
    assert chosen({LARGE: better, SMALL: better, GREEDY: plain}) == SMALL
    assert chosen({LARGE: noisy, GREEDY: plain}, confidence=0.0) == LARGE
    assert chosen({LARGE: plain, SMALL: plain, GREEDY: plain}, confidence=0.0) == GREEDY


def test_several_games_are_judged_by_the_mean_of_human_normalised_scores() -> None:
    """A point of Pong is worth 1/35.3 of the way to a human, one of Breakout 1/28.8, one of
    SpaceInvaders 1/1520.7: a thousand of the last do not outweigh thirty-five of the first."""
    worse = {"Pong": [15.0, 15.0], "SpaceInvaders": [100.0, 100.0]}
    better = {"Pong": [-20.0, -20.0], "SpaceInvaders": [1100.0, 1100.0]}
    assert chosen({GREEDY: worse, LARGE: better}) == GREEDY
    assert chosen({GREEDY: better, LARGE: worse}) == LARGE


def arguments(run: Path, out: Path, *more: str) -> list[str]:
    play = ["episodes=3", "envs_per_game=3", "max_frames=100", "confidence=0"]
    grid = ["contexts=[1,3]", "beam_widths=[2]", "horizons=[0,1]"]
    return ["tune", f"checkpoint={run}", f"out={out}", *play, *grid, *CPU, *more]


def evaluation(run: Path, out: Path, *more: str) -> list[str]:
    play = ["episodes=1", "max_frames=40", "baselines=false"]
    return ["evaluate", f"checkpoint={run}", f"out={out}", *play, *CPU, *more]


def content(out: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(out.read_text())
    for candidate in stored["candidates"]:
        assert candidate.pop("seconds_per_1000_decisions") > 0
    return stored


def test_the_choice_follows_from_the_scores_and_an_evaluation_uses_and_says_it(
    tmp_path: Path, make_run: RunMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make_run(seed=1), tmp_path / "tuned.json"
    assert main(arguments(run, out, "per_game=true")) == 0
    stored = content(out)
    grid = [[c["context"], c["beam_width"], c["horizon"]] for c in stored["candidates"]]
    assert grid == [[1, 1, 0], [3, 1, 0], [1, 2, 1], [3, 2, 1]], "cheapest first"
    different = set()
    for game, setting in stored["settings"].items():
        means = [np.mean(c["scores"][game]) for c in stored["candidates"]]
        different |= set(means)
        assert setting == grid[int(np.argmax(means))]
    assert len(different) > 2
    assert stored["seed"] == 1_000_000_000
    assert not (tmp_path / "tuned.json.journal").exists()
    scores = tmp_path / "scores.json"
    assert main(evaluation(run, scores, f"tuned={out}")) == 0
    note = "tuned for each game on seed 1000000000 (3 episodes a game, cap of 100 frames), reported"
    assert f"{note} on seed 1000" in capsys.readouterr().out
    settings = json.loads(scores.read_text())["evaluations"][0]["settings"]
    assert settings["context_beam_width_horizon"] == stored["settings"]
    assert note in settings["note"]
    assert main(["report", f"out={tmp_path}/report", f"scores=[{scores}]"]) == 0
    assert note in (tmp_path / "report" / "report.md").read_text()
    # With other weights that is said too, and a game it was not tuned for is refused.
    assert main(evaluation(make_run(seed=2), scores, f"tuned={out}")) == 0
    assert "with other weights" in capsys.readouterr().out
    stored["settings"] = {"Boxing": [1, 1, 0]}
    out.write_text(json.dumps(stored))
    assert main(evaluation(run, scores, f"tuned={out}")) == 2
    assert "no setting for Alien" in capsys.readouterr().err


def test_a_stopped_choice_goes_on_to_the_same_file_and_a_finished_one_is_kept(
    tmp_path: Path,
    make_run: RunMaker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, straight, out = make_run(seed=1), tmp_path / "straight.json", tmp_path / "tuned.json"
    with monkeypatch.context() as patch:
        patch.setattr(journal, "WRITE_EVERY", 0.0)
        patch.setattr(tune, "discard", lambda *_: None)
        assert main(arguments(run, straight)) == 0
    finished = straight.with_name("straight.json.journal")
    parts = sorted(finished.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert len(parts) == 8, "four settings on two games"
    folder = tmp_path / "tuned.json.journal"
    folder.mkdir()
    for path in parts[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    whole = parts[5].read_bytes()
    (folder / parts[5].name).write_bytes(whole[: len(whole) // 2])
    assert main(arguments(run, out)) == 0
    assert content(out) == content(straight)
    # One setting for all games, as an evaluation of any game takes it.
    assert len({tuple(setting) for setting in content(out)["settings"].values()}) == 1
    before = out.stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments(run, out)) == 0
    assert "kept: " in capsys.readouterr().out and out.stat().st_mtime_ns == before
    scores = tmp_path / "scores.json"
    assert main(evaluation(run, scores, f"tuned={out}", "games=[Boxing]")) == 0
    assert "tuned for all games together on seed 1000000000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("episodes=1", ["episodes is 1", "at least 2"]),
        ("contexts=[]", ["contexts is empty"]),
        ("horizons=[0,7]", ["horizon 7", "context 3"]),
        ("beam_widths=[0]", ["beam_width is 0"]),
        ("confidence=1", ["confidence is 1"]),
        ("seed=-1", ["seed is -1"]),
        ("planner=mcts", ["planner=beam"]),
        ("games=[Pong]", ["never trained on Pong"]),
        ("out=OUT", ["not a readable file of `jowa tune`"]),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    tmp_path: Path,
    make_run: RunMaker,
    capsys: pytest.CaptureFixture[str],
    change: str,
    words: list[str],
) -> None:
    out = tmp_path / "out" / "tuned.json"
    if change == "out=OUT":
        out = tmp_path / "other.json"
        out.write_text("{}")
        change = "seed=0"
    assert main(arguments(make_run(), out, change)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()
