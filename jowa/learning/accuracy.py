"""How often a model is right: shares that add up over batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor

from jowa.data.segments import Batch
from jowa.learning.losses import IGNORE, next_token_targets


@torch.no_grad()
def agreement(values: Tensor, legal: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Share of real steps whose action is the legal one (B, A) of largest value (B, L, A); and
    among those where another action was taken than before, in which repeating it is no help."""
    right = values.masked_fill(~legal.unsqueeze(1), -torch.inf).argmax(-1) == batch.actions
    changed = batch.real[:, 1:] & (batch.actions[:, 1:] != batch.actions[:, :-1])
    return {
        "q/greedy_is_data_action": share(right, batch.real),
        "q/greedy_is_changed_action": share(right[:, 1:], changed),
    }


@torch.no_grad()
def world_model_accuracy(
    predicted: Tensor, reward_logits: Tensor, tokens: Tensor, batch: Batch
) -> dict[str, Tensor]:
    """Share of next-frame tokens predicted right, all and changed ones; rewards found.

    predicted (B, 36·L) tokens, reward_logits (B, L, 3), tokens (B, L, 36).
    """
    targets = next_token_targets(tokens, batch.real)
    # Token k of a frame stands at predicting position 36·t + k - 1; the first frame, which no
    # frame precedes, is left out.
    later, predicted = targets[:, 35:-1], predicted[:, 35:-1]
    real = later != IGNORE
    changed = real & (later != tokens[:, :-1].flatten(1))
    right = predicted == later
    rewarded = batch.real & (batch.rewards != 0)
    found = reward_logits.argmax(-1) == batch.rewards.sign() + 1
    return {
        "accuracy/tokens": share(right, real),
        "accuracy/changed_tokens": share(right, changed),
        "accuracy/nonzero_rewards": share(found, rewarded),
    }


def share(right: Tensor, among: Tensor) -> Tensor:
    """(2,) how many of `among` are right, and how many there are: a metric that is the first over
    the second, however many batches and processes both are added up over."""
    return torch.stack([(right & among).sum(), among.sum()]).float()
