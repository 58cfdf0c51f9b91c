"""Dropout on a CPU drops what it should, as often as it should."""

from __future__ import annotations

import pytest
import torch

from jowa.models.dropout import Dropout, dropout, kept
from jowa.models.transformer import matmul_attention


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_makes_up_for_it(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_003)  # no multiple of what is drawn at once
    out = dropout(x, p, training=True)
    share = float((out == 0).float().mean())
    assert abs(share - p) < 4 * (p * (1 - p) / len(x)) ** 0.5
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)))
    # Elements are dropped one by one: neighbours, which share a draw, are so independently.
    pairs = (out[:-1] == 0) & (out[1:] == 0)
    assert abs(float(pairs.float().mean()) - p * p) < 0.002


def test_what_is_dropped_does_not_hang_on_the_precision() -> None:
    torch.manual_seed(0)
    single = kept(torch.ones(10_001), 0.3)
    torch.manual_seed(0)
    half = kept(torch.ones(10_001, dtype=torch.bfloat16), 0.3)
    assert half.dtype == torch.bfloat16 and torch.equal(half.float(), single)


def test_gradients_flow_where_nothing_was_dropped() -> None:
    x = torch.randn(50, 7, requires_grad=True)
    out = dropout(x, 0.3, training=True)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 1 / 0.7))


def test_every_call_draws_anew_and_none_does_in_evaluation() -> None:
    layer, x = Dropout(0.5), torch.ones(100)
    assert not torch.equal(layer(x), layer(x))
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert layer.eval()(x) is x


def test_attention_with_dropout_is_attention_on_average() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 6, 4).unbind()
    mean = sum(matmul_attention(query, key, value, 0.2) for _ in range(4000)) / 4000
    torch.testing.assert_close(mean, matmul_attention(query, key, value, 0.0), rtol=0, atol=0.05)
