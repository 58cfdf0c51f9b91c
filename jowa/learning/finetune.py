"""`jowa finetune`: a pretrained agent learns a held-out game from a few demonstrations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from jowa import games
from jowa.agent import build
from jowa.data.loader import Loading
from jowa.errors import UserError
from jowa.games import Game
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import Checkpoint
from jowa.learning.checks import check_phase, check_seed
from jowa.learning.compute import resolve
from jowa.learning.config import FinetuneConfig
from jowa.learning.loss_config import check_losses
from jowa.learning.monitor import check_log
from jowa.learning.objective import Objective
from jowa.learning.pictures import dreams, reconstructions
from jowa.learning.run import open_data, open_run, set_backgrounds, set_perceptual
from jowa.learning.tokenize import make_phase, picture_batch, segments_of
from jowa.learning.trainer import Trainer
from jowa.learning.validation import check_hold_out
from jowa.models.world_action import WorldActionModel


def finetune(config: FinetuneConfig) -> Path:
    """Trains tokenizer, world model and Q together on the game; returns the run directory."""
    check_seed(config.seed)
    check_phase("training", config.training, least_steps=1)
    check_log(config.log)
    check_hold_out(config.hold_out)
    loading = Loading(config.workers, config.prefetch)
    compute = resolve(config.compute)
    game = games.get(config.game)
    started = checkpoints.newest(Path(config.run))
    if started is not None:
        open_run(config.run, config)  # before what another run left is read as if it were ours
    # Once started, a run needs its source no more: that may be gone, or have gone on itself.
    folder = started or checkpoints.find(config.checkpoint)
    saved = checkpoints.load(folder)
    like = check_games(config, game, folder, saved.state["games"]) if started is None else None
    files = open_data(config.root, [game.name], config.cache_gib)
    torch.manual_seed(config.seed)
    tokenizer, model = build(saved, fresh=config.from_scratch)
    imagines = config.training.imagination.share > 0
    check_losses("training", config.training.losses, model.config, imagines)
    set_backgrounds(tokenizer, files)
    set_perceptual(tokenizer, config.perceptual)
    if like is not None:
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
            "config": dataclasses.asdict(config),
            **facts_of(config, game, folder, saved, started is not None),
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
        if segments.held_out is not None and not segments.held_out.num_segments:
            episodes = files[0].num_episodes
            raise UserError(
                f"hold_out={config.hold_out} holds out none of the {episodes} episodes of "
                f"{game.name}: use {episodes} or less, or 0 to learn from all."
            )
        trainer.train(
            make_phase(
                "finetune", config.training, objective, segments, config.log, config.seed, compute
            )
        )
    return run


def check_games(config: FinetuneConfig, game: Game, folder: Path, known: list[str]) -> Game | None:
    """The game whose task embedding to start from; UserError where games do not go together."""
    if game.name in known:
        raise UserError(
            f"{game.name} is one of the games that {folder} was trained on ({', '.join(known)}): "
            f"fine-tuning is for a game it never saw."
        )
    if config.like is None:
        return None
    like = games.get(config.like)
    if like.name not in known:
        raise UserError(
            f"like={like.name} is not a pretrained game; use one of {', '.join(known)}."
        )
    if config.from_scratch:
        raise UserError(
            f"like={like.name} starts from an embedding that was learned, and from_scratch=true "
            f"from nothing that was: leave one of them out."
        )
    return like


def facts_of(
    config: FinetuneConfig, game: Game, folder: Path, saved: Checkpoint, started: bool
) -> dict[str, Any]:
    """What the run's checkpoints say of its games and origin; `saved` is the run's own if it is
    `started`, else its source's."""
    if started:
        return {key: saved.state.get(key) for key in ("games", "started_from")}
    if config.from_scratch:
        return {"games": [game.name], "started_from": None}
    origin = checkpoints.origin(folder, saved)
    return {"games": [*saved.state["games"], game.name], "started_from": origin}


@torch.no_grad()
def copy_task_embedding(model: WorldActionModel, source: Game, target: Game) -> None:
    """Starts a game from the task embedding of a similar one (JOWA paper, section 4.4)."""
    if model.config.task_embedding:
        for table in (model.task_action_embedding, model.task_observation_embedding):
            table.weight[target.id] = table.weight[source.id]
