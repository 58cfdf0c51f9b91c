"""Behaviour policies for collecting data, and noise on top of them.

Noise comes in two kinds. `epsilon` replaces single actions, so that the consequences of a wrong
action are in the data. Bursts are runs of random actions, each held for a few steps: they lead
away from the player's path, so that the data also shows how to come back to it.

Noise alone leaves a teacher's action the likeliest of all, so that who imitates the data plays as
if there were none. A slow player's mistakes are the same every time, and are imitated with the
rest: `reaction_steps` of a teacher.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jowa.collecting.scene import Behaviour, Scene
from jowa.collecting.search import SearchBehaviour, SearchConfig
from jowa.collecting.teachers import teacher
from jowa.errors import UserError
from jowa.games import Game

if TYPE_CHECKING:  # torch, which most worker processes can do without
    from jowa.collecting.learner import LearnerConfig
    from jowa.planning.config import PlannerConfig

# What each behaviour is, as a file's `source` names it.
BEHAVIOURS = {
    "random": "random play",
    "scripted": "scripted teachers",
    "agent": "a trained agent",
    "search": "emulator search (privileged: it simulates the game's future)",
    "learner": "an online learner",
}
_HOLD_STEPS = 4  # longest time an action is held within a burst
_BEHAVIOUR_OF_FIELD = {
    "checkpoint": "agent",
    "planner": "agent",
    "search": "search",
    "learner": "learner",
}


@dataclasses.dataclass(frozen=True)
class Tier:
    """One quality of play and its share of the transitions.

    `behaviour` is "random" (uniform over the minimal set), "scripted" (the game's teacher, who
    sees everything `reaction_steps` late), "agent" (a trained agent: `checkpoint`, and `planner`,
    greedy where it is None), "search" (of the emulator, as `search` says) or "learner" (the whole
    experience of an online agent, as `learner` says). `epsilon` is the probability of a random
    action at each step, `burst_probability` that of starting a burst of 1 to `burst_steps` random
    steps.
    """

    name: str
    behaviour: str
    share: float
    reaction_steps: int = 0
    epsilon: float = 0.0
    burst_probability: float = 0.0
    burst_steps: int = 8
    checkpoint: str | None = None
    planner: PlannerConfig | None = None
    search: SearchConfig | None = None
    learner: LearnerConfig | None = None

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
        if self.reaction_steps < 0:
            raise UserError(
                f"tier {self.name!r} has reaction_steps={self.reaction_steps}; use 0 or more."
            )
        self._check_settings()

    def _check_settings(self) -> None:
        for field, behaviour in _BEHAVIOUR_OF_FIELD.items():
            if getattr(self, field) is not None and self.behaviour != behaviour:
                raise UserError(
                    f"tier {self.name!r} has {field}, which only behaviour={behaviour} uses; its "
                    f"behaviour is {self.behaviour}."
                )
        if self.behaviour == "agent" and self.checkpoint is None:
            raise UserError(
                f"tier {self.name!r} is played by an agent: say by which, checkpoint=RUN."
            )
        if self.reaction_steps and self.behaviour != "scripted":
            raise UserError(
                f"tier {self.name!r} has reaction_steps, which only behaviour=scripted uses; its "
                f"behaviour is {self.behaviour}."
            )
        if self.behaviour == "learner" and (self.epsilon or self.burst_probability):
            raise UserError(
                f"tier {self.name!r} has noise, but a learner explores by its own settings: leave "
                f"epsilon and burst_probability out."
            )
        if self.planner is not None:
            self.planner.validate()
        if self.search is not None:
            self.search.validate(self.name)


def random_action(game: Game, rng: np.random.Generator) -> int:
    """One of the game's minimal action set, all as likely."""
    return game.action_ids[rng.integers(len(game.action_ids))]


class RandomBehaviour:
    """Uniform over the game's minimal action set."""

    def __init__(self, game: Game, rng: np.random.Generator) -> None:
        self._game, self._rng = game, rng

    def act(self, scenes: Mapping[int, Scene]) -> dict[int, int]:
        """Random legal actions."""
        return {row: random_action(self._game, self._rng) for row in scenes}


class ScriptedBehaviour:
    """The game's teacher, which sees the RAM now and one step ago, or both `reaction_steps` late.

    Until so many steps are played a slow one sees the start.
    """

    def __init__(self, game: Game, reaction_steps: int = 0) -> None:
        self._teacher = teacher(game)
        self._kept = reaction_steps + 2
        self._seen: dict[int, deque[NDArray[np.uint8]]] = {}

    def act(self, scenes: Mapping[int, Scene]) -> dict[int, int]:
        """The teacher's actions."""
        actions: dict[int, int] = {}
        for row, scene in scenes.items():
            ram = scene.env.ram()
            if scene.executed is None:
                self._seen[row] = deque([ram] * self._kept, maxlen=self._kept)
            else:
                self._seen[row].append(ram)
            before, now = self._seen[row][0], self._seen[row][1]
            actions[row] = self._teacher(now, before)
        return actions


class Noise:
    """Replaces some actions of one episode by random ones, as a tier says."""

    def __init__(self, game: Game, tier: Tier, rng: np.random.Generator) -> None:
        self._game, self._tier, self._rng = game, tier, rng
        self._burst_left = self._hold_left = self._held = 0

    def __call__(self, intended: int) -> int:
        """The intended action or a random one."""
        if self._burst_left == 0 and self._rng.random() < self._tier.burst_probability:
            self._burst_left = int(self._rng.integers(1, self._tier.burst_steps + 1))
            self._hold_left = 0
        if self._burst_left > 0:
            self._burst_left -= 1
            return self._burst_action()
        if self._rng.random() < self._tier.epsilon:
            return random_action(self._game, self._rng)
        return intended

    def _burst_action(self) -> int:
        if self._hold_left == 0:
            self._held = random_action(self._game, self._rng)
            self._hold_left = int(self._rng.integers(1, _HOLD_STEPS + 1))
        self._hold_left -= 1
        return self._held


def behaviour_of(
    tier: Tier, game: Game, rng: np.random.Generator, rows: int, device: str
) -> Behaviour:
    """Who plays a tier in `rows` games at once; an agent computes on `device`.

    Raises UserError if it is scripted and the game has no teacher.
    """
    if tier.behaviour == "random":
        return RandomBehaviour(game, rng)
    if tier.behaviour == "scripted":
        return ScriptedBehaviour(game, tier.reaction_steps)
    if tier.behaviour == "search":
        return SearchBehaviour(game, tier.search or SearchConfig(), rng)
    assert tier.behaviour == "agent" and tier.checkpoint is not None
    from jowa.collecting.agent_play import AgentBehaviour

    return AgentBehaviour(game, tier.checkpoint, tier.planner, rows, device)
