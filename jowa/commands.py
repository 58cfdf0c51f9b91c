"""What the verbs do that are not learning or play: `collect`, `games`, `report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jowa import games as game_facts
from jowa.config import CollectConfig, GamesConfig, ReportConfig
from jowa.data.behaviours import Tier
from jowa.data.collect import collect as collect_games
from jowa.data.teachers import TEACHERS
from jowa.errors import UserError
from jowa.evaluation.report import Comparison, ReportInput, write_report
from jowa.evaluation.scores import ScoreFile
from jowa.learning.monitor import progress_bar

# What the report draws of a run's log, in this order.
CURVES = (
    "tokenizer/foreground_kept",
    "world_model/observation",
    "accuracy/tokens",
    "accuracy/changed_tokens",
    "accuracy/nonzero_rewards",
    "q/td",
    "q/data_actions",
    "q/greedy_is_data_action",
    "speed/tokens_per_second",
)


def collect(config: CollectConfig) -> Path:
    """Plays the games and writes their episodes; returns the data's folder."""
    for name in config.games:
        game_facts.get(name)
    tiers = [Tier(**vars(tier)) for tier in config.tiers]
    with progress_bar("collecting", config.transitions * len(config.games), "step") as bar:
        seen = dict.fromkeys(config.games, 0)

        def advance(game: str, done: int, _: int) -> None:
            bar.update(done - seen[game])
            seen[game] = done

        made = collect_games(
            config.games,
            config.root,
            transitions=config.transitions,
            tiers=tiers,
            short_episode_steps=config.short_episode_steps,
            short_share=config.short_share,
            max_frames=config.max_frames,
            seed=config.seed,
            workers=config.workers or len(os.sched_getaffinity(0)),
            overwrite=config.overwrite,
            progress=advance,
        )
    for name, statistics in made.items():
        print(_describe(name, statistics))
    return Path(config.root)


def _describe(name: str, statistics: dict[str, Any]) -> str:
    tiers = [
        f"{tier} {part['mean_return']:.1f} ({part['full_episodes']})"
        for tier, part in statistics["tiers"].items()
        if part["mean_return"] is not None
    ]
    return (
        f"{name}: {statistics['transitions']:,} transitions, {statistics['episodes']} episodes; "
        f"mean score of full games (their number): {', '.join(tiers) or 'none finished'}"
    )


def list_games(_: GamesConfig) -> None:
    """Prints the table of games."""
    print(
        f"{'id':>2}  {'game':<18} {'actions':>7} {'random':>10} {'human':>10} {'DQN':>10}  teacher"
    )
    for game in game_facts.GAMES.values():
        known = [f"{x:>10.1f}" if x is not None else f"{'-':>10}" for x in _scores(game)]
        teacher = "yes" if game.name in TEACHERS else ""
        row = f"{game.id:>2}  {game.name:<18} {len(game.actions):>7} {' '.join(known)}  {teacher}"
        print(row.rstrip())


def _scores(game: game_facts.Game) -> tuple[float | None, ...]:
    return game.random, game.human, game.dqn


def report(config: ReportConfig) -> Path:
    """Writes the report; returns the HTML file's path."""
    files = [ScoreFile.load(path) for path in config.scores]
    runs = [Path(run) for run in config.runs]
    for run in runs:
        if not (run / "metrics.jsonl").exists():
            raise UserError(f"{run} is not a run directory (no metrics.jsonl): mend runs=[...].")
    data_means: dict[str, float | None] = {}
    for file in files:
        data_means |= file.data_means
    timings = read_timings(Path(config.timings)) if config.timings else {}
    pictures = [
        (f"{run.name}: {caption}", run / "images" / f"{name}.png")
        for run in runs
        for name, caption in (
            ("reconstructions", "frames (above) and what the tokenizer keeps of them (below)"),
            ("dream", "what happened (above) and what the model dreams from two frames (below)"),
        )
        if (run / "images" / f"{name}.png").exists()
    ]
    page = write_report(
        ReportInput(
            title=config.title,
            evaluations=[e for file in files for e in file.evaluations],
            baselines={name: b for file in files for name, b in file.baselines.items()},
            data_means=data_means,
            curves=[(run.name, run / "metrics.jsonl") for run in runs],
            metrics=CURVES,
            images=pictures,
            film=config.film,
            timings=timings,
            comparisons=[_comparison(pair) for pair in config.compare],
        ),
        config.out,
    )
    print(f"report: {page}")
    return page


def read_timings(path: Path) -> dict[str, float]:
    """Seconds by stage from lines such as `72 tokenize`; a stage named twice is summed."""
    timings: dict[str, float] = {}
    try:
        for line in path.read_text().splitlines():
            seconds, _, name = line.partition(" ")
            timings[name] = timings.get(name, 0.0) + float(seconds)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} does not hold timings ({error}): write a line `SECONDS STAGE` each."
        ) from error
    return timings


def _comparison(pair: str) -> Comparison:
    first, bar, second = pair.partition("|")
    if not bar:
        raise UserError(f'compare has {pair!r}: write two labels as "first|second".')
    return Comparison(f"{second} against {first}", first, second)
