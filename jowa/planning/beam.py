"""Beam search over imagined futures (JOWA paper, section 3; greedy play is horizon 0).

B environments, W beam width, H horizon; rows of a dream are B·nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.models.world_action import MAX_FRAMES, WorldActionModel
from jowa.planning.dream import Dream


class Plan(NamedTuple):
    """The chosen action (B,) in the 18-action set and the score (B,) of the best path."""

    actions: Tensor
    scores: Tensor


def check(beam_width: int, horizon: int, context: int) -> None:
    """Raises UserError unless the planner's numbers fit together."""
    if beam_width < 1:
        raise UserError(f"beam_width is {beam_width}, but a search keeps at least 1 path.")
    if horizon < 0:
        raise UserError(f"horizon is {horizon}; it must be 0 (greedy) or more.")
    if context < 1 or horizon + context > MAX_FRAMES:
        raise UserError(
            f"horizon {horizon} plus context {context} must lie between 1 and {MAX_FRAMES} frames, "
            f"the length of the model's sequence: make one of them smaller."
        )


@torch.inference_mode()
def plan(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    beam_width: int = 2,
    horizon: int = 2,
    gamma: float = 0.99,
) -> Plan:
    """Decides for B environments at once.

    obs_tokens (B, T, 36) holds T past frames of which the last is the current one, actions
    (B, T - 1) those between them, games (B,). From the root every kept node is expanded by its
    `beam_width` best legal actions; a node at depth d scores
    Σ_{i<d} γ^i r̂_i + γ^d max_a Q(s_d, a); the best `beam_width` of all expanded nodes are kept.
    """
    check(beam_width, horizon, 1)
    # The sequence holds 8 frames: a longer context loses its oldest ones to the horizon.
    room = MAX_FRAMES - horizon
    obs_tokens, actions = obs_tokens[:, -room:], actions[:, max(0, actions.shape[1] + 1 - room) :]
    B = len(obs_tokens)
    dream = Dream.start(model, obs_tokens, actions, games, horizon)
    q_BNA = dream.q_values().unsqueeze(1)
    scores_BN, first_BN = q_BNA.max(-1)
    returns_BN = torch.zeros_like(scores_BN)
    for depth in range(1, horizon + 1):
        N, width = q_BNA.shape[1], min(beam_width, q_BNA.shape[-1])
        top_q, action_BNW = q_BNA.topk(width, dim=-1)
        # Padding of beams narrower than W: illegal actions, and all that descends from them.
        real = (top_q.isfinite() & returns_BN.isfinite().unsqueeze(-1)).flatten(1)
        parents = torch.arange(B * N, device=games.device).repeat_interleave(width)
        action = action_BNW.flatten(1)
        dream = dream.select(parents)
        rewards, _ = dream.step(action.flatten())
        returns = returns_BN.repeat_interleave(width, dim=1)
        returns = returns + gamma ** (depth - 1) * rewards.view(B, -1)
        q = dream.q_values()
        scores = returns + gamma**depth * q.max(-1).values.view(B, -1)
        scores = scores.masked_fill(~real, -torch.inf)
        first = action if depth == 1 else first_BN.repeat_interleave(width, dim=1)
        scores_BN, kept = scores.topk(min(beam_width, scores.shape[1]), dim=-1)
        first_BN = first.gather(1, kept)
        returns_BN = returns.gather(1, kept).masked_fill(scores_BN.isinf(), -torch.inf)
        if depth < horizon:
            offsets = torch.arange(B, device=games.device).unsqueeze(1) * scores.shape[1]
            rows = (kept + offsets).flatten()
            dream, q_BNA = dream.select(rows), q[rows].view(B, -1, q.shape[-1])
    return Plan(first_BN[:, 0], scores_BN[:, 0])
