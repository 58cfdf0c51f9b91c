"""Beam search: batches, legality, options, and settings that cannot work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.games import get
from jowa.models.world_action import WorldActionModel
from jowa.planning.beam import check, imagine, plan
from jowa.planning.decode import Decoder
from jowa.planning.dream import Dream
from jowa.planning.mcts import tree_search
from jowa.planning.paths import Plan

ALL = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}
Contexts = tuple[Tensor, Tensor, Tensor]
Maker = Callable[..., WorldActionModel]


@pytest.mark.parametrize(("width", "horizon"), [(1, 0), (2, 1), (5, 2), (4, 3), (40, 1)])
def test_actions_are_legal_and_do_not_depend_on_the_batch(
    make_model: Maker, contexts: Contexts, width: int, horizon: int
) -> None:
    frames, actions, games = contexts
    for seed in range(2):
        model = make_model(seed=seed, scale=10.0, **ALL).double()
        # What Freeway does not allow looks best of all.
        legal = model.legal_actions[games[0]]
        with torch.no_grad():
            bias = model.q_head.linear3.bias.view(2, 18, 11)
            bias[:, ~legal, -1] += 50.0
        together = plan(model, frames[:, -3:], actions[:, -2:], games, width, horizon)
        assert together.scores.isfinite().all()
        for b in range(3):
            one = slice(b, b + 1)
            alone = plan(model, frames[one, -3:], actions[one, -2:], games[one], width, horizon)
            assert model.legal_actions[games[b], together.actions[b]]
            torch.testing.assert_close(alone.scores, together.scores[one], rtol=1e-3, atol=1e-3)
            assert torch.equal(alone.actions, together.actions[one])


@pytest.mark.parametrize("stop_at_end", [False, True])
@pytest.mark.parametrize(("width", "horizon"), [(1, 0), (2, 2), (4, 3)])
def test_the_whole_path_leads_where_it_says(
    make_model: Maker, contexts: Contexts, width: int, horizon: int, stop_at_end: bool
) -> None:
    """Taken again, its actions bring its frames, rewards, ends and score; it begins like `plan`."""
    frames, actions, games = contexts
    gamma, ended_paths = 0.9, 0
    for seed in range(2):
        model = make_model(seed=seed, scale=10.0, **ALL).double()
        args = (model, frames[:, -3:], actions[:, -2:], games)
        path = imagine(*args, width, horizon, gamma, stop_at_end=stop_at_end)
        chosen = plan(*args, width, horizon, gamma, stop_at_end=stop_at_end)
        assert torch.equal(path.actions[:, 0], chosen.actions)
        assert torch.equal(path.scores, chosen.scores)
        with torch.inference_mode():
            dream = Dream.start(*args, horizon)
            score, alive = torch.zeros(3, dtype=torch.double), torch.ones(3, dtype=torch.bool)
            for depth in range(horizon):
                rewards, ends = dream.step(path.actions[:, depth])
                assert torch.equal(dream.frame, path.frames[:, depth])
                assert torch.equal(rewards * alive, path.rewards[:, depth])
                assert torch.equal(ends, path.ends[:, depth])
                score += gamma**depth * rewards * alive
                alive &= ~(ends & stop_at_end)
            q = dream.q_values()
            assert torch.equal(path.actions[:, horizon], q.argmax(-1))
            score += gamma**horizon * q.amax(-1) * alive
            torch.testing.assert_close(path.scores, score, rtol=1e-4, atol=1e-4)
        ended_paths += int((~alive).sum())
    assert (ended_paths > 0) == (stop_at_end and horizon > 0)


def test_planning_in_bfloat16_stays_close(make_model: Maker, contexts: Contexts) -> None:
    frames, actions, games = contexts
    for options in ({}, ALL):
        model = make_model(scale=2.0, **options)
        args = (frames[:, -3:], actions[:, -2:], games, 2, 2)
        exact = plan(model, *args)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = plan(model, *args)
        assert model.legal_actions[games, rounded.actions].all()
        torch.testing.assert_close(rounded.scores, exact.scores, atol=0.5, rtol=0.05)


def test_a_wide_beam_finds_what_a_narrow_one_cannot(make_model: Maker, contexts: Contexts) -> None:
    """Over one step a wider beam only adds paths, so its best is never worse."""
    frames, actions, games = contexts
    better = 0
    for seed in range(6):
        model = make_model(seed=seed, scale=10.0)
        scores = [
            plan(model, frames[:, -2:], actions[:, -1:], games, width, 1).scores
            for width in (1, 2, 18)
        ]
        assert (scores[1] >= scores[0] - 1e-3).all() and (scores[2] >= scores[1] - 1e-3).all()
        better += int((scores[2] > scores[0] + 1e-2).sum())
    assert better > 0


def test_planning_follows_a_reward_that_q_does_not_know(
    make_model: Maker, contexts: Contexts
) -> None:
    """Q says nothing; the world model pays for RIGHT, and only for RIGHT."""
    frames, actions, _ = contexts
    model = make_model(scale=1.0, dropout=0.0)
    pong, right = get("Pong").id, 3
    assert model.legal_actions[pong, right]
    with torch.no_grad():
        model.q_head.linear3.weight.zero_()
        model.q_head.linear3.bias.zero_()
        # The action's embedding dominates its position's activation.
        model.action_embedding.weight.normal_(0, 1e-3)
        model.action_embedding.weight[right] = 100.0 * torch.randn(16)
        hidden = {
            a: model(frames[:1, :1], torch.tensor([[a]]), torch.tensor([pong])).predicting[0, -1]
            for a in range(18)
        }
        direction = hidden[right] - hidden[0]
        head = model.reward_head
        head[0].weight.zero_()
        head[0].bias.zero_()
        head[0].weight[0] = direction
        head[0].bias[0] = -float(direction @ (hidden[right] + hidden[0]) / 2)
        head[2].weight.zero_()
        head[2].weight[2, 0] = 10.0
        head[2].bias.copy_(torch.tensor([-9.0, 0.0, -1.0]))
    args = (frames[:1, :1], actions[:1, :0], torch.tensor([pong]))
    assert int(plan(model, *args, 18, 1).actions) == right
    assert float(plan(model, *args, 18, 1).scores) == pytest.approx(1 + 0.99 * 10, abs=1e-2)


def test_a_path_is_worth_nothing_more_after_a_predicted_end(
    make_model: Maker, contexts: Contexts
) -> None:
    frames, actions, games = contexts
    model = make_model(seed=1, scale=4.0)
    with torch.no_grad():
        model.end_head[2].weight.zero_()
        model.end_head[2].bias.copy_(torch.tensor([0.0, 1.0]))  # every step is the last
        model.reward_head[2].weight.zero_()
        model.reward_head[2].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # and pays 1
    args = (model, frames[:, :2], actions[:, :1], games, 3, 3, 0.9)
    assert plan(*args, stop_at_end=True).scores.tolist() == [1.0] * 3
    assert (plan(*args).scores > 1 + 0.9 + 0.81).all()


def test_the_least_of_the_ensemble_is_never_above_its_mean(
    make_model: Maker, contexts: Contexts
) -> None:
    frames, actions, games = contexts
    args = (make_model(seed=1, scale=8.0), frames[:, :2], actions[:, :1], games, 1, 0)
    least, mean = plan(*args, pessimistic=True).scores, plan(*args).scores
    assert (least < mean - 1e-3).all()


def test_with_much_caution_a_search_acts_greedily(make_model: Maker, contexts: Contexts) -> None:
    frames, actions, games = contexts
    differ = 0
    for seed in range(4):
        args = (make_model(seed=seed, scale=6.0), frames[:, :2], actions[:, :1], games)
        greedy = plan(*args, 1, 0).actions
        assert plan(*args, 3, 2, caution=1e5).actions.tolist() == greedy.tolist()
        differ += int((plan(*args, 3, 2).actions != greedy).sum())
    assert differ > 2


def test_a_game_without_a_legal_action_is_refused(make_model: Maker, contexts: Contexts) -> None:
    frames, actions, games = contexts
    model = make_model()
    model.legal_actions[games[1]] = False
    with pytest.raises(UserError, match="Pong has no legal action"):
        plan(model, frames[:, :1], actions[:, :0], games, 2, 1)


@pytest.mark.parametrize(
    ("width", "horizon", "context", "named"),
    [(0, 1, 4, "beam_width"), (2, -1, 4, "horizon"), (2, 5, 4, "context"), (2, 0, 0, "context")],
)
def test_settings_that_cannot_work_are_refused(
    width: int, horizon: int, context: int, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        check(width, horizon, context)


@pytest.mark.parametrize("search", [plan, tree_search])
def test_a_model_in_training_is_asked_without_dropout_and_left_as_it_was(
    make_model: Maker, contexts: Contexts, search: Callable[..., Plan]
) -> None:
    frames, actions, games = contexts
    model = make_model(seed=1, scale=4.0, dropout=0.5, **ALL)
    args = (model, frames[:, :3], actions[:, :2], games, 2, 2)
    decoder = Decoder("plain")
    expected = search(*args, decoder=decoder)
    model.train()
    model.reader.eval()
    found = search(*args, decoder=decoder)
    assert torch.equal(found.scores, expected.scores)
    assert model.training and model.transformer.training and not model.reader.training
