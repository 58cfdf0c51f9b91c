"""Reading ahead: the same batches in every way, exact resuming, and nothing left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from jowa.data import loader as loader_module
from jowa.data.episodes import END_TERMINAL, EpisodeFile, EpisodeWriter
from jowa.data.loader import INLINE, Loader, Loading
from jowa.data.segments import Batch, Sampler, SegmentDataset
from jowa.data.tokens import place
from jowa.errors import UserError
from jowa.games import get

CPU = torch.device("cpu")
AHEAD = Loading(workers=2, prefetch=2)
LENGTHS = {"Pong": [40, 3, 90], "Breakout": [25, 70]}


def _write(path: Path, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    with EpisodeWriter(path, get(path.stem), source="a test") as writer:
        for steps in lengths:
            frames = rng.integers(0, 256, (steps, 84, 84), dtype=np.uint8)
            actions = rng.integers(0, 18, steps).astype(np.uint8)
            writer.add(frames, actions, np.ones(steps, np.float32), END_TERMINAL)


@pytest.fixture
def files(tmp_path: Path) -> list[EpisodeFile]:
    for seed, (name, lengths) in enumerate(LENGTHS.items()):
        _write(tmp_path / f"{name}.h5", lengths, seed)
    return [EpisodeFile(tmp_path / f"{name}.h5") for name in LENGTHS]


def _store(folder: Path, files: list[EpisodeFile]) -> list[np.ndarray]:
    """Tokens of all values of uint16, memory-mapped."""
    rng, tokens = np.random.default_rng(0), []
    for file in files:
        path = folder / f"{file.game.name}.npy"
        np.save(path, rng.integers(0, 65536, (file.num_transitions, 36)).astype("<u2"))
        tokens.append(np.load(path, mmap_mode="r"))
    return tokens


def _sampler(dataset: SegmentDataset) -> Sampler:
    return Sampler(dataset, 6, seed=1, reward_fraction=0.5)


def _batches(dataset: SegmentDataset, loading: Loading, count: int = 30) -> list[Batch]:
    """More than three epochs."""
    with Loader(dataset, _sampler(dataset), loading, CPU) as loader:
        return [next(loader) for _ in range(count)]


def assert_same(batch: Batch, other: Batch) -> None:
    for name, tensor in vars(batch).items():
        theirs = getattr(other, name)
        assert tensor.dtype == theirs.dtype and torch.equal(tensor, theirs), name


@pytest.mark.parametrize("way", ["disk", "cached", "memory", "mapped", "device"])
def test_every_way_of_reading_gives_the_same_batches(
    files: list[EpisodeFile], tmp_path: Path, way: str
) -> None:
    """To begin with those that the dataset gives when it is asked for one after another."""
    tokens = _store(tmp_path, files) if way not in ("disk", "cached") else None
    plain = SegmentDataset(files, tokens)
    draws = _sampler(plain)
    expected = [plain.batch(*draws.at(step)) for step in range(30)]
    if way == "cached":
        for file in files:
            file.cache()
    placed = None if tokens is None else place(tokens, way, CPU, 0)
    dataset = SegmentDataset(files, placed)
    random = torch.get_rng_state()
    for loading in (INLINE, AHEAD, Loading(workers=1, prefetch=1)):
        for batch, other in zip(_batches(dataset, loading), expected, strict=True):
            assert_same(batch, other)
    # Else dropout would depend on whether there are workers.
    assert torch.equal(torch.get_rng_state(), random)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_what_was_read_ahead_is_not_counted(files: list[EpisodeFile], stop: int) -> None:
    dataset = SegmentDataset(files)
    expected = _batches(dataset, INLINE)
    sampler, again = _sampler(dataset), _sampler(dataset)
    with Loader(dataset, sampler, AHEAD, CPU) as loader:
        for _ in range(stop):
            next(loader)
        saved = json.dumps(sampler.state_dict())
        assert sampler.step == stop
    again.load_state_dict(json.loads(saved))
    with Loader(dataset, again, AHEAD, CPU) as loader:
        for batch in expected[stop:]:
            assert_same(next(loader), batch)


def test_workers_read_only_so_far_ahead(
    files: list[EpisodeFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    at = Sampler.at

    def spied(self: Sampler, step: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(step)
        return at(self, step)

    monkeypatch.setattr(Sampler, "at", spied)
    dataset = SegmentDataset(files)
    with Loader(dataset, _sampler(dataset), Loading(workers=2, prefetch=3), CPU) as loader:
        for taken in range(1, 10):
            next(loader)
            time.sleep(0.01)
            assert max(asked) + 1 <= taken + 2 * 3


def test_a_damaged_chunk_is_told_in_one_sentence(files: list[EpisodeFile], tmp_path: Path) -> None:
    path = tmp_path / "Breakout.h5"
    with h5py.File(path, locking=False) as file:
        chunk = file["observations"].id.get_chunk_info(1)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(damaged)
    dataset = SegmentDataset([EpisodeFile(tmp_path / f"{name}.h5") for name in LENGTHS])
    told = []
    for loading in (INLINE, AHEAD):
        with pytest.raises(UserError, match=r"Breakout\.h5 is damaged \(frames \d+") as caught:
            _batches(dataset, loading)
        told.append(str(caught.value))
        assert multiprocessing.active_children() == [], "though the exception is still held"
    assert told[0] == told[1] and "\n" not in told[0]


def test_a_replaced_file_is_not_mixed_with_the_old_one(
    files: list[EpisodeFile], tmp_path: Path
) -> None:
    dataset = SegmentDataset(files)
    _write(tmp_path / "Pong.h5", LENGTHS["Pong"], seed=9)
    with pytest.raises(UserError, match=r"Pong\.h5 was replaced"):
        _batches(dataset, AHEAD)


def test_workers_outlive_signals_to_the_whole_job_but_not_their_loader(
    files: list[EpisodeFile],
) -> None:
    """The training process stops at a step of its own choosing, after a checkpoint."""
    dataset = SegmentDataset(files)
    expected = _batches(dataset, INLINE)
    with pytest.raises(KeyError), Loader(dataset, _sampler(dataset), AHEAD, CPU) as loader:
        next(loader)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(worker.pid or 0, number)
        for batch in expected[1:]:
            assert_same(next(loader), batch)
        raise KeyError
    assert not any(worker.is_alive() for worker in workers)


def test_no_signal_is_too_early_for_a_worker(
    files: list[EpisodeFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the parent stay deaf for having started workers."""
    ignore = loader_module._leave_signals_to_parent

    def signalled_first(worker: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ignore(worker)

    monkeypatch.setattr(loader_module, "_leave_signals_to_parent", signalled_first)
    dataset = SegmentDataset(files)
    with Loader(dataset, _sampler(dataset), AHEAD, CPU) as loader:
        for batch in _batches(dataset, INLINE):
            assert_same(next(loader), batch)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGINT}


