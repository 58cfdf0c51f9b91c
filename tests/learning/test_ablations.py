"""The paper's ablations: each option changes what it says and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jowa.data.segments import Batch
from jowa.errors import UserError
from jowa.learning.loss_config import LossConfig, check_losses
from jowa.learning.objective import Objective
from jowa.models.patch_tokenizer import PatchTokenizer
from jowa.models.world_action import WorldActionConfig, WorldActionModel

BASE = LossConfig(world_model=0.1, q=1.0)
Result = tuple[dict[str, Tensor], dict[str, Tensor]]
Runner = Callable[..., Result]


@pytest.fixture
def run(
    make_tokenizer: Callable[..., PatchTokenizer],
    make_model: Callable[..., WorldActionModel],
    make_batch: Callable[..., Batch],
) -> Runner:
    """Metrics and gradients of one step of the objective with some options changed."""

    def run(
        batch: Batch | None = None,
        model: dict[str, object] | None = None,
        seed: int = 0,
        **losses: object,
    ) -> Result:
        network = make_model(scale=10.0, **(model or {}))
        batch = batch if batch is not None else make_batch([8, 8, 3, 8])
        objective = Objective(make_tokenizer(), network, dataclasses.replace(BASE, **losses)).eval()
        torch.manual_seed(seed)
        total, metrics, _ = objective(batch)
        total.backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        return metrics, gradients

    return run


def same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-5, atol=1e-8))


def test_no_penalty_takes_the_penalty_away_and_nothing_else(run: Runner) -> None:
    (base, base_grads), (metrics, grads) = run(), run(penalty="none")
    assert "q/cql" in base and "q/cql" not in metrics
    assert same(metrics["loss/total"], base["loss/total"] - base["q/cql"])
    for name in ("q/td", "world_model/observation", "world_model/reward", "world_model/end"):
        assert same(metrics[name], base[name]), name
    assert not same(grads["q_head.linear1.weight"], base_grads["q_head.linear1.weight"])
    assert same(grads["reward_head.0.weight"], base_grads["reward_head.0.weight"])


def test_a_detached_q_loss_trains_the_q_head_alone(run: Runner) -> None:
    base, base_grads = run()
    metrics, grads = run(detach_q=True)
    _, world_grads = run(q=0.0)
    for name in base:
        assert same(metrics[name], base[name]), name
    for name, gradient in grads.items():
        if name.startswith("q_head"):
            assert same(gradient, base_grads[name]), name
        else:
            assert same(gradient, world_grads[name]), name
    trunk = "transformer.blocks.0.attention.qkv.weight"
    assert not same(grads[trunk], base_grads[trunk])


def test_rem_mixes_the_members_by_random_weights_of_its_own(run: Runner) -> None:
    base, _ = run()
    first, _ = run(rem=True, seed=1)
    second, _ = run(rem=True, seed=2)
    assert not same(first["q/td"], base["q/td"]) and not same(first["q/td"], second["q/td"])
    for name in ("world_model/observation", "world_model/reward", "world_model/end"):
        assert same(first[name], base[name]), name


def test_a_mixture_of_one_member_is_that_member(
    make_model: Callable[..., WorldActionModel],
) -> None:
    for distributional in (True, False):
        model = make_model(q_members=3, distributional=distributional)
        logits = model.q_head(torch.randn(2, 1, 16))
        for member in range(3):
            weights = torch.nn.functional.one_hot(torch.tensor(member), 3).float()
            alone = model.values(logits[member : member + 1])
            torch.testing.assert_close(model.values(logits, weights), alone)
        even = torch.full((3,), 1 / 3)
        torch.testing.assert_close(model.values(logits, even), model.values(logits))


def test_more_members_leave_the_world_model_as_it_is(run: Runner) -> None:
    one, one_grads = run(model={"q_members": 1})
    three, three_grads = run(model={"q_members": 3})
    assert one_grads["q_head.linear1.weight"].shape[0] == 1
    assert three_grads["q_head.linear1.weight"].shape[0] == 3
    assert not same(one["q/td"], three["q/td"])
    for name in ("world_model/observation", "world_model/reward", "world_model/end"):
        assert same(one[name], three[name]), name


def test_without_task_embedding_the_game_cannot_be_told(
    make_model: Callable[..., WorldActionModel], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch([8, 8])
    other = (batch.games + 7) % 60
    for task_embedding in (True, False):
        model = make_model(task_embedding=task_embedding)
        a = model(batch.observations, batch.actions, batch.games).predicting
        b = model(batch.observations, batch.actions, other).predicting
        assert torch.equal(a, b) == (not task_embedding)


def test_squared_error_replaces_the_td_loss_alone(run: Runner) -> None:
    base, _ = run()
    metrics, grads = run(model={"distributional": False})
    assert grads["q_head.linear3.bias"].shape[1] == 18
    assert float(metrics["q/td"]) >= 0.0 and not same(metrics["q/td"], base["q/td"])
    assert same(metrics["q/cql"], 0.1 * (metrics["q/soft_maximum"] - metrics["q/data_actions"]))


def test_imagined_steps_train_q_but_not_the_world_model(
    run: Runner, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch([8, 8, 8, 8])
    imagined = torch.zeros_like(batch.imagined)
    imagined[:2, 6:] = True
    dreamt = dataclasses.replace(batch, imagined=imagined)
    junk = batch.observations.clone()
    junk[:2, 6:] = 5
    wild = dataclasses.replace(dreamt, observations=junk, rewards=batch.rewards.clone())
    wild.rewards[:2, 6:] = 1.0
    (a, _), (b, _) = run(batch=dreamt), run(batch=wild)
    for name in ("world_model/observation", "world_model/reward", "world_model/end"):
        assert same(a[name], b[name]), name
    assert not same(a["q/td"], b["q/td"])
    cql, combo = run(batch=dreamt)[0], run(batch=dreamt, penalty="combo")[0]
    assert same(cql["q/soft_maximum"], combo["q/soft_maximum"])
    assert not same(cql["q/data_actions"], combo["q/data_actions"])
    for name in ("q/td", "world_model/observation"):
        assert same(cql[name], combo[name]), name


@pytest.mark.parametrize(
    ("losses", "members", "words"),
    [
        ({"penalty": "cqll"}, 1, r"stage2\.losses\.penalty.*cqll.*cql, combo or none"),
        ({"penalty": "combo"}, 1, r"combo.*imagined"),
        ({"rem": True}, 1, r"rem.*q_members is 1.*2 or more"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    losses: dict[str, object], members: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check_losses("stage2", LossConfig(**losses), WorldActionConfig(q_members=members))
    check_losses("stage2", LossConfig(rem=True), WorldActionConfig(q_members=2))
