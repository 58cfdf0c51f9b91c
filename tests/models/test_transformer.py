"""The backbone: causality, both attention kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jowa.models.transformer import Transformer, TransformerConfig

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def backbone(attention: str = "sdpa", seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(
        TransformerConfig(layers=3, heads=4, width=32, dropout=0.1, attention=attention)
    ).eval()


def tokens(rows: int = 3, length: int = 23) -> Tensor:
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
@torch.inference_mode()
def test_a_later_token_changes_nothing_earlier(attention: str) -> None:
    model, x = backbone(attention), tokens()
    changed = x.clone()
    changed[:, 10] = torch.randn(3, 32)
    before, after = model(x), model(changed)
    torch.testing.assert_close(after[:, :10], before[:, :10], **CLOSE)
    # ... and every later one sees it.
    assert ((after - before)[:, 10:].abs().amax(-1) > 1e-4).all()


def test_both_attention_kernels_agree_in_values_and_gradients() -> None:
    fused, plain = backbone("sdpa"), backbone("matmul")
    plain.load_state_dict(fused.state_dict())
    weight = torch.randn(3, 23, 32)
    inputs, gradients, outputs = [], [], []
    for model in (fused, plain):
        x = tokens().requires_grad_()
        out = model(x)
        (out * weight).sum().backward()
        inputs.append(x.grad)
        outputs.append(out.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)
    torch.testing.assert_close(inputs[1], inputs[0], rtol=1e-3, atol=1e-4)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)
