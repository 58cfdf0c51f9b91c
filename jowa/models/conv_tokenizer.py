"""The published tokenizer: a convolutional VQ-VAE (JOWA paper, section 3).

84x84 frames scaled to [-1, 1] go through levels of 84, 12 and 6 pixels to 6x6 vectors, each of
which becomes its nearest codebook vector; the decoder goes back over 6, 42 and 84 pixels. Modules
carry the names of the released weights.

N frames, B segments, L steps, W channels, V codebook vectors of width C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.models.chance import uniform
from jowa.models.lpips import LPIPS
from jowa.models.tokenizer import (
    GRID,
    Tokenizer,
    TokenizerConfig,
    TokenizerLoss,
    nearest_code,
)

# Kernel and stride of the steps from 84 to 12 and from 12 to 6 pixels.
_DOWN = ((8, 7), (3, 2))
# Factor by which the decoder's level grows the image, by level; it starts at the last.
_UP = (1, 2, 7)
_NORM_GROUPS = 2


@dataclass
class ConvTokenizerConfig(TokenizerConfig):
    """Sizes and loss weights; the defaults are the published ones.

    frames_per_segment frames of each segment, drawn at random, make one training step;
    perceptual_weight > 0 adds LPIPS to the loss and needs its weights (`set_perceptual`).
    """

    vocabulary: int = 2048
    code_width: int = 512
    channels: int = 64
    residual_blocks: int = 2
    dropout: float = 0.0
    commitment_weight: float = 1.0
    perceptual_weight: float = 0.0
    frames_per_segment: int = 4


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_NORM_GROUPS, width, eps=1e-6)


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def channels_last(x: Tensor) -> Tensor:
    """The layout in which convolutions are fastest; those that follow keep it."""
    return x.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a skip connection."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(width), conv3(width, width)
        self.norm2, self.conv2 = norm(width), conv3(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        # Encoding for the world model while the tokenizer trains takes no gradient: it is exact.
        drop = self.training and torch.is_grad_enabled()
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), self.dropout, drop))
        return x + h


class PixelAttention(nn.Module):
    """Single-head self-attention among all positions of an image (N, W, H, H)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # (N, heads = 1, positions, W); attention divides by the square root of W.
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    """Residual block, attention, residual block, at 6x6."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, dropout)
        self.attn_1 = PixelAttention(width)
        self.block_2 = ResidualBlock(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    def __init__(self, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, W, 84, 84) to 12 x 12, or 12 x 12 to 6 x 6."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor, self.conv = factor, conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, W, H, H) to `factor` times H, each pixel repeated."""
        # Not F.interpolate, whose gradient is lost (all zeros, torch 2.13) where torch.compile
        # fuses it in bfloat16 for a CPU; this one's is a plain sum, and it keeps the layout.
        f, (N, W, H, _) = self.factor, x.shape
        grown = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(N, H, f, H, f, W)
        return self.conv(grown.reshape(N, H * f, H * f, W).permute(0, 3, 1, 2))


