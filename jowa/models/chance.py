"""Random numbers that belong to a segment, not to a process.

What is drawn by chance for a segment follows from the segment's own key alone, so that it is the
same however a batch is split over processes, and needs no state that a resumed run would miss.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def uniform(keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """(B, count) numbers in [0, 1) from keys int64 (B,); other streams give other numbers."""
    # Signed, as compilers for GPUs count positions in 32 bits.
    first = (1 + stream * 0x9E3779B9 + 2**31) % 2**32 - 2**31
    position = torch.arange(count, device=keys.device) * 2 + first
    x = _scramble((keys.unsqueeze(1) & _MASK) ^ _scramble(position & _MASK))
    return (x >> 8).float() * 2.0**-24


def _scramble(x: Tensor) -> Tensor:
    """A 32-bit integer hash (lowbias32 by Chris Wellons, public domain) on int64 tensors."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)
