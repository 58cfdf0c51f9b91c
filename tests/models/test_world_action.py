"""The world-action model: inputs of every option, heads, causality over whole frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jowa.games import get
from jowa.models.world_action import WorldActionModel

V = 24
NANO = {"codebook_width": 4, "copy_previous": True, "reader_width": 8, "bell_start": 1.0}
OPTIONS: list[dict[str, object]] = [{}, NANO, {"copy_previous": True}, {"codebook_width": 4}]
Maker = Callable[..., WorldActionModel]


def inputs(rows: int = 2, length: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    obs = torch.randint(0, V, (rows, length, 36), generator=generator)
    actions = torch.randint(0, 18, (rows, length), generator=generator)
    return obs, actions, torch.tensor([get("Pong").id, get("Freeway").id])[:rows]


def test_hints_are_the_previous_frame_at_the_place_to_be_predicted(make_model: Maker) -> None:
    obs, _, _ = inputs(length=5)
    hints = make_model(copy_previous=True).hints(obs)
    for b in range(2):
        for t in range(5):
            for position in range(37):
                if position == 35:  # the last token predicts nothing of the world
                    expected = V
                elif position == 36:  # the action predicts token 0 of frame t + 1
                    expected = int(obs[b, t, 0])
                else:  # predicts token position + 1 of frame t
                    expected = V if t == 0 else int(obs[b, t - 1, position + 1])
                assert int(hints[b, t, position]) == expected


@torch.no_grad()
def test_the_copy_gate_raises_the_hinted_logit_and_no_other(make_model: Maker) -> None:
    model = make_model(copy_previous=True)
    model.copy_gate.weight.zero_()
    model.copy_gate.bias.fill_(3.0)
    hidden, hints = torch.randn(2, 3, 16), torch.tensor([[5, V, 23], [0, 7, V]])
    raised = model.predict_tokens(hidden, hints) - model.predict_tokens(hidden, None)
    expected = torch.zeros(2, 3, V)
    for b, m, token in ((0, 0, 5), (0, 2, 23), (1, 0, 0), (1, 1, 7)):
        expected[b, m, token] = 3.0
    torch.testing.assert_close(raised, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_open_gate_predicts_that_nothing_changes(make_model: Maker) -> None:
    model = make_model(copy_previous=True)
    model.copy_gate.bias.fill_(100.0)
    obs, actions, games = inputs(length=3)
    predicted = model(obs, actions, games).observation_logits.argmax(-1).view(2, 3, 36)
    # Positions of frame 1 predict tokens 1 to 35 of frame 1, then token 0 of frame 2.
    assert torch.equal(predicted[:, 1, :35], obs[:, 0, 1:])
    assert torch.equal(predicted[:, 1, 35], obs[:, 1, 0])


@torch.no_grad()
def test_tokens_are_embedded_by_their_code(make_model: Maker) -> None:
    model = make_model(codebook_width=4)
    codes = torch.randn(V, 4)
    codes[9] = codes[4]
    model.codebook.copy_(codes)
    obs, actions, games = inputs()
    obs[obs == 9] = 4
    same = torch.where(torch.rand(obs.shape) < 0.5, obs.masked_fill(obs == 4, 9), obs)
    assert not torch.equal(same, obs)
    torch.testing.assert_close(
        model(same, actions, games).predicting, model(obs, actions, games).predicting
    )
    before = model(obs, actions, games).predicting
    model.codebook.normal_()
    assert (model(obs, actions, games).predicting - before).abs().max() > 1e-3


def test_the_target_head_learns_only_by_update_target(make_model: Maker) -> None:
    model = make_model().train()
    obs, actions, games = inputs()

    def heads() -> tuple[Tensor, Tensor]:
        model.eval()
        output = model(obs, actions, games, world=False)
        return output.q_logits, output.target_q_logits

    q, target = heads()
    torch.testing.assert_close(q, target)
    (q.square().sum() + target.sum()).backward()
    assert all(p.grad is None for p in model.target_q_head.parameters())
    assert model.transformer.blocks[0].attention.qkv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        for parameter in model.q_head.parameters():
            parameter.sub_(0.5 * parameter.grad)
    q_moved, target_still = heads()
    torch.testing.assert_close(target_still, target)
    assert (q_moved - target).abs().max() > 1e-3
    model.update_target()
    q_new, target_new = heads()
    torch.testing.assert_close(target_new, q_new)


def test_the_target_is_read_without_dropout_even_in_training(make_model: Maker) -> None:
    model = make_model(dropout=0.0).train()
    model.q_head.dropout.p = model.target_q_head.dropout.p = 0.5
    obs, actions, games = inputs()
    first, second = model(obs, actions, games), model(obs, actions, games)
    assert (first.q_logits - second.q_logits).abs().max() > 0
    assert torch.equal(first.target_q_logits, second.target_q_logits)


@torch.no_grad()
def test_the_game_matters_only_through_the_task_embedding(make_model: Maker) -> None:
    obs, actions, games = inputs()
    with_task, without = make_model(), make_model(task_embedding=False)
    assert torch.equal(
        without(obs, actions, games).predicting, without(obs, actions, games.flip(0)).predicting
    )
    changed = (
        with_task(obs, actions, games.flip(0)).predicting
        - with_task(obs, actions, games).predicting
    )
    assert (changed.abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_every_head_at_a_step_sees_no_later_step(
    make_model: Maker, options: dict[str, object]
) -> None:
    model = make_model(scale=3.0, **options)
    obs, actions, games = inputs(length=8)
    whole = model(obs, actions, games)
    for L in range(1, 9):
        part = model(obs[:, :L], actions[:, :L], games)
        assert part.observation_logits.shape == (2, 36 * L, V)
        assert part.reward_logits.shape == (2, L, 3) and part.end_logits.shape == (2, L, 2)
        assert part.q_logits.shape == part.target_q_logits.shape == (2, 2, L, 18 * 11)
        for name, axis, count in (
            ("observation_logits", 1, 36 * L),
            ("reward_logits", 1, L),
            ("end_logits", 1, L),
            ("q_logits", 2, L),
        ):
            expected = getattr(whole, name).narrow(axis, 0, count)
            torch.testing.assert_close(getattr(part, name), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_q_does_not_see_the_action_of_its_own_step(make_model: Maker) -> None:
    model = make_model(scale=3.0, copy_previous=True)
    obs, actions, games = inputs()
    other = actions.clone()
    other[:, 2] = (other[:, 2] + 1) % 18
    first, second = model(obs, actions, games), model(obs, other, games)
    torch.testing.assert_close(second.q_logits[:, :, :3], first.q_logits[:, :, :3])
    assert (second.q_logits - first.q_logits)[:, :, 3].abs().max() > 1e-4
    assert (second.reward_logits - first.reward_logits)[:, 2].abs().max() > 1e-4


@torch.no_grad()
def test_q_with_a_reader_sees_this_frame_and_the_one_before_and_no_actions(
    make_model: Maker,
) -> None:
    model = make_model(scale=3.0, copy_previous=True, reader_width=8)
    obs, actions, games = inputs()
    expected = model(obs, actions, games).q_logits
    assert torch.equal(model(obs, actions.flip(1), games).q_logits, expected)
    for frame in range(obs.shape[1]):
        other = obs.clone()
        other[:, frame] = (other[:, frame] + 1) % V
        difference = (model(other, actions, games).q_logits - expected).abs().amax((0, 1, 3))
        moved = (difference > 1e-4).tolist()
        assert moved == [at in (frame, frame + 1) for at in range(obs.shape[1])]


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_world_rows_are_those_rows_of_the_whole(
    make_model: Maker, options: dict[str, object]
) -> None:
    model = make_model(scale=3.0, **options)
    obs, actions, games = inputs()
    whole = model(obs, actions, games)
    part = model(obs, actions, games, world_rows=torch.tensor([1]))
    for name in ("observation_logits", "reward_logits", "end_logits", "predicting"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[1:])
    torch.testing.assert_close(part.q_logits, whole.q_logits)


@torch.no_grad()
def test_the_bell_starts_q_near_zero(make_model: Maker) -> None:
    obs, actions, games = inputs()
    mean = {}
    for start in (0.0, 1.0):
        model = make_model(bell_start=start, atoms=51)
        q = model.values(model(obs, actions, games).q_logits)
        mean[start] = q
    assert mean[1.0].abs().max() < 0.3
    assert (mean[0.0] - 10.0).abs().max() < 1.0


@torch.no_grad()
def test_values_are_the_mean_of_the_members_means(make_model: Maker) -> None:
    model = make_model(q_members=3)
    logits = torch.randn(3, 2, 18 * 11)
    by_member = [
        [
            [
                float((logits[q, b, a * 11 : a * 11 + 11].softmax(0) * model.support).sum())
                for a in range(18)
            ]
            for b in range(2)
        ]
        for q in range(3)
    ]
    torch.testing.assert_close(model.values(logits), torch.tensor(by_member).mean(0))
