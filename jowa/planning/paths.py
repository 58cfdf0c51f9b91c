"""The paths of a beam search: which nodes are expanded, what they are worth, which are kept.

Nothing here knows how frames are imagined. B environments, N kept nodes each, M = N·W expanded
ones, A = 18 actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jowa.models.world_action import FRAME_TOKENS
from jowa.planning.trace import Future


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


class Level(NamedTuple):
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


class Beam(NamedTuple):
    """The kept nodes, best first: Q (B, N, A), -inf for illegal actions; scores, the sums of
    rewards on the way and whether the episode has ended (B, N). Padding, where there are fewer
    paths, has scores and returns of -inf."""

    q: Tensor
    scores: Tensor
    returns: Tensor
    ended: Tensor


class Rules(NamedTuple):
    """How a search weighs its paths, as of `jowa.plan`."""

    beam_width: int
    gamma: float
    stop_at_end: bool
    caution: float = 0.0
    reward_weight: float | None = None


def ranked(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest along the last dimension and where they are, the first of equals first
    (topk promises no order of equals)."""
    order = values.sort(dim=-1, descending=True, stable=True)
    return order.values[..., :count], order.indices[..., :count]


def root(q_BA: Tensor) -> Beam:
    """One node an environment, from its Q."""
    scores = q_BA.amax(-1, keepdim=True)
    returns = torch.zeros_like(scores)
    return Beam(q_BA.unsqueeze(1), scores, returns, torch.zeros_like(scores, dtype=torch.bool))


def expand(beam: Beam, width: int) -> tuple[Tensor, Tensor]:
    """The `width` best actions of every kept node, and which of them are real (B, N·width)."""
    top_q, actions = ranked(beam.q, width)
    # Padding of beams narrower than W: illegal actions, and all that descends from them.
    real = top_q.isfinite() & beam.returns.isfinite().unsqueeze(-1)
    # What has ended goes on as its own only child, and nothing more happens to it.
    real[..., 1:] &= ~beam.ended.unsqueeze(-1)
    return actions.flatten(1), real.flatten(1)


def shortfall(beam: Beam, actions: Tensor) -> Tensor:
    """How much less than the best action by Q those of the expanded nodes (B, M) are worth at the
    kept nodes that they are taken from; infinite at padding, which nothing is made of."""
    taken = beam.q.gather(2, actions.unflatten(1, (beam.q.shape[1], -1)))
    return (beam.q.amax(-1, keepdim=True) - taken).flatten(1)


def select(
    beam: Beam,
    frames: Tensor,
    actions: Tensor,
    real: Tensor,
    rewards: Tensor,
    ends: Tensor,
    q: Tensor,
    depth: int,
    rules: Rules,
) -> tuple[Beam, Level]:
    """The best of the nodes that the beam was expanded to, `depth` steps from the root: frames
    (B, M, 36), actions, `real`, rewards and ends (B, M) of the steps, and Q (B, M, A) there."""
    width, gamma = actions.shape[1] // beam.scores.shape[1], rules.gamma
    ended = beam.ended.repeat_interleave(width, dim=1)
    rewards = rewards.masked_fill(ended, 0.0)
    gained = rewards
    if rules.caution:
        gained = gained - rules.caution * shortfall(beam, actions).masked_fill(ended, 0.0)
    returns = beam.returns.repeat_interleave(width, dim=1) + gamma ** (depth - 1) * gained
    if rules.stop_at_end:
        ended = ended | ends
    best = q.amax(-1).masked_fill(ended, 0.0)
    scores = (returns + gamma**depth * best).masked_fill(~real, -torch.inf)
    kept_scores, kept = ranked(scores, rules.beam_width)
    after = Beam(
        q.take_along_dim(kept.unsqueeze(-1), dim=1),
        kept_scores,
        returns.gather(1, kept).masked_fill(kept_scores.isinf(), -torch.inf),
        ended.gather(1, kept),
    )
    return after, Level(frames, actions, rewards, ends, scores, kept, width)


def best(levels: list[Level], beam: Beam) -> Path:
    """The path to the best node of the last level, which the beam holds."""
    greedy, scores = beam.q[:, 0].argmax(-1), beam.scores[:, 0]
    B, H = len(greedy), len(levels)
    environments = torch.arange(B, device=greedy.device)
    frames, actions = greedy.new_empty(B, H, FRAME_TOKENS), greedy.new_empty(B, H + 1)
    rewards, ends = scores.new_empty(B, H), greedy.new_empty(B, H, dtype=torch.bool)
    actions[:, H] = greedy
    for depth, (level, nodes) in enumerate(zip(levels, _kept_to_the_end(levels), strict=True)):
        at = environments, nodes[:, 0]
        frames[:, depth], actions[:, depth] = level.frames[at], level.actions[at]
        rewards[:, depth], ends[:, depth] = level.rewards[at], level.ends[at]
    return Path(frames, actions, rewards, ends, scores)


def _kept_to_the_end(levels: list[Level]) -> list[Tensor]:
    """The nodes (B, N) of every level that lie on the paths to those kept at the last one."""
    nodes = [level.kept for level in levels[-1:]]
    for before, level in zip(levels[-2::-1], levels[:0:-1], strict=True):
        nodes.append(before.kept.gather(1, nodes[-1] // level.width))
    return nodes[::-1]


def futures(levels: list[Level], row: int) -> list[Future]:
    """The paths that were kept to the end in one environment, best first."""
    paths = [nodes[row] for nodes in _kept_to_the_end(levels)]
    found = []
    for path in range(len(paths[-1]) if paths else 0):
        steps = [(level, nodes[path]) for level, nodes in zip(levels, paths, strict=True)]
        score = float(levels[-1].scores[row, paths[-1][path]])
        if score == -torch.inf:  # padding, as is all that ranks below it
            break
        actions, frames, rewards, ends = (
            torch.stack([getattr(level, name)[row, node] for level, node in steps])
            for name in ("actions", "frames", "rewards", "ends")
        )
        found.append(Future(actions, frames, rewards, ends, score))
    return found
