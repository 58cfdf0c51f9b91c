"""`jowa runs`: what it says of runs of every kind, whole and damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jowa.cli import main
from jowa.learning.checkpoint import Checkpoint, newest, save
from jowa.learning.config import (
    DataConfig,
    FinetuneConfig,
    ImportWeightsConfig,
    PhaseConfig,
    PretrainConfig,
    TokenizeConfig,
)

GAMES = ["Pong", "Freeway", "Boxing", "Breakout"]
PRETRAIN = PretrainConfig(
    data=DataConfig(games=GAMES), stage1=PhaseConfig(steps=4), stage2=PhaseConfig(steps=6)
)


def write_run(
    run: Path, config: Any, phase: str = "", done: tuple[str, ...] = (), step: int = 0
) -> Path:
    """A run as training leaves it, with checkpoints of the last three steps and an old log."""
    run.mkdir(parents=True)
    plain = dataclasses.asdict(config)
    (run / "config.json").write_text(json.dumps(plain))
    for at in range(max(1, step - 2), step + 1):
        state = {
            "config": plain,
            "games": GAMES,
            "position": {
                "step": at,
                "phase": phase,
                "phase_step": at,
                "done": list(done) if at == step else [],
                "seconds": 60.0 * at,
            },
            "score": {"metric": "loss/total", "mean": abs(at - step + 1) + 0.5},
        }
        save(run, Checkpoint(at, state, {"model": {"x": torch.arange(30000.0)}}), keep=9)
    for at in range(1, step + 1):
        log(run, step=at, phase=phase, seconds=60.0 * at, **{"loss/total": 1.0 / at})
    age(run, 3600)
    return run


def log(run: Path, **line: Any) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def age(run: Path, seconds: float) -> None:
    """Lets the run's log be as old as that."""
    if (path := run / "metrics.jsonl").exists():
        os.utime(path, (time.time() - seconds,) * 2)


