"""What the nodes of a search and the steps to them are worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jowa.models.outputs import Tables
from jowa.models.world_action import WorldActionModel


def q_values(
    model: WorldActionModel,
    tables: Tables,
    hidden: Tensor | None,
    frame: Tensor,
    before: Tensor,
    games: Tensor,
    pessimistic: bool,
) -> Tensor:
    """Expected returns (R, 18), illegal actions -inf, at frames (R, 36) that follow `before`: of
    the ensemble's mean distribution, or the least of its members'. They are read from the
    activations (R, D) at the frames' last tokens unless the model has a reader."""
    if model.has_reader:
        assert tables.pictures is not None
        read = model.reader.read(frame, before, tables.pictures)
    else:
        assert hidden is not None
        read = hidden
    logits = model.q_head(read.unsqueeze(1))
    if pessimistic:
        members = [model.values(member.unsqueeze(0)) for member in logits]
        values = torch.stack(members).amin(0)[:, 0]
    else:
        values = model.values(logits)[:, 0]
    return values.masked_fill(~model.legal_actions[games], -torch.inf)


def expected_rewards(logits: Tensor, weight: float) -> Tensor:
    """Expected rewards (R,) of the classes' logits (R, 3), trained with rewarded steps counted
    `weight` times: those are made as likely again as they are."""
    rewarded = logits.new_tensor([1.0, 0.0, 1.0])
    probs = (logits.float() - math.log(weight) * rewarded).softmax(-1)
    return probs[:, 2] - probs[:, 0]
