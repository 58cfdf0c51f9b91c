"""Files as the DQN Replay dataset has them, of real play that the tests know step by step."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from replay_files import ReplayLog, play

from jowa.data.episodes import END_TERMINAL, END_TRUNCATED
from jowa.games import get

LAP_ROWS, TIME_LIMIT = 700, 160
Steps = list[tuple[np.ndarray, int, float, bool]]


@dataclass
class PlayedRun:
    """What was played in a run, and which row of which file holds it."""

    log: ReplayLog
    from_start: bool  # or else its first rows stand for the end of an older episode
    steps: Steps = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # rows, counted over all laps
    files: dict[int, tuple[int, int]] = field(default_factory=dict)  # lap: suffix, rows written

    def record(self, steps: Steps) -> None:
        for step in steps:
            suffix = self.log.log_count
            self.log.add(*step)
            self.steps.append(step)
            self.places.append(self.log.add_count - 1)
            if self.log.log_count > suffix:
                self.files[self.places[-1] // self.log.rows] = suffix, self.log.rows - 1

    def finish(self) -> None:
        self.files[self.log.add_count // self.log.rows] = self.log.log_count, self.log.cursor
        self.log.finish()

    def whole(self) -> dict[int, list[Steps]]:
        """By suffix, the episodes of which a file holds all and the end of the one before."""
        ends = [number for number, step in enumerate(self.steps) if step[3]]
        found: dict[int, list[Steps]] = {suffix: [] for suffix, _ in self.files.values()}
        for before, last in itertools.pairwise([-1, *ends]):
            lap, row = divmod(self.places[last], self.log.rows)
            begins_here = self.places[max(before, 0)] // self.log.rows == lap
            begins_here &= before >= 0 or self.from_start
            if lap in self.files and begins_here and row < self.files[lap][1]:
                found[self.files[lap][0]].append(self.steps[before + 1 : last + 1])
        return found


@dataclass
class Replay:
    """A small folder of the dataset: runs of Breakout, `LAP_ROWS` rows a file."""

    source: Path
    runs: dict[int, PlayedRun]

    def options(self, root: Path, **more: object) -> list[str]:
        """The command line that converts it."""
        options = {"games": "[Breakout]", "source": self.source, "root": root, "runs": "[1,2]"}
        options |= {"transitions": 0, "workers": 1, "lap_rows": LAP_ROWS, "time_limit": TIME_LIMIT}
        return ["convert dqn_replay", *(f"{k}={v}" for k, v in (options | more).items())]

    def expected(self) -> list[Steps]:
        """All episodes in the order of the store."""
        runs = [self.runs[run].whole() for run in sorted(self.runs)]
        return [steps for run in runs for number in sorted(run) for steps in run[number]]


def end_of(steps: Steps) -> int:
    return END_TRUNCATED if len(steps) == TIME_LIMIT else END_TERMINAL


@pytest.fixture(scope="session")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """Run 1 from its start, with two laps and a partial third; run 2 late in training."""
    source = tmp_path_factory.mktemp("replay")
    runs = {}
    for run, first, steps in ((1, 0, 1750), (2, 20, 1000)):
        log = ReplayLog(source / "Breakout" / str(run), LAP_ROWS, first=first, level=1)
        runs[run] = PlayedRun(log, from_start=first == 0)
        game = play(get("Breakout"), time_limit=TIME_LIMIT, seed=run)
        runs[run].record(list(itertools.islice(game, steps)))
        runs[run].finish()
    return Replay(source, runs)


@pytest.fixture
def copied(replay: Replay, tmp_path: Path) -> Replay:
    """The same files in a folder that a test may spoil."""
    return Replay(Path(shutil.copytree(replay.source, tmp_path / "source")), replay.runs)
