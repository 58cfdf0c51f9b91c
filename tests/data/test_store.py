"""A folder of episode files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jowa.data.episodes import END_TERMINAL, EpisodeWriter
from jowa.data.store import open_store
from jowa.errors import UserError
from jowa.games import get
from jowa.learning.run import open_data


def test_a_store_without_a_game_says_what_is_there(tmp_path: Path) -> None:
    frames = np.zeros((2, 84, 84), dtype=np.uint8)
    with EpisodeWriter(tmp_path / "Pong.h5", get("Pong"), source="a test") as writer:
        writer.add(frames, np.zeros(2), np.zeros(2), END_TERMINAL)
    (tmp_path / "Qbert.h5.tmp-host-1-0").write_bytes(b"half")
    with pytest.raises(UserError) as error:
        open_store(tmp_path, ["Pong", "Qbert"])
    message = str(error.value)
    assert "no episodes of Qbert" in message and "(there: Pong)" in message
    assert str(tmp_path) in message and "jowa collect games=[Qbert]" in message
    with pytest.raises(UserError, match="there: nothing"):
        open_store(tmp_path / "nowhere", ["Pong"])
    with pytest.raises(UserError, match="did you mean"):
        open_store(tmp_path, ["Ponk"])
    (file,) = open_store(tmp_path, ["Pong"])
    assert file.game.name == "Pong"
    file.close()


def test_positions_in_a_games_own_set_are_told_from_actions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pong's six actions are 0, 1, 3, 4, 11 and 12 of the 18; its own numbers are 0 to 5."""
    for name, actions in (("right", [0, 1, 3, 4, 11, 12]), ("wrong", range(6))):
        path = tmp_path / name / "Pong.h5"
        with EpisodeWriter(path, get("Pong"), source="a test") as writer:
            writer.add(np.zeros((6, 84, 84), np.uint8), np.array(actions), np.zeros(6), 0)
        open_data(str(path.parent), ["Pong"], 1.0)
        said = capsys.readouterr().out
        assert ("33% of the actions" in said and str(path) in said) == (name == "wrong"), said
