"""SIGKILL and SIGTERM while data is collected: the same data in the end, no part played twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from jowa.collecting.behaviours import Tier
from jowa.collecting.collect import collect
from jowa.data.episodes import EpisodeFile
from jowa.data.store import verify

SETTINGS: dict[str, Any] = {
    "games": ["Breakout"],
    "transitions": 500,
    "short_episode_steps": 40,
    "short_share": 0.5,
    "max_frames": 200,
    "seed": 1,
    "piece": 50,
    "constant_episodes": 1,
}
TIERS = [Tier("good", "scripted", 0.6, epsilon=0.1), Tier("random", "random", 0.4)]

# Imports once and forks a collector for each line of stdin, which it may: it has no other thread.
# A collector kills itself at the moment it was told: emulator steps by the hundred and every
# flush, renaming and removal of a file are moments.
_COLLECTORS = """
    import itertools
    import os
    import shutil
    import signal
    import sys

    from jowa.collecting.behaviours import Tier
    from jowa.collecting.collect import collect
    from jowa.envs import AtariEnv

    def doomed(moment):
        moments = itertools.count(1)

        def watched(function, every):
            calls = itertools.count(1)

            def call(*arguments, **options):
                if next(calls) % every == 0 and next(moments) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        AtariEnv.step = watched(AtariEnv.step, 100)
        for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (shutil, "rmtree")):
            setattr(module, name, watched(getattr(module, name), 1))

    root, settings, tiers = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3])
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of threads may inherit a held lock"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            doomed(int(line))
            collect(root=root, tiers=tiers, workers=1, **settings)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def fingerprint(root: Path) -> str:
    verify(root / "Breakout.h5")
    with EpisodeFile(root / "Breakout.h5") as file:
        return file.fingerprint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The data of an undisturbed run."""
    root = tmp_path_factory.mktemp("whole")
    collect(root=root, tiers=TIERS, **SETTINGS)
    return fingerprint(root)


def parts(root: Path) -> dict[Path, int]:
    """Finished parts and when they were written."""
    folder = root / ".parts" / "Breakout"
    return {p: p.stat().st_mtime_ns for p in (*folder.glob("*.h5"), *folder.glob("*.json"))}


def test_kills_at_any_moment_change_nothing_and_cost_no_finished_part(
    tmp_path: Path, whole: str
) -> None:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    tiers = repr([vars(tier) for tier in TIERS])
    command = [sys.executable, "-c", textwrap.dedent(_COLLECTORS), str(tmp_path)]
    command += [repr(SETTINGS), f"[Tier(**tier) for tier in {tiers}]"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    kills = 0
    with subprocess.Popen(command, env={**os.environ, **one_thread}, **pipes) as collectors:
        assert collectors.stdin is not None and collectors.stdout is not None
        for run in range(60):
            before = parts(tmp_path)
            # Some kills come before the first part of a run is finished, some after its third.
            collectors.stdin.write(f"{1 + run * 5 % 13}\n")
            collectors.stdin.flush()
            code = int(collectors.stdout.readline())
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
            if not (tmp_path / "Breakout.h5").exists():
                assert before.items() <= parts(tmp_path).items(), "a finished part was made again"
        collectors.stdin.close()
    assert kills >= 12 and code == 0
    assert fingerprint(tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["Breakout.h5"], "nothing is left over"


def test_workers_end_with_the_command_and_what_they_made_is_kept(
    tmp_path: Path, whole: str
) -> None:
    text = (
        "from jowa.collecting.collect import collect; from jowa.collecting.behaviours import Tier"
    )
    run = f"collect(root={str(tmp_path)!r}, tiers={TIERS!r}, workers=2, **{SETTINGS!r})"
    script = tmp_path.parent / "main.py"  # workers import it
    script.write_text(f"{text}\nif __name__ == '__main__':\n    {run}\n")
    with subprocess.Popen([sys.executable, str(script)], start_new_session=True) as command:
        deadline = time.monotonic() + 200
        while len(parts(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        command.terminate()
        assert command.wait() == -signal.SIGTERM
    while _alive(command.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(command.pid), "workers outlive their command"
    made = parts(tmp_path)
    assert len(made) >= 2

    def keep(*_: object) -> None:
        now = parts(tmp_path)
        assert not now or made.items() <= now.items()

    collect(root=tmp_path, tiers=TIERS, **SETTINGS, progress=keep)
    assert fingerprint(tmp_path) == whole


def _alive(session: int) -> bool:
    """Whether a process of this session still runs."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            return True
    return False
