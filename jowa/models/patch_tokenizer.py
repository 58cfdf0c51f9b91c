"""The small tokenizer: background subtraction, one MLP for each 14x14 patch, EMA codebook.

Convolutions with a plain L1 loss lose objects of one or two pixels, such as the ball of Pong;
this one keeps them, because a patch holds only what differs from the game's median frame and the
error is weighted to what moves. Same interface as the published VQ-VAE.

M patches, P = 196 pixels a patch, C code width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.games import NUM_GAMES
from jowa.models.chance import uniform
from jowa.models.tokenizer import (
    FRAME_SIZE,
    GRID,
    CodeStatistics,
    Tokenizer,
    TokenizerConfig,
    TokenizerLoss,
    nearest_code,
)

PATCH = FRAME_SIZE // GRID
PATCH_PIXELS = PATCH * PATCH
PATCHES = GRID * GRID
# A pixel counts as different from the background beyond this many of 255 grey levels.
DIFFERENCE = 8


@dataclass
class PatchTokenizerConfig(TokenizerConfig):
    """Sizes and training weights.

    foreground_weight multiplies the error of pixels that differ from the background or from the
    previous frame; a training step takes patches_per_frame times L patches of each segment of L
    frames, ones with such pixels first; codes used less than restart_below times a step (moving
    average) restart at a patch's output.
    """

    hidden: int = 256
    foreground_weight: float = 20.0
    commitment_weight: float = 1.0
    ema_decay: float = 0.98
    restart_below: float = 0.02
    patches_per_frame: int = 16


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

    # Not compiled along with a training step: what it computes depends on what the frames show,
    # and tokens must be the same as everywhere else.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def encode(self, frames: Tensor, games: Tensor | None = None) -> Tensor:
        assert games is not None, "this tokenizer subtracts a background and needs the games"
        with torch.autocast(frames.device.type, enabled=False):
            patches = self.residual(frames[:, 0], games).flatten(0, 1)
            if patches.is_cuda:  # which would have to wait to be told how many are left to encode
                return nearest_code(self.encoder(patches), self.codes).view(len(frames), -1)
            # Most patches show nothing but background and share one token: encode that once.
            shows = patches.any(-1)
            blank = self.encoder(patches.new_zeros(1, PATCH_PIXELS))
            tokens = nearest_code(blank, self.codes).repeat(len(patches))
            tokens[shows] = nearest_code(self.encoder(patches[shows]), self.codes)
            return tokens.view(len(frames), -1)

    @torch.no_grad()
    def decode(self, tokens: Tensor, games: Tensor | None = None) -> Tensor:
        assert games is not None, "this tokenizer subtracts a background and needs the games"
        with torch.autocast(tokens.device.type, enabled=False):
            residual = from_patches(self.decoder(F.embedding(tokens, self.codes)))
            frames = self.background[games].float() / 255.0 + residual
            return frames.clamp(0.0, 1.0).unsqueeze(1)

    @torch.no_grad()
    def code_pictures(self) -> Tensor:
        with torch.autocast(self.codes.device.type, enabled=False):
            return cast(Tensor, self.decoder(self.codes))

    def loss(
        self,
        observations: Tensor,
        games: Tensor,
        mask_padding: Tensor,
        keys: Tensor,
        count: Tensor | None = None,
    ) -> TokenizerLoss:
        L = mask_padding.shape[1]
        residual = self.residual(observations.flatten(0, 1), games.repeat_interleave(L))
        foreground = foreground_patches(observations, residual)
        chosen = self._choose(foreground, mask_padding, keys)
        target, foreground = residual.flatten(0, 1)[chosen], foreground.flatten(0, 1)[chosen]
        real = mask_padding.flatten().repeat_interleave(PATCHES)[chosen].float()
        # Only the MLPs run in the ambient (perhaps bfloat16) precision; codes are float32.
        z = self.encoder(target).float()
        with torch.autocast(z.device.type, enabled=False):
            tokens = nearest_code(z.detach(), self.codes)
        code = F.embedding(tokens, self.codes)
        reconstruction = self.decoder(z + (code - z).detach()).float()
        items = (real.sum() if count is None else count).clamp(min=1.0)

        def mean(values: Tensor) -> Tensor:
            """Mean of (M, ...) over real patches."""
            return (values.flatten(1).mean(1) * real).sum() / items

        weight = 1.0 + (self.config.foreground_weight - 1.0) * foreground
        error = (reconstruction - target).abs()
        reconstruction_loss = mean(weight * error)
        commitment = mean((z - code).square())
        loss = reconstruction_loss + self.config.commitment_weight * commitment
        with torch.no_grad():
            # A foreground pixel is kept if less than half of its difference is lost.
            seen = foreground * (target.abs() > DIFFERENCE / 255) * real.unsqueeze(1)
            kept = torch.stack([((error < 0.5 * target.abs()) * seen).sum(), seen.sum()])
            statistics = self._statistics(z.detach(), tokens, real, keys)
        metrics = {
            "tokenizer/reconstruction": reconstruction_loss.detach(),
            "tokenizer/commitment": commitment.detach(),
            "tokenizer/l1": mean(error).detach(),
            "tokenizer/foreground_kept": kept,
            "tokenizer/codes_in_batch": (statistics.counts > 0).sum(),
        }
        return TokenizerLoss(loss, metrics, statistics)

    def count(self, mask_padding: Tensor) -> Tensor:
        patches = mask_padding.sum(1) * PATCHES
        return patches.clamp(max=self._quota(mask_padding.shape[1])).sum()

    def _quota(self, frames: int) -> int:
        """How many patches of a segment of that many frames a step takes."""
        return min(self.config.patches_per_frame, PATCHES) * frames

    def _choose(self, foreground: Tensor, mask_padding: Tensor, keys: Tensor) -> Tensor:
        """Rows (M,) of (B·L·36) to train on: of each segment as many, real ones first and those
        with foreground before others, by chance."""
        B, L = mask_padding.shape
        real = mask_padding.repeat_interleave(PATCHES, dim=1).float()
        something = foreground.amax(-1).view(B, L * PATCHES) * real
        lottery = uniform(keys, L * PATCHES) + 0.9 * something + 10.0 * real
        best = lottery.topk(self._quota(L), sorted=False)
        start = torch.arange(B, device=keys.device).unsqueeze(1) * (L * PATCHES)
        return (best.indices + start).flatten()

    def _statistics(self, z: Tensor, tokens: Tensor, real: Tensor, keys: Tensor) -> CodeStatistics:
        """Of patches (M, C) served by codes (M,); padding counts nothing."""
        V, M = self.vocabulary, len(z)
        counts = torch.zeros(V, device=z.device).index_add_(0, tokens, real)
        sums = torch.zeros_like(self.codes).index_add_(0, tokens, z * real.unsqueeze(1))
        power = torch.stack([(z.square().sum(1) * real).sum(), real.sum()])
        distance = (z - F.embedding(tokens, self.codes)).square().sum(1)
        # The largest of log weights with Gumbel noise are a sample in proportion to the weights.
        chance = uniform(keys, M // len(keys), stream=1).flatten().clamp(1e-7, 1.0 - 1e-7)
        priority = (distance + 1e-12).log() - (-chance.log()).log()
        best = priority.masked_fill(real == 0, -torch.inf).topk(min(V, M))
        distance = (distance * real)[best.indices]
        return CodeStatistics(counts, sums, power, best.values, z[best.indices], distance)

    @torch.no_grad()
    def learn(self, statistics: CodeStatistics) -> None:
        """Moves codes to the moving average of their patches and restarts dead ones."""
        config = self.config
        self.code_counts.lerp_(statistics.counts, 1.0 - config.ema_decay)
        self.code_sums.lerp_(statistics.sums, 1.0 - config.ema_decay)
        # A code long unused stays where it is; its vanishing count says nothing any more.
        counted = (self.code_counts > 1e-5).unsqueeze(1)
        mean = self.code_sums / self.code_counts.clamp(min=1e-5).unsqueeze(1)
        self.codes.copy_(torch.where(counted, mean, self.codes))
        # Dead codes restart where patches are served worst, and only there: one put beside
        # another would take over its patches, and tokens would change their meaning for ever.
        R = len(statistics.priority)
        dead = self.code_counts < config.restart_below
        number = (dead.cumsum(0) - 1).clamp(0, R - 1)
        power = statistics.power[0] / statistics.power[1].clamp(min=1.0)
        ill_served = statistics.distance > 1e-4 * power
        restart = dead & ill_served[number] & (dead.cumsum(0) <= R)
        fresh = statistics.candidates[number]
        self.codes.copy_(torch.where(restart.unsqueeze(1), fresh, self.codes))
        self.code_sums.copy_(torch.where(restart.unsqueeze(1), fresh, self.code_sums))
        self.code_counts.masked_fill_(restart, 1.0)


def foreground_patches(observations: Tensor, residual: Tensor) -> Tensor:
    """(B·L, 36, 196): 1.0 where a pixel differs from the background or the previous frame."""
    frames = observations.int()
    moved = torch.zeros_like(observations, dtype=torch.bool)
    moved[:, 1:] = (frames[:, 1:] - frames[:, :-1]).abs() > DIFFERENCE
    return (to_patches(moved.flatten(0, 1)) | (residual.abs() > DIFFERENCE / 255)).float()
