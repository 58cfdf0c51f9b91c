"""Which planner plays which game, where settings differ by game."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jowa.errors import UserError
from jowa.games import Game
from jowa.models.world_action import WorldActionConfig
from jowa.planning.config import PlannerConfig

TUNED_VERSION = 1
# Seeds from here on are for choosing settings, those below for reporting scores.
TUNING_SEEDS = 1_000_000_000

# Layers and width of the published models, by which settings that were tuned for one are found.
_SIZES = {(4, 512): "40m", (6, 768): "70m", (12, 768): "150m"}


def planners(
    planner: PlannerConfig, model: WorldActionConfig, games: Sequence[Game]
) -> list[tuple[PlannerConfig, list[Game]]]:
    """The games in groups that share one setting, each with its planner.

    Raises UserError if `planner.per_game` says nothing of this model's size or of a game.
    """
    if not planner.per_game:
        return [(planner, list(games))]
    settings = planner.per_game.get(size_name(model))
    if settings is None:
        raise UserError(
            f"this planner's settings were tuned for the models {', '.join(planner.per_game)}, "
            f"and this one ({model.transformer.layers} layers of width {model.transformer.width}) "
            f"is another: use planner=beam."
        )
    groups: dict[tuple[int, ...], list[Game]] = {}
    for game in games:
        if game.name not in settings:
            raise UserError(
                f"this planner has no setting for {game.name} (only for "
                f"{', '.join(sorted(settings))}): use planner=beam."
            )
        if len(settings[game.name]) != 3:
            raise UserError(
                f"planner.per_game has {settings[game.name]} for {game.name}: write three numbers, "
                f"[context, beam_width, horizon]."
            )
        groups.setdefault(tuple(settings[game.name]), []).append(game)
    return [
        (
            dataclasses.replace(
                planner, context=context, beam_width=beam_width, horizon=horizon, per_game={}
            ),
            group,
        )
        for (context, beam_width, horizon), group in groups.items()
    ]


def size_name(model: WorldActionConfig) -> str:
    """The published name of a model's size, or "other"."""
    return _SIZES.get((model.transformer.layers, model.transformer.width), "other")


def read_tuned(path: str | Path) -> dict[str, Any]:
    """What `jowa tune` wrote; UserError for a missing, damaged or newer file."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        version = stored["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a readable file of `jowa tune` ({error}): make it by that command."
        ) from error
    if version != TUNED_VERSION:
        raise UserError(f"{path} is of version {version}, this jowa reads {TUNED_VERSION}.")
    return dict(stored)


def tuned_planner(
    path: str | Path, model: WorldActionConfig, weights: dict[str, str], seed: int
) -> PlannerConfig:
    """The planner that `jowa tune` chose, with a note that says on which seeds; `weights` and
    `seed` are those of the evaluation."""
    stored = read_tuned(path)
    try:
        planner, settings = PlannerConfig(**stored["planner"]), stored["settings"]
        if stored["per_game"]:
            planner.per_game = {size_name(model): settings}
        else:
            planner.context, planner.beam_width, planner.horizon = next(iter(settings.values()))
        planner.note = (
            f"context, beam width and horizon tuned "
            f"{'for each game' if stored['per_game'] else 'for all games together'} on seed "
            f"{stored['seed']} ({stored['episodes']} episodes a game, cap of "
            f"{stored['max_frames']:,} frames"
            f"{'' if stored['weights'] == weights else ', with other weights'}), reported on seed "
            f"{seed}"
        )
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise UserError(f"{path} lacks part of what `jowa tune` writes ({error}).") from error
    return planner
