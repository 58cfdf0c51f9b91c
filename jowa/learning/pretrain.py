"""`jowa pretrain`: both stages, with the switch between them (JOWA paper, section 3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from jowa.data.episodes import EpisodeFile
from jowa.data.tokens import place
from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning.compute import resolve
from jowa.learning.config import PretrainConfig
from jowa.learning.loss_config import check_losses
from jowa.learning.monitor import check_log
from jowa.learning.objective import Objective
from jowa.learning.pictures import dreams, reconstructions
from jowa.learning.run import open_data, open_run, set_backgrounds, set_perceptual
from jowa.learning.tokenize import (
    check_phase,
    encode,
    freeze,
    make_phase,
    picture_batch,
    segments_of,
)
from jowa.learning.trainer import Trainer
from jowa.learning.validation import check_hold_out
from jowa.models.patch_tokenizer import PatchTokenizerConfig
from jowa.models.tokenizer import Tokenizer
from jowa.models.tokenizers import build_tokenizer, to_state
from jowa.models.world_action import WorldActionModel


def pretrain(config: PretrainConfig) -> Path:
    """Trains both stages to their end; returns the run directory."""
    check_sizes(config)
    check_phase("stage1", config.stage1)
    check_phase("stage2", config.stage2)
    check_losses("stage2", config.stage2.losses, config.model, config.stage2.imagination.share > 0)
    check_log(config.log)
    check_hold_out(config.data.hold_out, config.data.share)
    loading = config.data.loading()
    if config.tokenizer_from is not None and config.start_from is not None:
        raise UserError(
            "tokenizer_from and start_from are both given, and start_from brings a tokenizer: "
            "leave one of them out."
        )
    compute = resolve(config.compute)
    torch.manual_seed(config.seed)
    files = open_data(config.data.root, config.data.games, config.data.cache_gib)
    tokenizer = build_tokenizer(config.tokenizer)
    set_backgrounds(tokenizer, files)
    set_perceptual(tokenizer, config.perceptual)
    model = WorldActionModel(config.model)
    started_from = fill_initial(config, files, tokenizer, model)
    processes = compute.processes
    run = processes.in_turn(lambda: open_run(config.run, config))
    model.set_codes(tokenizer)
    sample = picture_batch(files).to(compute.device)
    trainer = Trainer(
        run,
        tokenizer,
        model,
        compute,
        config.log,
        facts={
            "tokenizer": to_state(config.tokenizer),
            "model": dataclasses.asdict(config.model),
            "games": config.data.games,
            "config": dataclasses.asdict(config),
            "started_from": started_from,
        },
        seed=config.seed,
        compile=compute.compiles(config.compile),
        replay=compute.replays(config.replay),
        pictures=lambda: {
            "reconstructions": reconstructions(tokenizer, sample),
            "dream": dreams(tokenizer, model, sample),
        },
        loading=loading,
    )
    if not trainer.finished("stage1"):
        objective = Objective(tokenizer, model, config.stage1.losses)
        segments = segments_of(files, config.stage1, config.data.hold_out, config.data.share)
        trainer.train(
            make_phase(
                "stage1", config.stage1, objective, segments, config.log, config.seed, compute
            )
        )
    if not trainer.finished("stage2"):
        freeze(tokenizer, model)
        stored = encode(tokenizer, files, config.data.root, processes)
        in_memory = int(config.data.cache_gib * 2**30)
        tokens = place(stored, config.data.tokens, compute.device, in_memory)
        objective = Objective(tokenizer, model, config.stage2.losses)
        segments = segments_of(
            files, config.stage2, config.data.hold_out, config.data.share, tokens
        )
        trainer.train(
            make_phase(
                "stage2", config.stage2, objective, segments, config.log, config.seed, compute
            )
        )
    return run


def fill_initial(
    config: PretrainConfig,
    files: list[EpisodeFile],
    tokenizer: Tokenizer,
    model: WorldActionModel,
) -> dict[str, Any] | None:
    """Loads the weights that the run starts from, if it starts and is not to start anew; returns
    what is to be remembered of them."""
    path = config.start_from or config.tokenizer_from
    if path is None or checkpoints.newest(Path(config.run)) is not None:
        return None
    folder = checkpoints.find(path)
    stems = ("tokenizer",) if config.start_from is None else ("model", "tokenizer")
    saved = checkpoints.load(folder, stems)
    checkpoints.fill(tokenizer, saved.tensors["tokenizer"], f"the tokenizer of {folder}")
    if config.start_from is not None:
        checkpoints.fill(model, saved.tensors["model"], f"the model of {folder}")
        # Games it never saw bring backgrounds of their own; the others keep theirs.
        set_backgrounds(tokenizer, [f for f in files if f.game.name not in saved.state["games"]])
    return checkpoints.origin(folder, saved, stems)


def check_sizes(config: PretrainConfig) -> None:
    """Raises UserError for sizes that do not go together."""
    model, tokenizer = config.model, config.tokenizer
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
