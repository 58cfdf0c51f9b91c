"""Windows a second of frames and of tokens, beside a plain reader of one item at a time.

    python scripts/bench/loading.py [--root DATA] [--batches 32 512] [--workers 0 2] [--out FILE]

The plain reader is what a torch Dataset over HDF5 usually is: one group an episode, uncompressed,
the file opened for every item, batches made by a DataLoader. Each way runs in a process of its own.
The CPU time counts the workers' too: on a busy machine it says more than the wall time. Floors: for
frames the time zstd takes for the chunks that a window touches (in small data the windows of a
large batch share chunks, and it can be beaten); for tokens that of copying a window's bytes once.
Without --root the data is made by `jowa collect`; tokens are random numbers in any case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import torch
from load_released import peak_memory
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from jowa.collecting.behaviours import Tier
from jowa.collecting.collect import collect
from jowa.data.episode_writer import FRAMES_PER_CHUNK
from jowa.data.episodes import EpisodeFile
from jowa.data.loader import Loader, Loading
from jowa.data.segments import Sampler, SegmentDataset, windows
from jowa.data.tokens import TOKENS_PER_FRAME, place
from jowa.learning.checkpoint import versions

LENGTH, STRIDE = 8, 4
VOCABULARY = 1024
CPU = torch.device("cpu")
T = TypeVar("T")
WAYS = {"frames": ("disk", "cached"), "tokens": ("memory", "mapped", "device")}


def episode_files(root: Path) -> list[EpisodeFile]:
    return [EpisodeFile(path) for path in sorted(root.glob("*.h5"))]


class Plain(Dataset[dict[str, Tensor]]):
    """Windows of an uncompressed file with a group an episode, opened for every item."""

    def __init__(self, paths: list[Path], observations: str) -> None:
        self._observations = observations
        self._items: list[tuple[Path, str, int]] = []
        for path in paths:
            with h5py.File(path) as file:
                for name, group in file.items():
                    starts = range(0, len(group["actions"]), STRIDE)
                    self._items += [(path, name, start) for start in starts]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        path, name, start = self._items[number]
        item = {}
        with h5py.File(path) as file:
            for key in (self._observations, "actions", "rewards", "ends"):
                rows = torch.from_numpy(file[name][key][start : start + LENGTH])
                padded = torch.zeros((LENGTH, *rows.shape[1:]), dtype=rows.dtype)
                padded[: len(rows)] = rows
                item[key] = padded
        item["mask"] = torch.arange(LENGTH) < len(rows)
        return item


def write_plain(files: list[EpisodeFile], tokens: list[np.ndarray], folder: Path) -> None:
    for file, own in zip(files, tokens, strict=True):
        columns = {"actions": file.actions, "rewards": file.rewards, "ends": file.ends}
        with h5py.File(folder / f"{file.game.name}.h5", "w") as out:
            for number, start in enumerate(file.episode_starts[:-1]):
                stop = file.episode_starts[number + 1]
                group = out.create_group(str(number))
                group["frames"] = file.frames(np.arange(start, stop))
                group["tokens"] = own[start:stop]
                for name, column in columns.items():
                    group[name] = column[start:stop]


def write_tokens(files: list[EpisodeFile], folder: Path) -> None:
    rng = np.random.default_rng(0)
    for file in files:
        shape = (file.num_transitions, TOKENS_PER_FRAME)
        np.save(folder / f"{file.game.name}.npy", rng.integers(VOCABULARY, size=shape, dtype="<u2"))


def read_tokens(folder: Path) -> list[np.ndarray]:
    return [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]


def plain_batches(folder: Path, kind: str, batch: int, workers: int) -> Generator[Any]:
    dataset = Plain(sorted(folder.glob("*.h5")), kind)
    order = RandomSampler(dataset, replacement=True, num_samples=1 << 40)
    fork = "fork" if workers else None
    yield from DataLoader(
        dataset, batch, sampler=order, num_workers=workers, multiprocessing_context=fork
    )


def our_dataset(root: Path, folder: Path, way: str) -> SegmentDataset:
    files = episode_files(root)
    if way == "cached":
        for file in files:
            file.cache()
    tokens = place(read_tokens(folder), way, CPU, 0) if way in WAYS["tokens"] else None
    return SegmentDataset(files, tokens, length=LENGTH, stride=STRIDE)


def cpu_seconds() -> float:
    own, ended = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def timed(batches: Iterator[Any], batch: int, seconds: float) -> tuple[int, float]:
    """Windows read in about that time, and the time."""
    next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += batch
    return count, elapsed


def measure(
    way: str, kind: str, root: Path, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """For each number of workers and batch size: windows a second, CPU microseconds a window (also
    of those that were read ahead), and MiB of peak memory so far beyond what the process had."""
    torch.set_num_threads(1)
    before, rows = peak_memory(), []
    dataset = None if way == "plain" else our_dataset(root, folder, way)
    for workers, batch in itertools.product(options.workers, options.batches):
        busy, ahead = cpu_seconds(), 2 * workers
        if dataset is None:
            batches = plain_batches(folder, kind, batch, workers)
            count, elapsed = timed(batches, batch, options.seconds)
            batches.close()  # ends its workers
        else:
            loading = Loading(workers)
            ahead = loading.workers_for(dataset) * loading.prefetch
            with Loader(dataset, Sampler(dataset, batch, seed=0), loading, CPU) as loader:
                count, elapsed = timed(loader, batch, options.seconds)
        read = count + (1 + ahead) * batch
        row = {"kind": kind, "way": way, "workers": workers, "batch": batch}
        row["windows_per_second"] = round(count / elapsed, 1)
        row["cpu_us_per_window"] = round((cpu_seconds() - busy) / read * 1e6, 2)
        row["peak_mib"] = round((peak_memory() - before) / 2**20, 1)
        rows.append(row)
    return rows


def best_microseconds(work: Callable[[], object], repeats: int) -> float:
    """CPU time of this thread, the median of some repeats."""
    spans = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        spans.append(time.thread_time() - start)
    return float(np.median(spans)) * 1e6


def floors(root: Path) -> dict[str, Any]:
    """What a window costs at least, in CPU microseconds, and the numbers behind it."""
    torch.set_num_threads(1)
    files = episode_files(root)
    stored = 0
    spans, touched = [], []
    for file in files:
        with h5py.File(file.path, locking=False) as other:
            data = other["observations"]
            stored += data.id.get_storage_size()
            for number in range(0, min(data.id.get_num_chunks() - 1, 400)):
                start = number * FRAMES_PER_CHUNK
                whole = slice(start, start + FRAMES_PER_CHUNK)
                spans.append(best_microseconds(lambda d=data, w=whole: d[w], 1))
        first, stop = windows(file.episode_starts, LENGTH, STRIDE, "right").T
        touched.append(np.mean((stop - 1) // FRAMES_PER_CHUNK - first // FRAMES_PER_CHUNK + 1))
    tokens = torch.zeros((512, LENGTH, TOKENS_PER_FRAME), dtype=torch.int64)
    copy = torch.empty_like(tokens)
    frames = sum(file.num_transitions for file in files)
    decompress = float(np.median(spans)) * float(np.mean(touched))
    return {
        "chunk_us": round(float(np.median(spans)), 1),
        "decompress_gb_per_second": round(
            FRAMES_PER_CHUNK * 84 * 84 / float(np.median(spans)) / 1e3, 2
        ),
        "chunks_per_window": round(float(np.mean(touched)), 3),
        "compression": round(frames * 84 * 84 / stored, 1),
        "frames": {"us": round(decompress, 1), "bytes": LENGTH * 84 * 84},
        "tokens": {
            "us": round(best_microseconds(lambda: copy.copy_(tokens), 200) / 512, 3),
            "bytes": LENGTH * TOKENS_PER_FRAME * 8,
        },
    }


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """Does the work in a process of its own, which may have workers of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def disk_mib(root: Path, pattern: str) -> float:
    return round(sum(path.stat().st_size for path in root.glob(pattern)) / 2**20, 1)