def test_a_killed_worker_is_told(files: list[EpisodeFile]) -> None:
    dataset = SegmentDataset(files)
    with (
        pytest.raises(UserError, match=r"a process that reads data was killed .*lower workers"),
        Loader(dataset, _sampler(dataset), AHEAD, CPU) as loader,
    ):
        next(loader)
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        for _ in range(1000):
            next(loader)
    assert multiprocessing.active_children() == []


def test_mapped_tokens_are_touched_only_where_they_are_needed(
    files: list[EpisodeFile], tmp_path: Path
) -> None:
    steps, path = 300_000, tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", "<u2", (steps, 36)).flush()
    tokens = np.load(path, mmap_mode="r")
    large = files[0]
    large.actions = np.zeros(steps, np.uint8)
    large.rewards = np.zeros(steps, np.float32)
    large.ends = np.zeros(steps, np.uint8)
    large.episode_starts = np.arange(0, steps + 1, 1000)
    placed = place([tokens], "auto", CPU, tokens.nbytes - 1)
    dataset = SegmentDataset([large], placed)
    dataset.batch(np.array([5, 40_000, 70_000]))
    found = re.search(rf"{path}\n.*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.S)
    assert found is not None and 0 < int(found[1]) * 1024 < tokens.nbytes / 20
    assert not SegmentDataset([large], place([tokens], "auto", CPU, tokens.nbytes)).on_disk


def test_workers_are_used_where_they_help(files: list[EpisodeFile], tmp_path: Path) -> None:
    tokens = _store(tmp_path, files)
    by_itself = Loading()
    cores = len(os.sched_getaffinity(0))
    for where, expected in (("mapped", min(cores, 4)), ("memory", 0), ("device", 0)):
        dataset = SegmentDataset(files, place(tokens, where, CPU, 0))
        assert by_itself.workers_for(dataset) == expected
        assert Loading(workers=3).workers_for(dataset) == (0 if where == "device" else 3)
    dataset = SegmentDataset(files)
    assert by_itself.workers_for(dataset) == min(cores, 4)
    for file in files:
        file.cache()
    assert by_itself.workers_for(dataset) == 0
