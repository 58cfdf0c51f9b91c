"""A folder of episode files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jowa.data.episodes import END_TERMINAL, EpisodeWriter
from jowa.data.store import open_store
from jowa.errors import UserError
from jowa.games import get


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
