"""A player that searches the emulator itself: no learning, no knowledge of the game.

It plans by rolling-horizon search over action sequences: keep the last plan, change a piece of it,
simulate, take what is strictly better. It is privileged: it tries out the emulator's future, which
no player of the game can. What it cannot foresee is which actions will stick, because it simulates
on an emulator of its own, without sticky actions and without the real one's random stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ale_py
import numpy as np

from jowa.collecting.scene import Scene
from jowa.envs import AtariEnv, Simulator
from jowa.errors import UserError
from jowa.games import Game

_MARK_EVERY = 4  # steps between two emulator states kept along a plan
_MACRO_STEPS = 16  # longest time an action is held within a plan
_HELD = 0.25  # part of the random stretches that hold one action to the end
_FRESH = 0.3  # part of the candidates that are new from the first step on


@dataclasses.dataclass
class SearchConfig:
    """How a search tier plays.

    lookahead     simulated steps for each executed one: 30 is a cheap player, 125 a strong one
    horizon       steps of a plan; games with rare rewards, such as Pong, need 80
    replan        executed steps between two searches
    gamma         discount of simulated rewards
    life_penalty  cost of a lost life or game, in mean sizes of a reward
    """

    lookahead: int = 125
    horizon: int = 50
    replan: int = 4
    gamma: float = 0.99
    life_penalty: float = 5.0

    def validate(self, tier: str) -> None:
        """Raises UserError, naming the tier, for settings that cannot work."""
        place = f"tier {tier!r} has search."
        for name in ("lookahead", "horizon", "replan"):
            if getattr(self, name) < 1:
                raise UserError(f"{place}{name}={getattr(self, name)}; use 1 or more.")
        if self.horizon < self.replan:
            raise UserError(
                f"{place}horizon={self.horizon}, less than search.replan={self.replan}: a plan "
                f"must last until the next one."
            )
        if self.lookahead * self.replan < self.horizon:
            raise UserError(
                f"{place}lookahead={self.lookahead}, too little to simulate one plan of "
                f"{self.horizon} steps every {self.replan}; use "
                f"{-(-self.horizon // self.replan)} or more."
            )
        if not 0.0 < self.gamma <= 1.0:
            raise UserError(f"{place}gamma={self.gamma}; use more than 0, at most 1.")
        if self.life_penalty < 0.0:
            raise UserError(f"{place}life_penalty={self.life_penalty}; use 0 or more.")


@dataclasses.dataclass(frozen=True)
class _Mark:
    """The simulator before some step of a plan, and the discounted rewards up to there."""

    state: ale_py.ALEState
    value: float


@dataclasses.dataclass(frozen=True)
class _Rollout:
    """A simulated plan: its marks, one every 4 steps until it ended, and its value."""

    plan: list[int]
    marks: list[_Mark]
    value: float


class SearchBehaviour:
    """Plays one game at a time by searching on a simulator of its own."""

    def __init__(self, game: Game, config: SearchConfig, rng: np.random.Generator) -> None:
        self._actions = np.array(game.action_ids)
        self._config, self._rng = config, rng
        self._simulator = Simulator(game)
        self._plan: list[int] = []
        self._age = 0  # steps of the plan that have been executed
        self._reward_sum, self._reward_count = 0.0, 0

    def act(self, scenes: Mapping[int, Scene]) -> dict[int, int]:
        """The next action of the plan; a new plan at the start of an episode and every `replan`
        steps."""
        ((row, scene),) = scenes.items()
        if scene.executed is None:
            self._plan, self._age = [], 0
        if not self._plan or self._age == self._config.replan:
            self._search(scene.env)
        self._age += 1
        return {row: self._plan[self._age - 1]}

    def _search(self, env: AtariEnv) -> None:
        """Replaces the plan by the best found from the real game's state."""
        root = self._root(env)
        budget = self._config.lookahead * self._config.replan
        kept = self._plan[self._age :]
        best, used = self._simulate(kept + self._fill(self._config.horizon - len(kept)), [root])
        while used < budget:
            candidate, steps = self._simulate(*self._mutated(best))
            used += steps
            if candidate.value > best.value:
                best = candidate
        self._plan, self._age = best.plan, 0

    def _root(self, env: AtariEnv) -> _Mark:
        root = _Mark(env.state(), 0.0)
        self._simulator.restore(root.state)
        self._lives = self._simulator.lives
        return root

    def _mutated(self, best: _Rollout) -> tuple[list[int], list[_Mark]]:
        """A changed plan and the marks that still hold: those up to the first changed step."""
        horizon = len(best.plan)
        if self._rng.random() < _FRESH:
            return self._fill(horizon), best.marks[:1]
        place = int(self._rng.integers(len(best.marks)))
        start = place * _MARK_EVERY
        if self._rng.random() < 0.5:
            changed = self._fill(horizon - start)
        else:
            changed = self._macro(horizon - start) + best.plan[start:]
        return (best.plan[:start] + changed)[:horizon], best.marks[: place + 1]

    def _fill(self, steps: int) -> list[int]:
        """Random actions for so many steps, each held for a while."""
        if self._rng.random() < _HELD:
            return [self._random_action()] * steps
        filled: list[int] = []
        while len(filled) < steps:
            filled += self._macro(steps - len(filled))
        return filled

    def _macro(self, longest: int) -> list[int]:
        repeats = int(self._rng.integers(1, _MACRO_STEPS + 1))
        return [self._random_action()] * min(repeats, longest)

    def _random_action(self) -> int:
        return int(self._rng.choice(self._actions))

    def _simulate(self, plan: list[int], marks: list[_Mark]) -> tuple[_Rollout, int]:
        """Plays a plan on from its last mark until a life is lost; also the steps that took."""
        marks = list(marks)
        first = (len(marks) - 1) * _MARK_EVERY
        self._simulator.restore(marks[-1].state)
        value, step = marks[-1].value, first
        for step in range(first, len(plan)):
            if step > first and step % _MARK_EVERY == 0:
                marks.append(_Mark(self._simulator.state(), value))
            discount = self._config.gamma**step
            value += discount * self._rewarded(self._simulator.step(plan[step]))
            if self._simulator.over or self._simulator.lives < self._lives:
                value -= discount * self._config.life_penalty * self._mean_reward()
                break
        return _Rollout(plan, marks, value), step + 1 - first

    def _rewarded(self, reward: float) -> float:
        if reward != 0.0:
            self._reward_sum += abs(reward)
            self._reward_count += 1
        return reward

    def _mean_reward(self) -> float:
        """Mean size of the rewards simulated so far, 1 before the first."""
        return self._reward_sum / self._reward_count if self._reward_count else 1.0
