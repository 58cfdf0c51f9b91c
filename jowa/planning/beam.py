"""Beam search over imagined futures (JOWA paper, section 3; greedy play is horizon 0).

B environments, N nodes each, W beam width, H horizon.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.games import by_id
from jowa.models.world_action import FRAME_TOKENS, MAX_FRAMES, WorldActionModel
from jowa.planning.decode import Decoder
from jowa.planning.dream import Dream
from jowa.planning.trace import Future, Trace


class Plan(NamedTuple):
    """The chosen action (B,) in the 18-action set and the score (B,) of the best path."""

    actions: Tensor
    scores: Tensor


class Path(NamedTuple):
    """The best path of a search H deep: imagined frames (B, H, 36) with the rewards and ends
    (B, H) of the steps to them, the path's score (B,), and its actions (B, H + 1), of which the
    last is the greedy one at the last frame."""

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    scores: Tensor


class _Level(NamedTuple):
    """The M nodes of one depth: frames (B, M, 36), the steps to them and scores (B, M), and which
    are kept (B, N), best first. `width` nodes in a row come from the same kept node of the level
    before."""

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    scores: Tensor
    kept: Tensor
    width: int


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


def ranked(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest along the last dimension and where they are, the first of equals first
    (topk promises no order of equals)."""
    order = values.sort(dim=-1, descending=True, stable=True)
    return order.values[..., :count], order.indices[..., :count]


def begin(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    horizon: int,
    lengths: Tensor | None,
    decoder: Decoder | None,
) -> Dream:
    """The dream at the roots of a search that looks `horizon` frames ahead."""
    playable = model.legal_actions.any(-1)[games]
    if not playable.all():
        name = by_id(int(games[~playable][0])).name
        raise UserError(f"{name} has no legal action among the model's: nothing can be chosen.")
    # The sequence holds 8 frames: a longer context loses its oldest ones to the horizon.
    room = MAX_FRAMES - horizon
    if lengths is not None:
        lengths = lengths.to(games.device).clamp(max=room)
    obs_tokens, actions = obs_tokens[:, -room:], actions[:, max(0, actions.shape[1] + 1 - room) :]
    return Dream.start(model, obs_tokens, actions, games, horizon, lengths, decoder)


@torch.inference_mode()
def plan(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    beam_width: int = 2,
    horizon: int = 2,
    gamma: float = 0.99,
    *,
    lengths: Tensor | None = None,
    stop_at_end: bool = False,
    pessimistic: bool = False,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    trace: Trace | None = None,
) -> Plan:
    """Decides for B environments at once.

    obs_tokens (B, T, 36) holds T past frames of which the last is the current one, actions
    (B, T - 1) those between them, games (B,); with `lengths` (B,) only the last `lengths[b]` frames
    of row b are real. From the root every kept node is expanded by its `beam_width` best legal
    actions; a node at depth d scores Σ_{i<d} γ^i r̂_i + γ^d max_a Q(s_d, a); the best `beam_width`
    of all expanded nodes are kept.

    `stop_at_end` ends a path's value where the model predicts the episode's end; `pessimistic`
    takes the least of the ensemble's values instead of their mean; a `generator` draws the
    imagined frames, rewards and ends instead of taking the likeliest; `decoder` chooses how frames
    are decoded, which changes results by rounding at most, and remembers what is fast; a `trace`
    is filled with what was considered.
    """
    path = imagine(
        model,
        obs_tokens,
        actions,
        games,
        beam_width,
        horizon,
        gamma,
        lengths=lengths,
        stop_at_end=stop_at_end,
        pessimistic=pessimistic,
        generator=generator,
        decoder=decoder,
        trace=trace,
    )
    return Plan(path.actions[:, 0], path.scores)


