"""What is asked of the settings of training before any of it begins."""

from __future__ import annotations

from jowa.data.sampler import check_draws
from jowa.errors import UserError
from jowa.learning.config import PhaseConfig, PretrainConfig
from jowa.learning.imagination import check_imagination
from jowa.learning.loss_config import check_weights
from jowa.learning.optim import check_optimizer
from jowa.models.patch_tokenizer import PatchTokenizerConfig
from jowa.models.world_action import MAX_FRAMES


def check_seed(seed: int) -> None:
    """Raises UserError for what no generator takes."""
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}: use a whole number from 0 to {2**31 - 1:,}.")


def check_phase(name: str, phase: PhaseConfig, least_steps: int = 0) -> None:
    """Raises UserError for numbers, windows, losses or imagined data that make no sense."""
    least = {"steps": least_steps, "batch_size": 1, "target_update_every": 0}
    for key, bound in least.items():
        if (value := getattr(phase, key)) < bound:
            raise UserError(f"{name}.{key} is {value}: use {bound} or more.")
    check_draws(phase.balance, phase.reward_fraction, f"{name}.")
    check_optimizer(name, phase.optimizer)
    check_weights(name, phase.losses)
    if not 1 <= phase.stride <= phase.length <= MAX_FRAMES:
        raise UserError(
            f"{name}.stride is {phase.stride} and {name}.length {phase.length}: use "
            f"1 <= stride <= length <= {MAX_FRAMES}, the frames that the model's sequence holds."
        )
    if phase.steps and not (phase.losses.tokenizer or phase.losses.trains_model):
        raise UserError(
            f"{name}.losses have no weight, so {name} would learn nothing: give one of them a "
            f"weight, or leave the phase out by {name}.steps=0."
        )
    if phase.imagination.share and not phase.losses.world_model:
        raise UserError(
            f"{name}.imagination.share is {phase.imagination.share}, but {name} does not train the "
            f"world model that would imagine: set {name}.losses.world_model, or the share to 0."
        )
    few = phase.losses.world_one_in
    if few < 1 or phase.batch_size % few:
        raise UserError(
            f"{name}.losses.world_one_in is {few} and {name}.batch_size {phase.batch_size}: give "
            f"a batch_size that is a multiple of it, and 1 for all segments."
        )
    check_imagination(name, phase.imagination, phase.length, phase.batch_size, phase.losses.q)


def check_sizes(config: PretrainConfig) -> None:
    """Raises UserError for sizes that do not go together."""
    model, tokenizer = config.model, config.tokenizer
    for name in ("layers", "heads", "width"):
        if (value := getattr(model.transformer, name)) < 1:
            raise UserError(f"model.transformer.{name} is {value}: use 1 or more.")
    if model.transformer.width % model.transformer.heads:
        raise UserError(
            f"model.transformer.width {model.transformer.width} is not a multiple of its "
            f"{model.transformer.heads} heads: change one of them."
        )
    if model.transformer.attention not in ("sdpa", "matmul"):
        raise UserError(
            f"model.transformer.attention is {model.transformer.attention!r}: use sdpa or matmul."
        )
    dropouts = {
        "model.transformer.dropout": model.transformer.dropout,
        "model.q_dropout": model.q_dropout,
        "model.reader_dropout": model.reader_dropout,
    }
    for name, share in dropouts.items():
        if not 0 <= share < 1:
            raise UserError(f"{name} is {share}: it is a share, use 0 or more and less than 1.")
    if model.bell_start and not model.distributional:
        raise UserError(
            f"model.bell_start is {model.bell_start}, but with model.distributional=false there "
            f"is no distribution to start as a bell: set bell_start to 0."
        )
    if model.vocabulary != tokenizer.vocabulary:
        raise UserError(
            f"model.vocabulary is {model.vocabulary} but tokenizer.vocabulary is "
            f"{tokenizer.vocabulary}: they must be equal."
        )
    if model.codebook_width not in (0, tokenizer.code_width):
        raise UserError(
            f"model.codebook_width is {model.codebook_width}: use {tokenizer.code_width}, the "
            f"tokenizer's code_width, or 0 to embed tokens by their id only."
        )
    if model.reader_width and not isinstance(tokenizer, PatchTokenizerConfig):
        raise UserError(
            f"model.reader_width is {model.reader_width}, which reads the picture of each token, "
            f"but tokens of this tokenizer have none of their own: set it to 0 or use "
            f"tokenizer=nano."
        )
