"""What play that never looks at the screen scores: random play and every constant action."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jowa.collecting.recipe import Recipe
from jowa.envs import MAX_SEED, AtariEnv
from jowa.files import write_json
from jowa.games import Game

_STREAM = 1000  # of random numbers: no tier has this number


def blind_returns(
    game: Game, action: int | None, episodes: int, max_frames: int, rng: np.random.Generator
) -> list[float]:
    """Raw scores of full games in which `action` is held, None for uniformly random actions."""
    env = AtariEnv(game, max_frames=max_frames)
    env.reset(int(rng.integers(MAX_SEED, endpoint=True)))
    choices = game.action_ids if action is None else (action,)
    returns: list[float] = []
    while len(returns) < episodes:
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated = env.step(choices[rng.integers(len(choices))])
            total, over = total + reward, terminated or truncated
        returns.append(total)
        env.reset()
    return returns


def record_blind_returns(
    game: Game, action: int | None, episodes: int, recipe: Recipe, path: Path
) -> None:
    """Writes `blind_returns` as JSON, under the frame cap and seed of a recipe."""
    stream = [recipe.seed, game.id, _STREAM, 0 if action is None else 1 + action]
    rng = np.random.default_rng(stream)
    write_json(path, blind_returns(game, action, episodes, recipe.max_frames, rng))