def listed(capsys: pytest.CaptureFixture[str], root: Path) -> dict[str, dict[str, str]]:
    """The table by run and column; of a damaged run its whole line, as `damaged`."""
    capsys.readouterr()
    assert main(["runs", f"root={root}"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    _, *lines = output.out.splitlines()
    found: dict[str, dict[str, str]] = {}
    starts: dict[str, int] = {}
    for line in lines:
        if "damaged:" in line:
            found[line.split()[0]] = {"damaged": line}
        elif not starts:
            starts = {name: line.index(name) for name in line.split()}
        else:
            ends = [*list(starts.values())[1:], len(line)]
            cells = {n: line[a:b].strip() for (n, a), b in zip(starts.items(), ends, strict=True)}
            found[cells["run"]] = cells
    return found


def test_runs_of_every_kind_and_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "done", PRETRAIN, "stage2", ("stage1", "stage2"), 10)
    write_run(tmp_path / "deep" / "er" / "stopped", PRETRAIN, "stage2", ("stage1",), 7)
    going = write_run(tmp_path / "going", PRETRAIN, "stage1", (), 3)
    log(going, step=4, phase="stage1", seconds=300.25, **{"loss/total": 0.125})
    only = dataclasses.replace(PRETRAIN, stage1=PhaseConfig(steps=0))
    write_run(tmp_path / "stage2_only", only, "stage2", ("stage1", "stage2"), 6)
    write_run(tmp_path / "fresh", PRETRAIN)
    training = PhaseConfig(steps=5)
    finetune = FinetuneConfig(game="Tennis", training=training)
    write_run(tmp_path / "tuned", finetune, "finetune", ("finetune",), 5)
    tokenize = TokenizeConfig(data=DataConfig(games=["Pong"]), training=training)
    write_run(tmp_path / "tokens", tokenize, "tokenizer", (), 2)
    imported = {"config": dataclasses.asdict(ImportWeightsConfig()), "games": GAMES[:2]}
    save(tmp_path / "published", Checkpoint(0, imported, {"model": {"x": torch.ones(2)}}), 1)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "scores.json").write_text("{}")

    rows = listed(capsys, tmp_path)
    assert list(rows) == sorted(rows) and "scores" not in rows and len(rows) == 8
    assert rows["done"] | {"size": ""} == {
        "run": "done",
        "kind": "pretrain",
        "games": "Pong,Freeway +2",
        "state": "finished",
        "phase": "stage2",
        "step": "10/10",
        "loss": "0.1",
        "time": "0:10:00",
        "best": "9",
        "last": "10",
        "from": "-",
        "size": "",
    }
    assert float(rows["done"]["size"].split()[0]) > 0
    columns = ("kind", "state", "phase", "step", "loss", "time", "last")
    shown = {name: tuple(row[column] for column in columns) for name, row in rows.items()}
    assert shown["deep/er/stopped"] == (
        *("pretrain", "stopped", "stage2", "7/10", "0.1429", "0:07:00", "7"),
    )
    # The log is ahead of the checkpoint.
    assert shown["going"] == ("pretrain", "going on", "stage1", "4/10", "0.125", "0:05:00", "3")
    assert shown["stage2_only"][1:4] == ("finished", "stage2", "6/6")
    assert shown["fresh"] == ("pretrain", "stopped", "-", "0/10", "-", "0:00:00", "-")
    assert shown["tuned"][:4] == ("finetune", "finished", "finetune", "5/5")
    assert rows["tuned"]["games"] == "Tennis"
    assert shown["tokens"][:4] == ("tokenize", "stopped", "tokenizer", "2/5")
    assert shown["published"] == ("import-weights", "finished", "-", "0/0", "-", "0:00:00", "0")
    assert rows["published"]["games"] == "Pong,Freeway" and rows["published"]["best"] == "-"
    # What is written half does not hide the line before, and a minute makes it stop.
    with (going / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "pha')
    age(going, 61)
    again = listed(capsys, tmp_path)["going"]
    assert (again["state"], again["step"], again["loss"]) == ("stopped", "4/10", "0.125")


def test_a_run_directory_itself_may_be_the_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", PRETRAIN, "stage1", (), 2)
    assert listed(capsys, run)[str(run)]["step"] == "2/10"


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b"[]", "config.json"),
        ("config.json", b'{"stage1": {}}', "KeyError"),
        ("config.json", b'{"x": 1}', "no command"),
        ("config.json", b"\xff\xfe", "config.json"),
        ("run.json", b'{"starts"', "run.json"),
        ("metrics.jsonl", b"nonsense\n", "metrics.jsonl"),
        ("metrics.jsonl", b"[]\n", "metrics.jsonl"),
        ("metrics.jsonl", b'{"step": 3}\n', "metrics.jsonl"),
        ("metrics.jsonl", b'{"step": "x", "phase": 1, "seconds": null}\n', "TypeError"),
        ("{newest}/state.json", b"", "step_00000005 is damaged"),
        ("{newest}/state.json", b'{"format": 3, "step": 5, "sha256": {}}', "KeyError"),
        ("{newest}/model.safetensors", None, "step_00000005 is damaged"),
        ("{newest}/model.safetensors", b"\x10\x00", "step_00000005 is damaged"),
        ("{newest}/model.safetensors", "cut", "step_00000005 is damaged"),
    ],
)
def test_a_damaged_run_is_listed_with_why(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: bytes | str | None,
    named: str,
) -> None:
    run = write_run(tmp_path / "bad", PRETRAIN, "stage1", (), 5)
    write_run(tmp_path / "good", PRETRAIN, "stage1", (), 5)
    checkpoint = newest(run)
    assert checkpoint is not None
    path = run / file.format(newest=checkpoint.relative_to(run))
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(content)
    rows = listed(capsys, tmp_path)
    assert named in rows["bad"]["damaged"]
    assert rows["good"]["step"] == "5/10"


def test_nothing_to_list_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", f"root={tmp_path}"]) == 0
    _, sentence = capsys.readouterr().out.splitlines()
    assert sentence.startswith(f"no runs below {tmp_path}") and "jowa pretrain" in sentence
    (tmp_path / "file").touch()
    for missing in ("nowhere", "file"):
        assert main(["runs", f"root={tmp_path / missing}"]) == 2
        assert f"there is no folder {tmp_path / missing}" in capsys.readouterr().err


def test_listing_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", PRETRAIN, "stage1", (), 5)
    (run / "checkpoints" / ".step_00000009.writing").mkdir()
    shutil.copytree(run / "checkpoints" / "step_00000005", run / "checkpoints" / "step_00000008")
    (run / "checkpoints" / "step_00000008" / "COMPLETE").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert listed(capsys, tmp_path)["run"]["last"] == "5"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
