"""Running the backbone over the nodes of a search tree, in shapes that are known beforehand.

What `decoding` computes, for GPUs: every tensor has a fixed size and a place to stay, nothing on
the host depends on what is computed, and nothing of a parent's is copied for its children.

Shapes: B environments, P prefix tokens, R nodes of one depth, C of them in a pass, K = 37 tokens of
a block, D width, H heads, d = D/H. Keys and values of a layer stand side by side, (rows, S, 2·D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.models.decoding import padding_mask
from jowa.models.transformer import Block, Transformer

Layers = list[Tensor]  # keys and values (rows, S, 2·D) of every layer


@dataclass
class Past:
    """What C nodes look back on: the contexts (B, P, 2·D) a layer of their `environments` (C,), of
    which `known` (B,) tokens are real; then the rows `ancestors` (depth, C) of `blocks`, the keys
    and values (rows, K, 2·D) a layer of all nodes."""

    contexts: Layers
    known: Tensor
    environments: Tensor
    blocks: Layers
    ancestors: Tensor

    def mask(self, tokens: int, dtype: torch.dtype) -> Tensor:
        """(C, 1, K, S): -inf where one of K = `tokens` new ones does not see one of S keys."""
        device, P = self.known.device, self.contexts[0].shape[1]
        context = torch.arange(P, device=device) < self.known[self.environments].unsqueeze(1)
        before = context.new_ones(len(context), len(self.ancestors) * tokens)
        past = torch.cat([context, before], dim=1).unsqueeze(1).expand(-1, tokens, -1)
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
        seen = torch.cat([past, causal.expand(len(context), -1, -1)], dim=-1)
        return padding_mask(seen, dtype).unsqueeze(1)

    def gather(self, layer: int, new: Tensor) -> Tensor:
        """(C, S, 2·D): all keys and values of a layer, `new` (C, K, 2·D) at the end."""
        past = [self.contexts[layer].index_select(0, self.environments)]
        past += [self.blocks[layer].index_select(0, rows) for rows in self.ancestors]
        return torch.cat([*past, new], dim=1)


@cache
def _tree_attention() -> Callable[..., Tensor] | None:
    """Attention that gathers nothing, where there is Triton."""
    try:
        from jowa.models.tree_kernel import tree_attention
    except ImportError:
        return None
    return tree_attention


def _kernel_for(qkv: Tensor, heads: int) -> Callable[..., Tensor] | None:
    # float64, which only tests compute in, is left to PyTorch, and so are heads whose tiles might
    # not fit in a processor's shared memory.
    fits = qkv.shape[2] // 3 // heads <= 128 and qkv.dtype != torch.float64
    return _tree_attention() if qkv.is_cuda and fits else None


def blank(transformer: Transformer, rows: int, tokens: int, like: Tensor) -> Layers:
    """Room for keys and values of `rows` times `tokens`, of the kind of `like`."""
    width = 2 * transformer.config.width
    return [like.new_zeros(rows, tokens, width) for _ in _blocks(transformer)]


def read_contexts(transformer: Transformer, x_BPD: Tensor, last: Tensor, layers: Layers) -> Tensor:
    """Reads contexts (B, P, D), of which row b is real up to position `last[b]` inclusive, into
    `layers` unless they have no rows; the activations (B, D) at `last`: the final layer computes
    no others."""
    B, P, D = x_BPD.shape
    H, environments = transformer.config.heads, torch.arange(B, device=last.device)
    for block, place in zip(_blocks(transformer), layers, strict=True):
        normed = block.ln1(x_BPD)
        if place is not layers[-1]:
            qkv = block.attention.qkv(normed)
            _store(place, qkv[..., D:])
            # Causal, so that padding at the end is never seen by what is real.
            out = _attention(qkv[..., :D], qkv[..., D:], H)
        else:
            weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
            kv = F.linear(normed, weight[D:], bias[D:])
            _store(place, kv)
            x_BPD = x_BPD[environments, last].unsqueeze(1)
            query = F.linear(normed[environments, last], weight[:D], bias[:D]).unsqueeze(1)
            real = torch.arange(P, device=last.device) <= last.unsqueeze(1)
            out = _attention(query, kv, H, padding_mask(real, kv.dtype)[:, None, None])
        x_BPD = _after(block, x_BPD, out)
    return transformer.ln_f(x_BPD)[:, 0]


def compute_blocks(
    transformer: Transformer, x_CKD: Tensor, rows: Tensor | slice, past: Past
) -> Tensor:
    """Activations (C, K, D) of the embedded blocks of nodes, whose keys and values go to `rows`
    (C,) of `past.blocks`."""
    D, H = x_CKD.shape[2], transformer.config.heads
    mask: Tensor | None = None
    for layer, block in enumerate(_blocks(transformer)):
        qkv = block.attention.qkv(block.ln1(x_CKD))
        new, contexts, blocks = qkv[..., D:], past.contexts[layer], past.blocks[layer]
        _put(blocks, rows, new)
        if kernel := _kernel_for(qkv, H):
            known, environments = past.known, past.environments
            out = kernel(qkv, H, contexts, known, environments, blocks, past.ancestors)
        else:
            mask = past.mask(x_CKD.shape[1], qkv.dtype) if mask is None else mask
            out = _attention(qkv[..., :D], past.gather(layer, new), H, mask)
        x_CKD = _after(block, x_CKD, out)
    return transformer.ln_f(x_CKD)


def _put(place: Tensor, rows: Tensor | slice, new: Tensor) -> None:
    if isinstance(rows, slice):
        place[rows] = new
    else:
        place.index_copy_(0, rows, new)


def _store(place: Tensor, new: Tensor) -> None:
    if len(place):
        place.copy_(new)


def _after(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """A block's output of its input and what its attention found."""
    x = x + block.attention.proj(attended)
    return x + block.mlp(block.ln2(x))


def _attention(query: Tensor, kv: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(C, K, D) of queries (C, K, D) and keys and values (C, S, 2·D); causal without a mask."""
    D = query.shape[-1]
    q, k, v = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, kv[..., :D], kv[..., D:])
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.transpose(1, 2).flatten(2)


def _blocks(transformer: Transformer) -> Iterable[Block]:
    return cast(Iterable[Block], transformer.blocks)
