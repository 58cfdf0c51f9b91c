"""The small tokenizer: background subtraction, one MLP for each 14x14 patch, EMA codebook.

Convolutions with a plain L1 loss lose objects of one or two pixels, such as the ball of Pong;
this one keeps them, because a patch holds only what differs from the game's median frame and the
error is weighted to what moves. Same interface as the published VQ-VAE.

M patches, P = 196 pixels a patch, C code width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.games import NUM_GAMES
from jowa.models.tokenizer import FRAME_SIZE, GRID, Tokenizer, TokenizerConfig, nearest_code

PATCH = FRAME_SIZE // GRID
PATCH_PIXELS = PATCH * PATCH
# A pixel counts as different from the background beyond this many of 255 grey levels.
DIFFERENCE = 8


@dataclass
class PatchTokenizerConfig(TokenizerConfig):
    """Sizes and training weights.

    foreground_weight multiplies the error of pixels that differ from the background or from the
    previous frame; patches_per_step patches, mostly ones with such pixels, make a training step;
    codes used less than restart_below times a step (moving average) restart at a patch's output.
    """

    hidden: int = 256
    foreground_weight: float = 20.0
    commitment_weight: float = 1.0
    ema_decay: float = 0.98
    restart_below: float = 0.02
    patches_per_step: int = 1024


def to_patches(images: Tensor) -> Tensor:
    """(N, 84, 84) to (N, 36, 196)."""
    grid = images.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH))
    return grid.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def from_patches(patches: Tensor) -> Tensor:
    """(N, 36, 196) to (N, 84, 84)."""
    grid = patches.unflatten(2, (PATCH, PATCH)).unflatten(1, (GRID, GRID))
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, outputs),
    )


class PatchTokenizer(Tokenizer):
    """Encodes and decodes each patch by itself, relative to the game's background frame."""

    needs_background = True
    background: Tensor
    codes: Tensor
    code_counts: Tensor
    code_sums: Tensor

    def __init__(self, config: PatchTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary, self.code_width = config.vocabulary, config.code_width
        self.encoder = mlp(PATCH_PIXELS, config.hidden, config.code_width)
        self.decoder = mlp(config.code_width, config.hidden, PATCH_PIXELS)
        V, C = config.vocabulary, config.code_width
        shape = (NUM_GAMES, FRAME_SIZE, FRAME_SIZE)
        self.register_buffer("background", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("codes", torch.zeros(V, C))
        self.register_buffer("code_counts", torch.zeros(V))
        self.register_buffer("code_sums", torch.zeros(V, C))

    @property
    def codebook(self) -> Tensor:
        return self.codes

    def set_background(self, game_id: int, frame: Tensor) -> None:
        """Stores the game's median frame, uint8 (84, 84)."""
        self.background[game_id] = frame.to(self.background.device)

    def residual(self, frames: Tensor, games: Tensor) -> Tensor:
        """Patches (N, 36, 196) in [-1, 1] of frames uint8 (N, 84, 84) less their background."""
        difference = frames.float() - self.background[games].float()
        return to_patches(difference / 255.0)

    def encode(self, frames: Tensor, games: Tensor | None = None) -> Tensor:
        assert games is not None, "this tokenizer subtracts a background and needs the games"
        with torch.autocast(frames.device.type, enabled=False):
            patches = self.residual(frames[:, 0], games).flatten(0, 1)
            # Most patches show nothing but background and share one token: encode that once.
            shows = patches.any(-1)
            blank = self.encoder(patches.new_zeros(1, PATCH_PIXELS))
            tokens = nearest_code(blank, self.codes).repeat(len(patches))
            tokens[shows] = nearest_code(self.encoder(patches[shows]), self.codes)
            return tokens.view(len(frames), -1)

    def decode(self, tokens: Tensor, games: Tensor | None = None) -> Tensor:
        assert games is not None, "this tokenizer subtracts a background and needs the games"
        with torch.autocast(tokens.device.type, enabled=False):
            residual = from_patches(self.decoder(F.embedding(tokens, self.codes)))
            frames = self.background[games].float() / 255.0 + residual
            return frames.clamp(0.0, 1.0).unsqueeze(1)

    def loss(
        self, observations: Tensor, games: Tensor, mask_padding: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        L = mask_padding.shape[1]
        residual = self.residual(observations.flatten(0, 1), games.repeat_interleave(L))
        foreground = foreground_patches(observations, residual)
        chosen = self._choose(foreground, mask_padding.flatten())
        target, foreground = residual.flatten(0, 1)[chosen], foreground.flatten(0, 1)[chosen]
        # Only the MLPs run in the ambient (perhaps bfloat16) precision; codes are float32.
        z = self.encoder(target).float()
        if self.training:
            self._update_codes(z.detach())
        tokens = nearest_code(z.detach(), self.codes)
        code = F.embedding(tokens, self.codes)
        reconstruction = self.decoder(z + (code - z).detach()).float()
        weight = 1.0 + (self.config.foreground_weight - 1.0) * foreground
        error = (reconstruction - target).abs()
        reconstruction_loss = (weight * error).mean()
        commitment = (z - code).square().mean()
        loss = reconstruction_loss + self.config.commitment_weight * commitment
        with torch.no_grad():
            # A foreground pixel is kept if less than half of its difference is lost.
            seen = foreground * (target.abs() > DIFFERENCE / 255)
            kept = ((error < 0.5 * target.abs()) * seen).sum() / seen.sum().clamp(min=1)
            used = torch.zeros(self.vocabulary, device=z.device)
            used[tokens] = 1.0
        return loss, {
            "tokenizer/reconstruction": reconstruction_loss.detach(),
            "tokenizer/commitment": commitment.detach(),
            "tokenizer/l1": error.detach().mean(),
            "tokenizer/foreground_kept": kept,
            "tokenizer/codes_in_batch": used.sum(),
        }

    def _choose(self, foreground: Tensor, real: Tensor) -> Tensor:
        """Indices of the patches to train on: random real ones, those with foreground first;
        fewer than `patches_per_step` where there are fewer real ones."""
        something = foreground.amax(-1) * real.unsqueeze(1)
        lottery = torch.rand_like(something) + 0.9 * something + 10.0 * real.unsqueeze(1)
        count = min(self.config.patches_per_step, int(real.sum()) * lottery.shape[1])
        return lottery.flatten().topk(count, sorted=False).indices

    @torch.no_grad()
    def _update_codes(self, z: Tensor) -> None:
        """Moves codes to the moving average of their patches and restarts dead ones."""
        V = self.vocabulary
        if not self.code_counts.any():
            self.codes.copy_(z[torch.randint(len(z), (V,), device=z.device)])
            self.code_counts.fill_(1.0)
            self.code_sums.copy_(self.codes)
        tokens = nearest_code(z, self.codes)
        counts = torch.bincount(tokens, minlength=V).float()
        sums = torch.zeros_like(self.codes).index_add_(0, tokens, z)
        self.code_counts.lerp_(counts, 1.0 - self.config.ema_decay)
        self.code_sums.lerp_(sums, 1.0 - self.config.ema_decay)
        # A code long unused stays where it is; its vanishing count says nothing any more.
        counted = (self.code_counts > 1e-5).unsqueeze(1)
        mean = self.code_sums / self.code_counts.clamp(min=1e-5).unsqueeze(1)
        self.codes.copy_(torch.where(counted, mean, self.codes))
        # Dead codes restart where patches are served worst, and only there: one put beside
        # another would take over its patches, and tokens would change their meaning for ever.
        distance = (z - F.embedding(tokens, self.codes)).square().sum(1)
        chosen = torch.multinomial(distance + 1e-12, V, replacement=True)
        ill_served = distance[chosen] > 1e-4 * z.square().sum(1).mean()
        dead = (self.code_counts < self.config.restart_below) & ill_served
        fresh = z[chosen]
        self.codes.copy_(torch.where(dead.unsqueeze(1), fresh, self.codes))
        self.code_sums.copy_(torch.where(dead.unsqueeze(1), fresh, self.code_sums))
        self.code_counts.masked_fill_(dead, 1.0)


def foreground_patches(observations: Tensor, residual: Tensor) -> Tensor:
    """(B·L, 36, 196): 1.0 where a pixel differs from the background or the previous frame."""
    frames = observations.int()
    moved = torch.zeros_like(observations, dtype=torch.bool)
    moved[:, 1:] = (frames[:, 1:] - frames[:, :-1]).abs() > DIFFERENCE
    return (to_patches(moved.flatten(0, 1)) | (residual.abs() > DIFFERENCE / 255)).float()
