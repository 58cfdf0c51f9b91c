"""`scripts/foresight.py`: what a world model foresees on held-out episodes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import foresight
import pytest

from jowa.learning.checkpoint import find


def run(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path | str, data: Path, out: Path
) -> list[dict[str, Any]]:
    arguments = [str(checkpoint), "--root", str(data), "--segments", "16", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["foresight.py", *arguments])
    foresight.main()
    return list(json.loads(out.read_text())["rows"])


def holding_out(done: Any, tmp_path: Path, hold_out: int) -> Path:
    """A copy of the pretraining run, as if it had held out one of so many episodes."""
    copy = tmp_path / f"held_{hold_out}"
    shutil.copytree(done["pretrain"], copy)
    path = find(copy) / "state.json"
    state = json.loads(path.read_text())
    state["config"]["data"]["hold_out"] = hold_out
    path.write_text(json.dumps(state))
    return copy


def test_shares_are_of_held_out_episodes_by_game(
    done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run(monkeypatch, holding_out(done, tmp_path, 2), done.data, tmp_path / "f.json")
    assert [row["game"] for row in rows] == ["Pong", "Freeway"]
    for row in rows:
        assert 0 < row["segments"] <= 16 and 0 <= row["tokens"] <= 1
        assert row["gamma"] == 0.99  # that of the run's training


def test_mistakes_are_a_sentence(
    done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.json"
    for checkpoint, words in (
        ("nowhere", "no complete checkpoint in nowhere"),
        (holding_out(done, tmp_path, 1000), "hold_out=1000"),
        (holding_out(done, tmp_path, 0), "held episodes out"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, checkpoint, done.data, out)
        said = capsys.readouterr().err
        assert words in said and len(said.splitlines()) == 1
    assert not out.exists()
