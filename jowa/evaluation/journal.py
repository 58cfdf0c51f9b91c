"""What an interrupted evaluation has played so far, so that it goes on bit for bit.

The decisions of a batch of environments are kept in an append-only file of JSON lines. To go on,
they are taken again without the model, which brings emulators, random generators and the agent's
memory to where they were; rounding depends on which environments are decided together, so nothing
less would repeat an uninterrupted run exactly. E environments of the batch.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jowa.agent import Agent
from jowa.errors import UserError
from jowa.evaluation.rollout import EpisodeResult

FORMAT = 1
WRITE_EVERY = 2.0  # seconds of play that a kill may cost
Actions = NDArray[np.int64]


class Journal:
    """The file of one batch: open, locked, and whole up to where it is read.

    The first line holds the facts that decide the play, each other one (a) a machine that plays,
    or (b) steps: the agent's choices (K, E) as base64 of bytes, the episodes that ended, and the
    seconds it took. A line that a kill tore is dropped, and so is what follows it.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], envs: int) -> None:
        self.path = path_of(folder, facts)
        self.chosen = np.zeros((0, envs), dtype=np.uint8)
        self.results: list[EpisodeResult] = []
        self.machines: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._header = json.loads(json.dumps({"format": FORMAT, **facts}))
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is playing {self.path}: wait for it or end it; its play is kept."
            ) from None
        except OSError:
            pass  # a file system without locks
        self._read()

    def _read(self) -> None:
        """Takes in all whole lines and cuts off the rest."""
        self._file.seek(0)
        whole, parts = 0, [self.chosen]
        for line in self._file.readlines():
            try:
                content = json.loads(line) if line.endswith(b"\n") else {}
                if whole == 0 and content == self._header:
                    pass
                elif "machine" in content:
                    self.machines.append(content["machine"])
                else:
                    steps = np.frombuffer(base64.b64decode(content["chosen"]), dtype=np.uint8)
                    steps = steps.reshape(-1, self.chosen.shape[1])
                    ended, seconds = content["ended"], float(content["seconds"])
                    self.results += [EpisodeResult(*result) for result in ended]
                    self.seconds += seconds
                    parts.append(steps)
            except (ValueError, KeyError, TypeError):
                break
            whole += len(line)
        self.chosen = np.concatenate(parts)
        os.ftruncate(self._file.fileno(), whole)
        if whole == 0:
            self._write(self._header)

    def note_machine(self, machine: dict[str, Any]) -> None:
        """Notes where it is played from here on."""
        if machine not in self.machines:
            self.machines.append(machine)
            self._write({"machine": machine})

    def add(
        self, chosen: Sequence[Actions], ended: Sequence[EpisodeResult], seconds: float
    ) -> None:
        """Notes steps: the choices (E,) of each, the episodes that ended, and their time."""
        steps = np.stack(chosen).astype(np.uint8).tobytes()
        self.results += ended
        self.seconds += seconds
        self._write(
            {
                "chosen": base64.b64encode(steps).decode(),
                "ended": [astuple(result) for result in ended],
                "seconds": round(seconds, 3),
            }
        )

    def _write(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class Journaled:
    """An agent whose choices go into a journal; those that it already holds are taken again.

    Hand `progress` to the play: it writes, and checks that what is taken again ends as it did.
    `decisions` counts both.
    """

    def __init__(self, agent: Agent, journal: Journal) -> None:
        self.agent, self.journal = agent, journal
        self._past = journal.chosen
        self._before = list(journal.results)
        self.decisions = 0
        self._step = 0
        self._new: list[Actions] = []
        self._clock = time.perf_counter()

    def reset(self, which: NDArray[np.bool_]) -> None:
        self.agent.reset(which)

    def act(
        self, frames: NDArray[np.uint8], games: Actions, active: NDArray[np.bool_] | None = None
    ) -> Actions:
        known, self._step = len(self._past) - self._step, self._step + 1
        self.decisions += len(frames) if active is None else int(active.sum())
        if known > 0:
            self.agent.observe(frames, games, active, encode=known < self.agent.planner.context)
            return self._past[len(self._past) - known].astype(np.int64)
        if known == 0:
            self._clock = time.perf_counter()
        chosen = self.agent.act(frames, games, active)
        self._new.append(chosen)
        return chosen

    def executed(self, actions: Actions) -> None:
        self.agent.executed(actions)

    def progress(self, results: Sequence[EpisodeResult]) -> None:
        """Told by the play after every step which episodes have ended."""
        if self._step <= len(self._past):
            if self._step == len(self._past) and list(results) != self._before:
                raise UserError(
                    f"{self.journal.path} was played elsewhere and does not repeat here: delete it "
                    f"to play its episodes anew."
                )
            return
        ended, now = results[len(self.journal.results) :], time.perf_counter()
        if ended or now - self._clock > WRITE_EVERY:
            self.journal.add(self._new, ended, now - self._clock)
            self._new, self._clock = [], now


def path_of(folder: Path, facts: dict[str, Any]) -> Path:
    """The journal's file, named by what decides the play."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return folder / f"{digest[:20]}.jsonl"


def discard(folder: Path, paths: Sequence[Path]) -> None:
    """Deletes journals whose results are kept elsewhere; with the last one all of the folder."""
    for path in paths:
        path.unlink(missing_ok=True)
    if not any(folder.glob("*.jsonl")):
        shutil.rmtree(folder, ignore_errors=True)
