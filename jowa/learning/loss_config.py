"""What a phase of training learns: the weights of its losses and their options."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jowa.errors import UserError
from jowa.models.world_action import WorldActionConfig


@dataclass
class LossConfig:
    """Weights of the losses and options of the Q losses (JOWA paper, section 3).

    cloning weighs the behaviour-cloning baseline: the cross-entropy of the data's actions to the
    softmax of the legal actions' expected returns over cql_temperature (the policy that the
    penalty raises, here alone), so that greedy play is the cloned policy.
    world_one_in > 1 trains the world model on one segment in so many, drawn by chance: it learns
    from 37 tokens a frame what Q with a reader learns from one.
    penalty is "cql", "combo" (the value of the actions taken is raised on real data only, not on
    imagined steps) or "none"; rem mixes the Q ensemble by random weights, new at every step,
    instead of averaging it; detach_q keeps all that is read from the Q head out of the backbone.
    reward weighs the loss of rewards beside those of tokens and ends, and reward_weight, in it, the
    steps that have one: much of both and a small world model spends itself on rewards that
    nothing foretells.
    world_one_in > 1, n_step > 1, cql_temperature, reward and reward_weight != 1 are not part of the
    published algorithm; they are meant for small scale.
    """

    tokenizer: float = 0.0
    world_model: float = 0.0
    world_one_in: int = 1
    q: float = 0.0
    cloning: float = 0.0
    gamma: float = 0.99
    n_step: int = 1
    rem: bool = False
    detach_q: bool = False
    penalty: str = "cql"
    cql_weight: float = 0.1
    cql_temperature: float = 1.0
    reward: float = 1.0
    reward_weight: float = 1.0

    @property
    def trains_q_head(self) -> bool:
        return bool(self.q or self.cloning)

    @property
    def trains_model(self) -> bool:
        return bool(self.world_model or self.trains_q_head)


def check_weights(name: str, losses: LossConfig) -> None:
    """Raises UserError for numbers of phase `name` that are none of such a weight or option."""
    weights = ("tokenizer", "world_model", "q", "cloning", "cql_weight", "reward", "reward_weight")
    for key in weights:
        if not 0 <= (value := getattr(losses, key)) < math.inf:
            raise UserError(f"{name}.losses.{key} is {value}: use 0 or more.")
    if not 0 <= losses.gamma <= 1:
        raise UserError(
            f"{name}.losses.gamma is {losses.gamma}: it is a discount, use 0 or more and at most 1."
        )
    if losses.n_step < 1:
        raise UserError(
            f"{name}.losses.n_step is {losses.n_step}: a target looks ahead by 1 step or more."
        )
    if not losses.cql_temperature > 0:
        raise UserError(
            f"{name}.losses.cql_temperature is {losses.cql_temperature}: use more than 0."
        )


def check_losses(
    name: str, losses: LossConfig, model: WorldActionConfig, imagines: bool = False
) -> None:
    """Raises UserError for options of phase `name` that mean nothing for this model or data;
    `imagines` says whether part of the data is imagined."""
    if losses.penalty not in ("cql", "combo", "none"):
        raise UserError(f"{name}.losses.penalty is {losses.penalty!r}: use cql, combo or none.")
    if losses.penalty == "combo" and not imagines:
        raise UserError(
            f"{name}.losses.penalty is combo, which differs from cql on imagined data only, and "
            f"{name} trains on real data: use cql, or imagine some by {name}.imagination.share."
        )
    if losses.detach_q and model.reader_width:
        raise UserError(
            f"{name}.losses.detach_q keeps Q's gradient out of the transformer, but with "
            f"model.reader_width={model.reader_width} Q does not read it: turn one of them off."
        )
    if losses.rem and model.q_members < 2:
        raise UserError(
            f"{name}.losses.rem mixes the members of an ensemble, but model.q_members is "
            f"{model.q_members}: use 2 or more members."
        )
