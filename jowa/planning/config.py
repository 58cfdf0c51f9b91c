"""The typed configuration of whoever plans."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from jowa.errors import UserError
from jowa.planning.beam import check
from jowa.planning.decode import MODES

_GAMMA = 0.99  # of the published agents


@dataclass
class PlannerConfig:
    """How an agent decides; horizon 0 is greedy play by Q.

    search       beam, or mcts
    beam_width   paths that a beam search keeps
    horizon      imagined frames ahead at most
    context      past frames the agent sees, the current one among them
    gamma        discount of imagined rewards; null: that of the agent's training
    decode       how imagined frames are decoded: drafted, plain (token by token), static (shapes
                 for CUDA graphs), native (drafted by C++ on a CPU, in half the time or less; g++
                 compiles it in seconds when first used; elsewhere as auto), or auto, which is
                 static on a GPU and elsewhere times drafted and plain (drafted where a run must
                 repeat); the same results but for rounding
    value        of an ensemble of Qs: mean, or min, the least of them
    stop_at_end  a path is worth nothing more after a predicted end of the episode
    rewards      of imagined steps: the likeliest, or what is expected
    reward_weight  of expected ones: how many times rewarded steps counted in training
                 (losses.reward_weight), which is taken out again; null: as often as they did
    caution      of beam: weight of what the Q of each action on a path falls short of the best
                 one's; 0 is the published search, much is greedy play
    simulations  of mcts: imagined frames a decision
    temperature  of mcts: its prior is softmax(Q / temperature)
    leaf         of mcts: a leaf is worth the max or the mean of its Q
    choice       of mcts: the root acts by value or by visits
    per_game     by model size and game, [context, beam_width, horizon] of its own
    note         what every output must say of such settings
    """

    search: str = "beam"
    beam_width: int = 2
    horizon: int = 2
    context: int = 4
    gamma: float | None = None
    decode: str = "auto"
    value: str = "mean"
    stop_at_end: bool = False
    rewards: str = "likeliest"
    reward_weight: float | None = None
    caution: float = 0.0
    simulations: int = 16
    temperature: float = 1.0
    leaf: str = "max"
    choice: str = "value"
    note: str = ""
    per_game: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def validate(self) -> None:
        """Raises UserError for settings that cannot work."""
        check(self.beam_width, self.horizon, self.context)
        choices = {
            "search": ("beam", "mcts"),
            "decode": MODES,
            "value": ("mean", "min"),
            "rewards": ("likeliest", "expected"),
            "leaf": ("max", "mean"),
            "choice": ("value", "visits"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"planner.{name} is {getattr(self, name)!r}: use {' or '.join(known)}."
                )
        if self.simulations < 1:
            raise UserError(f"planner.simulations is {self.simulations}: give at least 1.")
        if self.gamma is not None and not 0 <= self.gamma <= 1:
            raise UserError(f"planner.gamma is {self.gamma}: it is a discount, give 0 to 1.")
        weight = 1.0 if self.reward_weight is None else self.reward_weight
        if weight <= 0:
            raise UserError(f"planner.reward_weight is {self.reward_weight}: give more than 0.")
        if weight != 1 and self.rewards != "expected":
            raise UserError(
                f"planner.reward_weight is {self.reward_weight}, which only expected rewards make "
                f"up for: use planner.rewards=expected, or a weight of 1."
            )
        if self.caution and self.search != "beam":
            raise UserError(
                f"planner.caution is {self.caution}, which is for beam searches: use "
                f"planner.search=beam, or a caution of 0."
            )
        if self.caution < 0:
            raise UserError(f"planner.caution is {self.caution}: give 0 or more.")
        if self.temperature <= 0:
            raise UserError(f"planner.temperature is {self.temperature}: give more than 0.")

    def filled(self, gamma: float = _GAMMA, reward_weight: float = 1.0) -> PlannerConfig:
        """The same with what is null as the agent was trained; by default as it is published."""
        if self.rewards != "expected":
            reward_weight = 1.0  # which nothing makes up for
        return dataclasses.replace(
            self,
            gamma=gamma if self.gamma is None else self.gamma,
            reward_weight=reward_weight if self.reward_weight is None else self.reward_weight,
        )

    @property
    def name(self) -> str:
        """What the tables call it."""
        return "greedy" if self.horizon == 0 else self.search

    @property
    def options(self) -> dict[str, Any]:
        """What else bears on the decisions and is not as published."""
        usual = PlannerConfig().filled()
        names = ["gamma", "value", "stop_at_end"]
        if self.horizon:
            names += ["rewards", "reward_weight"]
        if self.name == "beam":
            names += ["caution"]
        if self.name == "mcts":
            names += ["simulations", "temperature", "leaf", "choice"]
        chosen = {name: getattr(self.filled(), name) for name in names}
        return {name: chosen[name] for name in names if chosen[name] != getattr(usual, name)}
