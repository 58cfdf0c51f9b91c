"""What a search says that it considered is what it decided by, and saying so changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jowa.models.world_action import WorldActionModel
from jowa.planning.beam import imagine, plan
from jowa.planning.decode import Decoder
from jowa.planning.dream import Dream
from jowa.planning.mcts import tree_search
from jowa.planning.trace import Future, Trace

ALL = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}
GAMMA = 0.9
Contexts = tuple[Tensor, Tensor, Tensor]
Maker = Callable[..., WorldActionModel]


def taken_again(args: tuple[Any, ...], row: int, future: Future) -> tuple[list[float], Dream]:
    """Imagines a future's actions anew in one environment and compares its frames; returns the
    rewards, and the dream at its last frame."""
    model, frames, actions, games = args
    one = slice(row, row + 1)
    dream = Dream.start(model, frames[one], actions[one], games[one], len(future.actions))
    rewards = []
    for step, action in enumerate(future.actions):
        reward, _ = dream.step(action.unsqueeze(0))
        assert torch.equal(dream.frame[0], future.frames[step])
        rewards.append(float(reward))
    return rewards, dream


@torch.inference_mode()
@pytest.mark.parametrize(("width", "horizon"), [(1, 0), (2, 2), (4, 2), (3, 3)])
def test_a_beams_futures_are_the_paths_that_it_scored(
    make_model: Maker, contexts: Contexts, width: int, horizon: int
) -> None:
    frames, actions, games = contexts
    model = make_model(seed=horizon, scale=10.0, **ALL).double()
    args = (model, frames[:, -3:], actions[:, -2:], games)
    trace, decoder = Trace(), Decoder("drafted")
    traced = plan(*args, width, horizon, GAMMA, trace=trace, decoder=decoder)
    silent = plan(*args, width, horizon, GAMMA, decoder=decoder)
    assert torch.equal(traced.actions, silent.actions)
    assert torch.equal(traced.scores, silent.scores)
    best = imagine(*args, width, horizon, GAMMA, decoder=decoder)
    for b in range(3):
        futures = trace.futures(b)
        assert len(futures) == (width if horizon else 0)
        if not horizon:
            assert int(trace.q[b].argmax()) == int(silent.actions[b])
            continue
        assert futures[0].score == float(silent.scores[b])
        assert torch.equal(futures[0].actions, best.actions[b, :horizon])
        assert torch.equal(futures[0].frames, best.frames[b])
        scores = [future.score for future in futures]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(future.actions.tolist()) for future in futures}) == width
        for future in futures:
            rewards, dream = taken_again(args, b, future)
            assert rewards == future.rewards.tolist()
            score = sum(GAMMA**d * r for d, r in enumerate(rewards))
            score += GAMMA**horizon * float(dream.q_values().amax())
            assert future.score == pytest.approx(score, abs=1e-3)
    expected = Dream.start(*args, horizon).q_values()
    torch.testing.assert_close(trace.q, expected, rtol=1e-4, atol=1e-4)


def test_beams_of_few_legal_actions_show_no_padding(make_model: Maker, contexts: Contexts) -> None:
    """Freeway has 3 actions: of a beam of 5 only 3 paths of one step are real."""
    frames, actions, games = contexts
    trace = Trace()
    args = (make_model(scale=10.0), frames[:, :2], actions[:, :1], games)
    plan(*args, 5, 1, trace=trace)
    assert [len(trace.futures(b)) for b in range(3)] == [3, 5, 5]


@torch.inference_mode()
@pytest.mark.parametrize("choice", ["value", "visits"])
def test_a_trees_futures_are_what_it_tried(
    make_model: Maker, contexts: Contexts, choice: str
) -> None:
    frames, actions, games = contexts
    model = make_model(seed=3, scale=5.0, **ALL).double()
    args = (model, frames[:, -3:], actions[:, -2:], games)
    options = {"temperature": 2.0, "choice": choice, "decoder": Decoder("drafted")}
    trace = Trace()
    traced = tree_search(*args, 12, 3, GAMMA, trace=trace, **options)
    silent = tree_search(*args, 12, 3, GAMMA, **options)
    assert torch.equal(traced.actions, silent.actions)
    assert torch.equal(traced.scores, silent.scores)
    lengths = set()
    for b in range(3):
        futures = trace.futures(b)
        assert int(futures[0].actions[0]) == int(silent.actions[b])
        assert futures[0].score == float(silent.scores[b])
        assert sum(future.visits or 0 for future in futures) == 12
        ranks = [f.score if choice == "value" else f.visits for f in futures]
        assert ranks == sorted(ranks, reverse=True)
        for future in futures:
            rewards, dream = taken_again(args, b, future)
            assert rewards == future.rewards.tolist()
            lengths.add(len(rewards))
            if future.visits == 1:  # then its score is what its only leaf is worth
                value = rewards[0] + GAMMA * float(dream.q_values().amax())
                assert future.score == pytest.approx(value, abs=1e-3)
    assert max(lengths) > 1
