"""`jowa finetune`: a pretrained agent learns a held-out game from a few demonstrations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from jowa import games
from jowa.agent import build
from jowa.data.loader import Loading
from jowa.errors import UserError
from jowa.games import Game
from jowa.learning import checkpoint as checkpoints
from jowa.learning.compute import resolve
from jowa.learning.config import FinetuneConfig
from jowa.learning.loss_config import check_losses
from jowa.learning.monitor import check_log
from jowa.learning.objective import Objective
from jowa.learning.pictures import dreams, reconstructions
from jowa.learning.run import open_data, open_run, set_backgrounds, set_perceptual
from jowa.learning.tokenize import check_phase, make_phase, picture_batch, segments_of
from jowa.learning.trainer import Trainer
from jowa.learning.validation import check_hold_out
from jowa.models.world_action import WorldActionModel


def finetune(config: FinetuneConfig) -> Path:
    """Trains tokenizer, world model and Q together on the game; returns the run directory."""
    check_phase("training", config.training)
    check_log(config.log)
    check_hold_out(config.hold_out)
    loading = Loading(config.workers, config.prefetch)
    compute = resolve(config.compute)
    game = games.get(config.game)
    folder = checkpoints.find(config.checkpoint)
    saved = checkpoints.load(folder)
    known = saved.state["games"]
    if game.name in known:
        raise UserError(
            f"{game.name} is one of the games that {folder} was trained on ({', '.join(known)}): "
            f"fine-tuning is for a game it never saw."
        )
    like = games.get(config.like) if config.like is not None else None
    if like is not None and like.name not in known:
        raise UserError(
            f"like={like.name} is not a pretrained game; use one of {', '.join(known)}."
        )
    files = open_data(config.root, [game.name], config.cache_gib)
    torch.manual_seed(config.seed)
    tokenizer, model = build(saved, fresh=config.from_scratch)
    imagines = config.training.imagination.share > 0
    check_losses("training", config.training.losses, model.config, imagines)
    set_backgrounds(tokenizer, files)
    set_perceptual(tokenizer, config.perceptual)
    if like is not None and not config.from_scratch:
        copy_task_embedding(model, like, game)
    processes = compute.processes
    run = processes.in_turn(lambda: open_run(config.run, config))
    sample = picture_batch(files).to(compute.device)
    trainer = Trainer(
        run,
        tokenizer,
        model,
        compute,
        config.log,
        facts={
            "tokenizer": saved.state["tokenizer"],
            "model": saved.state["model"],
            "games": [game.name] if config.from_scratch else [*known, game.name],
            "config": dataclasses.asdict(config),
            "started_from": None if config.from_scratch else checkpoints.origin(folder, saved),
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
    if not trainer.finished("finetune"):
        objective = Objective(tokenizer, model, config.training.losses)
        segments = segments_of(files, config.training, config.hold_out)
        trainer.train(
            make_phase(
                "finetune", config.training, objective, segments, config.log, config.seed, compute
            )
        )
    return run


@torch.no_grad()
def copy_task_embedding(model: WorldActionModel, source: Game, target: Game) -> None:
    """Starts a game from the task embedding of a similar one (JOWA paper, section 4.4)."""
    if model.config.task_embedding:
        for table in (model.task_action_embedding, model.task_observation_embedding):
            table.weight[target.id] = table.weight[source.id]
