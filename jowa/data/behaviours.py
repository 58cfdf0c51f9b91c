"""Behaviour policies for collecting data: random play, scripted teachers, and noise on top.

Noise comes in two kinds. `epsilon` replaces single actions, so that the consequences of a wrong
action are in the data. Bursts are runs of random actions, each held for a few steps: they lead
away from the teacher's path, so that the data also shows how to come back to it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jowa.data.teachers import teacher
from jowa.errors import UserError
from jowa.games import Game

BEHAVIOURS = ("random", "scripted")
_HOLD_STEPS = 4  # longest time an action is held within a burst

Ram = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Tier:
    """One quality of play and its share of the transitions.

    `behaviour` is "random" (uniform over the minimal set) or "scripted" (the game's teacher);
    `epsilon` is the probability of a random action at each step, `burst_probability` that of
    starting a burst of 1 to `burst_steps` random steps.
    """

    name: str
    behaviour: str
    share: float
    epsilon: float = 0.0
    burst_probability: float = 0.0
    burst_steps: int = 8

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise UserError(
                f"tier {self.name!r} has the behaviour {self.behaviour!r}; "
                f"use one of {', '.join(BEHAVIOURS)}."
            )
        for field in ("share", "epsilon", "burst_probability"):
            value = getattr(self, field)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"tier {self.name!r} has {field}={value}; use a number in 0 to 1.")
        if self.burst_steps < 1:
            raise UserError(
                f"tier {self.name!r} has burst_steps={self.burst_steps}; use 1 or more."
            )

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return dataclasses.asdict(self)


class Behaviour(Protocol):
    """Chooses actions from the RAM."""

    def reset(self) -> None:
        """Forgets the episode before."""

    def act(self, ram: Ram) -> int:
        """An action in the 18-action set for the state whose RAM (128,) is given."""


class RandomBehaviour:
    """Uniform over the game's minimal action set."""

    def __init__(self, game: Game, rng: np.random.Generator) -> None:
        self._actions = np.array(game.action_ids)
        self._rng = rng

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, ram: Ram) -> int:
        """A random legal action."""
        return int(self._actions[self._rng.integers(len(self._actions))])


class ScriptedBehaviour:
    """The game's teacher, which sees the RAM now and one step ago."""

    def __init__(self, game: Game) -> None:
        self._teacher = teacher(game)
        self._previous: Ram | None = None

    def reset(self) -> None:
        """Forgets the RAM of the step before."""
        self._previous = None

    def act(self, ram: Ram) -> int:
        """The teacher's action."""
        action = self._teacher(ram, ram if self._previous is None else self._previous)
        self._previous = ram
        return action


class NoisyBehaviour:
    """A behaviour with epsilon noise and bursts of random actions, as its tier says."""

    def __init__(self, inner: Behaviour, game: Game, tier: Tier, rng: np.random.Generator) -> None:
        self._inner = inner
        self._random = RandomBehaviour(game, rng)
        self._tier = tier
        self._rng = rng
        self.reset()

    def reset(self) -> None:
        """Starts an episode outside any burst."""
        self._inner.reset()
        self._burst_left = 0
        self._hold_left = 0
        self._held = 0

    def act(self, ram: Ram) -> int:
        """The inner behaviour's action, or a random one."""
        intended = self._inner.act(ram)  # always asked, since it follows the motion
        if self._burst_left == 0 and self._rng.random() < self._tier.burst_probability:
            self._burst_left = int(self._rng.integers(1, self._tier.burst_steps + 1))
            self._hold_left = 0
        if self._burst_left > 0:
            self._burst_left -= 1
            return self._burst_action(ram)
        if self._rng.random() < self._tier.epsilon:
            return self._random.act(ram)
        return intended

    def _burst_action(self, ram: Ram) -> int:
        if self._hold_left == 0:
            self._held = self._random.act(ram)
            self._hold_left = int(self._rng.integers(1, _HOLD_STEPS + 1))
        self._hold_left -= 1
        return self._held


def behaviour_of(tier: Tier, game: Game, rng: np.random.Generator) -> Behaviour:
    """The behaviour of a tier; UserError if it is scripted and the game has no teacher."""
    if tier.behaviour == "random":
        return RandomBehaviour(game, rng)
    return NoisyBehaviour(ScriptedBehaviour(game), game, tier, rng)
