"""Makes a game's file of its finished parts, with what was found while they were played."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jowa.collecting.recipe import Recipe, Unit
from jowa.data.episodes import END_NONE, EpisodeFile
from jowa.data.parts import join_parts
from jowa.games import FULL_ACTION_SET, Game


@dataclasses.dataclass(frozen=True)
class _Part:
    """The first `episodes` episodes of a part file, and what is told of them."""

    path: Path
    episodes: int
    transitions: int
    returns: list[float]  # of full games that were played to their end
    steps: int  # played for it, unrecorded ones included
    seconds: float
    learning: dict[str, Any] | None  # what a learner found


def join_game(
    game: Game,
    recipe: Recipe,
    parts: Mapping[Unit, Path],
    blind: Mapping[int | None, Path],
    path: Path,
    folder: Path,
) -> None:
    """Joins `parts`, which lie in `folder`, to `path`, and removes the folder.

    Of the full games of a tier those are taken, in the order of the units, that it needs to reach
    its budget. `blind` are the scores of random play (None) and of constant actions.
    """
    chosen = _choose(recipe, parts)
    facts = {
        "tiers": {tier.name: _facts(chosen[i]) for i, tier in enumerate(recipe.tiers)},
        "all": _facts([part for tier in chosen.values() for part in tier]),
        **_blind_facts(blind),
        "checkpoints": {tier.name: tier.checkpoint for tier in recipe.tiers if tier.checkpoint},
    }
    in_order = [part for tier in chosen.values() for part in tier]
    join_parts(
        [part.path for part in in_order],
        path,
        game,
        source=recipe.source,
        tiers=[tier.name for tier in recipe.tiers],
        provenance=recipe.provenance(),
        facts=facts,
        episodes=[part.episodes for part in in_order],
    )
    shutil.rmtree(folder)


def _choose(recipe: Recipe, parts: Mapping[Unit, Path]) -> dict[int, list[_Part]]:
    """The parts of each tier, as far as they are needed."""
    chosen: dict[int, list[_Part]] = {tier: [] for tier in range(len(recipe.tiers))}
    taken: Counter[tuple[int, str]] = Counter()
    for unit, path in parts.items():
        left = recipe.budgets(unit.tier)[unit.kind] - taken[unit.tier, unit.kind]
        if left > 0:
            part = _read(path, unit.kind, left)
            chosen[unit.tier].append(part)
            taken[unit.tier, unit.kind] += part.transitions
    return chosen


def _read(path: Path, kind: str, needed: int) -> _Part:
    """A part; of full games the first ones that have `needed` transitions between them, or all."""
    with EpisodeFile(path) as file:
        stops = file.episode_starts[1:]
        episodes = len(stops)
        if kind == "full":
            episodes = min(int(np.searchsorted(stops, needed)) + 1, episodes)
        scored = (file.episode_full == 1) & (file.ends[stops - 1] != END_NONE)
        returns: list[float] = []
        if file.raw_rewards is not None:
            points = file.raw_rewards.astype(np.float64)
            sums = np.add.reduceat(points, file.episode_starts[:-1])
            returns = sums[:episodes][scored[:episodes]].tolist()
        transitions = int(stops[episodes - 1])
        steps, seconds = file.facts.get("steps", transitions), file.facts.get("seconds", 0.0)
        learning = file.facts if kind == "whole" else None
    return _Part(path, episodes, transitions, returns, steps, seconds, learning)


def _facts(parts: Sequence[_Part]) -> dict[str, Any]:
    """Transitions, returns of full games, and what the play cost."""
    returns = [score for part in parts for score in part.returns]
    seconds = sum(part.seconds for part in parts)
    steps = sum(part.steps for part in parts)
    learning = [part.learning for part in parts if part.learning is not None]
    return {
        "transitions": sum(part.transitions for part in parts),
        "full_games": len(returns),
        "mean_return": float(np.mean(returns)) if returns else None,
        "min_return": min(returns, default=None),
        "max_return": max(returns, default=None),
        "steps": steps,
        "seconds": round(seconds, 3),
        "steps_per_second": round(steps / seconds, 1) if seconds else None,
        **({"learning": learning[0]} if len(parts) == len(learning) == 1 else {}),
    }


def _blind_facts(blind: Mapping[int | None, Path]) -> dict[str, Any]:
    """Mean returns of random play and of every constant action, and which of those is best."""
    if not blind:
        return {}
    returns = {action: json.loads(path.read_text()) for action, path in blind.items()}
    means = {action: float(np.mean(scores)) for action, scores in returns.items()}
    random = means.pop(None)
    constants = {
        FULL_ACTION_SET[action]: mean for action, mean in means.items() if action is not None
    }
    best = max(constants, key=lambda name: constants[name])
    return {
        "random": random,
        "constants": constants,
        "best_constant": best,
        "blind_episodes": len(returns[None]),
    }
