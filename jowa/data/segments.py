"""Training segments: windows of episodes, read as whole batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jowa.data.episodes import END_TERMINAL, EpisodeFile
from jowa.data.sampler import Sampler

__all__ = ["Batch", "Pad", "Sampler", "SegmentDataset", "windows"]

Pad = Literal["right", "left"]

# Tokens up to this size are copied into one array in memory; larger ones stay as they are given.
_TOKENS_IN_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class Batch:
    """B segments of L steps. Padding rows are zero (False) in every field.

    Attributes:
        observations: (B, L, 84, 84) uint8 frames, or (B, L, 36) int64 tokens.
        actions: (B, L) int64 in the 18-action set.
        rewards: (B, L) float32 clipped to [-1, 1].
        ends: (B, L) bool, true on the last step of a finished game; not where it was truncated.
        mask_padding: (B, L) bool, true on real steps.
        games: (B,) int64 ids.
        imagined: (B, L) bool, true on steps that a world model dreamt.
        keys: (B,) int64, from which follows what is drawn by chance for a segment.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    mask_padding: Tensor
    games: Tensor
    imagined: Tensor
    keys: Tensor

    @property
    def real(self) -> Tensor:
        """(B, L) bool, true on steps that were played: neither padding nor imagined."""
        return self.mask_padding & ~self.imagined

    @classmethod
    def cat(cls, parts: Sequence[Batch]) -> Batch:
        """The segments of all parts, in their order."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: torch.cat(column) for name, column in columns.items()})

    def select(self, rows: Tensor | slice) -> Batch:
        """The segments `rows`."""
        return Batch(**{name: tensor[rows] for name, tensor in vars(self).items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
        }
        return Batch(**moved)


def windows(episode_starts: np.ndarray, length: int, stride: int, pad: Pad) -> np.ndarray:
    """Cut every episode into windows of at most `length` steps.

    "right": windows start every `stride` steps from the episode's start, the last ones shorter.
    "left": windows end every `stride` steps back from the episode's end, the first ones shorter.
    No window leaves its episode and every step lies in at least one.

    Args:
        episode_starts: (E + 1,) int64, as in an episode file.

    Returns:
        (S, 2) int64 rows [start, stop), in the order of the episodes and rising within them.
    """
    assert 0 < stride <= length, "a stride beyond the length would skip steps"
    first, last = episode_starts[:-1], episode_starts[1:]
    counts = -((first - last) // stride)  # steps / stride, rounded up
    # 0, 1, 2, ... within every episode
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    if pad == "right":
        start = np.repeat(first, counts) + number * stride
        stop = np.minimum(start + length, np.repeat(last, counts))
    else:
        stop = np.repeat(last - (counts - 1) * stride, counts) + number * stride
        start = np.maximum(stop - length, np.repeat(first, counts))
    return np.stack([start, stop], axis=1).astype(np.int64)


class SegmentDataset:
    """All windows of some episode files, addressed by one running number.

    Args:
        files: one or more episode files; rows count through them in this order.
        tokens: (N, 36) integers for each file, or None to read frames.
        length: steps in a segment, L.
        stride: steps between the starts ("right") or ends ("left") of windows.
        pad: the side on which short windows are padded.

    Attributes:
        segment_game: (S,) int64 game id of each segment.
        segment_steps: (S,) int64 number of real steps of each segment, at most L.
        segment_has_reward: (S,) bool, whether any of its clipped rewards is not zero.
        fingerprint: hex sha256 of what the segment numbers stand for.
    """

    def __init__(
        self,
        files: Sequence[EpisodeFile],
        tokens: Sequence[np.ndarray] | None = None,
        *,
        length: int = 8,
        stride: int = 4,
        pad: Pad = "right",
    ) -> None:
        self.files = list(files)
        self.length = length
        self.pad = pad
        self._actions = np.concatenate([file.actions for file in files])
        self._rewards = np.concatenate([file.rewards for file in files])
        self._terminal = np.concatenate([file.ends == END_TERMINAL for file in files])
        self._first_rows = np.cumsum([0, *(file.num_transitions for file in files)])
        cut = [windows(file.episode_starts, length, stride, pad) for file in files]
        rows = np.concatenate(
            [part + first for part, first in zip(cut, self._first_rows[:-1], strict=True)]
        )
        self._start = rows[:, 0]
        self.segment_steps = rows[:, 1] - rows[:, 0]
        counts = [len(part) for part in cut]
        self._file_of_segment = np.repeat(np.arange(len(files)), counts)
        self.segment_game = np.repeat(
            np.array([file.game.id for file in files], dtype=np.int64), counts
        )
        rewarding = np.concatenate([[0], np.cumsum(self._rewards != 0)])
        self.segment_has_reward = rewarding[rows[:, 1]] > rewarding[rows[:, 0]]
        identity = json.dumps([[file.fingerprint for file in files], length, stride, pad])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._tokens = None if tokens is None else self._gather_tokens(tokens)

    def _gather_tokens(self, tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One array over all rows if it fits into memory, else the arrays as they are."""
        for file, part in zip(self.files, tokens, strict=True):
            assert len(part) == file.num_transitions, f"tokens do not fit {file.path}"
        if sum(part.nbytes for part in tokens) <= _TOKENS_IN_MEMORY_BYTES:
            return [np.concatenate(tokens)]
        return list(tokens)

    @property
    def num_segments(self) -> int:
        return len(self._start)

    def batch(self, indices: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The segments `indices` (B,) as one batch of CPU tensors, with their keys (B,)."""
        start, count = self._start[indices], self.segment_steps[indices]
        step = np.arange(self.length)
        if self.pad == "left":
            step = step - (self.length - count)[:, None]  # padding steps are negative
        mask = np.broadcast_to(step < count[:, None], (len(start), self.length)) & (step >= 0)
        # Padding reads the segment's first row, which exists, and is zeroed below.
        rows = start[:, None] + np.where(mask, step, 0)
        files = self._file_of_segment[indices]
        observations = (
            self._read_frames(rows, mask, files)
            if self._tokens is None
            else self._read_tokens(rows, mask, files)
        )
        return Batch(
            observations=observations,
            actions=torch.from_numpy((self._actions[rows] * mask).astype(np.int64)),
            rewards=torch.from_numpy(self._rewards[rows] * mask),
            ends=torch.from_numpy(self._terminal[rows] & mask),
            mask_padding=torch.from_numpy(mask),
            games=torch.from_numpy(self.segment_game[indices]),
            imagined=torch.zeros(mask.shape, dtype=torch.bool),
            keys=torch.from_numpy(indices if keys is None else keys),
        )

    def _read_tokens(self, rows: np.ndarray, mask: np.ndarray, files: np.ndarray) -> Tensor:
        """(B, L, 36) int64."""
        assert self._tokens is not None
        if len(self._tokens) == 1:
            out = self._tokens[0][rows].astype(np.int64)
        else:
            out = np.empty((*rows.shape, self._tokens[0].shape[1]), dtype=np.int64)
            for file in np.unique(files):
                mine = files == file
                out[mine] = self._tokens[file][rows[mine] - self._first_rows[file]]
        out[~mask] = 0
        return torch.from_numpy(out)

    def _read_frames(self, rows: np.ndarray, mask: np.ndarray, files: np.ndarray) -> Tensor:
        """(B, L, 84, 84) uint8; each file is read once."""
        out = np.zeros((*rows.shape, 84, 84), dtype=np.uint8)
        for file in np.unique(files):
            mine = mask & (files == file)[:, None]
            out[mine] = self.files[file].frames(rows[mine] - self._first_rows[file])
        return torch.from_numpy(out)
