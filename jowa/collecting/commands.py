"""What `jowa collect` and `jowa games` do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jowa import games as game_facts
from jowa.collecting.behaviours import Tier
from jowa.collecting.collect import collect as collect_games
from jowa.collecting.config import CollectConfig, GamesConfig
from jowa.collecting.teachers import TEACHERS
from jowa.progress import progress_bar


def collect(config: CollectConfig) -> Path:
    """Plays the games and writes their episodes; returns the data's folder."""
    for name in config.games:
        game_facts.get(name)
    tiers = [Tier(**vars(tier)) for tier in config.tiers]
    if any(tier.behaviour == "search" for tier in tiers):
        print("a search tier is privileged: it simulates the game's future before it acts")
    settings = {k: v for k, v in vars(config).items() if k not in ("games", "root", "tiers")}
    settings["workers"] = config.workers or len(os.sched_getaffinity(0))
    with progress_bar("collecting", config.transitions * len(config.games), "step") as bar:
        seen: dict[str, int] = {}

        def advance(game: str, done: int, _: int) -> None:
            if game not in seen:  # what an interrupted run left says nothing of the speed
                bar.initial += done
            bar.update(done - seen.get(game, 0))
            seen[game] = done

        try:
            made = collect_games(
                config.games, config.root, tiers=tiers, progress=advance, **settings
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "finished parts are kept, and the same command goes on from there"
            ) from None
    print("\n".join(_table(made)))
    return Path(config.root)


def _table(made: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each tier of each game: returns of full games beside those of blind play."""
    rows = [
        f"{'game':<18} {'tier':<12} {'transitions':>11} {'games':>6} {'mean':>10} {'min':>9} "
        f"{'max':>9} {'steps/s':>8}  random, best constant action"
    ]
    for name, game in made.items():
        facts = game["facts"]
        blind = (
            f"{facts['random']:.1f}, {facts['constants'][facts['best_constant']]:.1f} "
            f"({facts['best_constant']})"
            if "random" in facts
            else "-"
        )
        rows += [
            f"{name:<18} {tier:<12} {part['transitions']:>11,} {part['full_games']:>6} "
            f"{_number(part['mean_return']):>10} {_number(part['min_return']):>9} "
            f"{_number(part['max_return']):>9} {_number(part['steps_per_second']):>8}  {blind}"
            for tier, part in facts["tiers"].items()
        ]
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


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
