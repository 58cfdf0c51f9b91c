"""The work of collecting one game: its jobs in order, but for what a stopped run has done."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jowa.collecting.constants import record_blind_returns
from jowa.collecting.joining import join_game
from jowa.collecting.playing import play_unit
from jowa.collecting.recipe import Recipe, Unit
from jowa.data.episodes import EpisodeFile
from jowa.data.store import verify
from jowa.errors import UserError
from jowa.games import Game


@dataclasses.dataclass(frozen=True)
class Job:
    """A function of a module and its arguments; `unit` is the unit it plays, if one, and `last`
    whether it makes the game's file."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    unit: Unit | None = None
    last: bool = False


class GameWork:
    """What is done and what is still to do for one game."""

    def __init__(
        self, game: Game, root: Path, recipe: Recipe, constant_episodes: int, device: str
    ) -> None:
        self.game, self.path = game, root / f"{game.name}.h5"
        self.folder = root / ".parts" / game.name
        self.transitions = recipe.transitions
        self._recipe, self._device = recipe, device
        self._episodes = constant_episodes
        self._units = recipe.units(game)
        self._digest = recipe.digest()
        self._played: dict[Unit, int] = {}
        self._running = 0
        self._joining = False

    def resume(self) -> int:
        """Looks for parts of an interrupted run; returns how many transitions they have."""
        for unit in self._units:
            if self._part(unit).exists() and _sound(self._part(unit)):
                self._played[unit] = _transitions(self._part(unit))
        # A learner is one long unit, so it had better start first.
        units = sorted(self._units, key=lambda unit: unit.kind != "whole")
        self._units_left = deque(unit for unit in units if unit not in self._played)
        blind = self._blind().items()
        self._blind_left = deque((a, path) for a, path in blind if not path.exists())
        return sum(self._played.values())

    def next_job(self, count: Callable[[int], None]) -> Job | None:
        """A job that can start now, or None: after the last unit has ended, it is the joining."""
        job = self._next_job(count)
        self._running += job is not None
        return job

    def _next_job(self, count: Callable[[int], None]) -> Job | None:
        while self._units_left:
            unit = self._units_left.popleft()
            if self._needed(unit):
                part = self._part(unit)
                return Job(play_unit, (unit, self._recipe, part, self._device, count), unit)
        if self._blind_left:
            action, path = self._blind_left.popleft()
            return Job(
                record_blind_returns, (self.game, action, self._episodes, self._recipe, path)
            )
        if self._running or self._joining:
            return None
        self._joining = True
        parts = {unit: self._part(unit) for unit in self._units if unit in self._played}
        return Job(
            join_game,
            (self.game, self._recipe, parts, self._blind(), self.path, self.folder),
            last=True,
        )

    def _needed(self, unit: Unit) -> bool:
        """Whether the full games before this unit leave anything of the tier's budget to it; full
        games often exceed their units' targets."""
        if unit.kind != "full":
            return True
        before = [u for u in self._units if (u.tier, u.kind) == (unit.tier, unit.kind)]
        sure = sum(self._played.get(u, u.target) for u in before[: unit.piece])
        return sure < self._recipe.budgets(unit.tier)["full"]

    def finish(self, job: Job) -> None:
        """Notes that a job has ended."""
        self._running -= 1
        if job.unit is not None:
            self._played[job.unit] = _transitions(self._part(job.unit))

    def _part(self, unit: Unit) -> Path:
        # Named by the recipe: parts of another one are not taken for this one's.
        return self.folder / f"{self._digest}-{unit.tier}-{unit.kind}-{unit.piece:05d}.h5"

    def _blind(self) -> dict[int | None, Path]:
        """Where the scores of random play (None) and of constant actions go."""
        actions = (None, *self.game.action_ids) if self._episodes else ()
        name = f"{self._digest}-{self._episodes}"
        return {a: self.folder / f"{name}-{'random' if a is None else a}.json" for a in actions}


def _sound(part: Path) -> bool:
    """Whether a part is as it was written."""
    try:
        verify(part)
    except UserError:
        return False
    return True


def _transitions(part: Path) -> int:
    with EpisodeFile(part) as file:
        return file.num_transitions
