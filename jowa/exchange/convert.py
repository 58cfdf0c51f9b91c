"""`jowa convert dqn_replay`: files of the DQN Replay dataset become episodes of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jowa import games
from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.exchange.config import ConvertDqnReplayConfig
from jowa.exchange.download import Patience
from jowa.exchange.dqn_replay import Layout
from jowa.exchange.jobs import run_jobs
from jowa.exchange.replay_parts import COUNTERS, Conversion, conversion_job, describe, remove_parts
from jowa.exchange.replay_sampling import Sampling
from jowa.exchange.replay_source import Source
from jowa.progress import progress_bar

_MEGABYTE = 1_000_000


def convert_dqn_replay(config: ConvertDqnReplayConfig) -> Path:
    """Converts the games and says what was found; returns the data's folder."""
    workers = config.workers or len(os.sched_getaffinity(0))
    if workers < 1:
        raise UserError(f"workers is {workers}; use 1 or more, or 0 for one a core.")
    missing = []
    for conversion in _conversions(config):
        if config.overwrite or not conversion.path.exists():
            _check_source(conversion)
            missing.append(conversion)
        else:
            _check_kept(conversion)
            remove_parts(conversion)
            _print(describe(conversion.path), "kept")
    if missing:
        _convert(missing, workers, config.download)
    return Path(config.root)


def _conversions(config: ConvertDqnReplayConfig) -> list[Conversion]:
    """How each game is converted; UserError for settings that make no sense."""
    sampling = Sampling(
        transitions=config.transitions,
        runs=tuple(config.runs),
        draw_runs=config.draw_runs,
        checkpoints=tuple(config.checkpoints),
        last_checkpoints=config.last_checkpoints,
        seed=config.seed,
        layout=Layout(config.lap_rows, config.time_limit),
    )
    if config.delete_converted and not config.download:
        raise UserError(
            "delete_converted=true deletes what can be fetched again: it needs download=true."
        )
    if not config.url.startswith(("https://", "http://")):
        raise UserError(f"url is {config.url!r}; it must start with https:// or http://.")
    if config.retries < 0:
        raise UserError(f"retries is {config.retries}; use 0 or more.")
    source = Source(
        Path(config.source),
        config.url if config.download else None,
        Patience(retries=config.retries),
    )
    chosen = [games.get(name) for name in dict.fromkeys(config.games)]
    if not chosen:
        raise UserError("games is empty: name at least one.")
    return [
        Conversion(game, source, sampling, Path(config.root), config.delete_converted)
        for game in chosen
    ]


def _check_source(conversion: Conversion) -> None:
    """Complains of a folder that lacks a run before workers are started, not hours later."""
    source, sampling = conversion.source, conversion.sampling
    if source.url is None:
        for run in sampling.runs_of(conversion.game):
            source.checkpoints(conversion.game, run, lambda _: None)


def _check_kept(conversion: Conversion) -> None:
    with EpisodeFile(conversion.path) as present:
        if present.provenance != conversion.provenance():
            raise UserError(
                f"{conversion.path} was made with other settings; pass overwrite=true to replace "
                f"it or another root to keep both."
            )


def _convert(conversions: list[Conversion], workers: int, download: bool) -> None:
    """Runs all conversions under a bar of rows and, with `download`, one of megabytes."""
    planned = 0
    with (
        progress_bar("fetching", 0, "MB", shown=download) as fetching,
        progress_bar("converting", 0, "row") as converting,
    ):

        def plan(rows: int) -> None:
            nonlocal planned
            planned += rows
            converting.total = planned

        def look(totals: dict[str, int]) -> None:
            fetching.update(totals["bytes"] // _MEGABYTE - fetching.n)
            converting.update(totals["rows"] - converting.n)

        jobs = [conversion_job(conversion, plan) for conversion in conversions]
        for _, result in run_jobs(jobs, workers, COUNTERS, look):
            _print(result, "converted")


def _print(result: dict[str, Any], status: str) -> None:
    """What a game's file holds, and what was found in the dataset's files."""
    facts, tiers = result["facts"], result["tiers"]
    parts = ", ".join(f"{name} {tier['transitions']:,}" for name, tier in tiers.items())
    print(
        f"{result['game']} ({status}): {result['transitions']:,} transitions ({parts}), "
        f"{result['episodes']:,} of {facts['whole_episodes']:,} episodes, runs "
        f"{', '.join(map(str, result['runs']))}, {len(facts['files'])} files"
    )
    padding = ", ".join(f"{rows} x {n:,}" for rows, n in facts["episodes_by_padding"].items())
    print(
        f"  of {facts['rows']:,} rows in no whole episode: {facts['head_rows']:,} of heads, "
        f"{facts['tail_rows']:,} of tails, {facts['unwritten_rows']:,} last ones, "
        f"{facts['stale_rows']:,} stale ones\n"
        f"  in the episodes: {facts['padding_rows']:,} rows of padding ({padding}), "
        f"{facts['zero_frames']:,} zero frames that are none; {facts['truncated_episodes']:,} "
        f"reached the time limit, {facts['overlong_episodes']:,} went past it",
        flush=True,
    )
