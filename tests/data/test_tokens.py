"""Stored tokens: used again only where tokenizer and data are the same and the file is whole."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jowa.data.episodes import END_TERMINAL, EpisodeFile, EpisodeWriter
from jowa.data.tokens import encode_store
from jowa.errors import UserError
from jowa.games import get

PRINT = "a" * 64


class Tokenizer:
    """Counts its calls; tokens are pixel 0 plus the game's id."""

    def __init__(self, shift: int = 0, fail_at: int | None = None) -> None:
        self.shift, self.fail_at = shift, fail_at
        self.frames = 0

    def __call__(self, frames: np.ndarray, game: int) -> np.ndarray:
        assert frames.dtype == np.uint8 and frames.shape[1:] == (84, 84)
        self.frames += len(frames)
        if self.fail_at is not None and self.frames > self.fail_at:
            raise KeyboardInterrupt
        tokens = frames[:, 0, :36].astype(np.int64) + game + self.shift
        return tokens


def _file(path: Path, steps: int, seed: int = 0) -> EpisodeFile:
    frames = np.random.default_rng(seed).integers(0, 256, (steps, 84, 84), dtype=np.uint8)
    with EpisodeWriter(path, get(path.stem), source="a test") as writer:
        writer.add(frames, np.zeros(steps, np.uint8), np.zeros(steps, np.float32), END_TERMINAL)
    return EpisodeFile(path)


def _expected(file: EpisodeFile, shift: int = 0) -> np.ndarray:
    frames = file.frames(np.arange(file.num_transitions))
    return frames[:, 0, :36].astype(np.uint16) + file.game.id + shift


@pytest.fixture
def files(tmp_path: Path) -> list[EpisodeFile]:
    return [_file(tmp_path / "Pong.h5", 1100), _file(tmp_path / "Qbert.h5", 40)]


def test_tokens_are_made_once(files: list[EpisodeFile], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = Tokenizer()
    tokens = encode_store(
        files, first, PRINT, tmp_path / "tokens", progress=lambda *news: seen.append(news)
    )
    again = Tokenizer()
    stored = encode_store(files, again, PRINT, tmp_path / "tokens")
    for file, made, read in zip(files, tokens, stored, strict=True):
        assert isinstance(read, np.memmap) and read.dtype == np.uint16
        np.testing.assert_array_equal(made, _expected(file))
        np.testing.assert_array_equal(read, made)
    assert (first.frames, again.frames) == (1140, 0)
    assert seen == [("Pong", 1024, 1100), ("Pong", 1100, 1100), ("Qbert", 40, 40)]


def test_another_tokenizer_or_other_data_never_gets_old_tokens(
    files: list[EpisodeFile], tmp_path: Path
) -> None:
    encode_store(files, Tokenizer(), PRINT, tmp_path)
    (other, _) = encode_store(files, Tokenizer(shift=5), "b" * 64, tmp_path)
    np.testing.assert_array_equal(other, _expected(files[0], 5))
    changed = _file(tmp_path / "Pong.h5", 1100, seed=1)
    (new,) = encode_store([changed], Tokenizer(), PRINT, tmp_path)
    np.testing.assert_array_equal(new, _expected(changed))


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "shape", "dtype", "text"])
def test_a_torn_or_foreign_file_is_made_anew(
    files: list[EpisodeFile], tmp_path: Path, damage: str
) -> None:
    encode_store(files, Tokenizer(), PRINT, tmp_path)
    (path,) = (tmp_path / PRINT[:16]).glob("Pong-*.npy")
    whole = path.read_bytes()
    if damage == "shape":
        np.save(path, np.zeros((1099, 36), np.uint16))
    elif damage == "dtype":
        np.save(path, np.zeros((1100, 36), np.int32))
    else:
        torn = {"empty": b"", "cut": whole[:-1], "longer": whole + b"x", "text": b"hello" * 99}
        path.write_bytes(torn[damage])
    tokenizer = Tokenizer()
    (tokens, _) = encode_store(files, tokenizer, PRINT, tmp_path)
    np.testing.assert_array_equal(tokens, _expected(files[0]))
    assert tokenizer.frames == 1100
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(np.load(path), tokens)  # an ordinary .npy file


def test_an_interruption_leaves_nothing_half_done(files: list[EpisodeFile], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode_store(files, Tokenizer(fail_at=1050), PRINT, tmp_path)
    assert os.listdir(tmp_path / PRINT[:16]) == []


def test_an_unwritable_root_is_told(files: list[EpisodeFile], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write tokens"):
        encode_store(files, Tokenizer(), PRINT, tmp_path / "tokens")
