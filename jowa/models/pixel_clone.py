"""A pixel network that imitates: the bar which any agent trained on the same data has to clear."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STACK = 4  # frames that are seen at once


class PixelClone(nn.Module):
    """Logits of a game's actions from the last `STACK` frames.

    The mean frame is subtracted and layers start orthogonal: without both, training sits on a
    plateau for most of a short budget.

    Args:
        mean_frame: (84, 84), 0 to 255.
        actions: number of actions A.
    """

    mean_frame: Tensor

    def __init__(self, mean_frame: Tensor, actions: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("mean_frame", mean_frame.float())
        self.first = nn.Conv2d(STACK, 16, 8, stride=4)
        self.second = nn.Conv2d(16, 32, 4, stride=2)
        self.hidden = nn.Linear(32 * 9 * 9, 256)
        self.policy = nn.Linear(256, actions)
        self.dropout = dropout
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                gain = 0.01 if name.startswith("policy") else math.sqrt(2)
                nn.init.orthogonal_(parameter, gain=gain)

    def forward(self, frames_BTHW: Tensor) -> Tensor:
        """Logits (B, A), float32, for uint8 frames (B, STACK, 84, 84), the newest last."""
        x = (frames_BTHW.float() - self.mean_frame) / 64
        x = F.relu(self.first(x))
        x = F.relu(self.second(x)).flatten(1)
        x = F.relu(self.hidden(F.dropout(x, self.dropout, self.training)))
        return self.policy(F.dropout(x, self.dropout, self.training)).float()


def stacked(rows: Tensor, first_rows: Tensor) -> Tensor:
    """Rows (B, STACK) of the frames seen at `rows` (B,), which repeat the episode's first frame,
    whose row `first_rows` (B,) says, where the episode is younger."""
    back = torch.arange(STACK - 1, -1, -1)
    return torch.maximum(rows[:, None] - back, first_rows[:, None])
