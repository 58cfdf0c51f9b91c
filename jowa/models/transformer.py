"""A pre-norm GPT backbone with a key-value cache (JOWA paper, section 3).

Shapes: B rows, N tokens, D width, H heads, S cached tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class TransformerConfig:
    """Sizes of the backbone. `width` must be divisible by `heads`.

    `attention` is "sdpa", PyTorch's fused kernel, or "matmul", plain matrix products, which a CPU
    does 1.8 times faster at the small sizes (bfloat16, 296 tokens, 2 heads of 64).
    """

    layers: int = 3
    heads: int = 2
    width: int = 128
    dropout: float = 0.1
    attention: str = "sdpa"


@dataclass
class KVCache:
    """Keys and values of tokens seen so far, one pair of (B, H, capacity, D/H) tensors a layer.

    `length` tokens are filled. `select` gathers rows (so that several beams can go on from one
    prefix); `truncate` forgets the newest tokens without touching memory.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, H, N, D/H) keys and values of new tokens; returns all of them so far."""
        end = self.length + key.shape[2]
        assert end <= self.keys[layer].shape[2], "more tokens than the cache was made for"
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> KVCache:
        """A copy whose row i is this cache's row `rows[i]`; only the filled part is copied."""

        def gather(tensor: Tensor) -> Tensor:
            out = tensor.new_empty(len(rows), *tensor.shape[1:])
            out[:, :, : self.length] = tensor[rows, :, : self.length]
            return out

        return KVCache(
            [gather(k) for k in self.keys], [gather(v) for v in self.values], self.length
        )

    def truncate(self, length: int) -> None:
        """Forgets all tokens from position `length` on."""
        assert 0 <= length <= self.length
        self.length = length


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Causal attention by plain matrix products; all tensors (B, H, N, D/H)."""
    N = query.shape[2]
    mask = torch.full((N, N), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = (query @ key.mT) * query.shape[-1] ** -0.5 + mask
    return F.dropout(scores.softmax(-1), dropout) @ value


class Attention(nn.Module):
    """Causal multi-head self-attention with biases; query, key and value are one matrix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.plain = config.attention == "matmul"
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        B, N, D = x_BND.shape
        qkv = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        past = 0
        if cache is not None:
            past = cache.length
            key, value = cache.append(layer, key, value)
            query = query.to(key.dtype)
        if self.plain and cache is None:
            out = matmul_attention(query, key, value, self.dropout if self.training else 0.0)
            return self.proj(out.transpose(1, 2).reshape(B, N, D))
        # With a cache, new token i sees all `past` tokens and the new ones up to itself; a
        # single new token sees everything, so that no mask is needed.
        mask = None
        if past and N > 1:
            mask = torch.ones(N, past + N, dtype=torch.bool, device=x_BND.device).tril(past)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=past == 0 and N > 1,
        )
        return self.proj(out.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Attention and a GELU MLP of width 4D, each behind a LayerNorm and a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.ln2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BND: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        x_BND = x_BND + self.dropout(self.attention(self.ln1(x_BND), cache, layer))
        return x_BND + self.dropout(self.mlp(self.ln2(x_BND)))


class Transformer(nn.Module):
    """Embedded tokens in, activations of the final LayerNorm out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.width % config.heads == 0, "checked with the configuration"
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)

    def forward(self, x_BND: Tensor, cache: KVCache | None = None) -> Tensor:
        """Activations (B, N, D) of N tokens that follow those in the cache, which they join."""
        x_BND = self.dropout(x_BND)
        for layer, block in enumerate(self.blocks):
            x_BND = block(x_BND, cache, layer)
        if cache is not None:
            cache.length += x_BND.shape[1]
        return self.ln_f(x_BND)

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` sequences of at most `capacity` tokens."""
        weight = self.ln_f.weight
        shape = (rows, self.config.heads, capacity, self.config.width // self.config.heads)
        dtype = (
            torch.get_autocast_dtype(weight.device.type)
            if torch.is_autocast_enabled(weight.device.type)
            else weight.dtype
        )
        new = [
            torch.empty(shape, dtype=dtype, device=weight.device)
            for _ in range(2 * self.config.layers)
        ]
        return KVCache(new[: self.config.layers], new[self.config.layers :])
