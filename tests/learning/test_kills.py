"""SIGKILL during a save, at moments spread over all of it: a whole checkpoint is always there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jowa.learning.checkpoint import Checkpoint, complete, find, load, save

# `JOWA_KILLS=1000 pytest tests/learning/test_kills.py` looks closer.
KILLS = int(os.environ.get("JOWA_KILLS", "60"))
STEMS = ("model", "tokenizer", "training")
KEEP = 2

# Imports once and forks a writer for each kill, which it may: it has no thread but its own.
_WRITERS = """
    import os
    import sys
    from pathlib import Path

    import torch

    from jowa.learning.checkpoint import Checkpoint, newest, save

    def say(words):
        os.write(1, f"{words}\\n".encode())

    def write_forever(run, keep):
        say(f"writer {os.getpid()}")
        step = int(newest(run).name[5:])
        for step in range(step + 1, step + 1000):
            stems = ("model", "tokenizer", "training")
            weight, number = torch.full((300, 300), float(step)), torch.tensor(step)
            tensors = {stem: {"weight": weight.clone(), "n": number.clone()} for stem in stems}
            say(f"saving {step}")
            save(run, Checkpoint(step, {}, tensors), keep)
            say(f"saved {step}")

    assert len(os.listdir("/proc/self/task")) == 1, "a fork of threads may inherit a held lock"
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            write_forever(Path(sys.argv[1]), int(sys.argv[2]))
            os._exit(0)
        os.waitpid(child, 0)
        say("dead")
"""


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(_WRITERS), str(tmp_path), str(KEEP)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env={**os.environ, **one_thread}, **pipes) as process:
        yield process


def heard(writers: subprocess.Popen[str], word: str) -> int:
    """The number said with the next `word`."""
    assert writers.stdout is not None
    for line in writers.stdout:
        said, _, number = line.strip().partition(" ")
        if said == word:
            return int(number or 0)
    raise AssertionError(f"the writers ended before {word!r}")


def kill_one(writers: subprocess.Popen[str], part: float) -> int:
    """Kills a new writer when `part` of its second save is done; the step last said to be saved."""
    assert writers.stdin is not None and writers.stdout is not None
    writers.stdin.write("go\n")
    writers.stdin.flush()
    pid = heard(writers, "writer")
    heard(writers, "saving")
    start = time.perf_counter()
    saved = heard(writers, "saved")
    duration = time.perf_counter() - start
    heard(writers, "saving")
    time.sleep(part * duration)
    os.kill(pid, signal.SIGKILL)
    for line in writers.stdout:
        if line.startswith("saved"):
            saved = int(line.split()[1])
        if line.startswith("dead"):
            break
    return saved


def made(step: int) -> Checkpoint:
    """Every value in it is its step, so that a mixture of two would show."""
    tensors = {
        stem: {"weight": torch.full((300, 300), float(step)), "n": torch.tensor(step)}
        for stem in STEMS
    }
    return Checkpoint(step, {}, tensors)


def test_a_kill_at_any_moment_leaves_the_last_checkpoint_or_the_one_before(
    tmp_path: Path, writers: subprocess.Popen[str]
) -> None:
    save(tmp_path, made(0), KEEP)
    folder = tmp_path / "checkpoints"
    moments: Counter[str] = Counter()
    for number in range(KILLS):
        saved = kill_one(writers, (number + 0.5) / KILLS)
        # What was said to be saved is there, or the one that was being saved.
        assert load(find(tmp_path)).step in (saved, saved + 1)
        assert len(complete(tmp_path)) in (KEEP, KEEP + 1)
        for path in complete(tmp_path):
            found = load(path, STEMS)
            assert path.name == f"step_{found.step:08d}"
            for tensors in found.tensors.values():
                assert (tensors["weight"] == found.step).all() and tensors["n"] == found.step
        torn = list(folder.glob(".step_*.writing"))
        moments["writing" if torn else "after"] += 1
    # Neither half of a save was spared.
    assert min(moments["writing"], moments["after"]) >= KILLS / 20, moments
    last = load(find(tmp_path)).step
    save(tmp_path, made(last + 1), KEEP)
    steps = [f"step_{step:08d}" for step in (last, last + 1)]
    assert sorted(path.name for path in folder.iterdir()) == ["latest", *steps]
    assert (folder / "latest").read_text() == steps[1]
