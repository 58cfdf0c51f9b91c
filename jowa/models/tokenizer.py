"""What every tokenizer offers: frames to 36 discrete tokens and back.

N frames, K = 36 tokens a frame (6x6 grid, row-major), V codebook vectors of width C.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

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
        self, observations: Tensor, games: Tensor, mask_padding: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss and metrics on segments: uint8 (B, L, 84, 84), games (B,), mask (B, L)."""

    def set_background(self, game_id: int, frame: Tensor) -> None:
        """Takes a game's median frame, uint8 (84, 84); only for those that need one."""
        raise NotImplementedError(f"{type(self).__name__} has no background")

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


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index (M,) of the codebook vector (V, C) with the smallest squared distance to z (M, C)."""
    distance = codebook.square().sum(1) - 2.0 * z @ codebook.T
    return distance.argmin(1)
