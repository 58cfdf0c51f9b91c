"""`jowa data verify` names all damage, and only damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from jowa.cli import main
from jowa.data.check import check_store, leftovers
from jowa.data.episodes import EpisodeFile
from jowa.data.store import store_paths
from jowa.data.tokens import encode_store


@pytest.fixture
def store(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the real data, with tokens of its own."""
    root = tmp_path / "data"
    shutil.copytree(data_root, root, ignore=shutil.ignore_patterns("tokens"))
    with EpisodeFile(root / "Pong.h5") as file:
        encode_store(
            [file],
            lambda frames, _: np.zeros((len(frames), 36), np.int64),
            "ab" * 32,
            root / "tokens",
        )
    return root


def _flip(path: Path, part: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 1
    path.write_bytes(content)


def test_a_whole_store_passes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "Pong.h5.tmp-host-12-0").write_bytes(b"half")
    (store / "tokens" / "x.npy.tmp-host.example-12-3").write_bytes(b"half")
    (store / "Qbert.h5.parts").mkdir()
    assert main(["data", "verify", f"root={store}"]) == 0
    text = capsys.readouterr().out
    assert "checked 3 files" in text and "every frame matches" in text
    for leftover in ("Pong.h5.tmp-host-12-0", "x.npy.tmp-host.example-12-3", "Qbert.h5.parts"):
        assert leftover in text
    assert len(leftovers(store)) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_every_damaged_file_is_named(
    store: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    _flip(store / "Breakout.h5", 0.5)  # frames, or the metadata between them
    (store / "Freeway.h5").write_bytes((store / "Freeway.h5").read_bytes()[:-100])
    assert main(["data", "verify", f"root={store}", f"workers={workers}"]) == 2
    said = capsys.readouterr()
    for name in ("Breakout", "Freeway"):
        assert f"{name}.h5 is damaged" in said.out
    assert "Pong.h5" not in said.out
    assert said.err.splitlines()[-1].startswith("jowa: error: 2 of 3 games")
    assert main(["data", "verify", f"root={store}", "games=[Pong]"]) == 0


def test_any_flipped_byte_in_the_frames_is_found(store: Path) -> None:
    whole = (store / "Pong.h5").read_bytes()
    for part in np.linspace(0.1, 0.9, 9):
        (store / "Pong.h5").write_bytes(whole)
        _flip(store / "Pong.h5", float(part))
        (checked,) = check_store(store, [store / "Pong.h5"], workers=1)
        assert checked.problems or _same_content(store / "Pong.h5", whole), part


def _same_content(path: Path, whole: bytes) -> bool:
    """Whether a flipped byte lies in what HDF5 leaves unused."""
    other = path.with_name("whole.h5")
    other.write_bytes(whole)
    with EpisodeFile(path) as file, EpisodeFile(other) as reference:
        rows = np.arange(reference.num_transitions)
        return file.fingerprint == reference.fingerprint and bool(
            (file.frames(rows) == reference.frames(rows)).all()
        )


def test_torn_tokens_and_a_file_of_another_game_are_damage(store: Path) -> None:
    (tokens,) = store.glob("tokens/*/*.npy")
    tokens.write_bytes(tokens.read_bytes()[:-1])
    shutil.move(store / "Breakout.h5", store / "Qbert.h5")
    found = {
        checked.path.stem: " ".join(checked.problems)
        for checked in check_store(store, store_paths(store), workers=1)
    }
    assert found["Freeway"] == ""
    assert str(tokens) in found["Pong"] and "holds Breakout" in found["Qbert"]


def test_progress_counts_every_frame(store: Path) -> None:
    read: list[int] = []
    checked = list(check_store(store, store_paths(store), 1, read.append))
    assert sum(read) * 84 * 84 == sum(one.frame_bytes for one in checked) > 0
