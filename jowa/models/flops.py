"""How much arithmetic a training step of the world-action model is, in matrix products."""

from __future__ import annotations

from jowa.games import NUM_ACTIONS
from jowa.models.world_action import BLOCK_TOKENS, FRAME_TOKENS, WorldActionConfig


def flops_per_token(
    config: WorldActionConfig, frames: int = 8, *, world: bool = True, q: bool = True
) -> float:
    """Multiplications and additions of forward and backward for each token of a sequence.

    The transformer is left out where nobody needs it: Q has a reader, and `world` is false. 6 for
    each weight that a token meets, 6·N·D a layer for (causal) attention over the N tokens of
    `frames` frames. `world` and `q` say which heads are trained. What is no matrix product, and
    what the options for small scale add, is left out.
    """
    D, layers = config.transformer.width, config.transformer.layers
    N = frames * BLOCK_TOKENS
    needed = world or not config.reader_width
    backbone = needed * layers * (12 * D * D + N * D)
    world_heads = (D * D + D * config.vocabulary) * FRAME_TOKENS / BLOCK_TOKENS
    world_heads += (2 * D * D + 5 * D) / BLOCK_TOKENS
    outputs = NUM_ACTIONS * (config.atoms if config.distributional else 1)
    q_layers = D * config.q_width + config.q_width**2 + config.q_width * outputs
    q_heads = config.q_members * q_layers / BLOCK_TOKENS
    # The target head, as large as the Q head, is a forward pass only.
    return 6.0 * (backbone + world * world_heads) + 8.0 * q * q_heads
