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
GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
)


def case(
    copying: bool, where: str = "cpu"
) -> tuple[list[Tensor], nn.Linear, Tensor, Tensor | None]:
    """Features and perhaps gates (leaves), a layer, targets with gaps, hints with gaps."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = nn.Linear(D, V).to(where)
    leaves = [3.0 * torch.randn(M, D, generator=generator)]
    targets = torch.randint(0, V, (M,), generator=generator)
    targets[torch.rand(M, generator=generator) < 0.3] = IGNORE
    hints = None
    if copying:
        leaves.append(4.0 * torch.randn(M, generator=generator))
        hints = torch.randint(0, V + 1, (M,), generator=generator)
        hints[:8] = targets[:8].clamp(min=0)  # the token to come is often the one before
        hints[8:12] = V
        hints = hints.to(where)
    return [leaf.to(where).requires_grad_() for leaf in leaves], layer, targets.to(where), hints


def plain(leaves: list[Tensor], layer: nn.Linear, targets: Tensor, hints: Tensor | None) -> Tensor:
    logits = layer(leaves[0])
    if hints is not None:
        extra = F.one_hot(hints, V + 1)[:, :V] * leaves[1].unsqueeze(1)
        logits = logits + extra
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("copying", [False, True])
@pytest.mark.parametrize(
    ("backend", "rows"),
    [
        *[(None, rows) for rows in (1, 16, 1000)],
        *[(backend, rows) for backend in ("aot_eager", "inductor") for rows in (16, 1000)],
    ],
)
@pytest.mark.parametrize("where", ["cpu", GPU])
def test_loss_and_every_gradient_are_those_of_the_plain_way(
    monkeypatch: pytest.MonkeyPatch, copying: bool, rows: int, backend: str | None, where: str
) -> None:
    """Also compiled, in one piece and in several."""
    monkeypatch.setattr(module, "ROWS", {where: rows})
    torch.compiler.reset()
    ours = token_loss if backend is None else torch.compile(token_loss, backend=backend)
    leaves, layer, targets, hints = case(copying, where)
    wanted = [*leaves, layer.weight, layer.bias]
    expected = plain(leaves, layer, targets, hints)
    expected_grads = torch.autograd.grad(0.3 * expected, wanted)
    gates = leaves[1] if copying else None
    loss = ours(leaves[0], layer, targets, gates, hints)
    grads = torch.autograd.grad(0.3 * loss, wanted)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for found, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)


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


def test_no_saved_gradient_was_changed_in_place() -> None:
    """A compiler may save such a tensor as it was before: PyTorch 2.11 did, and every
    gradient was zero."""
    leaves, layer, targets, hints = case(True)
    loss = token_loss(leaves[0], layer, targets, leaves[1], hints)
    saved = loss.grad_fn.saved_tensors
    assert len(saved) == 4
    assert all(tensor._version == 0 for tensor in saved)
