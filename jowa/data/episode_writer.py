"""Writing episodes: one HDF5 file a game, complete or not there at all.

Layout (N transitions, E episodes), every array chunked, zstd-compressed and checksummed a chunk:
`observations` (N, 84, 84) uint8, `actions` (N,) uint8 in the 18-action set, `rewards` (N,) float32
clipped to [-1, 1], `raw_rewards` (N,) float32 where known, `ends` (N,) uint8, `episode_starts`
(E + 1,) int64, `episode_tiers` (E,) uint8, `episode_full` (E,) uint8. Attributes: format_version,
game, source, preprocessing, tiers, provenance, facts, sha256 (of each array's bytes),
sha256_attributes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from jowa.errors import UserError
from jowa.files import publish, temporary_path
from jowa.games import NUM_ACTIONS, Game

FORMAT_VERSION = 1
END_NONE, END_TERMINAL, END_TRUNCATED = 0, 1, 2
FRAME_SHAPE = (84, 84)
FRAMES_PER_CHUNK = 32
PREPROCESSING = "84x84 grayscale, frame skip 4, maximum of the last two frames"
# Little-endian dtypes by name, so that the hashes mean the same bytes on every machine.
DTYPES: dict[str, np.dtype[Any]] = {
    "observations": np.dtype("u1"),
    "actions": np.dtype("u1"),
    "rewards": np.dtype("<f4"),
    "raw_rewards": np.dtype("<f4"),
    "ends": np.dtype("u1"),
    "episode_starts": np.dtype("<i8"),
    "episode_tiers": np.dtype("u1"),
    "episode_full": np.dtype("u1"),
}

_ROWS_PER_CHUNK = 16384  # of the arrays with one number a row


class _DiskFile(io.FileIO):
    """A file that keeps its first write error for later: HDF5 crashes when the disk is full."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def check(self) -> None:
        """Raise the error that was kept, if any."""
        if self.error is not None:
            raise self.error


