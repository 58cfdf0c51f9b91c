"""Decoding over the cache: prefixes shared by rows, tails of their own, passes over a part."""

from __future__ import annotations

import torch
from torch import Tensor

from jowa.models.decoding import Window, extend, padding_mask, prefill
from jowa.models.transformer import Transformer, TransformerConfig

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WIDTH = 32


def backbone() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(layers=3, heads=4, width=WIDTH, dropout=0.1)).eval()


def draw(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_the_activation_at_the_end_of_a_context_and_what_follows_it() -> None:
    """Contexts of 9, 5 and 2 tokens; two rows go on from each by three and then two tokens."""
    model, context, last = backbone(), draw(3, 9), torch.tensor([8, 4, 1])
    cache, hidden = prefill(model, context, last, capacity=5)
    cache = cache.branch(torch.tensor([0, 0, 1, 1, 2, 2]))
    new = draw(6, 5, seed=2)
    first = extend(model, new[:, :3].reshape(-1, WIDTH), cache, Window(0, 3)).view(6, 3, WIDTH)
    cache.filled += 3
    second = extend(model, new[:, 3:].reshape(-1, WIDTH), cache, Window(0, 2)).view(6, 2, WIDTH)
    for row in range(6):
        b, length = row // 2, int(last[row // 2]) + 1
        expected = model(torch.cat([context[b, :length], new[row]])[None])[0]
        torch.testing.assert_close(hidden[b], expected[length - 1], **CLOSE)
        torch.testing.assert_close(torch.cat([first[row], second[row]]), expected[length:], **CLOSE)


@torch.inference_mode()
def test_a_branch_leaves_the_cache_it_left_as_it_was() -> None:
    model, context, new = backbone(), draw(2, 4), draw(2, 3, seed=3)
    cache, _ = prefill(model, context, torch.tensor([3, 3]), capacity=3)
    extend(model, new[:, :1].reshape(-1, WIDTH), cache, Window(0, 1))
    cache.filled = 1
    branch = cache.branch(torch.tensor([0, 0, 1, 1]))
    extend(model, draw(4, 2, seed=4).reshape(-1, WIDTH), branch, Window(0, 2))
    rest = extend(model, new[:, 1:].reshape(-1, WIDTH), cache, Window(0, 2)).view(2, 2, WIDTH)
    expected = model(torch.cat([context, new], 1))[:, 5:]
    torch.testing.assert_close(rest, expected, **CLOSE)


@torch.inference_mode()
def test_a_pass_over_some_tokens_of_some_rows() -> None:
    """Row 0 of environment 0 from position 1, row 1 of environment 1 from position 2, of four."""
    model, context, last = backbone(), draw(3, 4), torch.tensor([3, 3, 3])
    cache, _ = prefill(model, context, last, capacity=4)
    cache = cache.branch(torch.tensor([0, 0, 1, 1, 2, 2]))
    old = draw(6, 4, seed=5)
    extend(model, old.reshape(-1, WIDTH), cache, Window(0, 4))
    new = old.clone()
    new[0, 1:] = draw(1, 3, seed=6)[0]
    new[3, 2:] = draw(1, 2, seed=7)[0]
    window = Window(
        1,
        4,
        environments=torch.tensor([0, 1]),
        rows=torch.tensor([0, 3]),
        cells=torch.tensor([0, 1, 2, 4, 5]),
        tokens=torch.tensor([0, 1, 2, 0, 3, 4]),
        slots=torch.tensor([1, 2, 3, 14, 15]),
    )
    hidden = extend(model, torch.cat([new[0, 1:], new[3, 2:]]), cache, window)
    first = model(torch.cat([context[0], new[0]])[None])[0, 5:]
    second = model(torch.cat([context[1], new[3]])[None])[0, 6:]
    torch.testing.assert_close(hidden, torch.cat([first, second]), **CLOSE)


@torch.inference_mode()
def test_gaps_in_a_tail_are_not_seen() -> None:
    model, context, new = backbone(), draw(2, 4), draw(2, 5, seed=8)
    cache, _ = prefill(model, context, torch.tensor([3, 3]), capacity=5)
    extend(model, new[:, :3].reshape(-1, WIDTH), cache, Window(0, 3))
    cache.filled = 3
    real = torch.tensor([[True, True, True], [True, False, False]])
    cache.tail_mask = padding_mask(real.unsqueeze(1), torch.float32)
    hidden = extend(model, new[:, 3:].reshape(-1, WIDTH), cache, Window(0, 2)).view(2, 2, WIDTH)
    whole = model(torch.cat([context[:1], new[:1]], 1))[0, 7:]
    short = model(torch.cat([context[1:], new[1:, :1], new[1:, 3:]], 1))[0, 5:]
    torch.testing.assert_close(hidden, torch.stack([whole, short]), **CLOSE)
