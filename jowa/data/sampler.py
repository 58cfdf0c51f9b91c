"""The order of training segments: a pure function of the seed and the number of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np

from jowa.errors import UserError

Balance = Literal["games", "uniform"]

_PARTS = 1_000_000  # reward fractions are counted in millionths, so that shares are exact
_KEYS = 0x6B657973  # tells the keys' generators from those of the permutations


class _Segments(Protocol):
    """What the sampler needs of a `SegmentDataset`."""

    segment_game: np.ndarray
    segment_has_reward: np.ndarray
    fingerprint: str

    @property
    def num_segments(self) -> int: ...


class _Permutations:
    """An endless sequence of `items`: one seeded permutation of them after another."""

    def __init__(self, items: np.ndarray, seed: tuple[int, ...]) -> None:
        self._items = items
        self._seed = seed
        self._epoch = -1
        self._order = items

    def draw(self, start: int, stop: int) -> np.ndarray:
        """Members start to stop - 1 of the sequence."""
        parts = []
        while start < stop:
            epoch, position = divmod(start, len(self._items))
            if epoch != self._epoch:
                self._order = np.random.default_rng([*self._seed, epoch]).permutation(self._items)
                self._epoch = epoch
            parts.append(self._order[position : position + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts) if parts else self._items[:0]


class _Group:
    """Segments that share one stream of slots: those of one game, or all of them."""

    def __init__(self, segments: np.ndarray, rewarding: np.ndarray, seed: tuple[int, ...]) -> None:
        self._all = _Permutations(segments, (*seed, 0))
        self._rewarding = _Permutations(segments[rewarding], (*seed, 1))
        self._has_rewarding = bool(rewarding.any())

    def draw(self, start: int, stop: int, parts: int, phase: int) -> np.ndarray:
        """Segments for slots start to stop - 1 of this group.

        `parts` millionths of all slots, evenly spread, take a rewarding segment; `phase` shifts
        the spread, so that groups do not all take theirs in the same batch.
        """
        if not parts or not self._has_rewarding:
            return self._all.draw(start, stop)
        # rewarding slots before each slot, from which follows how far both streams have come
        before = (np.arange(start, stop + 1) * parts + phase) // _PARTS
        takes = np.diff(before) > 0
        low, high = int(before[0]), int(before[-1])
        out = np.empty(stop - start, dtype=self._all.draw(0, 0).dtype)
        out[takes] = self._rewarding.draw(low, high)
        out[~takes] = self._all.draw(start - low, stop - high)
        return out


class Sampler(Iterator[np.ndarray]):
    """Endless batches of segment numbers for one rank of `world_size`.

    Every batch is a pure function of the arguments and its step number, so the position is one
    number, resuming is exact in the middle of an epoch, and the ranks' shares of a step put
    together in their order are the batch of a single process.

    Args:
        dataset: whose segments are drawn.
        batch_size: segments in the global batch, over all ranks.
        seed: of the permutations.
        balance: "games": equal shares for all games in every batch, as nearly as whole numbers
            allow, and exactly over time, each game a permutation of its own segments an epoch;
            "uniform": one permutation of all segments an epoch.
        reward_fraction: part of the draws, 0 to 1, that takes segments with a reward that is not
            zero, by permutations of their own; the other draws are of all segments. A game
            without any such segment has ordinary draws only.
    """

    def __init__(
        self,
        dataset: _Segments,
        batch_size: int,
        *,
        seed: int,
        balance: Balance = "games",
        reward_fraction: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_draws(balance, reward_fraction)
        _check(dataset, batch_size, world_size)
        assert 0 <= rank < world_size
        self.step = 0
        self._batch_size = batch_size
        self._seed = seed
        self._parts = round(reward_fraction * _PARTS)
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        # Everything that decides the order; compared at resuming.
        self._identity: dict[str, Any] = {
            "data": dataset.fingerprint,
            "batch_size": batch_size,
            "seed": seed,
            "balance": balance,
            "reward_fraction": reward_fraction,
        }
        label = dataset.segment_game if balance == "games" else np.zeros(dataset.num_segments)
        self._groups = []
        for game in np.unique(label):
            segments = np.flatnonzero(label == game)
            rewarding = dataset.segment_has_reward[segments]
            self._groups.append(_Group(segments, rewarding, (seed, int(game))))

    def __next__(self) -> np.ndarray:
        """The next (batch_size // world_size,) int64 segment numbers of this rank."""
        indices, _ = self.at(self.step)
        self.step += 1
        return indices

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's segment numbers at a step, and the key of each for what is drawn by chance
        for it: each (batch_size // world_size,) int64, a rank's share of the global batch's."""
        keys = np.random.default_rng([self._seed, step, _KEYS])
        drawn = keys.integers(2**62, size=self._batch_size)
        return self.global_batch(step)[self._mine], drawn[self._mine]

    def global_batch(self, step: int) -> np.ndarray:
        """(batch_size,) int64 segment numbers of all ranks at this step."""
        num_groups = len(self._groups)
        first = step * self._batch_size
        out = np.empty(self._batch_size, dtype=np.int64)
        # Slots count through all batches and belong to the groups in turn.
        for number, group in enumerate(self._groups):
            offset = (number - first) % num_groups
            start = (first + offset) // num_groups
            stop = start + len(range(offset, self._batch_size, num_groups))
            if stop > start:
                phase = number * _PARTS // num_groups
                out[offset::num_groups] = group.draw(start, stop, self._parts, phase)
        return out

    def state_dict(self) -> dict[str, Any]:
        """Position and identity, ready for JSON; independent of rank and world size."""
        return {"step": self.step, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; UserError where data or settings differ from the saved ones."""
        for name, value in self._identity.items():
            if state[name] != value:
                raise UserError(
                    f"cannot resume: the order of the data was made with {name}={state[name]} but "
                    f"this run has {name}={value}; use the old setting or start a new run."
                )
        self.step = int(state["step"])


def check_draws(balance: str, reward_fraction: float, prefix: str = "") -> None:
    """Raises UserError for settings of a `Sampler`, whose names begin with `prefix`."""
    if not 0 <= reward_fraction <= 1:
        raise UserError(f"{prefix}reward_fraction must lie between 0 and 1, not {reward_fraction}.")
    if balance not in ("games", "uniform"):
        raise UserError(f"{prefix}balance must be 'games' or 'uniform', not {balance!r}.")


def _check(dataset: _Segments, batch_size: int, world_size: int) -> None:
    if batch_size < 1 or batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} cannot be split over {world_size} processes: "
            "choose a multiple."
        )
    if dataset.num_segments < batch_size:
        raise UserError(
            f"there are only {dataset.num_segments} segments for a batch of {batch_size}: "
            "lower batch_size or collect more data."
        )
