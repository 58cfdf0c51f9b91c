"""`jowa tokenize`: a tokenizer trained alone, and the data encoded with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from jowa.data.episodes import EpisodeFile
from jowa.data.sampler import Balance
from jowa.data.segments import Batch, Sampler, SegmentDataset
from jowa.data.tokens import encode_store
from jowa.errors import UserError
from jowa.learning.checks import check_phase, check_seed
from jowa.learning.compute import Compute, resolve
from jowa.learning.config import PhaseConfig, TokenizeConfig
from jowa.learning.distributed import Processes
from jowa.learning.imagination import REST, Imagination
from jowa.learning.monitor import LogConfig, check_log
from jowa.learning.objective import Objective
from jowa.learning.pictures import reconstructions
from jowa.learning.run import open_data, open_run, set_backgrounds, set_perceptual
from jowa.learning.trainer import Phase, Trainer
from jowa.learning.validation import SEED, Validation, check_hold_out
from jowa.models.tokenizer import Tokenizer
from jowa.models.tokenizers import build_tokenizer, to_state
from jowa.models.world_action import WorldActionModel
from jowa.progress import progress_bar


def tokenize(config: TokenizeConfig) -> Path:
    """Trains the tokenizer, then encodes every game; returns the run directory."""
    check_seed(config.seed)
    check_phase("training", config.training, least_steps=1)
    if config.training.losses.trains_model:
        raise UserError(
            "training.losses gives weight to a model's loss, but `jowa tokenize` trains a "
            "tokenizer alone: leave world_model, q and cloning at 0."
        )
    check_log(config.log)
    check_hold_out(config.data.hold_out, config.data.share)
    loading = config.data.loading()
    compute = resolve(config.compute)
    torch.manual_seed(config.seed)
    files = open_data(config.data.root, config.data.games, config.data.cache_gib)
    tokenizer = build_tokenizer(config.tokenizer)
    set_backgrounds(tokenizer, files)
    set_perceptual(tokenizer, config.perceptual)
    run = compute.processes.in_turn(lambda: open_run(config.run, config))
    sample = picture_batch(files).to(compute.device)
    trainer = Trainer(
        run,
        tokenizer,
        None,
        compute,
        config.log,
        facts={
            "tokenizer": to_state(config.tokenizer),
            "games": config.data.games,
            "config": dataclasses.asdict(config),
        },
        seed=config.seed,
        compile=compute.compiles(config.compile),
        replay=compute.replays(config.replay),
        pictures=lambda: {"reconstructions": reconstructions(tokenizer, sample)},
        loading=loading,
    )
    if not trainer.finished("tokenizer"):
        segments = segments_of(files, config.training, config.data.hold_out, config.data.share)
        objective = Objective(tokenizer, None, config.training.losses)
        trainer.train(
            make_phase(
                "tokenizer", config.training, objective, segments, config.log, config.seed, compute
            )
        )
    encode(tokenizer, files, config.data.root, compute.processes)
    return run


Tokens = list[np.ndarray] | Tensor  # of all files, as `jowa.data.tokens.place` puts them


class Segments(NamedTuple):
    """What a phase learns from, and what it never sees; None if nothing is held out."""

    training: SegmentDataset
    held_out: SegmentDataset | None = None


def segments_of(
    files: list[EpisodeFile],
    phase: PhaseConfig,
    hold_out: int,
    share: float = 1.0,
    tokens: Tokens | None = None,
) -> Segments:
    """The phase's segments, of frames or of tokens."""

    def dataset(held_out: bool) -> SegmentDataset:
        return SegmentDataset(
            files,
            tokens,
            length=phase.length,
            stride=phase.stride,
            hold_out=hold_out,
            held_out=held_out,
            share=share,
        )

    return Segments(dataset(False), dataset(True) if hold_out else None)


def make_phase(
    name: str,
    config: PhaseConfig,
    objective: Objective,
    segments: Segments,
    log: LogConfig,
    seed: int,
    compute: Compute,
) -> Phase:
    """A phase for the trainer from its configuration, with this process's share of the data."""
    dataset, processes = segments.training, compute.processes

    def sampler(
        drawn_from: SegmentDataset, batch_size: int, seed: int, reward_fraction: float
    ) -> Sampler:
        return Sampler(
            drawn_from,
            batch_size,
            seed=seed,
            balance=cast(Balance, config.balance),  # which the sampler checks
            reward_fraction=reward_fraction,
            rank=processes.rank,
            world_size=processes.size,
        )

    imagination = None
    imagined = config.imagination.imagined(config.batch_size)
    few = config.losses.world_one_in
    together = few * processes.size
    if (imagined or few > 1) and (imagined % together or config.batch_size % together):
        raise UserError(
            f"{name}: {config.batch_size - imagined} real and {imagined} imagined segments cannot "
            f"be split over {processes.size} processes in groups of {few} (losses.world_one_in): "
            f"choose a batch_size and an imagination.share that make both multiples."
        )
    if imagined:
        rest = sampler(dataset, imagined, seed + REST, config.reward_fraction)
        imagination = Imagination(config.imagination, dataset, rest, seed, processes)
    validation, held_out = None, segments.held_out
    if held_out is not None:
        share = min(config.batch_size, held_out.num_segments) // processes.size
        if share:
            # As they come, whatever segments training prefers.
            drawn = sampler(held_out, share * processes.size, SEED, 0.0)
            validation = Validation(held_out, drawn, log.validation_batches, compute)
    return Phase(
        name,
        config.steps,
        objective,
        dataset,
        sampler(dataset, config.batch_size - imagined, seed, config.reward_fraction),
        config.optimizer,
        config.target_update_every,
        imagination,
        validation,
    )


def encode(
    tokenizer: Tokenizer, files: list[EpisodeFile], root: str, processes: Processes
) -> list[np.ndarray]:
    """Tokens (N, 36) of every file by this tokenizer, made once and kept beside the data.

    Each process encodes files of its own, and all read them in the end.
    """
    tokenizer.eval()
    fingerprint, folder = tokenizer.fingerprint(), Path(root) / "tokens"
    mine = files[processes.rank :: processes.size]
    total = sum(file.num_transitions for file in mine)
    with progress_bar("encoding", total, "frame", shown=processes.first) as bar:
        seen = dict.fromkeys((file.game.name for file in mine), 0)

        def advance(game: str, done: int, _: int) -> None:
            bar.update(done - seen[game])
            seen[game] = done

        encode_store(mine, tokenizer.encode_frames, fingerprint, folder, advance)
    processes.wait()
    return encode_store(files, tokenizer.encode_frames, fingerprint, folder)


def picture_batch(files: list[EpisodeFile], most: int = 4) -> Batch:
    """One segment of 8 frames a game, from the middle of its data, for pictures.

    Without padding, unless all episodes of the game are shorter than that.
    """
    dataset = SegmentDataset(files, stride=8)
    chosen = []
    for game in dict.fromkeys(dataset.segment_game.tolist()):
        own = np.flatnonzero(dataset.segment_game == game)
        longest = own[dataset.segment_steps[own] == dataset.segment_steps[own].max()]
        chosen.append(longest[len(longest) // 2])
    return dataset.batch(np.array(chosen[:most]))


def freeze(tokenizer: Tokenizer, model: WorldActionModel) -> None:
    """Ends the tokenizer's training and gives the model its final codebook."""
    tokenizer.requires_grad_(False)
    tokenizer.eval()
    model.set_codes(tokenizer)
