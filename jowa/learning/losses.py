"""Losses as pure functions of tensors and a mask (JOWA paper, section 3 and appendix).

B segments, L steps, K = 36 tokens a frame, A = 18 actions, Z atoms, Q ensemble members.
Means are taken over masked elements of the batch, or, where a `count` is given, are the sums over
masked elements divided by it: a process that holds a part of a batch gives the whole batch's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def next_token_targets(obs_tokens: Tensor, mask_padding: Tensor) -> Tensor:
    """(B, L·36): the token that each predicting position predicts, IGNORE where there is none.

    From obs_tokens (B, L, 36) and mask (B, L): the segment's tokens shifted by one.
    """
    targets = obs_tokens.masked_fill(~mask_padding.unsqueeze(-1), IGNORE).flatten(1)
    return F.pad(targets[:, 1:], (0, 1), value=IGNORE)


def step_losses(
    reward_logits: Tensor,
    end_logits: Tensor,
    rewards: Tensor,
    ends: Tensor,
    mask_padding: Tensor,
    reward_weight: float = 1.0,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of sign(reward) and of ends.

    reward_logits (B, L, 3), end_logits (B, L, 2), rewards and ends (B, L). reward_weight multiplies
    the error on steps whose reward is not zero (1.0 in the published algorithm).
    """
    classes = rewards.sign().long() + 1
    reward_error = F.cross_entropy(reward_logits.flatten(0, 1), classes.flatten(), reduction="none")
    reward_error = torch.where(classes.flatten() == 1, 1.0, reward_weight) * reward_error
    end_error = F.cross_entropy(end_logits.flatten(0, 1), ends.long().flatten(), reduction="none")
    mask = mask_padding.flatten()
    return masked_mean(reward_error, mask, count), masked_mean(end_error, mask, count)


class Targets(NamedTuple):
    """Where each step's return comes from: `returns` + `discounts`·V(s at `bootstrap`)."""

    returns: Tensor  # (B, L) discounted sum of the rewards on the way
    discounts: Tensor  # (B, L) 0 where the episode ends on the way
    bootstrap: Tensor  # (B, L) int64 step whose value is added
    rows: Tensor  # (B, L) bool, steps that have a target


def n_step_targets(
    rewards: Tensor, ends: Tensor, mask_padding: Tensor, gamma: float, n: int = 1
) -> Targets:
    """n-step targets inside the segment, shorter near its end; n = 1 is the published case.

    Rows are the real steps that have a real next step, and the steps whose end is true. All
    inputs (B, L).
    """
    B, L = rewards.shape
    real_next = has_next(mask_padding)
    step = torch.arange(L, device=rewards.device).expand(B, L)
    returns, discounts, bootstrap = torch.zeros_like(rewards), torch.ones_like(rewards), step
    rows = going = target_rows(ends, mask_padding)
    for _ in range(n):
        here = bootstrap.clamp(max=L - 1)
        returns = returns + going * discounts * rewards.gather(1, here)
        ended = going & ends.gather(1, here)
        discounts = torch.where(ended, 0.0, torch.where(going, discounts * gamma, discounts))
        bootstrap = bootstrap + (going & ~ended)
        here = bootstrap.clamp(max=L - 1)
        going = going & ~ended & (real_next | ends).gather(1, here)
    return Targets(returns, discounts, bootstrap.clamp(max=L - 1), rows)


def has_next(mask_padding: Tensor) -> Tensor:
    """(B, L) bool: real steps that a real step follows, from the mask (B, L)."""
    return mask_padding & F.pad(mask_padding[:, 1:], (0, 1), value=False)


def target_rows(ends: Tensor, mask_padding: Tensor) -> Tensor:
    """(B, L) bool: the steps that have a TD target."""
    return (has_next(mask_padding) | ends) & mask_padding


