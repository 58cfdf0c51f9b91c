"""What Q reads instead of a sequence, if so configured: what the newest frames' tokens look like.

A map of arbitrary code vectors does not carry over from one place to another and attention takes
millions of updates to learn where things are; convolutions over the pictures of the codes do both
at once, and read dreams like real frames. What is more, they see no actions: a Q that sees the
last ones learns above all to repeat them. N frames, V codes, D width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.models.patch_tokenizer import PATCH_PIXELS, PATCHES, from_patches
from jowa.models.tokenizer import FRAME_SIZE

_CHANNELS = (16, 32)
_STRIDES = (4, 2)
_OUT = 9  # the last grid's cells, each way
_SCALE = 4.0  # pictures lie in [-1, 1], most pixels near 0


def scaled(pictures: Tensor) -> Tensor:
    """Pictures (C, 196) of the codes in the scale in which they are read."""
    return pictures * _SCALE


class FrameReader(nn.Module):
    """A frame and the one before to a vector: 8x8 convolutions of stride 4, 4x4 ones of stride 2,
    and an MLP of `hidden` units (the convolutions of DQN at half its width).

    Windows are twice their stride, so that both convolutions are 2x2 ones over cells of pixels:
    the same sums, several times faster than over one channel. `order` (7056,) takes the pixels of
    a frame's pictures into its cells at once.
    """

    order: Tensor

    def __init__(self, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        first, second = _CHANNELS
        self.first = nn.Conv2d(2 * _STRIDES[0] ** 2, first, 2)
        self.second = nn.Conv2d(first * _STRIDES[1] ** 2, second, 2)
        self.hidden = nn.Linear(second * _OUT**2, hidden)
        self.out = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        places = torch.arange(PATCHES * PATCH_PIXELS).view(1, PATCHES, PATCH_PIXELS)
        order = _cells(from_patches(places).unsqueeze(1), _STRIDES[0])
        self.register_buffer("order", order.flatten(), persistent=False)

    def initialise(self) -> None:
        """Orthogonal maps, without which training sits on a plateau for hundreds of steps."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(module.weight, 1.0 if module is self.out else 2.0**0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def cells(self, frame: Tensor, pictures: Tensor) -> Tensor:
        """(N, 16, 21, 21): cells of 4x4 pixels of frames, (N, 36) places in scaled `pictures`."""
        shown = F.embedding(frame, pictures).flatten(1)
        side = FRAME_SIZE // _STRIDES[0]
        return shown.index_select(1, self.order).view(len(frame), -1, side, side)

    def read(self, frame: Tensor, before: Tensor, pictures: Tensor) -> Tensor:
        """(N, D) from frames and those before them, (N, 36) places in scaled `pictures`."""
        cells = (self.cells(tokens, pictures) for tokens in (frame, before))
        return cast(Tensor, self(*cells))

    def read_all(self, obs_tokens: Tensor, pictures: Tensor) -> Tensor:
        """(B, L, D) from every frame of (B, L, 36), positions in `pictures` as they are; nothing is
        before the first of each row."""
        B, L, _ = obs_tokens.shape
        newest = self.cells(obs_tokens.flatten(0, 1), scaled(pictures))
        before = newest.unflatten(0, (B, L))[:, :-1]
        before = F.pad(before, (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1)
        return cast(Tensor, self(newest, before)).unflatten(0, (B, L))

    def forward(self, newest: Tensor, before: Tensor) -> Tensor:
        """(N, D) from the `cells` of frames and of those before them, zeros where there is none."""
        x = F.relu(self.first(torch.cat([newest, before], dim=1)))
        x = F.relu(self.second(_cells(x, _STRIDES[1])))
        x = F.relu(self.hidden(self.dropout(x.flatten(1))))
        return cast(Tensor, self.out(self.dropout(x)))


def _cells(x: Tensor, side: int) -> Tensor:
    """(N, C·side², H/side, W/side) of x (N, C, H, W): what F.pixel_unshuffle does, in a quarter of
    the time on a CPU."""
    N, C, H, W = x.shape
    cells = x.reshape(N, C, H // side, side, W // side, side)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(N, C * side**2, H // side, W // side)
