"""Reading episodes: one HDF5 file a game, as `jowa.data.episode_writer` lays it out.

The arrays with one number a row are read and checked against their hash at opening; frames are
read on demand, and a damaged chunk of them fails its checksum instead of giving wrong pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the zstd filter)
import numpy as np

from jowa import games
from jowa.data.episode_writer import (
    DTYPES,
    END_NONE,
    END_TERMINAL,
    END_TRUNCATED,
    FORMAT_VERSION,
    FRAME_SHAPE,
    FRAMES_PER_CHUNK,
    EpisodeWriter,
    hash_attributes,
)
from jowa.errors import UserError

__all__ = [
    "END_NONE",
    "END_TERMINAL",
    "END_TRUNCATED",
    "FORMAT_VERSION",
    "EpisodeFile",
    "EpisodeWriter",
]

_FRAMES_PER_READ = 32 * FRAMES_PER_CHUNK  # 7 MB: bounds the memory beside the result
# What h5py, numpy and json raise over damaged files.
_READ_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)


class EpisodeFile:
    """The episodes of one game, N transitions in E episodes, opened read-only.

    Attributes:
        actions: (N,) uint8 in the 18-action set.
        rewards: (N,) float32 clipped to [-1, 1].
        raw_rewards: (N,) float32 in points of the game, or None where unknown.
        ends: (N,) uint8, END_NONE but on the last step of an episode.
        episode_starts: (E + 1,) int64 row of each episode's first step, then N.
        episode_tiers: (E,) uint8, positions in `tiers`.
        episode_full: (E,) uint8, 1 where the episode starts at a true reset.
        provenance: how the file was made, and what settings would make it again.
        facts: what was found while it was made, such as returns or dropped rows.
        fingerprint: hex sha256 that changes whenever any array does.

    Raises:
        UserError: naming the file, when it is missing, damaged, cut short or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._cache: np.ndarray | None = None
        if not self.path.is_file():
            raise UserError(f"there is no episode file {self.path}: {self._remedy()}")
        self._open()
        try:
            self._read_header()
            self._read_arrays()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        try:
            # No lock: a finished file never changes, and network file systems may have no locks.
            self._file = h5py.File(self.path, "r", locking=False)
        except _READ_ERRORS as error:
            raise self._damaged("HDF5 cannot open it; it may be cut short") from error

    def reopen(self) -> None:
        """Opens the file anew, as a forked process must: HDF5 handles are not to be shared.

        UserError if it was replaced since it was opened first.
        """
        before = self.fingerprint
        self._file.close()
        self._open()
        self._read_header()
        if self.fingerprint != before:
            raise UserError(f"{self.path} was replaced while it was read: start the command again.")
        self._frames = self._file["observations"]

    def _read_header(self) -> None:
        try:
            version = self._file.attrs.get("format_version")
            if version is None:
                raise UserError(f"{self.path} is not an episode file of jowa: {self._remedy()}")
            if version != FORMAT_VERSION:  # before the rest, which other versions may lay out anew
                raise UserError(
                    f"{self.path} has format version {version}, but this jowa reads version "
                    f"{FORMAT_VERSION}: {self._remedy()}"
                )
            attributes = {
                name: value.decode() if isinstance(value, bytes) else int(value)
                for name, value in self._file.attrs.items()
            }
        except _READ_ERRORS as error:
            raise self._damaged("its attributes cannot be read") from error
        if attributes.get("sha256_attributes") != hash_attributes(attributes):
            raise self._damaged("its attributes do not match their hash")
        self.game = games.get(str(attributes["game"]))
        self.source = str(attributes["source"])
        self.preprocessing = str(attributes["preprocessing"])
        self.tiers: tuple[str, ...] = tuple(json.loads(str(attributes["tiers"])))
        self.provenance: dict[str, Any] = json.loads(str(attributes["provenance"]))
        self.facts: dict[str, Any] = json.loads(str(attributes.get("facts", "{}")))
        self._sha256: dict[str, str] = json.loads(str(attributes["sha256"]))
        identity = json.dumps([self.game.name, self._sha256], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def _read_arrays(self) -> None:
        self.actions = self._read_array("actions")
        self.rewards = self._read_array("rewards")
        known = "raw_rewards" in self._sha256
        self.raw_rewards = self._read_array("raw_rewards") if known else None
        self.ends = self._read_array("ends")
        self.episode_starts = self._read_array("episode_starts")
        self.episode_tiers = self._read_array("episode_tiers")
        self.episode_full = self._read_array("episode_full")
        try:
            self._frames = self._file["observations"]
            shape, dtype = self._frames.shape, self._frames.dtype
        except _READ_ERRORS as error:
            raise self._damaged("observations cannot be read") from error
        if dtype != DTYPES["observations"] or shape[1:] != FRAME_SHAPE:
            raise self._damaged(f"observations are {dtype} {shape}")
        self._check_consistency(shape[0])

    def _read_array(self, name: str) -> np.ndarray:
        try:
            dataset = self._file[name]
            if dataset.dtype != DTYPES[name] or dataset.ndim != 1:
                raise self._damaged(f"{name} is {dataset.dtype} {dataset.shape}")
            array: np.ndarray = dataset[:]
        except _READ_ERRORS as error:
            raise self._damaged(f"{name} cannot be read") from error
        if hashlib.sha256(array.data).hexdigest() != self._sha256.get(name):
            raise self._damaged(f"{name} does not match its hash")
        array.setflags(write=False)
        return array

    def _check_consistency(self, num_frames: int) -> None:
        """Reject files whose arrays contradict each other, however they came to be."""
        starts = self.episode_starts
        rows = [len(self.actions), len(self.rewards), len(self.ends)]
        rows += [] if self.raw_rewards is None else [len(self.raw_rewards)]
        if len(starts) < 2 or starts[0] != 0 or (np.diff(starts) < 1).any():
            raise self._damaged("episode_starts do not rise from 0")
        if any(row != num_frames for row in [*rows, int(starts[-1])]):
            raise self._damaged(f"arrays differ in length: {num_frames} frames, {rows} rows")
        if {len(self.episode_tiers), len(self.episode_full)} != {len(starts) - 1}:
            raise self._damaged("episode arrays differ in length")
        if self.actions.max() >= games.NUM_ACTIONS or self.episode_tiers.max() >= len(self.tiers):
            raise self._damaged("an action or a tier is out of range")
        inner = np.ones(num_frames, dtype=bool)
        inner[starts[1:] - 1] = False
        if self.ends[inner].any() or self.ends.max() > END_TRUNCATED:
            raise self._damaged("an end stands inside an episode")

    @property
    def num_transitions(self) -> int:
        return len(self.actions)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts) - 1

    @property
    def raw_bytes(self) -> int:
        """Bytes of all frames, uncompressed: what `cache` takes."""
        return self.num_transitions * FRAME_SHAPE[0] * FRAME_SHAPE[1]

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """Frames of the rows `indices` (M,), in any order, repeats allowed: (M, 84, 84) uint8."""
        indices = np.asarray(indices, dtype=np.int64)
        assert indices.ndim == 1
        if indices.size == 0:
            return np.empty((0, *FRAME_SHAPE), dtype=np.uint8)
        if indices.min() < 0 or indices.max() >= self.num_transitions:
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {self.num_transitions}")
        out = np.empty((len(indices), *FRAME_SHAPE), dtype=np.uint8)
        self.read_into(out, np.arange(len(indices)), indices)
        return out

    def read_into(self, out: np.ndarray, places: np.ndarray, indices: np.ndarray) -> None:
        """Puts the frames of the rows `indices` (M,) at `places` (M,) of `out` (P, 84, 84) uint8;
        every run of neighbouring chunks is read once."""
        if self._cache is not None:
            out[places] = self._cache[indices]
            return
        assert self._file, "the file is closed"
        order = np.argsort(indices, kind="stable")
        rows, places = indices[order], places[order]
        chunks = rows // FRAMES_PER_CHUNK
        run = np.cumsum(np.diff(chunks, prepend=chunks[0]) > 1)
        # A run also ends where it would take too much memory.
        key = run * (self.num_transitions // _FRAMES_PER_READ + 1) + rows // _FRAMES_PER_READ
        bounds = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(bounds):
            start, stop = int(rows[first]), int(rows[last - 1]) + 1
            try:
                block = self._frames[start:stop]
            except _READ_ERRORS as error:
                raise self._damaged(f"frames {start} to {stop - 1} cannot be read") from error
            out[places[first:last]] = block[rows[first:last] - start]

    def blocks(self) -> Iterator[np.ndarray]:
        """All frames in order, in blocks of at most 1024: (n, 84, 84) uint8."""
        for start in range(0, self.num_transitions, _FRAMES_PER_READ):
            stop = min(start + _FRAMES_PER_READ, self.num_transitions)
            yield self.frames(np.arange(start, stop))

    @property
    def in_memory(self) -> bool:
        """Whether `cache` was called."""
        return self._cache is not None

    def cache(self) -> None:
        """Load all frames into memory (`raw_bytes`); from then on `frames` does not read."""
        if self._cache is None:
            cache = np.empty((self.num_transitions, *FRAME_SHAPE), dtype=np.uint8)
            start = 0
            for block in self.blocks():
                cache[start : start + len(block)] = block
                start += len(block)
            self._cache = cache

    def check_frames(self, progress: Callable[[int], object] | None = None) -> None:
        """Compare every frame with the stored hash; raises UserError where they differ.

        `progress` is called with the number of frames of each block that was read.
        """
        running = hashlib.sha256()
        for block in self.blocks():
            running.update(block.data)
            if progress is not None:
                progress(len(block))
        if running.hexdigest() != self._sha256.get("observations"):
            raise self._damaged("observations do not match their hash")

    @property
    def scored(self) -> np.ndarray:
        """(E,) bool, true where an episode starts at a true reset and was played to its end."""
        played_out: np.ndarray = self.ends[self.episode_starts[1:] - 1] != END_NONE
        return (self.episode_full == 1) & played_out

    def returns(self) -> np.ndarray | None:
        """(E,) float64 sums of raw rewards, scores where `scored`; None where these are unknown."""
        if self.raw_rewards is None:
            return None
        points = self.raw_rewards.astype(np.float64)
        returns: np.ndarray = np.add.reduceat(points, self.episode_starts[:-1])
        return returns

    def statistics(self) -> dict[str, Any]:
        """Counts and mean scores of the whole file and of each tier, ready for JSON.

        A score is the sum of the raw rewards of an episode that starts at a true reset and was
        played to its end. `mean_return` of the file weighs each tier's mean by its transitions.
        """
        lengths, scored, returns = np.diff(self.episode_starts), self.scored, self.returns()
        tiers: dict[str, dict[str, Any]] = {}
        for position, name in enumerate(self.tiers):
            mine = self.episode_tiers == position
            scores = None if returns is None else returns[mine & scored]
            tiers[name] = {
                "episodes": int(mine.sum()),
                "transitions": int(lengths[mine].sum()),
                "full_episodes": int((mine & scored).sum()),
                "mean_return": None if scores is None or not len(scores) else float(scores.mean()),
            }
        known = [tier for tier in tiers.values() if tier["mean_return"] is not None]
        weights = [tier["transitions"] for tier in known]
        mean = (
            float(np.average([tier["mean_return"] for tier in known], weights=weights))
            if known
            else None
        )
        return {
            "game": self.game.name,
            "episodes": self.num_episodes,
            "transitions": self.num_transitions,
            "mean_return": mean,
            "tiers": tiers,
        }

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EpisodeFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remedy(self) -> str:
        return (
            f"make it again as it was made, such as by `jowa collect games=[{self.path.stem}] "
            f"overwrite=true`."
        )

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.path} is damaged ({what}): {self._remedy()}")