@torch.inference_mode()
def imagine(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    beam_width: int = 2,
    horizon: int = 2,
    gamma: float = 0.99,
    *,
    lengths: Tensor | None = None,
    stop_at_end: bool = False,
    pessimistic: bool = False,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    trace: Trace | None = None,
) -> Path:
    """The whole path of which `plan`, given the same, returns the first action."""
    check(beam_width, horizon, 1)
    dream = begin(model, obs_tokens, actions, games, horizon, lengths, decoder)
    B = len(games)
    environments = torch.arange(B, device=games.device).unsqueeze(1)
    root_q = dream.q_values(pessimistic)
    q_BNA = root_q.unsqueeze(1)
    scores_BN = q_BNA.amax(-1)
    returns_BN = torch.zeros_like(scores_BN)
    rows_BN = environments  # where the kept nodes are in the dream
    ended_BN = torch.zeros_like(scores_BN, dtype=torch.bool)
    levels: list[_Level] = []
    # Where no game has more legal actions than this, wider beams hold only padding.
    most = int(model.legal_actions[games].sum(-1).max())
    for depth in range(1, horizon + 1):
        width = min(beam_width, most)
        top_q, action_BNW = ranked(q_BNA, width)
        # Padding of beams narrower than W: illegal actions, and all that descends from them.
        real = top_q.isfinite() & returns_BN.isfinite().unsqueeze(-1)
        # What has ended goes on as its own only child, and nothing more happens to it.
        real[..., 1:] &= ~ended_BN.unsqueeze(-1)
        action = action_BNW.flatten(1)
        dream = dream.branch(rows_BN.flatten().repeat_interleave(width), siblings=width)
        rewards, ends = (x.view(B, -1) for x in dream.step(action.flatten(), generator))
        ended = ended_BN.repeat_interleave(width, dim=1)
        rewards = rewards.masked_fill(ended, 0.0)
        returns = returns_BN.repeat_interleave(width, dim=1) + gamma ** (depth - 1) * rewards
        if stop_at_end:
            ended = ended | ends
        q = dream.q_values(pessimistic)
        best = q.max(-1).values.view(B, -1).masked_fill(ended, 0.0)
        scores = (returns + gamma**depth * best).masked_fill(~real.flatten(1), -torch.inf)
        scores_BN, kept = ranked(scores, beam_width)
        frames = dream.frame.view(B, -1, FRAME_TOKENS)
        levels.append(_Level(frames, action, rewards, ends, scores, kept, width))
        ended_BN = ended.gather(1, kept)
        returns_BN = returns.gather(1, kept).masked_fill(scores_BN.isinf(), -torch.inf)
        rows_BN = environments * scores.shape[1] + kept
        q_BNA = q[rows_BN]
    if trace is not None:
        trace.q, trace.futures = root_q, partial(_futures, levels)
    return _best(levels, q_BNA[:, 0].argmax(-1), scores_BN[:, 0])


def _best(levels: list[_Level], greedy: Tensor, scores: Tensor) -> Path:
    """The path to the best node of the last level, with the greedy action (B,) there."""
    B, H = len(greedy), len(levels)
    environments = torch.arange(B, device=greedy.device)
    frames, actions = greedy.new_empty(B, H, FRAME_TOKENS), greedy.new_empty(B, H + 1)
    rewards, ends = scores.new_empty(B, H), greedy.new_empty(B, H, dtype=torch.bool)
    actions[:, H] = greedy
    for depth, (level, nodes) in enumerate(zip(levels, _paths(levels), strict=True)):
        at = environments, nodes[:, 0]
        frames[:, depth], actions[:, depth] = level.frames[at], level.actions[at]
        rewards[:, depth], ends[:, depth] = level.rewards[at], level.ends[at]
    return Path(frames, actions, rewards, ends, scores)


def _paths(levels: list[_Level]) -> list[Tensor]:
    """The nodes (B, N) of every level that lie on the paths to those kept at the last one."""
    nodes = [level.kept for level in levels[-1:]]
    for before, level in zip(levels[-2::-1], levels[:0:-1], strict=True):
        nodes.append(before.kept.gather(1, nodes[-1] // level.width))
    return nodes[::-1]


def _futures(levels: list[_Level], row: int) -> list[Future]:
    """The paths that were kept to the end in one environment, best first."""
    paths = [nodes[row] for nodes in _paths(levels)]
    futures = []
    for path in range(len(paths[-1]) if paths else 0):
        steps = [(level, nodes[path]) for level, nodes in zip(levels, paths, strict=True)]
        score = float(levels[-1].scores[row, paths[-1][path]])
        if score == -torch.inf:  # padding, as is all that ranks below it
            break
        actions, frames, rewards, ends = (
            torch.stack([getattr(level, name)[row, node] for level, node in steps])
            for name in ("actions", "frames", "rewards", "ends")
        )
        futures.append(Future(actions, frames, rewards, ends, score))
    return futures
