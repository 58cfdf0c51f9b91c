"""The files of the DQN Replay dataset: what a checkpoint of a run holds, read in one pass.

While an agent trained, its replay buffer (circular, 1,000,000 rows) was written out once a lap:
`$store$_observation_ckpt.N.gz` and its siblings, each a gzipped .npy array with one row a step.
From that way of writing follow the quirks that are handled here:

- Rows of zeros pad the start of every episode. Only their zero frame tells them from real steps.
- The buffer was written one row before the end of a lap, so the last row is of the lap before; in
  a run's last, partial lap all rows behind the cursor are. `add_count` says where the cursor was.
- A lap begins and ends in the middle of episodes. Each file is an island: what lies before its
  first terminal (unless the run starts there) and after its last one is dropped.
- Games that reached the time limit end with a terminal too: their length gives them away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jowa.data.episode_writer import END_TERMINAL, END_TRUNCATED, FRAME_SHAPE
from jowa.errors import UserError
from jowa.exchange.npy_rows import NpyRows, read_integers
from jowa.games import Game

STORES = ("observation", "action", "reward", "terminal")
SCALARS = ("add_count", "invalid_range")
RUN_LAPS = 50  # of a whole run: 50,000,000 steps

_DTYPES: dict[str, np.dtype[Any]] = {
    "observation": np.dtype(np.uint8),
    "action": np.dtype(np.int32),
    "reward": np.dtype(np.float32),
    "terminal": np.dtype(np.uint8),
}
_USUAL_PADDING = 3  # only for guessing lengths before the frames are read
_LEAST_EPSILON = 0.01  # share of random actions that the agents never went below


@dataclass(frozen=True)
class Layout:
    """Sizes of the dataset. Others than its own are for tests.

    `lap_rows` is the number of rows of a file, `time_limit` the most steps of an episode.
    """

    lap_rows: int = 1_000_000
    time_limit: int = 27_000

    def __post_init__(self) -> None:
        for name in ("lap_rows", "time_limit"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; use 1 or more.")


def file_name(array: str, number: int) -> str:
    """Name of the file that holds an array or a scalar of checkpoint `number`."""
    assert array in STORES + SCALARS, array
    return f"{'$store$_' if array in STORES else ''}{array}_ckpt.{number}.gz"


@dataclass(frozen=True)
class Lap:
    """What the small files of a checkpoint say, V rows of which were written in this lap.

    Attributes:
        folder: of the files, with their number.
        lap: how many laps the run had finished before; 0 to 50.
        actions: (V,) uint8 in the 18-action set.
        rewards: (V,) float32, clipped to [-1, 1].
        blank: (V,) bool, rows that are padding if their frame is zero.
        episodes: (E, 2) int64, first row and row after the last, padding included.
        counts: rows of the file and rows that belong to no whole episode, by reason.
    """

    folder: Path
    number: int
    layout: Layout
    lap: int
    actions: NDArray[np.uint8]
    rewards: NDArray[np.float32]
    blank: NDArray[np.bool_]
    episodes: NDArray[np.int64]
    counts: dict[str, int]

    def steps(self) -> NDArray[np.int64]:
        """Length of each episode (E,) without its padding, guessed as no frame was read yet."""
        starts = self.episodes[:, 0]
        padding = np.zeros(len(starts), dtype=np.int64)
        for row in range(_USUAL_PADDING):  # a terminal is never blank, so this stays inside
            padding += (padding == row) & self.blank[starts + padding]
        return np.diff(self.episodes, axis=1)[:, 0] - padding


@dataclass(frozen=True)
class Episode:
    """T steps of a game from its start to its end; arrays as `EpisodeWriter.add` takes them."""

    observations: NDArray[np.uint8]
    actions: NDArray[np.uint8]
    rewards: NDArray[np.float32]
    end: int
    padding: int  # rows dropped before the first step
    zero_frames: int  # all-zero frames that are no padding


def read_lap(folder: Path, number: int, game: Game, layout: Layout) -> Lap:
    """Reads and checks the small files of a checkpoint in a `replay_logs` folder.

    Raises:
        UserError: naming the file that is damaged, of another kind, or contradicts another.
    """
    written, lap = _written(folder, number, layout)
    arrays = {
        name: _whole(folder, number, name, layout)[:written]
        for name in ("action", "reward", "terminal")
    }
    paths = {name: folder / file_name(name, number) for name in arrays}
    _check_values(arrays, paths, game)
    stops = np.flatnonzero(arrays["terminal"]) + 1
    if not len(stops) and written > layout.time_limit + _USUAL_PADDING:
        raise UserError(
            f"{paths['terminal']} has no end of an episode in {written:,} rows, though games end "
            f"after {layout.time_limit:,} steps at the latest: fetch it again."
        )
    episodes = np.stack([np.concatenate([[0], stops])[: len(stops)], stops], axis=1)
    head = 0
    if lap > 0:
        head = int(stops[0]) if len(stops) else 0
        episodes = episodes[1:]
    full = written == layout.lap_rows - 1
    return Lap(
        folder=folder,
        number=number,
        layout=layout,
        lap=lap,
        actions=np.array(game.action_ids, dtype=np.uint8)[arrays["action"]],
        rewards=arrays["reward"],
        blank=(arrays["action"] == 0) & (arrays["reward"] == 0) & (arrays["terminal"] == 0),
        episodes=episodes.astype(np.int64),
        counts={
            "rows": layout.lap_rows,
            "unwritten_rows": 1 if full else 0,
            "stale_rows": 0 if full else layout.lap_rows - written,
            "head_rows": head,
            "tail_rows": written - (int(stops[-1]) if len(stops) else 0),
            "whole_episodes": len(episodes),
        },
    )


def read_episodes(
    lap: Lap, chosen: NDArray[np.int64], progress: Callable[[int], None]
) -> Iterator[Episode]:
    """Streams the episodes at the rows `chosen` (K, 2) of `lap.episodes`, which rise.

    One buffer serves all: an episode's frames are good until the next one is asked for. The file
    is read to its end, so that its checksum is checked before the iterator stops. `progress` is
    called with the number of rows of the file that were passed.
    """
    longest = int(np.diff(chosen, axis=1).max(initial=0))
    buffer = np.empty((longest, *FRAME_SHAPE), dtype=np.uint8)
    with _rows(lap.folder, lap.number, "observation", lap.layout) as rows:
        for start, stop in chosen.tolist():
            rows.skip(start - rows.passed, progress)
            frames = buffer[: stop - start]
            rows.read(frames, progress)
            yield _episode(lap, start, frames)
        rows.skip(lap.layout.lap_rows - rows.passed, progress)
        rows.check_end()


def _episode(lap: Lap, start: int, frames: NDArray[np.uint8]) -> Episode:
    stop = start + len(frames)
    zero = frames.reshape(len(frames), -1).view(np.uint64).max(axis=1) == 0
    padding = int(np.argmin(zero & lap.blank[start:stop]))  # the terminal row is never blank
    length = len(frames) - padding
    return Episode(
        frames[padding:],
        lap.actions[start + padding : stop],
        lap.rewards[start + padding : stop],
        END_TRUNCATED if length == lap.layout.time_limit else END_TERMINAL,
        padding,
        int(zero[padding:].sum()),
    )


def _written(folder: Path, number: int, layout: Layout) -> tuple[int, int]:
    """How many rows were written in this lap, and how many laps came before."""
    path = folder / file_name("add_count", number)
    counts = read_integers(path)
    if counts.shape != (1,) or counts[0] < 0:
        raise UserError(f"{path} holds {counts.tolist()}, not a count of rows: fetch it again.")
    laps, written = divmod(int(counts[0]), layout.lap_rows)
    if 0 < laps < number:
        raise UserError(
            f"{path} counts {counts[0]:,} rows, fewer than {number} laps of {layout.lap_rows:,}: "
            f"it is the file of another checkpoint, so fetch it again."
        )
    range_path = folder / file_name("invalid_range", number)
    if written not in read_integers(range_path):
        raise UserError(
            f"{path} puts the end of this lap at row {written:,}, which is not in {range_path}: "
            f"they are not of one checkpoint, so fetch both again."
        )
    # The last file of a run counts from its own lap on.
    return written, laps if laps > 0 else number


def _check_values(arrays: dict[str, Any], paths: dict[str, Path], game: Game) -> None:
    """Refuses values that the data of this game cannot have."""
    action, reward, terminal = arrays["action"], arrays["reward"], arrays["terminal"]
    if not len(action):
        return
    known = len(game.actions)
    if action.min() < 0 or action.max() >= known:
        wrong = int(action.max() if action.max() >= known else action.min())
        raise UserError(
            f"{paths['action']} holds action {wrong}, but {game.name} has actions 0 to "
            f"{known - 1}: it is not a file of {game.name}, or damaged."
        )
    unused = np.flatnonzero(np.bincount(action, minlength=known) == 0)
    if len(unused) and len(action) * _LEAST_EPSILON / known > 50:  # chance of e^-50 in real data
        raise UserError(
            f"{paths['action']} never holds action {unused[0]} of {game.name}'s {known}, though "
            f"the agents played at random at times: it is the file of another game."
        )
    if not (np.abs(reward) <= 1).all():
        raise UserError(
            f"{paths['reward']} holds rewards that are not in [-1, 1], as the dataset's are: it is "
            f"another file, or damaged."
        )
    if terminal.max() > 1:
        raise UserError(f"{paths['terminal']} holds {terminal.max()}, not only 0 and 1: damaged?")


def _rows(folder: Path, number: int, name: str, layout: Layout) -> NpyRows:
    """The rows of one of a checkpoint's arrays."""
    rest = FRAME_SHAPE if name == "observation" else ()
    return NpyRows(folder / file_name(name, number), (layout.lap_rows, *rest), _DTYPES[name])


def _whole(folder: Path, number: int, name: str, layout: Layout) -> NDArray[Any]:
    """One of the arrays with a number a row, (lap_rows,)."""
    values = np.empty(layout.lap_rows, dtype=_DTYPES[name])
    with _rows(folder, number, name, layout) as rows:
        rows.read(values)
        rows.check_end()
    return values
