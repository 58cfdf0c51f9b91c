"""Writes files in the exact format of the DQN Replay dataset, from play on today's emulator.

`ReplayLog` is the logging replay buffer of the agents that made the dataset: a circular store that
pads every episode's start with rows of zeros and writes itself to files one row before the end of
each lap. So its files have all the quirks of the real ones: padding, a last row of the lap before,
episodes cut at both ends, stale rows after a partial last lap.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jowa.envs import FRAME_SKIP, AtariEnv
from jowa.games import Game

STACK = 4  # frames the agents saw at once: one less is the number of padding rows
FRAME = (84, 84)
DTYPES = {"observation": np.uint8, "action": np.int32, "reward": np.float32, "terminal": np.uint8}


class ReplayLog:
    """A circular replay buffer of `rows` rows that logs itself to `folder`/replay_logs.

    Args:
        first: suffix of the first file; above 0, the run is one that already is in its lap `first`.
        observations: where to hold the frames, (rows, 84, 84) uint8, for instance a memory map.
        level: of gzip; 9 is what the dataset was written with.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        *,
        first: int = 0,
        observations: np.ndarray | None = None,
        level: int = 9,
    ) -> None:
        self.folder = folder / "replay_logs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows, self.level = rows, level
        self.add_count, self.log_count = first * rows, first
        shapes = {name: (rows, *FRAME) if name == "observation" else (rows,) for name in DTYPES}
        self.store = {name: np.zeros(shapes[name], dtype) for name, dtype in DTYPES.items()}
        if observations is not None:
            self.store["observation"] = observations
        self.invalid_range = np.zeros(STACK)
        self._fresh = True

    @property
    def cursor(self) -> int:
        return self.add_count % self.rows

    def add(self, frame: np.ndarray, action: int, reward: float, terminal: bool) -> None:
        """Stores a step (action: index in the game's minimal set, reward: clipped)."""
        if self._fresh:
            for _ in range(STACK - 1):
                self._add(np.zeros(FRAME, np.uint8), 0, 0.0, False)
        self._add(frame, action, reward, terminal)
        self._fresh = terminal
        # Padding can step over this row: that lap is then not logged at all.
        if self.cursor == self.rows - 1:
            self.write()

    def _add(self, frame: np.ndarray, action: int, reward: float, terminal: bool) -> None:
        row = (frame, action, reward, terminal)
        for store, value in zip(self.store.values(), row, strict=True):
            store[self.cursor] = value
        self.add_count += 1
        self.invalid_range = (self.cursor - 1 + np.arange(STACK + 1)) % self.rows

    def finish(self) -> None:
        """Writes the last, partial lap: with the rows of the lap before behind it."""
        self.add_count = self.cursor
        self.write()

    def write(self) -> None:
        """Writes the six files of the next suffix."""
        for name, array in self.store.items():
            save(self.folder / f"$store$_{name}_ckpt.{self.log_count}.gz", array, self.level)
        for name, value in (("add_count", self.add_count), ("invalid_range", self.invalid_range)):
            save(self.folder / f"{name}_ckpt.{self.log_count}.gz", np.array(value), self.level)
        self.log_count += 1


def save(path: Path, array: np.ndarray, level: int = 9) -> None:
    """One array as a gzipped .npy file."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", level, file, mtime=0) as zipped:
        np.save(zipped, array, allow_pickle=False)


def play(game: Game, *, time_limit: int, seed: int) -> Iterator[tuple[Any, int, float, bool]]:
    """Endless random play: frame (84, 84), index in the minimal set, clipped reward, terminal.

    Like the dataset, it calls the end of an episode of `time_limit` steps terminal.
    """
    rng = np.random.default_rng([seed, game.id])
    env = AtariEnv(game, max_frames=FRAME_SKIP * time_limit)
    frame = env.reset(int(rng.integers(2**31)))
    while True:
        index = int(rng.integers(len(game.action_ids)))
        following, reward, terminated, truncated = env.step(game.action_ids[index])
        over = terminated or truncated
        yield frame, index, float(np.clip(reward, -1, 1)), over
        frame = env.reset() if over else following
