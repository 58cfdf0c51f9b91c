"""Prediction heads: classifiers of the world model and the ensemble of distributional Q-functions.

Shapes: Q members, B rows, L steps, D width, A actions, Z atoms.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def classifier(width: int, classes: int) -> nn.Sequential:
    """The world model's head: D-D ReLU, then the classes."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


class EnsembleLinear(nn.Module):
    """Q independent linear maps; weight (Q, out, in) and bias (Q, out)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(members, outputs))

    def forward(self, x_QNI: Tensor) -> Tensor:
        return torch.matmul(x_QNI, self.weight.mT) + self.bias.unsqueeze(1)


class EnsembleLayerNorm(nn.Module):
    """LayerNorm over the last dimension with weights of each member's own."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, width))
        self.bias = nn.Parameter(torch.zeros(members, width))

    def forward(self, x_QNW: Tensor) -> Tensor:
        normed = F.layer_norm(x_QNW, x_QNW.shape[-1:])
        return normed * self.weight.unsqueeze(1) + self.bias.unsqueeze(1)


class QEnsemble(nn.Module):
    """An ensemble of Q MLPs with C51 outputs (JOWA paper, section 3).

    Linear, dropout (0.01), LayerNorm, Mish; Linear, LayerNorm, Mish; Linear to A·Z logits.
    """

    def __init__(
        self, members: int, width: int, hidden: int, outputs: int, dropout: float = 0.01
    ) -> None:
        super().__init__()
        self.members = members
        self.linear1 = EnsembleLinear(members, width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.norm1 = EnsembleLayerNorm(members, hidden)
        self.linear2 = EnsembleLinear(members, hidden, hidden)
        self.norm2 = EnsembleLayerNorm(members, hidden)
        self.linear3 = EnsembleLinear(members, hidden, outputs)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Logits (Q, B, L, A·Z) from activations (B, L, D)."""
        B, L, D = x_BLD.shape
        x = x_BLD.reshape(1, B * L, D).expand(self.members, -1, -1)
        x = F.mish(self.norm1(self.dropout(self.linear1(x))))
        x = F.mish(self.norm2(self.linear2(x)))
        return self.linear3(x).view(self.members, B, L, -1)

    @torch.no_grad()
    def start_near_zero(self, support_Z: Tensor, actions: int, deviation: float) -> None:
        """Sets the output bias to a bell at return 0, so that Q does not start at mid-support.

        From a uniform start every Q begins at +10 and the loss stays at log 51 for hundreds of
        steps; a bell starts at 2.3.
        """
        log_bell_Z = -0.5 * (support_Z / deviation).square()
        log_bell_Z -= math.log(float(log_bell_Z.exp().sum()))
        self.linear3.bias.copy_(log_bell_Z.repeat(actions).expand(self.members, -1))
