"""Tree search against a plain one: one environment, no cache, dicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.games import get
from jowa.models.world_action import WorldActionModel
from jowa.planning.decode import Decoder
from jowa.planning.mcts import tree_search

ALL = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}
GAMMA = 0.9
Maker = Callable[..., WorldActionModel]
Contexts = tuple[Tensor, Tensor, Tensor]


@dataclass
class PlainNode:
    play: Any
    prior: dict[int, float]
    value: float
    reward: float = 0.0
    ended: bool = False
    children: dict[int, PlainNode] = field(default_factory=dict)
    returns: dict[int, list[float]] = field(default_factory=dict)


def plain_tree(
    world: Any, root: Any, simulations: int, horizon: int, temperature: float, leaf: str
) -> dict[int, list[float]]:
    """The returns that each action at the root has brought."""

    def expand(play: Any, reward: float = 0.0, ended: bool = False) -> PlainNode:
        (q,) = world.values([play])
        top = max(q.values())
        weights = {a: math.exp((value - top) / temperature) for a, value in q.items()}
        prior = {a: weight / sum(weights.values()) for a, weight in weights.items()}
        value = top if leaf == "max" else sum(q.values()) / len(q)
        return PlainNode(play, prior, 0.0 if ended else value, reward, ended)

    top, seen = expand(root), []
    for _ in range(simulations):
        node, path = top, []
        while len(path) < horizon and not node.ended:
            total = sum(len(r) for r in node.returns.values())
            scores = {}
            for action, prior in node.prior.items():
                returns = node.returns.get(action, [])
                value = 0.0
                if returns:
                    spread = max(max(seen) - min(seen), 1e-6)
                    value = (sum(returns) / len(returns) - min(seen)) / spread
                weight = 1.25 + math.log((total + 19652 + 1) / 19652)
                explore = prior * weight * math.sqrt(max(total, 1)) / (1 + len(returns))
                scores[action] = value + explore
            action = max(scores, key=lambda a: scores[a])
            path.append((node, action))
            if action not in node.children:
                (play,) = world.step([node.play], [action], 1.0, 0)
                reward, ended = play.gained, play.ended
                play = type(play)(play.game, play.frames, play.actions)
                node.children[action] = node = expand(play, reward, ended)
                break
            node = node.children[action]
        value = node.value
        for node, action in reversed(path):
            value = node.children[action].reward + GAMMA * value
            node.returns.setdefault(action, []).append(value)
            seen.append(sum(node.returns[action]) / len(node.returns[action]))
    return top.returns


@pytest.mark.parametrize(
    ("horizon", "leaf", "choice", "options"),
    [
        (1, "max", "value", {}),
        (2, "mean", "visits", {"stop_at_end": True}),
        (3, "max", "value", {"pessimistic": True}),
        (3, "mean", "visits", {"stop_at_end": True}),
    ],
)
@pytest.mark.parametrize("mode", ["plain", "drafted"])
@torch.no_grad()
def test_trees_equal_plain_ones(
    make_model: Maker,
    make_node: Any,
    slow_world: Any,
    contexts: Contexts,
    horizon: int,
    leaf: str,
    choice: str,
    options: dict[str, bool],
    mode: str,
) -> None:
    """Three games and context lengths in one call; some trees reach their depth, some do not."""
    model = make_model(seed=horizon, scale=5.0, **ALL).double()
    frames, actions, games = contexts
    frames, actions, lengths = frames[:, :4], actions[:, :3], [4, 1, 3]
    chosen = tree_search(
        model,
        frames,
        actions,
        games,
        12,
        horizon,
        GAMMA,
        temperature=2.0,
        leaf=leaf,
        choice=choice,
        lengths=torch.tensor(lengths),
        decoder=Decoder(mode),
        **options,
    )
    for b, n in enumerate(lengths):
        root = make_node(int(games[b]), frames[b, 4 - n :], actions[b, 4 - n :])
        returns = plain_tree(slow_world(model, **options), root, 12, horizon, 2.0, leaf)
        means = {a: sum(r) / len(r) for a, r in returns.items()}
        action, score = int(chosen.actions[b]), float(chosen.scores[b])
        assert score == pytest.approx(means[action], abs=1e-4)
        if choice == "value":
            assert score == pytest.approx(max(means.values()), abs=1e-4)
        else:
            assert len(returns[action]) == max(len(r) for r in returns.values())


def test_more_simulations_find_what_pays(make_model: Maker, contexts: Contexts) -> None:
    """Q prefers another action; the tree finds the better value below the one it ranks second."""
    model = make_model(seed=5, scale=10.0, **ALL)
    frames, actions, games = contexts
    args = (model, frames[:, :2], actions[:, :1], games)
    scores = torch.stack([tree_search(*args, n, 1).scores for n in (1, 40)])
    assert (scores[1] >= scores[0] - 1e-3).all() and (scores[1] > scores[0] + 1e-2).any()


@pytest.mark.parametrize(("simulations", "horizon"), [(0, 1), (4, 0)])
def test_searches_that_cannot_be_are_refused(
    make_model: Maker, contexts: Contexts, simulations: int, horizon: int
) -> None:
    frames, actions, games = contexts
    with pytest.raises(UserError, match="simulations"):
        tree_search(make_model(), frames[:, :1], actions[:, :0], games, simulations, horizon)


def test_actions_are_legal(make_model: Maker, contexts: Contexts) -> None:
    frames, actions, games = contexts
    model = make_model(scale=10.0, **ALL)
    assert games[0] == get("Freeway").id
    for choice in ("value", "visits"):
        chosen = tree_search(model, frames[:, :1], actions[:, :0], games, 30, 2, choice=choice)
        assert model.legal_actions[games, chosen.actions].all()
