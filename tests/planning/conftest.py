"""A slow and plain world to compare the planner with: no cache, a full pass for every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.games import get
from jowa.models.world_action import WorldActionModel

ACTIONS = {"Freeway": 3, "Pong": 6, "Boxing": 18}


@dataclass(frozen=True)
class Node:
    """A play so far: frames (t, 36), the actions (t - 1,) between them, what it has paid, its
    first imagined action, and how near any choice on the way came to falling otherwise."""

    game: int
    frames: Tensor
    actions: Tensor
    gained: float = 0.0
    score: float = 0.0
    first: int = -1
    ended: bool = False
    margin: float = float("inf")


@dataclass
class SlowWorld:
    """Search written for clarity; options as of `jowa.plan`."""

    model: WorldActionModel
    stop_at_end: bool = False
    pessimistic: bool = False
    caution: float = 0.0
    reward_weight: float | None = None

    def reward(self, logits: Tensor) -> float:
        """Of one step, from its classes' logits (3,)."""
        if self.reward_weight is None:
            return float(logits.argmax()) - 1
        less, none, more = (float(p) for p in logits.softmax(-1))
        less, more = less / self.reward_weight, more / self.reward_weight
        return (more - less) / (less + none + more)

    def values(self, nodes: list[Node]) -> list[dict[int, float]]:
        """Q of every legal action at the last frames; all nodes have as many frames."""
        frames = torch.stack([node.frames for node in nodes])
        actions = F.pad(torch.stack([node.actions for node in nodes]), (0, 1))
        games = torch.tensor([node.game for node in nodes])
        q_logits = self.model(frames, actions, games, world=False).q_logits[:, :, -1]
        q = self.model.values(q_logits)
        if self.pessimistic:
            q = torch.stack([self.model.values(member[None]) for member in q_logits]).amin(0)
        legal = self.model.legal_actions
        return [
            {a: float(row[a]) for a in range(18) if legal[node.game, a]}
            for row, node in zip(q, nodes, strict=True)
        ]

    def step(self, nodes: list[Node], chosen: list[int], gamma: float, depth: int) -> list[Node]:
        """Takes an action from each node and imagines the frame after it, token after token."""
        games = torch.tensor([node.game for node in nodes])
        frames = torch.stack([node.frames for node in nodes])
        actions = torch.stack([node.actions for node in nodes])
        actions = torch.cat([actions, torch.tensor(chosen)[:, None]], 1)
        output = self.model(frames, actions, games, q=False)
        rewards, ends = output.reward_logits[:, -1], output.end_logits[:, -1]
        margins = torch.minimum(_gap(rewards), _gap(ends))
        frame = torch.zeros_like(frames[:, -1])
        later = F.pad(actions, (0, 1))
        for k in range(36):
            output = self.model(torch.cat([frames, frame[:, None]], 1), later, games, q=False)
            logits = output.observation_logits[:, 36 * frames.shape[1] + k - 1]
            frame[:, k] = logits.argmax(-1)
            margins = torch.minimum(margins, _gap(logits))
        after = []
        for i, node in enumerate(nodes):
            reward = 0.0 if node.ended else self.reward(rewards[i])
            ended = node.ended or (self.stop_at_end and bool(ends[i].argmax()))
            after.append(
                Node(
                    node.game,
                    torch.cat([frames[i], frame[i : i + 1]]),
                    actions[i],
                    gained=node.gained + gamma**depth * reward,
                    first=chosen[i] if depth == 0 else node.first,
                    ended=ended,
                    margin=min(node.margin, float(margins[i])),
                )
            )
        return after

    @torch.no_grad()
    def search(self, root: Node, width: int, horizon: int, gamma: float) -> tuple[Node, float]:
        """The best path, and how much would have had to change for another to come out."""
        (values,) = self.values([root])
        if horizon == 0:
            ranked = sorted(values, key=lambda a: -values[a])
            best = replace(root, first=ranked[0], score=values[ranked[0]])
            return best, _boundary([values[a] for a in ranked], 1)
        beam, q, margin = [root], [values], float("inf")
        for depth in range(horizon):
            parents, chosen, costs = [], [], []
            for node, values in zip(beam, q, strict=True):
                ranked = sorted(values, key=lambda a: -values[a])
                margin = min(margin, _boundary([values[a] for a in ranked], width))
                for action in ranked[: 1 if node.ended else width]:
                    parents.append(node)
                    chosen.append(action)
                    worse = 0.0 if node.ended else values[ranked[0]] - values[action]
                    costs.append(gamma**depth * self.caution * worse)
            children = [
                replace(child, gained=child.gained - cost)
                for child, cost in zip(self.step(parents, chosen, gamma, depth), costs, strict=True)
            ]
            margin = min([margin] + [child.margin for child in children])
            q = self.values(children)
            children = [
                replace(
                    c, score=c.gained + (0 if c.ended else gamma ** (depth + 1) * max(v.values()))
                )
                for c, v in zip(children, q, strict=True)
            ]
            order = sorted(range(len(children)), key=lambda i: -children[i].score)
            margin = min(margin, _boundary([children[i].score for i in order], width))
            beam, q = [children[i] for i in order[:width]], [q[i] for i in order[:width]]
        rivals = [node.score for node in beam if node.first != beam[0].first]
        return beam[0], min([margin] + [beam[0].score - score for score in rivals])


def _gap(logits: Tensor) -> Tensor:
    """How far the largest of (R, n) lies above the next."""
    top = logits.topk(2, dim=-1).values
    return top[:, 0] - top[:, 1]


def _boundary(ranked: list[float], count: int) -> float:
    """How far the last that is kept lies above the first that is not."""
    return ranked[count - 1] - ranked[count] if count < len(ranked) else float("inf")


@pytest.fixture(scope="session")
def slow_world() -> type[SlowWorld]:
    return SlowWorld


@pytest.fixture(scope="session")
def make_node() -> Callable[..., Node]:
    return Node


@pytest.fixture(scope="session")
def contexts() -> tuple[Tensor, Tensor, Tensor]:
    """Eight frames (3, 8, 36), the actions between (3, 7), and games of 3, 6 and 18 actions."""
    generator = torch.Generator().manual_seed(11)
    frames = torch.randint(0, 24, (3, 8, 36), generator=generator)
    frames[:, 1:, :20] = frames[:, :1, :20]  # much stays as it was, as on a screen
    actions = torch.randint(0, 18, (3, 7), generator=generator)
    for name, count in ACTIONS.items():
        assert len(get(name).actions) == count
    return frames, actions, torch.tensor([get(name).id for name in ACTIONS])
