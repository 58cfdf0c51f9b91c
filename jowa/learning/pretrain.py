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
from jowa.learning.checks import check_phase, check_seed, check_sizes
from jowa.learning.compute import resolve
from jowa.learning.config import PhaseConfig, PretrainConfig
from jowa.learning.loss_config import check_losses
from jowa.learning.monitor import check_log
from jowa.learning.objective import Objective
from jowa.learning.pictures import dreams, reconstructions
from jowa.learning.run import open_data, open_run, set_backgrounds, set_perceptual
from jowa.learning.tokenize import (
    Tokens,
    encode,
    freeze,
    make_phase,
    picture_batch,
    segments_of,
)
from jowa.learning.trainer import Phase, Trainer
from jowa.learning.validation import check_hold_out
from jowa.models.tokenizer import Tokenizer
from jowa.models.tokenizers import build_tokenizer, to_state
from jowa.models.world_action import WorldActionModel


def pretrain(config: PretrainConfig) -> Path:
    """Trains both stages to their end; returns the run directory."""
    check_sizes(config)
    check_seed(config.seed)
    check_phase("stage1", config.stage1)
    check_phase("stage2", config.stage2)
    if not config.stage1.steps and not config.stage2.steps:
        raise UserError(
            "stage1.steps and stage2.steps are both 0: give one of them steps to train."
        )
    if config.stage2.losses.tokenizer:
        raise UserError(
            f"stage2.losses.tokenizer is {config.stage2.losses.tokenizer}, but stage 2 learns from "
            f"tokens of a tokenizer that stays as it is: set it to 0, and train the tokenizer in "
            f"stage 1 or by `jowa tokenize`."
        )
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

    def phase(name: str, settings: PhaseConfig, tokens: Tokens | None = None) -> Phase:
        objective = Objective(tokenizer, model, settings.losses)
        segments = segments_of(files, settings, config.data.hold_out, config.data.share, tokens)
        return make_phase(name, settings, objective, segments, config.log, config.seed, compute)

    for name, settings in {"stage1": config.stage1, "stage2": config.stage2}.items():
        if settings.steps and not trainer.finished(name):
            phase(name, settings)  # says what the data does not allow before a stage is trained
    if not config.stage1.steps:
        trainer.leave_out("stage1")
    elif not trainer.finished("stage1"):
        trainer.train(phase("stage1", config.stage1))
    if config.stage2.steps and not trainer.finished("stage2"):
        freeze(tokenizer, model)
        stored = encode(tokenizer, files, config.data.root, processes)
        in_memory = int(config.data.cache_gib * 2**30)
        tokens = place(stored, config.data.tokens, compute.device, in_memory)
        trainer.train(phase("stage2", config.stage2, tokens))
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
