"""SIGKILL during a conversion, at moments spread over all of it: it goes on to the same data."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jowa.data.episodes import EpisodeFile
from jowa.data.store import verify

from .conftest import Replay

# `JOWA_KILLS=200 pytest tests/data/test_convert_kills.py` looks closer.
KILLS = int(os.environ.get("JOWA_KILLS", "32"))

# Imports once and forks the real command, which it may: it has no thread but its own. The command
# kills itself before the n-th of the calls that change something on the disk.
_COMMANDS = """
    import os
    import signal
    import sys

    from jowa.cli import composed, main
    from jowa.data import episode_writer
    from jowa.exchange import convert

    def counted(function, name, limit, count):
        def call(*arguments, **options):
            count[0] += 1
            if count[0] == limit:
                os.write(1, f"killed {name}\\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call

    def command(arguments, limit):
        count = [0]
        places = [(os, name) for name in ("open", "mkdir", "unlink", "rmdir", "replace", "fsync")]
        places += [(episode_writer._DiskFile, name) for name in ("write", "truncate")]
        for place, name in places:
            setattr(place, name, counted(getattr(place, name), name, limit, count))
        with open(os.devnull, "w") as sys.stdout:
            code = main(arguments)
        os.write(1, f"ended {code} {count[0]}\\n".encode())

    composed("convert dqn_replay", [])  # what is slow the first time
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of threads may inherit a held lock"
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            limit, *arguments = line.rstrip("\\n").split("\\t")
            command(arguments, int(limit))
            os._exit(0)
        os.waitpid(child, 0)
"""


@pytest.fixture
def commands() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(_COMMANDS)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        yield process


def run(commands: subprocess.Popen[str], arguments: list[str], limit: int = 0) -> list[str]:
    """Runs the command, killed before its `limit`-th change; what it said last."""
    assert commands.stdin is not None and commands.stdout is not None
    commands.stdin.write("\t".join([str(limit), *arguments]) + "\n")
    commands.stdin.flush()
    return commands.stdout.readline().split()


def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    tmp_path: Path, replay: Replay, commands: subprocess.Popen[str]
) -> None:
    def options(name: str) -> list[str]:
        return replay.options(tmp_path / name, transitions=600)

    word, code, changes = run(commands, options("whole"))
    assert (word, code) == ("ended", "0")
    with EpisodeFile(tmp_path / "whole" / "Breakout.h5") as file:
        expected = file.fingerprint, file.facts, file.provenance
        assert len(file.facts["files"]) >= 3
    states: Counter[str] = Counter()
    for number in range(KILLS):
        root = tmp_path / str(number)
        moment = 1 + int((number + 0.5) / KILLS * int(changes))
        assert run(commands, options(str(number)), moment)[0] == "killed"
        parts = list(root.glob(".parts/Breakout/*.h5"))
        for path in [*root.glob("*.h5"), *parts]:
            verify(path)  # whatever has its final name is whole
        states["joined" if (root / "Breakout.h5").exists() else f"{len(parts)} parts"] += 1
        assert run(commands, options(str(number)))[:2] == ["ended", "0"]
        assert [path.name for path in root.iterdir()] == ["Breakout.h5"]
        verify(root / "Breakout.h5")
        with EpisodeFile(root / "Breakout.h5") as file:
            assert (file.fingerprint, file.facts, file.provenance) == expected
    assert len(states) >= 4, states