class EpisodeWriter:
    """Streams episodes into `path`; the file appears there only when the block ends well.

    An exception inside the block removes what was written and leaves an older file as it was; a
    killed process leaves a temporary file, which the next writer to the same path removes.

    Args:
        path: of the file to make; its folder is made too.
        game: whose minimal action set, id and name go with the data.
        source: one line about who played.
        tiers: names of the qualities of play; `add` refers to them by position.
        provenance: anything JSON can hold that says how to make the file again.

    `facts` may be filled until the block ends: anything JSON can hold that was found on the way.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        game: Game,
        *,
        source: str,
        tiers: Sequence[str] = ("all",),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        assert source and 0 < len(tiers) <= 255
        self.path = Path(path)
        self.num_transitions = 0
        self.num_episodes = 0
        self._attributes: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "game": game.name,
            "source": source,
            "preprocessing": PREPROCESSING,
            "tiers": json.dumps(list(tiers)),
            "provenance": json.dumps(dict(provenance or {}), sort_keys=True),
        }
        self.facts: dict[str, Any] = {}
        self._num_tiers = len(tiers)
        self._datasets: dict[str, h5py.Dataset] = {}
        self._hashes: dict[str, Any] = {}
        self._file: h5py.File | None = None

    def __enter__(self) -> EpisodeWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = temporary_path(self.path)
            # Since HDF5 1.10 all metadata carries checksums; newer bounds would only shut out
            # older readers.
            self._disk = _DiskFile(self._temporary, "w+")
            self._file = h5py.File(self._disk, "w", libver=("v110", "v110"))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error}") from error
        return self

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        raw_rewards: np.ndarray | None,
        end: int,
        tier: int = 0,
        full: bool = True,
        *,
        rewards: np.ndarray | None = None,
    ) -> None:
        """Append one episode of T >= 1 steps.

        Args:
            observations: (T, 84, 84) uint8, the frame before each action.
            actions: (T,) in the 18-action set.
            raw_rewards: (T,) in points of the game, or None where only clipped ones are known,
                for all episodes of the file alike.
            end: END_TERMINAL after a finished game, END_TRUNCATED at the frame cap of the
                protocol, END_NONE where only the recording stopped.
            tier: position in `tiers`.
            full: whether the episode starts at a true reset, so that its return is a score.
            rewards: (T,) clipped to [-1, 1]; given exactly where raw_rewards is None.

        Raises:
            UserError: for anything else, and where the disk is full.
        """
        length = len(observations)
        if raw_rewards is not None and rewards is None:
            rewards = np.clip(raw_rewards, -1, 1)
        elif raw_rewards is not None or rewards is None:
            raise UserError("an episode has raw_rewards or else rewards: give one of them.")
        self._check_episode(observations, actions, rewards, end, tier)
        known = "raw_rewards" in self._datasets
        if self.num_episodes and known != (raw_rewards is not None):
            raise UserError(
                f"{self.path} has episodes {'with' if known else 'without'} raw_rewards so far: "
                f"give all of a file alike."
            )
        ends = np.full(length, END_NONE)
        ends[-1] = end
        try:
            if self.num_episodes == 0:
                self._append("episode_starts", np.array([0]))
            self._append("observations", observations)
            self._append("actions", actions)
            self._append("rewards", rewards)
            if raw_rewards is not None:
                self._append("raw_rewards", raw_rewards)
            self._append("ends", ends)
            self.num_transitions += length
            self._append("episode_starts", np.array([self.num_transitions]))
            self._append("episode_tiers", np.array([tier]))
            self._append("episode_full", np.array([full]))
            self._disk.check()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error}") from error
        self.num_episodes += 1

    def _check_episode(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        end: int,
        tier: int,
    ) -> None:
        """UserError, saying what, unless they are an episode of at least one step."""
        length = len(observations)
        wrong = ""
        if observations.shape[1:] != FRAME_SHAPE or observations.dtype != np.uint8 or not length:
            wrong = (
                f"observations are {observations.dtype} {observations.shape}, not uint8 (T, 84, 84)"
            )
        elif actions.shape != (length,) or rewards.shape != (length,):
            wrong = (
                f"there are {length} observations, {len(actions)} actions, {len(rewards)} rewards"
            )
        elif actions.min() < 0 or actions.max() >= NUM_ACTIONS:
            wrong = f"actions are {actions.min()} to {actions.max()}, not 0 to {NUM_ACTIONS - 1}"
        elif not bool((np.abs(rewards) <= 1).all()):
            wrong = "rewards are not finite, or not clipped to [-1, 1]"
        elif end not in (END_NONE, END_TERMINAL, END_TRUNCATED):
            wrong = f"end is {end}, not END_NONE, END_TERMINAL or END_TRUNCATED"
        elif not 0 <= tier < self._num_tiers:
            wrong = f"tier is {tier}, but there are {self._num_tiers}"
        if wrong:
            raise UserError(f"episode {self.num_episodes} for {self.path}: {wrong}.")

    def _append(self, name: str, values: np.ndarray) -> None:
        """Append rows to a dataset (made at its first rows) and to its running hash."""
        assert self._file is not None, "use the writer in a with statement"
        values = np.ascontiguousarray(values, dtype=DTYPES[name])
        if name not in self._datasets:
            rest = values.shape[1:]
            self._datasets[name] = self._file.create_dataset(
                name,
                shape=(0, *rest),
                maxshape=(None, *rest),
                dtype=DTYPES[name],
                chunks=(FRAMES_PER_CHUNK if rest else _ROWS_PER_CHUNK, *rest),
                fletcher32=True,
                **hdf5plugin.Zstd(clevel=3),
            )
            self._hashes[name] = hashlib.sha256()
        dataset = self._datasets[name]
        start = len(dataset)
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values
        self._hashes[name].update(values)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as problem:
            raise UserError(f"cannot write {self.path}: {problem}") from problem
        finally:
            with contextlib.suppress(Exception):  # the first error matters, not one of closing
                if self._file is not None:
                    self._file.close()
            self._disk.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        assert self._file is not None
        if self.num_episodes == 0:
            raise UserError(f"no episode was recorded, so {self.path} was not written.")
        hashes = {name: running.hexdigest() for name, running in sorted(self._hashes.items())}
        self._attributes["facts"] = json.dumps(self.facts, sort_keys=True)
        self._attributes["sha256"] = json.dumps(hashes)
        self._attributes["sha256_attributes"] = hash_attributes(self._attributes)
        for name, value in self._attributes.items():
            # Text of fixed length lies in the checksummed metadata, text of variable length not.
            self._file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
        self._file.close()
        self._disk.check()
        publish(self._temporary, self.path)


def hash_attributes(attributes: Mapping[str, Any]) -> str:
    """Hex sha256 over all attributes but the hash itself."""
    rest = {name: value for name, value in attributes.items() if name != "sha256_attributes"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