def project(returns: Tensor, discounts: Tensor, probs: Tensor, support: Tensor) -> Tensor:
    """C51: the distribution (..., Z) of returns + discounts·z on the support, clipped to it.

    returns and discounts (...), probs (..., Z) over the support (Z,).
    """
    low, high, atoms = support[0], support[-1], len(support)
    shifted = returns.unsqueeze(-1) + discounts.unsqueeze(-1) * support
    position = (shifted.clamp(low, high) - low) * ((atoms - 1) / (high - low))
    position = position.clamp(0, atoms - 1)
    floor = position.floor()
    share = position - floor
    # What is not a number shall spoil the loss, which is watched, and not the index.
    below = floor.long().clamp(0, atoms - 1)
    above = (below + 1).clamp(max=atoms - 1)
    projected = torch.zeros_like(probs).scatter_add(-1, below, probs * (1.0 - share))
    return projected.scatter_add(-1, above, probs * share)


def td_loss(
    probs: Tensor,
    target_probs: Tensor,
    actions: Tensor,
    targets: Targets,
    legal: Tensor,
    support: Tensor,
    count: Tensor | None = None,
) -> Tensor:
    """Distributional TD error, mean over rows of cross-entropy to the projected target.

    probs and target_probs (B, L, A, Z), actions (B, L), legal (B, A), support (Z,).
    """
    L, Z = probs.shape[1], probs.shape[-1]
    with torch.no_grad():
        value = (target_probs * support).sum(-1)
        best = value.masked_fill(~legal.unsqueeze(1), -torch.inf).argmax(-1)
        best_probs = pick(target_probs, best)
        index = targets.bootstrap.unsqueeze(-1).expand(-1, L, Z)
        target = project(targets.returns, targets.discounts, best_probs.gather(1, index), support)
    error = -(target * (pick(probs, actions) + 1e-8).log()).sum(-1)
    return masked_mean(error, targets.rows, count)


def squared_td_loss(
    values: Tensor,
    target_values: Tensor,
    actions: Tensor,
    targets: Targets,
    legal: Tensor,
    count: Tensor | None = None,
) -> Tensor:
    """TD error of expected returns, half the mean square over rows.

    values and target_values (B, L, A), actions (B, L), legal (B, A).
    """
    with torch.no_grad():
        best = target_values.masked_fill(~legal.unsqueeze(1), -torch.inf).amax(-1)
        target = targets.returns + targets.discounts * best.gather(1, targets.bootstrap)
    chosen = values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return 0.5 * masked_mean((chosen - target).square(), targets.rows, count)


def cql_penalty(
    values: Tensor,
    actions: Tensor,
    mask: Tensor,
    in_data_mask: Tensor,
    temperature: float = 1.0,
    count: Tensor | None = None,
    in_data_count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean soft maximum over all actions, and mean value of the actions taken.

    values (B, L, A). The penalty is the first less the second; at temperature 1 the soft maximum
    is the published logsumexp. The first mean is over the steps of `mask`, the second over those
    of `in_data_mask`, both (B, L): the same steps in CQL, in COMBO those that are not imagined.
    """
    everywhere = temperature * (values / temperature).logsumexp(-1)
    in_data = values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return (
        masked_mean(everywhere, mask, count),
        masked_mean(in_data, in_data_mask, in_data_count),
    )


def cloning_loss(
    values: Tensor,
    actions: Tensor,
    legal: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    count: Tensor | None = None,
) -> Tensor:
    """Behaviour cloning: the data's actions' cross-entropy to softmax(values / temperature).

    values (B, L, A), actions and mask (B, L); the softmax is over the legal actions (B, A). A step
    whose action is illegal, which the agent could never play, adds nothing.
    """
    logits = (values / temperature).masked_fill(~legal.unsqueeze(1), -torch.inf)
    error = F.cross_entropy(logits.flatten(0, 1), actions.flatten(), reduction="none")
    error = error.view_as(mask).masked_fill(~legal.gather(1, actions), 0.0)
    return masked_mean(error, mask, count)


def pick(probs: Tensor, actions: Tensor) -> Tensor:
    """(..., Z): the distributions (..., A, Z) of the given actions (...)."""
    index = actions[..., None, None].expand(*actions.shape, 1, probs.shape[-1])
    return probs.gather(-2, index).squeeze(-2)


def masked_mean(x: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean of x where mask is true, 0 if it is nowhere; or the sum there divided by `count`."""
    items = mask.sum() if count is None else count
    return torch.where(mask, x, 0.0).sum() / items.clamp(min=1)
