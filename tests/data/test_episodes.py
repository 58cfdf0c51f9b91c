"""Episode files: round trips, damage, interruption and what the user is told."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest

from jowa.data.episodes import (
    END_NONE,
    END_TERMINAL,
    END_TRUNCATED,
    EpisodeFile,
    EpisodeWriter,
)
from jowa.data.store import verify
from jowa.errors import UserError
from jowa.games import get

LENGTHS = (1, 31, 40, 33, 7)
ENDS = (END_TERMINAL, END_TRUNCATED, END_TERMINAL, END_NONE, END_TERMINAL)
TIERS = (0, 1, 1, 1, 0)
FULL = (True, True, True, True, False)


def _episode(seed: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 9, (1, 84, 84), dtype=np.uint8), length, axis=0)
    frames[np.arange(length), rng.integers(0, 84, length), 5] = rng.integers(10, 256, length)
    return (
        frames,
        rng.integers(0, 18, length).astype(np.uint8),
        rng.choice([-7.0, 0.0, 0.5, 10.0], length).astype(np.float32),
    )


def _write(path: Path, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Any]:
    episodes = [_episode(seed + number, length) for number, length in enumerate(lengths)]
    with EpisodeWriter(
        path, get("Pong"), source="a test", tiers=("low", "high"), provenance={"seed": seed}
    ) as writer:
        for number, (frames, actions, rewards) in enumerate(episodes):
            writer.add(frames, actions, rewards, ENDS[number], TIERS[number], FULL[number])
    return episodes


def _contents(path: Path) -> tuple[Any, ...]:
    """Everything a reader can get out of a file."""
    with EpisodeFile(path) as file:
        arrays = [file.actions, file.rewards, file.raw_rewards, file.ends, file.episode_starts]
        arrays += [file.episode_tiers, file.episode_full]
        arrays.append(file.frames(np.arange(file.num_transitions)))
        raw = tuple(None if array is None else array.tobytes() for array in arrays)
        named = (file.game, file.tiers, file.provenance, file.source, file.preprocessing)
        return (*raw, named, file.fingerprint)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "Pong.h5"
    episodes = _write(path)
    frames, actions, raw = (np.concatenate(parts) for parts in zip(*episodes, strict=True))
    verify(path)
    with EpisodeFile(path) as file:
        assert file.game is get("Pong")
        assert (file.num_transitions, file.num_episodes) == (sum(LENGTHS), len(LENGTHS))
        np.testing.assert_array_equal(file.frames(np.arange(len(frames))), frames)
        np.testing.assert_array_equal(file.actions, actions)
        np.testing.assert_array_equal(file.raw_rewards, raw)
        np.testing.assert_array_equal(file.rewards, np.clip(raw, -1, 1))
        np.testing.assert_array_equal(file.episode_starts, np.cumsum([0, *LENGTHS]))
        np.testing.assert_array_equal(file.ends[file.episode_starts[1:] - 1], ENDS)
        assert np.count_nonzero(file.ends) == np.count_nonzero(ENDS)
        assert file.episode_tiers.tolist() == list(TIERS)
        assert file.episode_full.tolist() == list(FULL)
        assert (file.tiers, file.provenance) == (("low", "high"), {"seed": 0})
        assert file.raw_bytes == frames.nbytes
    assert os.listdir(path.parent) == ["Pong.h5"]


@pytest.mark.parametrize("cached", [False, True])
def test_frames_in_any_order_with_repeats(tmp_path: Path, cached: bool) -> None:
    episodes = _write(tmp_path / "Pong.h5", (700, 1500))
    frames = np.concatenate([episode[0] for episode in episodes])
    rng = np.random.default_rng(3)
    with EpisodeFile(tmp_path / "Pong.h5") as file:
        if cached:
            file.cache()
        asked = [
            rng.integers(0, len(frames), 300),
            np.arange(len(frames)),
            np.arange(len(frames))[::-3],
            np.array([5, 5, 2199, 0, 31, 32]),
            np.array([1023, 1024, 1025]),
            np.array([], dtype=np.int64),
        ]
        for indices in asked:
            np.testing.assert_array_equal(file.frames(indices), frames[indices])
        for outside in (-1, len(frames)):
            with pytest.raises(IndexError):
                file.frames(np.array([outside]))


def test_clipped_rewards_alone(tmp_path: Path) -> None:
    frames, actions, raw = _episode(0, 50)
    with EpisodeWriter(tmp_path / "Pong.h5", get("Pong"), source="a test") as writer:
        writer.add(frames, actions, None, END_TERMINAL, rewards=np.sign(raw))
    verify(tmp_path / "Pong.h5")
    with EpisodeFile(tmp_path / "Pong.h5") as file:
        assert file.raw_rewards is None
        np.testing.assert_array_equal(file.rewards, np.sign(raw))
        assert file.statistics()["mean_return"] is None


def test_the_fingerprint_follows_the_data(tmp_path: Path) -> None:
    def fingerprint(seed: int) -> str:
        _write(tmp_path / "Pong.h5", (3,), seed)
        with EpisodeFile(tmp_path / "Pong.h5") as file:
            return file.fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


def test_statistics_count_only_whole_games_as_scores(tmp_path: Path) -> None:
    scores = [(2.0, 10, END_TERMINAL, 0, True), (6.0, 10, END_TRUNCATED, 0, True)]
    scores += [(100.0, 5, END_TERMINAL, 0, False), (200.0, 15, END_NONE, 1, True)]
    scores += [(10.0, 5, END_TERMINAL, 1, True)]
    with EpisodeWriter(tmp_path / "P.h5", get("Pong"), source="a", tiers=("a", "b", "c")) as writer:
        for score, length, end, tier, full in scores:
            frames, actions, _ = _episode(0, length)
            points = np.zeros(length, np.float32)
            points[0] = score
            writer.add(frames, actions, points, end, tier, full)
    with EpisodeFile(tmp_path / "P.h5") as file:
        statistics = file.statistics()
    assert statistics["tiers"]["a"] == {
        "episodes": 3, "transitions": 25, "full_episodes": 2, "mean_return": 4.0
    }  # fmt: skip
    assert statistics["tiers"]["b"]["mean_return"] == 10.0
    assert statistics["tiers"]["c"]["mean_return"] is None
    assert statistics["mean_return"] == pytest.approx((4 * 25 + 10 * 20) / 45)
    assert (statistics["episodes"], statistics["transitions"]) == (5, 45)


def test_every_flipped_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "Pong.h5"
    _write(path, (1, 31, 8))
    original, whole = _contents(path), path.read_bytes()
    random = np.random.default_rng(0).choice(len(whole), 400, replace=False).tolist()
    offsets = sorted({*range(64), *random, len(whole) - 1})  # header, then anywhere
    found = 0
    for offset in offsets:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        try:
            verify(path)
        except UserError as error:
            assert str(path) in str(error) and "overwrite=true" in str(error)
            found += 1
        else:
            assert _contents(path) == original, f"offset {offset} changed data unnoticed"
    assert found > 20


@pytest.mark.parametrize("value", [0x00, 0xFF])
def test_overwritten_blocks_are_found(tmp_path: Path, value: int) -> None:
    path = tmp_path / "Pong.h5"
    _write(path)
    original, whole = _contents(path), path.read_bytes()
    for offset in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[offset : offset + 512] = bytes([value]) * len(damaged[offset : offset + 512])
        path.write_bytes(damaged)
        try:
            verify(path)
        except UserError:
            continue
        assert _contents(path) == original


def test_a_damaged_chunk_fails_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "Pong.h5"
    _write(path)
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(1)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(damaged)
    with EpisodeFile(path) as episodes:
        episodes.frames(np.arange(32))  # other chunks are fine
        with pytest.raises(UserError, match=r"Pong\.h5.*frames 40 to 41.*overwrite=true"):
            episodes.frames(np.array([40, 41]))
        with pytest.raises(UserError, match="damaged"):
            episodes.cache()


def test_changed_values_with_right_checksums_are_found(tmp_path: Path) -> None:
    """Somebody edits a file by hand, so that HDF5 itself finds nothing wrong."""
    for name in ("observations", "actions", "episode_tiers"):
        path = tmp_path / f"{name}.h5"
        _write(path)
        with h5py.File(path, "r+") as file:
            file[name][0] = 1 - file[name][0] % 2
        with pytest.raises(UserError, match=f"{name}.* hash"):
            verify(path)
    path = tmp_path / "game.h5"
    _write(path)
    with h5py.File(path, "r+") as file:
        file.attrs["game"] = np.bytes_(b"Qbert")
    with pytest.raises(UserError, match="attributes do not match"):
        EpisodeFile(path)


def test_truncated_files_are_refused_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "Pong.h5"
    _write(path)
    whole = path.read_bytes()
    for length in (0, 1, 8, 47, 48, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"Pong\.h5"):
            EpisodeFile(path)


def test_foreign_files_and_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "Pong.h5"
    path.write_text("not HDF5")
    with pytest.raises(UserError, match="damaged"):
        EpisodeFile(path)
    with h5py.File(path, "w") as file:
        file.attrs["title"] = "something else"
    with pytest.raises(UserError, match="not an episode file"):
        EpisodeFile(path)
    _write(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(UserError, match="format version 2, but this jowa reads version 1"):
        EpisodeFile(path)
    with pytest.raises(UserError, match=r"there is no episode file .*Missing\.h5"):
        EpisodeFile(tmp_path / "Missing.h5")


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "Pong.h5"
    for old in (False, True):
        if old:
            _write(path)
        before = path.read_bytes() if old else None
        with (
            pytest.raises(KeyboardInterrupt),
            EpisodeWriter(path, get("Pong"), source="a test") as writer,
        ):
            writer.add(*_episode(9, 50), END_TERMINAL)
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == (["Pong.h5"] if old else [])
        assert (path.read_bytes() if old else None) == before
    with (
        pytest.raises(UserError, match="no episode was recorded"),
        EpisodeWriter(path, get("Pong"), source="a test"),
    ):
        pass
    assert os.listdir(tmp_path) == ["Pong.h5"]


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "Pong.h5"
    _write(path)
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (400, 84, 84), dtype=np.uint8)
    _, actions, rewards = _episode(0, 400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # larger files now fail
    try:
        with (
            pytest.raises(UserError, match=r"cannot write .*Pong\.h5"),
            EpisodeWriter(path, get("Pong"), source="a test") as writer,
        ):
            for _ in range(3):
                writer.add(noise, actions, rewards, END_TERMINAL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["Pong.h5"] and path.read_bytes() == before


_ENDLESS_WRITER = """
    import sys
    import numpy as np
    from jowa import files
    from jowa.data.episodes import EpisodeWriter
    from jowa.games import get

    def pause(*_):
        print("ready", flush=True)
        sys.stdin.read()

    stage = sys.argv[2]
    if stage == "publish":
        files.os.replace = pause
    with EpisodeWriter(sys.argv[1], get("Pong"), source="a test") as writer:
        if stage == "opened":
            pause()
        for number in range(40):
            frames = np.random.default_rng(number).integers(0, 256, (50, 84, 84), dtype=np.uint8)
            writer.add(frames, np.zeros(50, np.uint8), np.zeros(50, np.float32), 1)
            if stage == "adding" and number == 30:
                pause()
