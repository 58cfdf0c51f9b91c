"""Attention of the nodes of a search tree as one GPU kernel, in Triton.

Each node reads the keys and values of its context and of its ancestors where they stand, so that
nothing is gathered for it and no mask is made. Where this cannot be imported `tree_decoding` does
without.
"""

from __future__ import annotations

import os
import shutil

import triton
import triton.language as tl
from torch import Tensor

if not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
    raise ImportError("Triton starts its kernels by code that it compiles: there is no C compiler")

_TILE = 64  # keys at a time


@triton.jit
def _tile(q, keys, inside, seen, scale, total, top, mass, D: tl.constexpr, PRECISION: tl.constexpr):
    """Takes a tile of keys, and values D behind them, into a softmax over tiles.

    `total`, `top` and `mass` are the weighted sum of values, the largest logit and the sum of
    weights so far; `inside` says which of the tile's elements are there, `seen` which keys a query
    sees.
    """
    k = tl.load(keys, mask=inside, other=0.0)
    v = tl.load(keys + D, mask=inside, other=0.0)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    logits = tl.where(seen, logits, -float("inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    weights = tl.exp(logits - higher[:, None])
    fade = tl.exp(top - higher)
    mass = mass * fade + tl.sum(weights, 1)
    found = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return total * fade[:, None] + found, higher, mass


@triton.jit
def _attend(
    qkv,
    contexts,
    known,
    environments,
    blocks,
    ancestors,
    out,
    P,
    scale,
    DEPTH: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One node and one head: its K tokens look at themselves, their ancestors, their context."""
    node = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    place, there = tl.program_id(1) * WIDTH + channel, channel < WIDTH
    query, key = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    own = qkv + node * K * 3 * D
    q_at = own + query[:, None] * (3 * D) + place[None, :]
    q = tl.load(q_at, mask=(query < K)[:, None] & there[None, :], other=0.0)
    total = tl.zeros((QUERIES, CHANNELS), tl.float32)
    top = tl.full((QUERIES,), -float("inf"), tl.float32)
    mass = tl.zeros((QUERIES,), tl.float32)

    inside = (key < K)[:, None] & there[None, :]
    seen = (key[None, :] <= query[:, None]) & (key < K)[None, :]
    at = own + D + key[:, None] * (3 * D) + place[None, :]
    total, top, mass = _tile(q, at, inside, seen, scale, total, top, mass, D, PRECISION)
    seen = (query >= 0)[:, None] & (key < K)[None, :]
    for depth in tl.static_range(DEPTH):
        block = tl.load(ancestors + depth * tl.num_programs(0) + node)
        at = blocks + block * K * 2 * D + key[:, None] * (2 * D) + place[None, :]
        total, top, mass = _tile(q, at, inside, seen, scale, total, top, mass, D, PRECISION)
    environment = tl.load(environments + node)
    real = tl.load(known + environment)
    context = contexts + environment * P * 2 * D
    for start in range(0, real, KEYS):
        position = start + key
        inside = (position < real)[:, None] & there[None, :]
        seen = (query >= 0)[:, None] & (position < real)[None, :]
        at = context + position[:, None] * (2 * D) + place[None, :]
        total, top, mass = _tile(q, at, inside, seen, scale, total, top, mass, D, PRECISION)

    to = out + node * K * D + query[:, None] * D + place[None, :]
    result = (total / mass[:, None]).to(out.dtype.element_ty)
    tl.store(to, result, mask=(query < K)[:, None] & there[None, :])


def tree_attention(
    qkv: Tensor,
    heads: int,
    contexts: Tensor,
    known: Tensor,
    environments: Tensor,
    blocks: Tensor,
    ancestors: Tensor,
) -> Tensor:
    """(C, K, D) of queries, keys and values (C, K, 3·D) of C nodes, which see of `contexts` (B, P,
    2·D) the first `known` (B,) tokens of row `environments` (C,), all of the rows `ancestors`
    (depth, C) of `blocks` (rows, K, 2·D), and their own tokens causally. On a GPU; contiguous."""
    C, K, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    assert K <= _TILE, "a block is one tile"
    width = D // heads
    out = qkv.new_empty(C, K, D)
    _attend[(C, heads)](
        qkv,
        contexts,
        known,
        environments,
        blocks,
        ancestors.contiguous(),
        out,
        contexts.shape[1],
        width**-0.5,
        DEPTH=len(ancestors),
        D=D,
        WIDTH=width,
        K=K,
        QUERIES=max(16, triton.next_power_of_2(K)),
        KEYS=_TILE,
        CHANNELS=max(16, triton.next_power_of_2(width)),
        PRECISION="ieee",  # of float32; others know no choice
        num_warps=4,
    )
    return out
