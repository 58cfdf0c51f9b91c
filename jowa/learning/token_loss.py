"""Cross-entropy of next tokens without ever holding all logits.

The logits of a batch are its largest tensor by far: 36 predictions a frame over the whole
vocabulary, in several copies. Here a few hundred rows at a time go through the last layer, and
their gradient is computed while they are in the cache; only sums are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jowa.learning.losses import IGNORE

# At once: so few that their logits fit a CPU core's cache, so many that a GPU has enough to do.
ROWS = {"cpu": 512, "cuda": 8192}


def token_loss(
    features: Tensor,
    layer: nn.Linear,
    targets: Tensor,
    gates: Tensor | None = None,
    hints: Tensor | None = None,
) -> Tensor:
    """Sum over rows of the cross-entropy of `targets` (M,) from `features` (M, D) through `layer`.

    Rows whose target is IGNORE count nothing. `gates` (M,) are added to the logits of tokens
    `hints` (M,), of which V is none.
    """
    loss: Tensor = TokenLoss.apply(  # type: ignore[no-untyped-call]
        features, layer.weight, layer.bias, targets, gates, hints
    )
    return loss


class TokenLoss(torch.autograd.Function):
    """See `token_loss`; weight (V, D) and bias (V,)."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        gates: Tensor | None,
        hints: Tensor | None,
    ) -> Tensor:
        device = features.device.type
        enabled = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if enabled else features.dtype
        with torch.autocast(device, enabled=False):
            x, w, b = features.to(dtype), weight.to(dtype), bias.to(dtype)
            # Compiled, a tensor that is saved must not have been changed in place.
            total = torch.zeros((), device=x.device)
            grad_w, grad_b = torch.zeros_like(weight), torch.zeros_like(bias)
            of_x: list[Tensor] = []
            of_gates: list[Tensor] = []
            rows = ROWS[device]
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                loss, error, gate = _rows(
                    torch.addmm(b, x[part], w.T).float(),
                    targets[part],
                    None if gates is None else gates[part],
                    None if hints is None else hints[part],
                )
                total = total + loss
                grad_b = grad_b + error.sum(0)
                error = error.to(dtype)
                grad_w = grad_w + error.T @ x[part]
                of_x.append(error @ w)
                if gate is not None:
                    of_gates.append(gate)
            grad_x = torch.cat(of_x)
            grad_gates = torch.cat(of_gates) if of_gates else None
        ctx.save_for_backward(grad_x, grad_w, grad_b, grad_gates)
        ctx.dtypes = features.dtype, None if gates is None else gates.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_w, grad_b, grad_gates = ctx.saved_tensors
        scale, (features, gates) = grads[0], ctx.dtypes
        gate_part = None if grad_gates is None else (grad_gates * scale).to(gates)
        return (grad_x * scale).to(features), grad_w * scale, grad_b * scale, None, gate_part, None


def _rows(
    logits: Tensor, targets: Tensor, gates: Tensor | None, hints: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The summed loss of some rows and its gradients by their logits, which it overwrites, and by
    their gates."""
    index = where = gate = None
    if gates is not None and hints is not None:
        where = (hints < logits.shape[1]).unsqueeze(1)
        index = hints.clamp(max=logits.shape[1] - 1).unsqueeze(1)
        logits.scatter_add_(1, index, gates.float().unsqueeze(1) * where)
    real = (targets != IGNORE).unsqueeze(1)
    target = targets.clamp(min=0).unsqueeze(1)
    logits -= logits.amax(1, keepdim=True)
    chosen = logits.gather(1, target)
    mass = logits.exp_().sum(1, keepdim=True)
    loss = ((mass.log() - chosen) * real).sum()
    # Softmax less one at the target; nothing in rows without one.
    logits *= real / mass
    logits.scatter_add_(1, target, -real.to(logits.dtype))
    if index is not None and where is not None:
        gate = (logits.gather(1, index) * where).squeeze(1)
    return loss, logits, gate
