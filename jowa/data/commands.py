"""What `jowa collect` and `jowa games` do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jowa import games as game_facts
from jowa.data.behaviours import Tier
from jowa.data.collect import collect as collect_games
from jowa.data.config import CollectConfig, GamesConfig
from jowa.data.teachers import TEACHERS
from jowa.learning.monitor import progress_bar


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
