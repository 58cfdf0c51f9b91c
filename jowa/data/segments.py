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

from jowa.data.episode_writer import FRAME_SHAPE
from jowa.data.episodes import END_TERMINAL, EpisodeFile
from jowa.data.sampler import Sampler
from jowa.errors import UserError

__all__ = ["Batch", "Pad", "Sampler", "SegmentDataset", "windows"]

Pad = Literal["right", "left"]


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

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU copies from by itself; what is on one stays there."""
        return Batch(**{n: t if t.is_cuda else t.pin_memory() for n, t in vars(self).items()})

    def sent_to(self, device: torch.device) -> Batch:
        """The same batch on another device, without waiting for it."""
        batch = self.pin_memory() if device.type == "cuda" else self
        return batch.to(device, non_blocking=True)

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


def _chosen(
    episode_starts: np.ndarray, stride: int, hold_out: int, held_out: bool, share: float
) -> np.ndarray:
    """(S,) bool, in the order of `windows`: whether each lies in an episode to learn from, or, with
    `held_out`, in one that is held out."""
    counts = -(-np.diff(episode_starts) // stride)
    number = np.arange(len(counts))
    held = number % hold_out == hold_out - 1 if hold_out else np.zeros(len(counts), dtype=bool)
    # Evenly spread over those not held out, so that every tier of play keeps its part.
    due = (np.cumsum(~held) * share) // 1
    taken = held if held_out else ~held & (np.diff(due, prepend=0.0) > 0)
    return np.asarray(np.repeat(taken, counts))


class SegmentDataset:
    """The windows of some episode files, addressed by one running number.

    Args:
        files: one or more episode files; rows count through them in this order.
        tokens: (N, 36) integers for each file, or one array or tensor for all of them (see
            `jowa.data.tokens.place`); None reads frames.
        length: steps in a segment, L.
        stride: steps between the starts ("right") or ends ("left") of windows.
        pad: the side on which short windows are padded.
        hold_out: of every so many episodes of a file the last is held out; 0 holds out none.
        held_out: take the segments of these episodes instead of all others.
        share: part of the other episodes to take, evenly spread; of held-out ones always all.

    Attributes:
        segment_game: (S,) int64 game id of each segment.
        segment_steps: (S,) int64 number of real steps of each segment, at most L.
        segment_has_reward: (S,) bool, whether any of its clipped rewards is not zero.
        fingerprint: hex sha256 of what the segment numbers stand for.

    Raises:
        UserError: naming a file of which the share leaves nothing.
    """

    def __init__(
        self,
        files: Sequence[EpisodeFile],
        tokens: Sequence[np.ndarray] | Tensor | None = None,
        *,
        length: int = 8,
        stride: int = 4,
        pad: Pad = "right",
        hold_out: int = 0,
        held_out: bool = False,
        share: float = 1.0,
    ) -> None:
        self.files = list(files)
        self.length = length
        self.pad = pad
        self._actions = np.concatenate([file.actions for file in files])
        self._rewards = np.concatenate([file.rewards for file in files])
        self._terminal = np.concatenate([file.ends == END_TERMINAL for file in files])
        self._first_rows = np.cumsum([0, *(file.num_transitions for file in files)])
        cut = [
            windows(file.episode_starts, length, stride, pad)[
                _chosen(file.episode_starts, stride, hold_out, held_out, share)
            ]
            for file in files
        ]
        empty = [f for f, part in zip(files, cut, strict=True) if not len(part) and not held_out]
        if empty:
            raise UserError(
                f"share={share} of the {empty[0].num_episodes} episodes of {empty[0].game.name} "
                f"(one in {hold_out} held out) is none of them: raise it, or collect more."
            )
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
        held = [hold_out, held_out] if hold_out else []
        part = [share] if share < 1.0 and not held_out else []
        files_read = [file.fingerprint for file in files]
        identity = json.dumps([files_read, length, stride, pad, *held, *part])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._tokens = tokens
        if tokens is not None:
            self._check_tokens(tokens)

    def _check_tokens(self, tokens: Sequence[np.ndarray] | Tensor) -> None:
        parts = [tokens] if isinstance(tokens, Tensor) else tokens
        rows = [file.num_transitions for file in self.files]
        assert [len(part) for part in parts] in (rows, [sum(rows)]), "tokens of other episodes"

    @property
    def on_device(self) -> bool:
        """Whether the tokens lie in a tensor, so that its device gathers them."""
        return isinstance(self._tokens, Tensor)

    @property
    def on_disk(self) -> bool:
        """Whether observations are read from disk."""
        if self._tokens is None:
            return not all(file.in_memory for file in self.files)
        return isinstance(self._tokens[0], np.memmap)

    @property
    def num_segments(self) -> int:
        return len(self._start)

    def reopen(self) -> None:
        """To be called in a process that was forked from the one that opened the files."""
        if self._tokens is None:
            for file in self.files:
                if not file.in_memory:
                    file.reopen()

    def batch(
        self,
        indices: np.ndarray,
        keys: np.ndarray | None = None,
        observations: Tensor | None = None,
    ) -> Batch:
        """The segments `indices` (B,) as one batch, with their keys (B,).

        `observations` are those of the segments, where they have been read before. All tensors are
        on the CPU, but for tokens that lie on another device.
        """
        rows, mask = self._rows(indices)
        if observations is None:
            observations = self.observations(indices)
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

    def observations(self, indices: np.ndarray, out: np.ndarray | None = None) -> Tensor:
        """(B, L, 84, 84) uint8 frames or (B, L, 36) int64 tokens of the segments `indices`.

        Where `out` is given they are put there, but for tokens that lie on another device.
        """
        rows, mask = self._rows(indices)
        if isinstance(self._tokens, Tensor):
            return _gather(self._tokens, torch.from_numpy(rows), torch.from_numpy(mask))
        files = self._file_of_segment[indices]
        if out is None:
            shape = FRAME_SHAPE if self._tokens is None else self._tokens[0].shape[1:]
            out = np.empty((*rows.shape, *shape), np.uint8 if self._tokens is None else np.int64)
        if self._tokens is None:
            self._read_frames(rows, mask, files, out)
        else:
            self._read_tokens(self._tokens, rows, files, out)
        out[~mask] = 0
        return torch.from_numpy(out)

    def _rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row (B, L) of each step of the segments, through all files, and which are real."""
        start, count = self._start[indices], self.segment_steps[indices]
        step = np.arange(self.length)
        if self.pad == "left":
            step = step - (self.length - count)[:, None]  # padding steps are negative
        mask = np.broadcast_to(step < count[:, None], (len(start), self.length)) & (step >= 0)
        # Padding reads the segment's first row, which exists, and is zeroed afterwards.
        return start[:, None] + np.where(mask, step, 0), mask

    def _read_tokens(
        self, tokens: Sequence[np.ndarray], rows: np.ndarray, files: np.ndarray, out: np.ndarray
    ) -> None:
        """Of a memory-mapped array only the pages of these rows are touched."""
        if len(tokens) == 1:
            out[...] = tokens[0][rows]
            return
        for file in np.unique(files):
            mine = files == file
            out[mine] = tokens[file][rows[mine] - self._first_rows[file]]

    def _read_frames(
        self, rows: np.ndarray, mask: np.ndarray, files: np.ndarray, out: np.ndarray
    ) -> None:
        """Each file is read once."""
        flat = out.reshape(-1, *FRAME_SHAPE)
        for file in np.unique(files):
            mine = mask & (files == file)[:, None]
            asked = rows[mine] - self._first_rows[file]
            self.files[file].read_into(flat, np.flatnonzero(mine), asked)


def _gather(table: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """(B, L, 36) int64 of a table (N, 36) int16 that holds uint16, on the table's device."""
    rows, mask = (_moved(x, table.device) for x in (rows, mask))
    # int16 because few operations know uint16.
    tokens = table[rows].long() & 0xFFFF
    return tokens * mask.unsqueeze(-1)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """On another device, without waiting for it."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
