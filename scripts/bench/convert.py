"""Times `jowa convert dqn_replay` on a full-size checkpoint, beside the plain way.

    python scripts/bench/convert.py --cache FOLDER [--rows 1000000] [--out FILE.json]

The checkpoint is real play at random, written once in the dataset's format to FOLDER (a quarter of
an hour on one core, and 8 GB there meanwhile). Converted are all its episodes, then a tenth of
them as in the paper's sampling, each in a process of its own with one worker. The plain way loads
the whole arrays with numpy.load and writes them uncompressed to HDF5 in one call.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import importlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import hdf5plugin
import isal
import numpy as np
from replay_files import FRAME, ReplayLog, play

from jowa.data import episode_writer
from jowa.data.episodes import EpisodeFile, EpisodeWriter
from jowa.exchange.config import ConvertDqnReplayConfig
from jowa.exchange.convert import convert_dqn_replay
from jowa.exchange.dqn_replay import STORES, file_name
from jowa.exchange.npy_rows import NpyRows
from jowa.games import get

GAME = get("Seaquest")
RUN = 1
BLOCK = 8 << 20


def make_checkpoint(folder: Path, rows: int) -> Path:
    """The `replay_logs` folder of a run's first lap, made unless it is there."""
    logs = folder / GAME.name / str(RUN) / "replay_logs"
    if logs.exists():
        return logs
    making = folder / "making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    frames = np.memmap(making / "frames", np.uint8, "w+", shape=(rows, *FRAME))
    log = ReplayLog(making / GAME.name / str(RUN), rows, observations=frames)
    start = time.perf_counter()
    for number, step in enumerate(play(GAME, time_limit=27_000, seed=0)):
        log.add(*step)
        if log.log_count:
            break
        if number % 100_000 == 0:
            print(f"playing: {number:,} steps, {time.perf_counter() - start:.0f} s", flush=True)
    (making / "frames").unlink()
    os.replace(making / GAME.name, folder / GAME.name)
    making.rmdir()
    return logs


class Stopwatch:
    """Seconds spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def time(self, name: str, owner: Any, attribute: str) -> None:
        """Replaces a function by one that is timed."""
        function: Callable[..., Any] = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - start

        setattr(owner, attribute, timed)


def peak_memory() -> int:
    """Most memory this process has had resident, in bytes (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` says, with its seconds and peak memory in bytes."""
    before = peak_memory()
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": peak_memory(),
        "peak_bytes_before": before,
        **result,
    }


def ours(source: Path, root: Path, rows: int, transitions: int) -> dict[str, Any]:
    """Converts with one worker, in this process."""
    watch = Stopwatch()
    watch.time("gunzip", NpyRows, "_fill")
    watch.time("writing", EpisodeWriter, "add")
    watch.time("reading parts", EpisodeFile, "frames")

    class TimedHash:
        def __init__(self, data: bytes = b"") -> None:
            self._hash = hashlib.sha256(data)
            self.hexdigest = self._hash.hexdigest

        def update(self, data: Any) -> None:
            self._hash.update(data)

    watch.time("sha256", TimedHash, "update")
    episode_writer.hashlib = SimpleNamespace(sha256=TimedHash)

    def work() -> dict[str, Any]:
        config = ConvertDqnReplayConfig([GAME.name], str(source), str(root), transitions)
        config.runs, config.workers, config.lap_rows = [RUN], 1, rows
        convert_dqn_replay(config)
        path = root / f"{GAME.name}.h5"
        with EpisodeFile(path) as file:
            return {"transitions": file.num_transitions, "bytes": path.stat().st_size}

    result = measured(work)
    watch.seconds["zstd and HDF5"] = watch.seconds.pop("writing") - watch.seconds["sha256"]
    watch.seconds["rest"] = result["seconds"] - watch.seconds.total()
    return result | {"parts": dict(watch.seconds)}


def plain(logs: Path, out: Path) -> dict[str, Any]:
    """Loads the arrays whole and writes them uncompressed."""

    def work() -> dict[str, Any]:
        arrays = {}
        for name in STORES:
            with gzip.open(logs / file_name(name, 0)) as file:
                arrays[name] = np.load(file)
        with h5py.File(out, "w") as store:
            for name, array in arrays.items():
                store.create_dataset(name, data=array)
        return {"transitions": len(arrays["action"]), "bytes": out.stat().st_size}

    return measured(work)


def unpack(path: Path, module: str) -> dict[str, Any]:
    """Reads a gzipped file to its end."""
    buffer = memoryview(bytearray(BLOCK))

    def work() -> dict[str, Any]:
        with importlib.import_module(module).open(path, "rb") as file:
            while file.readinto(buffer):
                pass
        return {}

    return measured(work)


def available_memory() -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024


def bench(cache: Path, rows: int) -> dict[str, Any]:
    """Every measurement, each in a fresh process."""
    logs = make_checkpoint(cache, rows)
    work = cache / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    frames = logs / file_name("observation", 0)
    ways: dict[str, tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]] = {
        "gzip": (unpack, (frames, "gzip")),
        "isal": (unpack, (frames, "isal.igzip")),
        "ours": (ours, (cache, work / "all", rows, 0)),
        "ours, a tenth": (ours, (cache, work / "tenth", rows, rows // 10)),
    }
    raw = rows * FRAME[0] * FRAME[1]
    if available_memory() > 1.3 * raw:
        ways["plain"] = (plain, (logs, work / "plain.h5"))
    else:
        print(f"the plain way needs {raw / 2**30:.1f} GiB of memory, which is not free: left out")
    results: dict[str, Any] = {"raw_bytes": raw, "gzip_bytes": frames.stat().st_size, "ways": {}}
    for name, (function, arguments) in ways.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            results["ways"][name] = fresh.submit(function, *arguments).result()
    shutil.rmtree(work)
    return results


def show(results: dict[str, Any], rows: int) -> None:
    raw = results["raw_bytes"]
    print(f"{rows:,} rows: {raw / 1e9:.2f} GB raw, {raw / results['gzip_bytes']:.0f}x as gzip")
    for name, way in results["ways"].items():
        line = (
            f"  {name:<14} {way['seconds']:7.1f} s  {way['processor_seconds']:7.1f} s of processor"
        )
        line += f"  {rows / way['seconds']:>9,.0f} rows/s  peak {way['peak_bytes'] / 2**30:.2f} GiB"
        if "bytes" in way:
            stored = way["transitions"] * FRAME[0] * FRAME[1]
            line += (
                f"  {way['transitions']:,} stored, {stored / way['bytes']:.0f}x smaller than raw"
            )
        print(line)
        if "parts" in way:
            shares = (f"{part} {s / way['seconds']:.0%}" for part, s in way["parts"].items())
            print(f"  {'':<14} {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.cache / f"{arguments.rows}_rows"
    folder.mkdir(parents=True, exist_ok=True)
    results = bench(folder, arguments.rows)
    show(results, arguments.rows)
    versions = {"isal": isal.__version__, "h5py": h5py.__version__, "numpy": np.__version__}
    versions["hdf5plugin"] = hdf5plugin.version
    about = {"command": "python " + " ".join(sys.argv), "rows": arguments.rows}
    about |= {"game": GAME.name, "play": "random", "cores": os.cpu_count()}
    if arguments.out:
        content = {**about, "versions": versions, "python": platform.python_version(), **results}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
