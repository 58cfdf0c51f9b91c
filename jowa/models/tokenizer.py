"""What every tokenizer offers: frames to 36 discrete tokens and back.

N frames, K = 36 tokens a frame (6x6 grid, row-major), V codebook vectors of width C.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

FRAME_SIZE = 84
GRID = 6


@dataclass
class TokenizerConfig:
    """What every tokenizer's configuration says: the codebook's size."""

    vocabulary: int = 1024
    code_width: int = 64


class CodeStatistics(NamedTuple):
    """What a training step shows of a codebook that learns by moving averages; R candidates.

    Of several processes' shares, `merge` makes those of the whole batch.
    """

    counts: Tensor  # (V,) vectors that each code served
    sums: Tensor  # (V, C) their sums
    power: Tensor  # (2,) sum of the vectors' squared lengths, and their number
    priority: Tensor  # (R,) falling: chance, weighted by how badly a vector is served
    candidates: Tensor  # (R, C) the vectors themselves
    distance: Tensor  # (R,) their squared distances to their codes

    @classmethod
    def merge(cls, parts: Sequence[CodeStatistics]) -> CodeStatistics:
        """The statistics of all parts together, which does not depend on how they were split."""
        columns = [torch.stack(column) for column in list(zip(*parts, strict=True))[:3]]
        counts, sums, power = (column.sum(0) for column in columns)
        priority, candidates, distance = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("priority", "candidates", "distance")
        )
        best = priority.topk(min(len(counts), len(priority))).indices
        return cls(counts, sums, power, priority[best], candidates[best], distance[best])


class TokenizerLoss(NamedTuple):
    """Training loss, metrics, and what `Tokenizer.learn` is to be given after the step."""

    loss: Tensor
    metrics: dict[str, Tensor]
    statistics: CodeStatistics | None = None


class Tokenizer(nn.Module, ABC):
    """Base of all tokenizers. `needs_background` ones want one stored frame a game."""

    vocabulary: int
    code_width: int
    needs_background = False

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """The code vectors (V, C)."""

    @abstractmethod
    def encode(self, frames: Tensor, games: Tensor | None = None) -> Tensor:
        """Tokens int64 (N, 36) of frames uint8 (N, 1, 84, 84) of games (N,)."""

    @abstractmethod
    def decode(self, tokens: Tensor, games: Tensor | None = None) -> Tensor:
        """Frames float (N, 1, 84, 84), 0 black and 1 white, from tokens (N, 36) of games (N,).

        What is learned may lie a little outside of [0, 1].
        """

    @abstractmethod
    def loss(
        self,
        observations: Tensor,
        games: Tensor,
        mask_padding: Tensor,
        keys: Tensor,
        count: Tensor | None = None,
    ) -> TokenizerLoss:
        """Training loss on segments: uint8 (B, L, 84, 84), games (B,), mask (B, L), keys (B,).

        Its means are taken over `count` items, by default as many as the batch holds.
        """

    @abstractmethod
    def count(self, mask_padding: Tensor) -> Tensor:
        """How many items the loss of a batch with mask (B, L) takes its means over."""

    def learn(self, statistics: CodeStatistics) -> None:
        """What a codebook without gradients learns from a training step."""
        raise NotImplementedError(f"{type(self).__name__} learns by gradients only")

    def set_background(self, game_id: int, frame: Tensor) -> None:
        """Takes a game's median frame, uint8 (84, 84); only for those that need one."""
        raise NotImplementedError(f"{type(self).__name__} has no background")

    def code_pictures(self) -> Tensor:
        """(V, 196): what each code alone looks like, 14x14 pixels less the background, in [-1, 1];
        only where a token is the picture of its own patch."""
        raise NotImplementedError(f"{type(self).__name__} decodes all tokens of a frame together")

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that decides which tokens a frame becomes."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray, game_id: int, chunk: int = 4096) -> np.ndarray:
        """Tokens uint16 (M, 36) of NumPy frames uint8 (M, 84, 84) of one game."""
        device = self.codebook.device
        out = np.empty((len(frames), GRID * GRID), dtype=np.uint16)
        for start in range(0, len(frames), chunk):
            part = torch.from_numpy(frames[start : start + chunk]).to(device).unsqueeze(1)
            games = torch.full((len(part),), game_id, device=device)
            out[start : start + chunk] = self.encode(part, games).cpu().numpy()
        return out


def to_bytes(frames: Tensor) -> Tensor:
    """Decoded frames (N, 1, 84, 84), about [0, 1], as uint8 (N, 84, 84)."""
    return (frames[:, 0].float().clamp(0.0, 1.0) * 255).round().byte()


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index (M,) of the codebook vector (V, C) with the smallest squared distance to z (M, C)."""
    distance = codebook.square().sum(1) - 2.0 * z @ codebook.T
    return distance.argmin(1)