"""


@pytest.mark.parametrize("stage", ["opened", "adding", "publish"])
@pytest.mark.parametrize("old", [False, True])
def test_a_killed_writer_leaves_the_old_file_or_none(tmp_path: Path, stage: str, old: bool) -> None:
    path = tmp_path / "Pong.h5"
    if old:
        _write(path)
    before = path.read_bytes() if old else None
    command = [sys.executable, "-c", textwrap.dedent(_ENDLESS_WRITER), str(path), stage]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if not old:  # another writer to the same path leaves a living one's file alone
            _write(path)
            path.unlink()
        process.send_signal(signal.SIGKILL)
    leftovers = [name for name in os.listdir(tmp_path) if ".tmp-" in name]
    assert len(leftovers) == 1
    assert (path.read_bytes() if path.exists() else None) == before
    _write(path, seed=5)
    verify(path)
    assert os.listdir(tmp_path) == ["Pong.h5"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations": np.zeros((5, 210, 160, 3), np.uint8)}, r"\(5, 210, 160, 3\), not uint8"),
        ({"observations": np.zeros((5, 84, 84))}, "float64"),
        ({"observations": np.zeros((0, 84, 84), np.uint8)}, r"\(0, 84, 84\)"),
        ({"actions": np.zeros(4, int)}, "5 observations, 4 actions, 5 rewards"),
        ({"raw_rewards": np.zeros(6)}, "5 observations, 5 actions, 6 rewards"),
        ({"actions": np.full(5, 18)}, "actions are 18 to 18, not 0 to 17"),
        ({"end": 7}, "end is 7"),
        ({"tier": 1}, "tier is 1, but there are 1"),
        ({"raw_rewards": None}, "raw_rewards or else rewards"),
        ({"raw_rewards": None, "rewards": np.full(5, np.nan)}, "not finite"),
    ],
)
def test_what_is_no_episode_is_told_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    good = {
        "observations": np.zeros((5, 84, 84), np.uint8),
        "actions": np.zeros(5, int),
        "raw_rewards": np.zeros(5),
        "end": END_TERMINAL,
    }
    path = tmp_path / "Pong.h5"
    with (
        pytest.raises(UserError, match=words),
        EpisodeWriter(path, get("Pong"), source="a test") as writer,
    ):
        writer.add(**good)
        writer.add(**(good | changes))
    assert list(tmp_path.iterdir()) == []
