"""Which runs, checkpoints and episodes of the DQN Replay dataset are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jowa.envs import MAX_SEED
from jowa.errors import UserError
from jowa.exchange.dqn_replay import RUN_LAPS, Lap, Layout
from jowa.exchange.replay_source import RUNS
from jowa.games import Game

TIERS = ("early", "middle", "late")  # thirds of a run's training

_RECIPE_VERSION = 1


@dataclass(frozen=True)
class Sampling:
    """What is taken of a game; with the files themselves, it decides every array of the store.

    Args:
        transitions: to take, about: whole episodes until there are as many; 0 for all.
        runs: to take them from; none for `draw_runs` runs drawn at random.
        checkpoints: to take them from, by number; none for all that there are.
        last_checkpoints: only the last this many of those; 0 for all.
    """

    transitions: int
    runs: tuple[int, ...] = ()
    draw_runs: int = 2
    checkpoints: tuple[int, ...] = ()
    last_checkpoints: int = 0
    seed: int = 0
    layout: Layout = field(default_factory=Layout)

    def __post_init__(self) -> None:
        for name in ("transitions", "last_checkpoints"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; use 0 (all) or more.")
        if wrong := [run for run in self.runs if run not in RUNS]:
            raise UserError(f"runs has {wrong[0]}; the dataset has runs 1 to {len(RUNS)}.")
        if not 1 <= self.draw_runs <= len(RUNS):
            raise UserError(f"draw_runs is {self.draw_runs}; use a number from 1 to {len(RUNS)}.")
        if wrong := [n for n in self.checkpoints if not 0 <= n <= RUN_LAPS]:
            raise UserError(f"checkpoints has {wrong[0]}; the dataset has 0 to {RUN_LAPS}.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed is {self.seed}; use a whole number from 0 to {MAX_SEED}.")

    def runs_of(self, game: Game) -> list[int]:
        """The runs to take, in order; drawn ones differ from game to game."""
        if self.runs:
            return sorted(set(self.runs))
        rng = np.random.default_rng([self.seed, game.id, 0])
        return sorted(rng.choice(RUNS, self.draw_runs, replace=False).tolist())

    def checkpoints_of(self, there: Sequence[int]) -> list[int]:
        """Those to take of a run's checkpoints, in order."""
        return sorted(there)[-self.last_checkpoints :]

    def provenance(self, game: Game) -> dict[str, Any]:
        """What settings would make the data of a game again."""
        return {
            "dataset": "DQN Replay",
            "emulator": "atari-py 0.2.5 or older",
            "recipe_version": _RECIPE_VERSION,
            "runs": self.runs_of(game),
            "checkpoints": sorted(set(self.checkpoints)) or "all",
            "last_checkpoints": self.last_checkpoints,
            "transitions": self.transitions,
            "seed": self.seed,
            "lap_rows": self.layout.lap_rows,
            "time_limit": self.layout.time_limit,
        }


@dataclass(frozen=True)
class Scan:
    """The episodes of a checkpoint, before any frame is read: what `Lap` says, without its rows."""

    run: int
    number: int
    lap: int
    episodes: NDArray[np.int64]  # (E, 2) first row and row after the last
    steps: NDArray[np.int64]  # (E,)
    counts: dict[str, int]

    @classmethod
    def of(cls, run: int, lap: Lap) -> Scan:
        return cls(run, lap.number, lap.lap, lap.episodes, lap.steps(), lap.counts)

    @property
    def tier(self) -> str:
        """The third of training that the checkpoint is of."""
        return TIERS[min(len(TIERS) * self.lap // RUN_LAPS, len(TIERS) - 1)]


def choose(scans: Sequence[Scan], game: Game, sampling: Sampling) -> list[NDArray[np.bool_]]:
    """Which episodes (E,) to take of each checkpoint.

    Every episode has the same chance. As each checkpoint holds as many rows as any other, each
    also gives about as many transitions.
    """
    steps = np.concatenate([scan.steps for scan in scans])
    order = np.random.default_rng([sampling.seed, game.id, 1]).permutation(len(steps))
    if sampling.transitions:
        sums = np.cumsum(steps[order])
        order = order[: int(np.searchsorted(sums, sampling.transitions)) + 1]
    taken = np.zeros(len(steps), dtype=bool)
    taken[order] = True
    return np.split(taken, np.cumsum([len(scan.steps) for scan in scans])[:-1])
