"""Which parameters decay, and the learning rate over a phase."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from jowa.errors import UserError
from jowa.learning.loss_config import LossConfig
from jowa.learning.objective import Objective
from jowa.learning.optim import (
    OptimizerConfig,
    build_optimizer,
    check_optimizer,
    clip_gradients,
    rate_factor,
    set_learning_rate,
)
from jowa.models.patch_tokenizer import PatchTokenizer
from jowa.models.world_action import WorldActionModel

NANO = {"codebook_width": 4, "copy_previous": True}


@pytest.fixture
def objective(
    make_tokenizer: Callable[..., PatchTokenizer], make_model: Callable[..., WorldActionModel]
) -> Objective:
    return Objective(make_tokenizer(), make_model(**NANO), LossConfig(world_model=1.0))


def test_only_matrices_decay_and_each_parameter_has_one_group(objective: Objective) -> None:
    config = OptimizerConfig(learning_rate=1e-3, tokenizer_learning_rate=5e-4, weight_decay=0.3)
    optimizer = build_optimizer(objective, config)
    names = {parameter: name for name, parameter in objective.named_parameters()}
    seen: list[str] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.append(name)
            plain = name.endswith("bias") or "embedding" in name or "norm" in name or ".ln" in name
            plain = plain or name.startswith("tokenizer")
            assert group["weight_decay"] == (0.0 if plain else 0.3), name
            assert group["base_lr"] == (5e-4 if name.startswith("tokenizer") else 1e-3), name
    assert sorted(seen) == sorted(n for n, p in objective.named_parameters() if p.requires_grad)
    assert not any("target" in name for name in seen)
    # The parts whose kind is easy to mistake really exist here.
    for name in (
        "model.q_head.norm1.weight",
        "model.q_head.linear1.weight",
        "model.transformer.ln_f.weight",
        "model.hint_embedding.weight",
        "model.codebook_projection.weight",
        "model.copy_gate.weight",
    ):
        assert name in seen


def test_a_frozen_tokenizer_is_left_out(objective: Objective) -> None:
    objective.tokenizer.requires_grad_(False)
    optimizer = build_optimizer(objective, OptimizerConfig())
    ours = set(objective.tokenizer.parameters())
    assert not any(p in ours for group in optimizer.param_groups for p in group["params"])


def test_decay_shrinks_matrices_without_any_gradient(objective: Objective) -> None:
    optimizer = build_optimizer(objective, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(objective.named_parameters())
    for name in ("model.q_head.linear2.weight", "model.reward_head.0.weight"):
        torch.testing.assert_close(after[name].detach(), before[name] * (1 - 0.1 * 0.5))
    for name in ("model.q_head.norm2.weight", "model.position_embedding.weight"):
        assert torch.equal(after[name], before[name])


def test_gradients_of_model_and_tokenizer_are_clipped_by_themselves(objective: Objective) -> None:
    config = OptimizerConfig(gradient_norm=0.5)
    optimizer = build_optimizer(objective, config)
    for name, parameter in objective.named_parameters():
        large = 100.0 if name.startswith("tokenizer") else 1e-6
        parameter.grad = torch.full_like(parameter, large)
    norms = clip_gradients(optimizer, config)
    tokenizer = torch.stack([p.grad.norm() for p in objective.tokenizer.parameters()]).norm()
    assert float(tokenizer) == pytest.approx(0.5, rel=1e-4)
    assert float(norms["tokenizer"]) > 100
    for name, parameter in objective.named_parameters():
        if not name.startswith("tokenizer"):
            assert (parameter.grad == 1e-6).all(), name


def test_the_rate_rises_then_stays_or_falls_to_a_tenth(objective: Objective) -> None:
    steps, warmup = 1000, 50
    for decay in ("none", "cosine"):
        rates = [rate_factor(warmup, decay, step, steps) for step in range(steps)]
        assert all(0 < rate <= 1 for rate in rates)
        assert all(b > a for a, b in pairwise(rates[:50]))
        assert rates[49] == 1.0
        if decay == "none":
            assert set(rates[49:]) == {1.0}
        else:
            assert all(b <= a for a, b in pairwise(rates[50:]))
            assert rates[-1] == pytest.approx(0.1, abs=1e-4)
            assert rates[525] == pytest.approx(0.55, abs=0.01)
    config = OptimizerConfig(learning_rate=2e-3, tokenizer_learning_rate=1e-3, warmup=10)
    optimizer = build_optimizer(objective, config)
    set_learning_rate(optimizer, config, 4, steps)
    rates = {group["owner"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"model": pytest.approx(1e-3), "tokenizer": pytest.approx(5e-4)}


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage2\.optimizer\.decay is 'linear'.*cosine"):
        check_optimizer("stage2", OptimizerConfig(decay="linear"))
