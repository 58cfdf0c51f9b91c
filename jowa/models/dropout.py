"""Dropout that a CPU does in a tenth of the time: the same distribution, other random numbers.

PyTorch draws a CPU's Bernoulli numbers one after the other, each from a number of its own. Here
four come from each 64 random bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16  # an element is dropped with a probability of so many parts
_ONE = 0x3F80  # the bits of 1.0 in bfloat16


def kept(x: Tensor, p: float) -> Tensor:
    """1.0 with a probability of 1 - p (to 1/65536), else 0.0; like x, on a CPU."""
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bound = round(p * _LEVELS) - _LEVELS // 2
    numbers = words.view(torch.int16)[: x.numel()]
    # Compared in place, as a CPU takes long to make floats of bools.
    if x.dtype == torch.bfloat16:  # whose bits are as many
        numbers.ge_(bound).mul_(_ONE)
        return numbers.view(torch.bfloat16).view(x.shape)
    return numbers.float().ge_(bound).to(x.dtype).view(x.shape)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """What `F.dropout` computes."""
    if not training or p == 0.0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    return x * kept(x, p) * (1.0 / (1.0 - p))


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
