"""Players that do not look at the screen: the bar that anything learned has to clear."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jowa.evaluation.rollout import by_game, play
from jowa.evaluation.scores import (
    PROTOCOL_EPSILON,
    PROTOCOL_STICKY,
    GameBaselines,
    GameScores,
    baselines_from,
)
from jowa.files import write_json
from jowa.games import FULL_ACTION_SET, Game, by_id

Actions = NDArray[np.int64]


class RandomPolicy:
    """Uniformly random legal actions, from a generator for every slot and episode.

    A slot is known by its game and its place among the rows of that game, so its actions do not
    depend on the other games that are played.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._episodes: dict[tuple[int, int], int] = {}
        self._rngs: list[np.random.Generator | None] = []

    def reset(self, which: NDArray[np.bool_]) -> None:
        if len(which) != len(self._rngs):
            self._rngs = [None] * len(which)
        for row in np.flatnonzero(which):
            self._rngs[row] = None

    def act(
        self,
        frames: NDArray[np.uint8],
        games: Actions,
        active: NDArray[np.bool_] | None = None,
    ) -> Actions:
        actions = np.zeros(len(games), dtype=np.int64)
        for row in range(len(games)):
            if active is not None and not active[row]:
                continue
            rng = self._rngs[row]
            if rng is None:
                rng = self._rngs[row] = self._start(games, row)
            legal = by_id(int(games[row])).action_ids
            actions[row] = legal[rng.integers(len(legal))]
        return actions

    def executed(self, actions: Actions) -> None:
        """Random play has no memory."""

    def _start(self, games: Actions, row: int) -> np.random.Generator:
        slot = (int(games[row]), int((games[:row] == games[row]).sum()))
        episode = self._episodes.get(slot, 0)
        self._episodes[slot] = episode + 1
        return np.random.default_rng(np.random.SeedSequence((self.seed, *slot, episode, 1)))


class ConstantPolicy:
    """The same action at every step: `action_by_game` maps game ids to actions of the 18 set."""

    def __init__(self, action_by_game: Mapping[int, int]) -> None:
        self.action_by_game = dict(action_by_game)

    def reset(self, which: NDArray[np.bool_]) -> None:
        """Constant play has no memory."""

    def act(
        self,
        frames: NDArray[np.uint8],
        games: Actions,
        active: NDArray[np.bool_] | None = None,
    ) -> Actions:
        return np.array([self.action_by_game[int(game)] for game in games], dtype=np.int64)

    def executed(self, actions: Actions) -> None:
        """Constant play has no memory."""


def best_constant(
    games: Sequence[Game], **protocol: Any
) -> dict[str, tuple[str, dict[str, GameScores]]]:
    """For every game the best action to hold, and the scores of each of its legal actions by name.

    `protocol` is passed on to `play`. The best of up to 18 means is chosen on the same episodes
    that it is reported on, which favours the baseline: a fair bar for an agent, if a high one.
    """
    scores: dict[str, dict[str, GameScores]] = {game.name: {} for game in games}
    for place in range(max(len(game.actions) for game in games)):
        playing = [game for game in games if place < len(game.actions)]
        policy = ConstantPolicy({game.id: game.action_ids[place] for game in playing})
        for name, result in by_game(play(policy, playing, **protocol)).items():
            action = next(game for game in playing if game.name == name).actions[place]
            scores[name][action] = result
    return {
        name: (max(actions, key=lambda action: actions[action].mean), actions)
        for name, actions in scores.items()
    }


def baseline_scores(
    game: Game,
    *,
    episodes: int,
    envs_per_game: int,
    seed: int,
    max_frames: int,
    epsilon: float = PROTOCOL_EPSILON,
    sticky: float = PROTOCOL_STICKY,
    cache_dir: str | Path | None = None,
) -> GameBaselines:
    """Random and best constant play of a game, kept in `cache_dir` for the same settings."""
    protocol: dict[str, Any] = {
        "episodes": episodes,
        "envs_per_game": envs_per_game,
        "seed": seed,
        "max_frames": max_frames,
        "epsilon": epsilon,
        "sticky": sticky,
    }
    key = {"game": game.name, **protocol, "ale-py": importlib.metadata.version("ale-py")}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = None if cache_dir is None else Path(cache_dir) / f"{game.name}-{digest}.json"
    if path is not None and (cached := _cached(path, key)) is not None:
        return cached
    random = by_game(play(RandomPolicy(seed), [game], **protocol))[game.name]
    action, scores = best_constant([game], **protocol)[game.name]
    means = {name: scores[name].mean for name in FULL_ACTION_SET if name in scores}
    baselines = GameBaselines(game.name, random, scores[action], action, means)
    if path is not None:
        write_json(path, {"key": key, "baselines": asdict(baselines)})
    return baselines


def _cached(path: Path, key: dict[str, Any]) -> GameBaselines | None:
    """The stored baselines, None where there are none for this key or the file is damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return baselines_from(stored["baselines"]) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
