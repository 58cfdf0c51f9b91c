"""Monte Carlo tree search in the world model, by MuZero's rules, for B environments at once.

Every simulation walks each environment's tree by pUCT to an action not yet tried (or to the
greatest depth), imagines one frame for all environments in one call, and backs its value up.

B environments, M = simulations + 1 nodes of each (0 is the root), A = 18 actions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.errors import UserError
from jowa.games import NUM_ACTIONS
from jowa.models.decoding import Cache, padding_mask
from jowa.models.world_action import BLOCK_TOKENS, WorldActionModel
from jowa.planning.beam import begin, check
from jowa.planning.decode import Decoder
from jowa.planning.dream import Dream
from jowa.planning.evaluation_mode import in_evaluation_mode
from jowa.planning.paths import Plan, ranked
from jowa.planning.trace import Future, Trace

# MuZero's constants of exploration.
BASE, INIT = 19652.0, 1.25


@dataclass
class Tree:
    """What is known of every node (B, M), and of every action (B, M, A) at it.

    `child` is the node an action leads to (-1: not tried), `visits` how often it was taken,
    `totals` the sum of the returns it brought, `prior` softmax(Q / T) with `legal` (B, A) actions.
    A node has its `parent`, the `action` that led to it, `depth`, `reward`, `value` as a leaf, and
    whether the episode `ended` with it. Returns lie between `low` and `high` (B,).
    """

    legal: Tensor
    child: Tensor
    visits: Tensor
    totals: Tensor
    prior: Tensor
    parent: Tensor
    action: Tensor
    depth: Tensor
    reward: Tensor
    value: Tensor
    ended: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def empty(cls, legal: Tensor, nodes: int) -> Tree:
        B, device = len(legal), legal.device

        def filled(value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        return cls(
            legal=legal,
            child=filled(-1, B, nodes, NUM_ACTIONS, dtype=torch.long),
            visits=filled(0, B, nodes, NUM_ACTIONS),
            totals=filled(0, B, nodes, NUM_ACTIONS),
            prior=filled(0, B, nodes, NUM_ACTIONS),
            parent=filled(0, B, nodes, dtype=torch.long),
            action=filled(0, B, nodes, dtype=torch.long),
            depth=filled(0, B, nodes, dtype=torch.long),
            reward=filled(0, B, nodes),
            value=filled(0, B, nodes),
            ended=filled(0, B, nodes, dtype=torch.bool),
            low=filled(torch.inf, B),
            high=filled(-torch.inf, B),
        )

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.legal), device=self.legal.device)

    def choose(self, node: Tensor) -> Tensor:
        """The action (B,) of greatest pUCT at `node` (B,); one not tried is worth the least."""
        visits, prior = self.visits[self.rows, node], self.prior[self.rows, node]
        total = visits.sum(-1, keepdim=True)
        low, high = self.low.unsqueeze(1), self.high.unsqueeze(1)
        mean = self.totals[self.rows, node] / visits.clamp(min=1)
        value = torch.where(visits > 0, (mean - low) / (high - low).clamp(min=1e-6), 0.0)
        weight = (INIT + ((total + BASE + 1) / BASE).log()) * total.clamp(min=1).sqrt()
        scores = value + prior * weight / (1 + visits)
        return scores.masked_fill(~self.legal, -torch.inf).argmax(-1)

    def descend(self, new: int, horizon: int) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Walks every environment's tree to a leaf (B,) and returns it with the steps there: nodes,
        actions, and which environments took that step. Actions not tried lead to node `new`."""
        rows = self.rows
        node, walking = torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
        path = []
        for depth in range(horizon):
            action = self.choose(node)
            path.append((node, action, walking))
            after = self.child[rows, node, action]
            fresh = walking & (after < 0)
            self.child[rows, node, action] = torch.where(fresh, new, after)
            self.parent[:, new] = torch.where(fresh, node, self.parent[:, new])
            self.action[:, new] = torch.where(fresh, action, self.action[:, new])
            self.depth[:, new] = torch.where(fresh, depth + 1, self.depth[:, new])
            node = torch.where(walking, torch.where(fresh, new, after), node)
            walking = walking & ~fresh & ~self.ended[rows, node]
        return node, path

    def back_up(
        self, leaf: Tensor, path: list[tuple[Tensor, Tensor, Tensor]], gamma: float
    ) -> None:
        """Adds the return from each step of the path to what its action has brought."""
        rows, value = self.rows, self.value[self.rows, leaf]
        for node, action, taken in reversed(path):
            to = torch.where(taken, self.child[rows, node, action], 0)
            value = torch.where(taken, self.reward[rows, to] + gamma * value, value)
            self.visits[rows, node, action] += taken.float()
            self.totals[rows, node, action] += torch.where(taken, value, 0.0)
            mean = self.totals[rows, node, action] / self.visits[rows, node, action].clamp(min=1)
            self.low = torch.where(taken, torch.minimum(self.low, mean), self.low)
            self.high = torch.where(taken, torch.maximum(self.high, mean), self.high)


