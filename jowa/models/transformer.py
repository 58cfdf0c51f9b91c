"""A pre-norm GPT backbone (JOWA paper, section 3); `decoding` runs it over a cache.

Shapes: B rows, N tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.models.dropout import Dropout, kept

# Queries of the first half see no keys of the second: a quarter of the logits need not be. More
# slices would spare more, but take a CPU longer than they save.
_SLICES = 2


@dataclass
class TransformerConfig:
    """Sizes of the backbone. `width` must be divisible by `heads`.

    `attention` is "sdpa", PyTorch's fused kernel, or "matmul", plain matrix products, which a CPU
    does 1.8 times faster at the small sizes (bfloat16, 296 tokens, 2 heads of 64). A GPU always
    takes the fused kernel; a CPU that trains with dropout never does, as PyTorch has none for it.
    """

    layers: int = 3
    heads: int = 2
    width: int = 128
    dropout: float = 0.1
    attention: str = "sdpa"


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Causal attention by plain matrix products on a CPU; all tensors (B, H, N, D/H)."""
    B, N, width = query.shape[0], query.shape[2], query.shape[3]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    if dropout:
        value = value * (1.0 / (1.0 - dropout))  # scaled where it is smaller
    found: list[Tensor] = []
    # All in the precision of the inputs: the softmax adds up in float32 anyway.
    with torch.autocast(query.device.type, enabled=False):
        for rows in query.split(-(-N // _SLICES), dim=1):
            past = sum(part.shape[1] for part in found)
            end = past + rows.shape[1]
            mask = query.new_full((rows.shape[1], end), -torch.inf).triu(past + 1)
            # Product, scale and mask in one operation: each more is a pass over the largest tensor.
            weights = torch.baddbmm(mask, rows, key[:, :end].mT, alpha=width**-0.5).softmax(-1)
            if dropout:
                weights = weights * kept(weights, dropout)
            found.append(weights @ value[:, :end])
    return torch.cat(found, dim=1).unflatten(0, (B, -1))


class Attention(nn.Module):
    """Causal multi-head self-attention with biases; query, key and value are one matrix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.plain = config.attention == "matmul"
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        qkv = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if x_BND.device.type == "cpu" and (self.plain or dropout):
            out = matmul_attention(query, key, value, dropout)
        else:
            out = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True
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
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.dropout(self.attention(self.ln1(x_BND)))
        return x_BND + self.dropout(self.mlp(self.ln2(x_BND)))


class Transformer(nn.Module):
    """Embedded tokens in, activations of the final LayerNorm out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.width % config.heads == 0, "checked with the configuration"
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Activations (B, N, D) of N embedded tokens, each of which sees those before it."""
        x_BND = self.dropout(x_BND)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.ln_f(x_BND)
