"""Running the backbone forward in time: one pass over contexts, then blocks that follow them.

A free-standing twin of `Transformer.forward` for inference (dropout off), over a cache in two
parts: the prefix, which the rows of one environment share, and each row's own tail.

Shapes: B environments, N rows each, R = B·N rows, P prefix tokens, S tail tokens, H heads, d = D/H,
T tokens computed in a pass, W positions a pass spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.models.transformer import Block, Transformer


@dataclass
class Cache:
    """Keys and values a layer: prefix (H, B, P, d) and tail (H, R, S, d), `filled` of S tokens.

    Row r belongs to environment r // N. `prefix_mask` (B, 1, P) is -inf at keys that are padding,
    `tail_mask` (R, 1, filled) likewise; None where none is. `causal` (S, S) is -inf above its
    diagonal.
    """

    prefix_keys: list[Tensor]
    prefix_values: list[Tensor]
    prefix_mask: Tensor | None
    tail_keys: list[Tensor]
    tail_values: list[Tensor]
    causal: Tensor
    tail_mask: Tensor | None = None
    filled: int = 0

    @property
    def environments(self) -> int:
        return self.prefix_keys[0].shape[1]

    @property
    def rows(self) -> int:
        return self.tail_keys[0].shape[1]

    def branch(self, rows: Tensor) -> Cache:
        """Rows (B·N',) that go on from this cache's rows of the same environments.

        The prefix is shared; of the tail the filled part is copied.
        """

        def gather(tails: list[Tensor]) -> list[Tensor]:
            if not self.filled:
                return [t.new_empty(t.shape[0], len(rows), *t.shape[2:]) for t in tails]
            return [t.index_select(1, rows) for t in tails]

        mask = None if self.tail_mask is None else self.tail_mask[rows]
        return Cache(
            self.prefix_keys,
            self.prefix_values,
            self.prefix_mask,
            gather(self.tail_keys),
            gather(self.tail_values),
            self.causal,
            mask,
            self.filled,
        )


@dataclass(frozen=True)
class Window:
    """The tokens of one pass: positions `first` to `last` - 1 of the newest block.

    All of them of every row, in order of row and position, unless the fields below say otherwise:
    `environments` (B',) and `rows` (B'·n,) are those with a token to compute, n rows each (some
    repeated, as padding); `cells` (T,) are the tokens' places in the grid (B', n, W), `tokens`
    (B'·n·W,) the token at each place (any at padding) and `slots` (T,) their places in the tail,
    counted from the newest block's first over rows of length S.
    """

    first: int
    last: int
    environments: Tensor | None = None
    rows: Tensor | None = None
    cells: Tensor | None = None
    tokens: Tensor | None = None
    slots: Tensor | None = None


def padding_mask(real: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where `real` is false, 0 elsewhere."""
    return torch.zeros(real.shape, dtype=dtype, device=real.device).masked_fill(~real, -torch.inf)


def _blocks(transformer: Transformer) -> Iterable[Block]:
    return cast(Iterable[Block], transformer.blocks)


def prefill(
    transformer: Transformer, x_BPD: Tensor, last: Tensor, capacity: int
) -> tuple[Cache, Tensor]:
    """Reads contexts (B, P, D), of which row b is real up to position `last[b]` inclusive.

    Returns a cache of one row an environment with room for `capacity` more tokens, and the
    activations (B, D) at `last`: the final layer computes no others.
    """
    B, P, D = x_BPD.shape
    H = transformer.config.heads
    d = D // H
    positions = torch.arange(P, device=x_BPD.device)
    real = positions <= last.unsqueeze(1)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    mask = None
    for block in _blocks(transformer):
        normed = block.ln1(x_BPD)
        weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
        if len(keys) + 1 == len(transformer.blocks):
            newest = torch.arange(B, device=x_BPD.device)
            x_BPD = x_BPD[newest, last].unsqueeze(1)
            query = F.linear(normed[newest, last], weight[:D], bias[:D]).view(B, 1, H, d)
            kv = F.linear(normed, weight[D:], bias[D:]).view(B, P, 2, H, d)
            mask = padding_mask(real.unsqueeze(1), kv.dtype).repeat(H, 1, 1)
        else:
            qkv = F.linear(normed, weight, bias).view(B, P, 3, H, d)
            query, kv = qkv[:, :, 0], qkv[:, :, 1:]
            if mask is None:  # causal, so that padding at the end is never seen by what is real
                mask = padding_mask(positions <= positions.unsqueeze(1), kv.dtype)
        key, value = kv.permute(2, 3, 0, 1, 4).contiguous().flatten(1, 2)
        query = query.permute(2, 0, 1, 3).reshape(H * B, -1, d)
        scores = torch.baddbmm(mask, query, key.mT, alpha=d**-0.5)
        out = (scores.softmax(-1) @ value).view(H, B, -1, d).permute(1, 2, 0, 3)
        x_BPD = x_BPD + block.attention.proj(out.reshape(B, -1, D))
        x_BPD = x_BPD + block.mlp(block.ln2(x_BPD))
        keys.append(key.view(H, B, P, d))
        values.append(value.view(H, B, P, d))
    return cache_of(keys, values, last, capacity), transformer.ln_f(x_BPD)[:, 0]


def cache_of(keys: list[Tensor], values: list[Tensor], last: Tensor, capacity: int) -> Cache:
    """The cache of one row an environment of a prefix (H, B, P, d) a layer, as of `prefill`."""
    H, B, P, d = keys[0].shape
    real = torch.arange(P, device=last.device) <= last.unsqueeze(1)
    padded = bool((last < P - 1).any()) if last.device.type == "cpu" else True
    prefix_mask = padding_mask(real.unsqueeze(1), keys[0].dtype) if padded else None
    tails = [keys[0].new_empty(H, B, capacity, d) for _ in range(2 * len(keys))]
    causal = padding_mask(
        torch.ones(capacity, capacity, dtype=torch.bool, device=last.device).tril(), keys[0].dtype
    )
    return Cache(keys, values, prefix_mask, tails[: len(keys)], tails[len(keys) :], causal)


def extend(transformer: Transformer, x_TD: Tensor, cache: Cache, window: Window) -> Tensor:
    """Activations (T, D) of the window's embedded tokens (T, D), whose keys and values join the
    tail behind its `filled` tokens (which does not grow: the block may be computed again)."""
    T, D = x_TD.shape
    H, d = transformer.config.heads, D // transformer.config.heads
    prefix_mask, tail_mask = _masks(cache, window, H)
    for layer, block in enumerate(_blocks(transformer)):
        qkv = block.attention.qkv(block.ln1(x_TD)).view(T, 3, H, d).permute(1, 2, 0, 3)
        prefix = _environments(cache.prefix_keys[layer], cache.prefix_values[layer], window)
        _store(cache.tail_keys[layer], qkv[1], cache.filled, window)
        _store(cache.tail_values[layer], qkv[2], cache.filled, window)
        tail = _tails(cache, layer, window)
        query = qkv[0] if window.tokens is None else qkv[0].index_select(1, window.tokens)
        out = _attend(query, prefix, tail, prefix_mask, tail_mask)
        if window.cells is not None:
            out = out.index_select(1, window.cells)
        x_TD = x_TD + block.attention.proj(out.permute(1, 0, 2).reshape(T, D))
        x_TD = x_TD + block.mlp(block.ln2(x_TD))
    return transformer.ln_f(x_TD)


Pair = tuple[Tensor, Tensor]


def _attend(
    query: Tensor, prefix: Pair, tail: Pair, prefix_mask: Tensor | None, tail_mask: Tensor | None
) -> Tensor:
    """Queries (H, B·n·W, d) over prefixes (H, B, P, d) and tails (H·B·n, S, d): one softmax."""
    H, cells, d = query.shape
    (B, P), rows = prefix[0].shape[1:3], tail[0].shape[0]
    prefix_key, prefix_value = prefix[0].flatten(0, 1), prefix[1].flatten(0, 1)
    of_environment = query.contiguous().view(H * B, -1, d)
    of_row = of_environment.view(rows, -1, d)
    scores = torch.cat(
        [
            _scores(of_environment, prefix_key, prefix_mask),
            _scores(of_row, tail[0], tail_mask).view(H * B, cells // B, -1),
        ],
        dim=-1,
    ).softmax(-1)
    out = torch.bmm(scores[..., :P], prefix_value)
    scores = scores.view(rows, -1, scores.shape[-1])[..., P:]
    return torch.baddbmm(out.view(rows, -1, d), scores, tail[1]).view(H, cells, d)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled scores, plus the mask (broadcast)."""
    scale = query.shape[-1] ** -0.5
    if mask is None:
        return torch.bmm(query, key.mT).mul_(scale)
    return torch.baddbmm(mask, query, key.mT, alpha=scale)


def _environments(key: Tensor, value: Tensor, window: Window) -> Pair:
    if window.environments is None:
        return key, value
    return key.index_select(1, window.environments), value.index_select(1, window.environments)


def _store(tail: Tensor, new: Tensor, filled: int, window: Window) -> None:
    """Writes (H, T, d) behind the `filled` tokens of (H, R, S, d)."""
    H, R, S, d = tail.shape
    if window.slots is None:
        place = tail[:, :, filled + window.first : filled + window.last]
        place.copy_(new.reshape(H, R, -1, d))
    else:
        tail.view(H, R * S, d).index_copy_(1, window.slots + filled, new)


def _tails(cache: Cache, layer: int, window: Window) -> Pair:
    """The window's rows of the tail up to its last position, (H·rows, S', d) each."""
    end = cache.filled + window.last
    pair = cache.tail_keys[layer][:, :, :end], cache.tail_values[layer][:, :, :end]
    if window.rows is not None:
        pair = pair[0].index_select(1, window.rows), pair[1].index_select(1, window.rows)
    return pair[0].flatten(0, 1), pair[1].flatten(0, 1)


def _masks(cache: Cache, window: Window, heads: int) -> tuple[Tensor | None, Tensor | None]:
    """Masks to add to the scores of prefix and tail; None where all is seen."""
    prefix, gaps, causal = cache.prefix_mask, cache.tail_mask, None
    if prefix is not None:
        if window.environments is not None:
            prefix = prefix[window.environments]
        prefix = prefix.repeat(heads, 1, 1)
    begin, end = cache.filled + window.first, cache.filled + window.last
    if end - begin > 1:
        causal = cache.causal[begin:end, :end]
    if gaps is None:
        return prefix, causal
    if window.rows is not None:
        gaps = gaps[window.rows]
    gaps = F.pad(gaps, (0, window.last))
    return prefix, (gaps if causal is None else gaps + causal).repeat(heads, 1, 1)
