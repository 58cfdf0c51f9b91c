"""What a training step computes and keeps in memory, counted on a segment or two, not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench.training import random_batch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jowa.learning.config import PhaseConfig
from jowa.learning.loss_config import LossConfig
from jowa.learning.objective import Objective
from jowa.models.flops import flops_per_token
from jowa.models.tokenizer import Tokenizer, TokenizerConfig
from jowa.models.tokenizers import build_tokenizer
from jowa.models.transformer import Attention
from jowa.models.world_action import BLOCK_TOKENS, WorldActionConfig, WorldActionModel

# Weights, gradients and Adam's two averages in float32, and the weights in bfloat16.
STATE_BYTES = 18


@dataclass(frozen=True)
class Step:
    """One step of a phase over all GPUs, and the bytes of memory that it takes on each of them.

    `tokens` are those of sequences, 37 a frame; `exact_flops` are those of encoding frames, which
    is done in float32.
    """

    segments: int
    tokens: int
    flops: float
    exact_flops: float
    memory: float


def count_step(
    phase: PhaseConfig,
    tokenizer_config: TokenizerConfig,
    model_config: WorldActionConfig | None,
    gpus: int,
    frames: bool = True,
) -> Step:
    """The step of a phase that reads frames, or else tokens; without a model the tokenizer's."""
    losses, segments, length = phase.losses, phase.batch_size, phase.length
    tokenizer = build_tokenizer(tokenizer_config)
    model = None if model_config is None else WorldActionModel(model_config)
    objective = Objective(tokenizer, model, losses).train()
    objective.freeze_unused()
    tokens, flops, exact = segments * length * BLOCK_TOKENS, 0.0, 0.0
    if model_config is not None:
        flops = tokens * segment_flops(model_config, losses, length)
        if model is not None and model.has_reader and losses.trains_q_head:
            seen = random_batch(1, model_config.vocabulary, length).observations
            # The backward pass is twice the forward pass.
            flops += (
                3.0 * segments * count_flops(lambda: model.reader.read_all(seen, model.pictures))
            )
        exact = segments * length * encoding_flops(tokenizer) if frames else 0.0
    if losses.tokenizer:
        batch = random_batch(1, None, length)
        inputs = batch.observations, batch.games, batch.real, batch.keys
        flops += 3.0 * segments * count_flops(lambda: tokenizer.loss(*inputs))
    state = sum(p.numel() * (STATE_BYTES if p.requires_grad else 4) for p in objective.parameters())
    vocabulary = None if frames else tokenizer.vocabulary
    one = activation_bytes(objective, vocabulary, length, losses.world_one_in)
    return Step(segments, tokens, flops, exact, state + -(-segments // gpus) * one)


def segment_flops(config: WorldActionConfig, losses: LossConfig, length: int) -> float:
    """A mean over segments, for each token: the world model takes one in `world_one_in`."""
    q = losses.trains_q_head
    without = flops_per_token(config, length, world=False, q=q)
    if not losses.world_model:
        return without
    whole = flops_per_token(config, length, world=True, q=q)
    return without + (whole - without) / losses.world_one_in


def count_flops(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and convolutions in it."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def encoding_flops(tokenizer: Tokenizer) -> int:
    """FLOPs of making the tokens of one frame, every patch of which shows something."""
    batch = random_batch(1, None, 1)
    return count_flops(lambda: tokenizer.encode(batch.observations, batch.games))


def activation_bytes(
    objective: Objective, vocabulary: int | None, length: int, together: int = 1
) -> int:
    """What autograd keeps of a segment for the backward pass, in float32: that of twice `together`
    segments less that of as many. bfloat16 keeps less, and so does a compiled step."""
    for module in objective.modules():
        if isinstance(module, Attention):
            module.dropout = 0.0  # with which a CPU keeps all probabilities, and a GPU a seed
    kept = []
    for segments in (together, 2 * together):
        seen: dict[int, torch.UntypedStorage] = {}

        def keep(x: Tensor, seen: dict[int, torch.UntypedStorage] = seen) -> Tensor:
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = storage
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            objective(random_batch(segments, vocabulary, length))
        kept.append(sum(storage.nbytes() for storage in seen.values()))
    return (kept[1] - kept[0]) // together