def compare(row: dict[str, Any], plain: dict[str, Any], floor_us: float) -> None:
    """Adds to a measurement how it compares, and prints it."""
    row["times_plain"] = round(row["windows_per_second"] / plain["windows_per_second"], 1)
    row["times_plain_cpu"] = round(plain["cpu_us_per_window"] / row["cpu_us_per_window"], 1)
    row["of_floor"] = round(floor_us / row["cpu_us_per_window"], 3)
    print(
        f"  {row['way']:<6} workers {row['workers']} batch {row['batch']:<3} "
        f"{row['windows_per_second']:>9,.0f} windows/s ({row['times_plain']}x)  "
        f"{row['cpu_us_per_window']:8.1f} us of CPU each ({row['times_plain_cpu']}x, "
        f"{row['of_floor']:.0%} of the floor's speed)  +{row['peak_mib']:.0f} MiB",
        flush=True,
    )


def bench(root: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    floor = alone(floors, root)
    print(
        f"{floor['compression']}x compressed; zstd gives {floor['decompress_gb_per_second']} GB/s "
        f"({floor['chunk_us']} us a chunk), a window touches {floor['chunks_per_window']} chunks"
    )
    rows: list[dict[str, Any]] = []
    for kind, ours in WAYS.items():
        print(f"{kind}: {floor[kind]['us']} us a window at least")
        plain: list[dict[str, Any]] = []
        for way in ("plain", *ours):
            found = alone(measure, way, kind, root, folder, options)
            plain = plain or found
            for row, other in zip(found, plain, strict=True):
                compare(row, other, floor[kind]["us"])
            rows += found
    disk = {
        "jowa_frames": disk_mib(root, "*.h5"),
        "jowa_tokens": disk_mib(folder, "*.npy"),
        "plain_frames_and_tokens": disk_mib(folder, "*.h5"),
    }
    print("MiB on disk: " + ", ".join(f"{name} {size:,.1f}" for name, size in disk.items()))
    return {"floor": floor, "rows": rows, "disk_mib": disk}


def make_data(root: Path, transitions: int) -> None:
    tiers = [Tier("good", "scripted", 0.7, epsilon=0.1), Tier("random", "random", 0.3)]
    collect(
        ["Breakout", "Pong", "Freeway"],
        root,
        transitions=transitions,
        tiers=tiers,
        short_episode_steps=200,
        short_share=0.5,
        max_frames=8000,
        seed=0,
        workers=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of episode files; else they are made")
    parser.add_argument("--transitions", type=int, default=5000, help="a game, where data is made")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, root = Path(temporary), options.root
        if root is None:
            root = folder / "episodes"
            make_data(root, options.transitions)
        files = episode_files(root)
        write_tokens(files, folder)
        write_plain(files, read_tokens(folder), folder)
        results = bench(root, folder, options)
    if options.out:
        facts = {"command": " ".join(["python", *sys.argv]), "versions": versions()}
        facts["transitions"] = sum(file.num_transitions for file in files)
        options.out.write_text(json.dumps({**facts, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
