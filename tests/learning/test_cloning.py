"""Behaviour cloning through the Q head: the loss, where it reaches, and that it imitates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from jowa.data.segments import Batch
from jowa.games import LEGAL_ACTIONS, get
from jowa.learning.loss_config import LossConfig
from jowa.learning.losses import cloning_loss
from jowa.learning.objective import Objective
from jowa.planning.beam import plan

NANO = {"codebook_width": 4, "copy_previous": True, "reader_width": 8, "bell_start": 1.0}
CLONING = LossConfig(cloning=1.0)
Maker = Callable[..., Any]


def legal_batch(batch: Batch) -> Batch:
    """The batch with every action a legal one."""
    legal = torch.from_numpy(LEGAL_ACTIONS.copy())[batch.games]
    choice = torch.stack([row.nonzero().flatten().repeat(18)[:18] for row in legal])
    return dataclasses.replace(batch, actions=choice.gather(1, batch.actions))


def test_the_loss_is_the_mean_surprise_at_the_datas_actions() -> None:
    values = torch.randn(2, 3, 18, generator=torch.Generator().manual_seed(0)) * 3
    games = [get("Pong").id, get("Freeway").id]
    legal = torch.from_numpy(LEGAL_ACTIONS[games].copy())
    actions = torch.tensor([[3, 4, 17], [0, 2, 4]])  # the last of each is illegal
    mask = torch.tensor([[True, True, False], [True, True, True]])
    surprise = []
    for b, t in ((0, 0), (0, 1), (1, 0), (1, 1)):
        total = sum(math.exp(values[b, t, a]) for a in range(18) if legal[b, a])
        surprise.append(math.log(total) - float(values[b, t, actions[b, t]]))
    values.requires_grad_()
    loss = cloning_loss(values, actions, legal, mask)
    assert float(loss.detach()) == pytest.approx(sum(surprise) / 5, rel=1e-5)
    cold = cloning_loss(values / 10, actions, legal, mask, 0.1, count=torch.tensor(10.0))
    assert float(cold.detach()) == pytest.approx(sum(surprise) / 10, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.isfinite().all()
    assert (gradient[0, 2] == 0).all() and (gradient[1, 2] == 0).all()
    assert (gradient.masked_select(~legal.unsqueeze(1)) == 0).all()


@pytest.mark.parametrize("options", [{}, NANO, {"distributional": False}])
def test_it_trains_what_q_reads_and_the_q_head_and_nothing_else(
    make_batch: Maker, make_tokenizer: Maker, make_model: Maker, options: dict[str, Any]
) -> None:
    model = make_model(scale=5.0, **options)
    objective = Objective(make_tokenizer(), model, CLONING).eval()
    objective.freeze_unused()
    batch = legal_batch(make_batch([8, 8, 3, 8]))
    loss, metrics, _ = objective(batch, detailed=True)
    loss.backward()
    for name, parameter in model.named_parameters():
        world = name.startswith(("observation_head", "reward_head", "end_head", "copy_gate"))
        reads = name.startswith(("q_head", "reader")) if model.has_reader else not world
        trained = reads and "target" not in name
        assert parameter.requires_grad == trained, name
        got = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert got == trained, name
    assert not any(p.requires_grad for p in objective.tokenizer.parameters())
    assert metrics["loss/total"] == metrics["cloning/cross_entropy"] > 0.3
    agreement = {"q/greedy_is_data_action", "q/greedy_is_changed_action"}
    assert set(metrics) == {"loss/total", "cloning/cross_entropy", *agreement}


def test_padding_and_imagined_steps_are_not_cloned(
    make_batch: Maker, make_tokenizer: Maker, make_model: Maker
) -> None:
    objective = Objective(make_tokenizer(), make_model(scale=5.0), CLONING).eval()
    batch = legal_batch(make_batch([8, 5, 8, 8]))
    imagined = torch.zeros_like(batch.imagined)
    imagined[2, 6:] = True
    clean = dataclasses.replace(batch, imagined=imagined)
    junk = torch.where(batch.mask_padding & ~imagined, batch.actions, 17)
    spoilt = dataclasses.replace(clean, actions=junk)
    # Actions of padding come after all that is cloned, imagined ones in the last two steps.
    assert torch.equal(objective(clean).loss, objective(spoilt).loss)


def test_cloning_joins_the_other_losses_by_its_weight(
    make_batch: Maker, make_tokenizer: Maker, make_model: Maker
) -> None:
    batch, totals = legal_batch(make_batch([8, 8, 3, 8])), []
    both = LossConfig(world_model=0.1, q=1.0, cloning=0.5)
    for losses in (both, dataclasses.replace(both, cloning=0.0), CLONING):
        objective = Objective(make_tokenizer(), make_model(scale=5.0), losses).eval()
        totals.append(float(objective(batch).loss.detach()))
    assert totals[0] == pytest.approx(totals[1] + 0.5 * totals[2], rel=1e-5)


def test_a_policy_that_follows_the_frame_is_learned_and_played(
    make_batch: Maker, make_tokenizer: Maker, make_model: Maker
) -> None:
    """The frame tells the action; the clone plays it after pasts that it never saw."""
    game = get("Pong")
    ids = torch.tensor(game.action_ids)

    def taught(seed: int) -> Batch:
        batch = make_batch([8] * 16, seed=seed)
        told = torch.randint(0, 3, batch.actions.shape)
        frames = (told * 8).unsqueeze(-1).expand_as(batch.observations).contiguous()
        games = torch.full_like(batch.games, game.id)
        return dataclasses.replace(batch, observations=frames, actions=ids[told * 2], games=games)

    model = make_model(dropout=0.0, **NANO)
    losses = LossConfig(cloning=1.0, cql_temperature=0.1)
    objective = Objective(make_tokenizer(), model, losses).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(40):
        objective(taught(seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unseen = taught(1000)
    chosen = plan(model.eval(), unseen.observations, unseen.actions[:, :-1], unseen.games, 1, 0)
    data = unseen.actions[:, -1]
    most_frequent = float(torch.bincount(data).max()) / len(data)
    assert float((chosen.actions == data).float().mean()) > 0.9 > most_frequent + 0.3