@dataclass
class Nodes:
    """Frames (B, M, 36), and each layer's keys and values (H, B, M, 37, d), of a tree's nodes;
    behind those of the root's context, in `cache`."""

    root: Dream
    cache: Cache
    frames: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, root: Dream, nodes: int) -> Nodes:
        assert root.cache is not None
        frames = root.frame.unsqueeze(1).repeat(1, nodes, 1)
        tails = [*root.cache.tail_keys, *root.cache.tail_values]
        pools = [t.new_zeros(*t.shape[:2], nodes, BLOCK_TOKENS, t.shape[3]) for t in tails]
        layers = len(root.cache.tail_keys)
        return cls(root, root.cache, frames, pools[:layers], pools[layers:])

    def imagine(
        self,
        tree: Tree,
        new: int,
        generator: torch.Generator | None,
        reward_weight: float | None,
    ) -> tuple[Dream, Tensor, Tensor]:
        """The frame that node `new` of every tree stands for: a dream at it, rewards, ends."""
        rows, parent = tree.rows, tree.parent[:, new]
        depth = tree.depth[rows, parent]
        cache = self._behind(tree, parent)
        dream = replace(
            self.root,
            cache=cache,
            frame=self.frames[rows, parent],
            position=self.root.position + BLOCK_TOKENS * depth,
        )
        filled = cache.filled
        rewards, ends = dream.step(tree.action[:, new], generator, reward_weight)
        self.frames[:, new] = dream.frame
        for pools, tails in ((self.keys, cache.tail_keys), (self.values, cache.tail_values)):
            for pool, tail in zip(pools, tails, strict=True):
                pool[:, :, new] = tail[:, :, filled : filled + BLOCK_TOKENS]
        return dream, rewards, ends

    def _behind(self, tree: Tree, node: Tensor) -> Cache:
        """The root's cache, and as its tail the blocks from the root to `node` (B,), with gaps
        where a path is shorter than the deepest can be."""
        cache, rows = self.cache, tree.rows
        slots = cache.tail_keys[0].shape[2] // BLOCK_TOKENS - 1
        path = torch.zeros(len(rows), slots, dtype=torch.long, device=rows.device)
        for slot in reversed(range(slots)):
            here = tree.depth[rows, node] == slot + 1
            path[:, slot] = torch.where(here, node, 0)
            node = torch.where(here, tree.parent[rows, node], node)
        real = (path > 0).repeat_interleave(BLOCK_TOKENS, dim=1).unsqueeze(1)

        def gather(pools: list[Tensor]) -> list[Tensor]:
            blocks = [pool[:, rows.unsqueeze(1), path].flatten(2, 3) for pool in pools]
            return [F.pad(block, (0, 0, 0, BLOCK_TOKENS)) for block in blocks]

        return replace(
            cache,
            tail_keys=gather(self.keys),
            tail_values=gather(self.values),
            tail_mask=padding_mask(real, cache.causal.dtype) if slots else None,
            filled=slots * BLOCK_TOKENS,
        )


@in_evaluation_mode
@torch.inference_mode()
def tree_search(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    simulations: int = 16,
    horizon: int = 2,
    gamma: float = 0.99,
    *,
    temperature: float = 1.0,
    leaf: str = "max",
    choice: str = "value",
    lengths: Tensor | None = None,
    stop_at_end: bool = False,
    pessimistic: bool = False,
    reward_weight: float | None = None,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    trace: Trace | None = None,
) -> Plan:
    """Decides for B environments at once; contexts and further options as of `jowa.plan`.

    The tree is at most `horizon` deep. A leaf is worth the `leaf` (max or mean) of its legal
    actions' Q. The root chooses among the actions tried by greatest mean return or, with `choice`
    visits, by number of visits; the score is the mean return of the action chosen.
    """
    check(1, horizon, 1)
    if horizon < 1 or simulations < 1:
        raise UserError(
            f"a tree search needs horizon and simulations of at least 1, not {horizon} and "
            f"{simulations}."
        )
    root = begin(model, obs_tokens, actions, games, horizon, lengths, decoder)
    tree = Tree.empty(model.legal_actions[games], simulations + 1)
    nodes, illegal = Nodes.empty(root, simulations + 1), ~tree.legal

    def note(node: int, q: Tensor) -> None:
        tree.prior[:, node] = (q / temperature).softmax(-1)
        mean = q.masked_fill(illegal, 0.0).sum(-1) / tree.legal.sum(-1)
        value = q.amax(-1) if leaf == "max" else mean
        tree.value[:, node] = value.masked_fill(tree.ended[:, node], 0.0)

    root_q = root.q_values(pessimistic)
    note(0, root_q)
    for new in range(1, simulations + 1):
        reached, path = tree.descend(new, horizon)
        dream, tree.reward[:, new], ends = nodes.imagine(tree, new, generator, reward_weight)
        if stop_at_end:
            tree.ended[:, new] = ends
        note(new, dream.q_values(pessimistic))
        tree.back_up(reached, path, gamma)
    visits = tree.visits[:, 0]
    mean = (tree.totals[:, 0] / visits.clamp(min=1)).masked_fill(visits == 0, -torch.inf)
    ranks = mean if choice == "value" else visits.masked_fill(illegal, -1.0)
    chosen = ranks.argmax(-1)
    if trace is not None:
        trace.q, trace.futures = root_q, partial(_futures, tree, nodes.frames, ranks, mean)
    return Plan(chosen, mean[tree.rows, chosen])


def _futures(tree: Tree, frames: Tensor, ranks: Tensor, mean: Tensor, row: int) -> list[Future]:
    """The path taken most often from each action tried at the root of one environment, from
    frames (B, M, 36) of all nodes and the actions' ranks and mean returns (B, A)."""
    visits, futures = tree.visits[row], []
    for action in ranked(ranks[row], NUM_ACTIONS)[1]:
        if not visits[0, action]:
            continue
        path = [tree.child[row, 0, action]]
        while visits[path[-1]].any():
            path.append(tree.child[row, path[-1], visits[path[-1]].argmax()])
        at = row, torch.stack(path)
        rewards, ends, score = tree.reward[at], tree.ended[at], float(mean[row, action])
        taken = int(visits[0, action])
        futures.append(Future(tree.action[at], frames[at], rewards, ends, score, taken))
    return futures