class Level(nn.Module):
    """The residual blocks of one resolution, each perhaps followed by attention, then `resize`."""

    def __init__(self, config: ConvTokenizerConfig, blocks: int, attention: bool) -> None:
        super().__init__()
        W = config.channels
        self.block = nn.ModuleList(ResidualBlock(W, config.dropout) for _ in range(blocks))
        self.attn = nn.ModuleList(PixelAttention(W) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    def __init__(self, config: ConvTokenizerConfig) -> None:
        super().__init__()
        W = config.channels
        self.conv_in = conv3(1, W)
        # Attention at 12 and 6 pixels only.
        self.down = nn.ModuleList(
            Level(config, config.residual_blocks, attention=level > 0) for level in range(3)
        )
        for level, (kernel, stride) in enumerate(_DOWN):
            self.down[level].downsample = Downsample(W, kernel, stride)
        self.mid = Middle(W, config.dropout)
        self.norm_out, self.conv_out = norm(W), conv3(W, config.code_width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 6, 6) of frames (N, 1, 84, 84) in [-1, 1]."""
        x = channels_last(self.conv_in(x))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: ConvTokenizerConfig) -> None:
        super().__init__()
        W = config.channels
        self.conv_in = conv3(config.code_width, W)
        self.mid = Middle(W, config.dropout)
        # Numbered from the finest, so the last runs first.
        self.up = nn.ModuleList(
            Level(config, config.residual_blocks + 1, attention=False) for _ in _UP
        )
        for level, factor in enumerate(_UP):
            if factor > 1:
                self.up[level].upsample = Upsample(W, factor)
        self.norm_out, self.conv_out = norm(W), conv3(W, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Frames (N, 1, 84, 84), about [-1, 1], of (N, C, 6, 6)."""
        x = self.mid(channels_last(self.conv_in(z)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ConvTokenizer(Tokenizer):
    """Encoder, codebook and decoder of whole frames; knows no games."""

    def __init__(self, config: ConvTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary, self.code_width = config.vocabulary, config.code_width
        V, C = config.vocabulary, config.code_width
        self.encoder = Encoder(config)
        self.pre_quant_conv = nn.Conv2d(C, C, 1)
        self.embedding = nn.Embedding(V, C)
        self.post_quant_conv = nn.Conv2d(C, C, 1)
        self.decoder = Decoder(config)
        nn.init.uniform_(self.embedding.weight, -1.0 / V, 1.0 / V)
        # In a tuple, so that it is no part of the parameters and the state dict.
        self._perceptual: tuple[LPIPS, ...] = ()

    @property
    def codebook(self) -> Tensor:
        return self.embedding.weight

    def set_perceptual(self, net: LPIPS) -> None:
        """Gives the loss its perceptual distance, which training does not change or save."""
        self._perceptual = (net.to(self.codebook.device),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConvTokenizer:
        """Moves and casts the perceptual net along with the rest (`.to`, `.cuda`)."""
        for net in self._perceptual:
            net._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def embed(self, frames: Tensor) -> Tensor:
        """Vectors before quantisation (N, C, 6, 6) of frames uint8 (N, 1, 84, 84)."""
        return self.pre_quant_conv(self.encoder(to_signed(frames)))

    def reconstruct(self, code: Tensor) -> Tensor:
        """Frames (N, 1, 84, 84), about [-1, 1], of codebook vectors (N, C, 6, 6)."""
        return self.decoder(self.post_quant_conv(code))

    def quantise(self, z: Tensor) -> Tensor:
        """Tokens (N, 36) of vectors float32 (N, C, 6, 6)."""
        tokens = nearest_code(z.permute(0, 2, 3, 1).flatten(0, 2), self.codebook)
        return tokens.view(len(z), GRID * GRID)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codebook vectors (N, C, 6, 6) of tokens (N, 36)."""
        return self.embedding(tokens).transpose(1, 2).unflatten(2, (GRID, GRID))

    # Not compiled along with a training step: it would unroll the chunks, and tokens would be
    # others than those of the same frames elsewhere wherever compiled code rounds differently.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def encode(self, frames: Tensor, games: Tensor | None = None) -> Tensor:
        with torch.autocast(frames.device.type, enabled=False):
            parts = frames.split(chunk_size(frames))
            return torch.cat([self.quantise(self.embed(part)) for part in parts])

    @torch.no_grad()
    def decode(self, tokens: Tensor, games: Tensor | None = None) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            parts = tokens.split(chunk_size(tokens))
            decoded = torch.cat([self.reconstruct(self.lookup(part)) for part in parts])
            return 0.5 * decoded + 0.5

    def loss(
        self,
        observations: Tensor,
        games: Tensor,
        mask_padding: Tensor,
        keys: Tensor,
        count: Tensor | None = None,
    ) -> TokenizerLoss:
        """No part of it waits for the device or depends on the data's shape, so it compiles."""
        frames, real = self._choose(observations, mask_padding, keys)
        config, target = self.config, to_signed(frames)
        items = (real.sum() if count is None else count).clamp(min=1.0)

        def mean(values: Tensor) -> Tensor:
            """Mean over real frames of values (N, ...)."""
            each = values.reshape(len(values), -1).mean(1)
            return (each * real).sum() / items

        # Only the networks run in the ambient (perhaps bfloat16) precision.
        z = self.embed(frames).float()
        with torch.autocast(z.device.type, enabled=False):
            tokens = self.quantise(z.detach())
        code = self.lookup(tokens)
        # The decoder's gradient passes to the encoder as if there were no quantisation.
        decoded = self.reconstruct(z + (code - z).detach()).float()
        reconstruction = mean((decoded - target).abs())
        commitment = mean((z - code.detach()).square())
        code_error = mean((z.detach() - code).square())
        loss = reconstruction + code_error + config.commitment_weight * commitment
        metrics = {
            "tokenizer/reconstruction": reconstruction.detach(),
            "tokenizer/commitment": commitment.detach(),
            "tokenizer/l1": 0.5 * reconstruction.detach(),
            "tokenizer/codes_in_batch": count_codes(tokens, real, self.vocabulary),
        }
        if config.perceptual_weight > 0:
            assert len(self._perceptual) == 1, "perceptual_weight > 0 needs set_perceptual first"
            perceptual = mean(self._perceptual[0](decoded, target))
            loss = loss + config.perceptual_weight * perceptual
            metrics["tokenizer/perceptual"] = perceptual.detach()
        return TokenizerLoss(loss, metrics)

    def count(self, mask_padding: Tensor) -> Tensor:
        return mask_padding.sum(1).clamp(max=self.config.frames_per_segment).sum()

    def _choose(
        self, observations: Tensor, mask_padding: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`frames_per_segment` frames (N, 1, 84, 84) of each segment by chance, real ones first,
        and which are real (N,). As many of each, so that shapes never change."""
        B, L = mask_padding.shape
        lottery = uniform(keys, L) + mask_padding
        best = lottery.topk(min(self.config.frames_per_segment, L), sorted=False).indices
        chosen = (best + torch.arange(B, device=keys.device).unsqueeze(1) * L).flatten()
        frames, real = observations.flatten(0, 1)[chosen], mask_padding.flatten()[chosen]
        return frames.unsqueeze(1), real.float()


def chunk_size(frames: Tensor) -> int:
    """Frames to encode or decode at once: few on a CPU, whose caches then hold them."""
    return 8 if frames.is_cpu else 256


def to_signed(frames: Tensor) -> Tensor:
    """uint8 to float in [-1, 1]."""
    return frames.float() / 127.5 - 1.0


def count_codes(tokens: Tensor, real: Tensor, vocabulary: int) -> Tensor:
    """Number of different codes among the tokens (N, 36) of real frames (N,)."""
    used = torch.zeros(vocabulary, device=tokens.device)
    shown = real.unsqueeze(1).expand(tokens.shape)
    return used.scatter_reduce(0, tokens.flatten(), shown.flatten(), "amax").sum()


def infer_config(state: dict[str, Tensor]) -> ConvTokenizerConfig:
    """The sizes of a state dict of this tokenizer; loss weights leave no trace in it."""
    blocks = {name.split(".")[4] for name in state if name.startswith("encoder.down.0.block.")}
    vocabulary, code_width = state["embedding.weight"].shape
    return ConvTokenizerConfig(
        vocabulary=vocabulary,
        code_width=code_width,
        channels=len(state["encoder.conv_in.weight"]),
        residual_blocks=len(blocks),
    )
