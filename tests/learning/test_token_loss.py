"""The lean cross-entropy against the plain one that holds all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.learning import token_loss as module
from jowa.learning.losses import IGNORE
from jowa.learning.token_loss import token_loss

M, D, V = 70, 12, 19


def case(copying: bool) -> tuple[list[Tensor], nn.Linear, Tensor, Tensor | None]:
    """Features and perhaps gates (leaves), a layer, targets with gaps, hints with gaps."""
    torch.manual_seed(0)
    layer = nn.Linear(D, V)
    leaves = [(3.0 * torch.randn(M, D)).requires_grad_()]
    targets = torch.randint(0, V, (M,)).masked_fill(torch.rand(M) < 0.3, IGNORE)
    hints = None
    if copying:
        leaves.append((4.0 * torch.randn(M)).requires_grad_())
        hints = torch.randint(0, V + 1, (M,))
        hints[:8] = targets[:8].clamp(min=0)  # the token to come is often the one before
        hints[8:12] = V
    return leaves, layer, targets, hints


def plain(leaves: list[Tensor], layer: nn.Linear, targets: Tensor, hints: Tensor | None) -> Tensor:
    logits = layer(leaves[0])
    if hints is not None:
        extra = F.one_hot(hints, V + 1)[:, :V] * leaves[1].unsqueeze(1)
        logits = logits + extra
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("copying", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 1000])
def test_loss_and_every_gradient_are_those_of_the_plain_way(
    monkeypatch: pytest.MonkeyPatch, copying: bool, rows: int
) -> None:
    monkeypatch.setattr(module, "ROWS", {"cpu": rows})
    leaves, layer, targets, hints = case(copying)
    wanted = [*leaves, layer.weight, layer.bias]
    expected = plain(leaves, layer, targets, hints)
    expected_grads = torch.autograd.grad(0.3 * expected, wanted)
    gates = leaves[1] if copying else None
    loss = token_loss(leaves[0], layer, targets, gates, hints)
    grads = torch.autograd.grad(0.3 * loss, wanted)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_close_as_its_rounding() -> None:
    leaves, layer, targets, hints = case(True)
    expected = plain(leaves, layer, targets, hints)
    expected_grads = torch.autograd.grad(expected, [*leaves, layer.weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_loss(leaves[0], layer, targets, leaves[1], hints)
    grads = torch.autograd.grad(loss, [*leaves, layer.weight])
    assert loss.dtype == torch.float32
    assert float((loss - expected).detach().abs() / expected.detach()) < 0.01
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_rows_without_a_target_count_nothing() -> None:
    leaves, layer, targets, hints = case(True)
    loss = token_loss(leaves[0], layer, torch.full_like(targets, IGNORE), leaves[1], hints)
    grads = torch.autograd.grad(loss, [*leaves, layer.weight, layer.bias])
    assert float(loss.detach()) == 0.0 and not any(gradient.any() for gradient in grads)


def test_huge_logits_stay_finite() -> None:
    leaves, layer, targets, hints = case(True)
    loss = token_loss(1e4 * leaves[0], layer, targets, 1e4 * leaves[1], hints)
    grads = torch.autograd.grad(loss, [*leaves, layer.weight])
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in grads)
