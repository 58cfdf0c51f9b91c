"""`jowa data probe`: what play a small pixel network can learn from each game's data alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jowa.data.episodes import EpisodeFile
from jowa.data.store import store_paths
from jowa.errors import UserError
from jowa.evaluation.baselines import baseline_scores
from jowa.evaluation.config import ProbeConfig
from jowa.evaluation.rollout import by_game, play
from jowa.evaluation.scores import Evaluation, GameBaselines, GameScores, ScoreFile, make_settings
from jowa.games import by_id
from jowa.learning.compute import resolve
from jowa.learning.pixel_cloning import Prediction, predict, read_play, train_clone
from jowa.models.pixel_clone import STACK, PixelClone
from jowa.progress import progress_bar

_COLUMNS = "{:<15} {:<10} {:>13} {:>13} {:>13} {:>9} {:>9} {:>9} {:>9}"
_SLOTS = 8  # environments at once


@dataclass(frozen=True)
class Probed:
    """One game's result: what was cloned, how well, and what the clone and others score."""

    tiers: tuple[str, ...]
    prediction: Prediction
    scores: GameScores
    baselines: GameBaselines | None
    data_mean: float | None
    seconds: float


class ClonePolicy:
    """A pixel clone at play, in slots of one game.

    With a seed it samples its actions, each slot by a generator of its own; else it takes the most
    probable one.
    """

    def __init__(self, clone: PixelClone, device: torch.device, sample_seed: int | None) -> None:
        self._clone, self._device, self._seed = clone, device, sample_seed
        self._stack = np.zeros((0, STACK, 84, 84), dtype=np.uint8)
        self._fresh = np.zeros(0, dtype=bool)
        self._rngs: list[np.random.Generator] = []

    def reset(self, which: NDArray[np.bool_]) -> None:
        if len(which) != len(self._fresh):
            self._stack = np.zeros((len(which), STACK, 84, 84), dtype=np.uint8)
            self._fresh = np.zeros(len(which), dtype=bool)
            self._rngs = [np.random.default_rng([self._seed or 0, i]) for i in range(len(which))]
        self._fresh |= which

    def act(
        self,
        frames: NDArray[np.uint8],
        games: NDArray[np.int64],
        active: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        self._stack[:, :-1] = self._stack[:, 1:]
        self._stack[:, -1] = frames
        self._stack[self._fresh] = frames[self._fresh, None]  # before it nothing was seen
        self._fresh[:] = False
        with torch.no_grad():
            logits = self._clone(torch.from_numpy(self._stack).to(self._device)).cpu()
        legal = np.array(by_id(int(games[0])).action_ids)
        if self._seed is None:
            return legal[logits.argmax(1).numpy()]
        cumulative = logits.softmax(1).cumsum(1).numpy()
        draws = np.array([rng.random() for rng in self._rngs])
        return legal[np.minimum((cumulative < draws[:, None]).sum(1), len(legal) - 1)]

    def executed(self, actions: NDArray[np.int64]) -> None:
        """A clone does not look at its own actions."""


def probe(config: ProbeConfig) -> dict[str, Probed]:
    """Clones every game of the store, plays and prints; returns the results by game."""
    _check(config)
    compute = resolve(config.compute)
    paths = store_paths(config.root, config.games)
    results: dict[str, Probed] = {}
    with progress_bar("cloning", config.steps * len(paths), "step") as bar, compute.autocast():
        for path in paths:
            with EpisodeFile(path) as file:
                results[file.game.name] = _probe(file, config, compute.device, bar.update)
            if config.out is not None:
                _keep(results, config, Path(config.out))
    print(describe(results))
    return results


def _check(config: ProbeConfig) -> None:
    for name in ("transitions", "steps", "batch_size", "episodes"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}: use 1 or more.")
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}: give 0 or more.")
    if not config.learning_rate > 0:
        raise UserError(f"learning_rate is {config.learning_rate}: use a number above 0.")
    if config.out is not None:  # before hours are spent on what could not be kept
        out = Path(config.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            ScoreFile.load(out)


def _probe(
    file: EpisodeFile, config: ProbeConfig, device: torch.device, progress: Callable[[], object]
) -> Probed:
    started, game = time.perf_counter(), file.game
    tiers = config.tiers or [best_tier(file)]
    data = read_play(file, tiers, config.transitions, config.seed)
    clone = train_clone(
        data,
        len(game.actions),
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        device=device,
        progress=progress,
    )
    policy = ClonePolicy(clone, device, config.seed if config.sample else None)
    scores = by_game(play(policy, [game], **_protocol(config)))[game.name]
    means = [file.statistics()["tiers"][tier]["mean_return"] for tier in tiers]
    known = [mean for mean in means if mean is not None]
    return Probed(
        tuple(tiers),
        predict(clone, data, len(game.actions), device),
        scores,
        baseline_scores(game, **_protocol(config)) if config.baselines else None,
        float(np.mean(known)) if known else None,
        time.perf_counter() - started,
    )


def best_tier(file: EpisodeFile) -> str:
    """The tier with the highest mean score; by reward a step where scores are not known."""
    parts = file.statistics()["tiers"]
    known = {tier: part["mean_return"] for tier, part in parts.items()}
    known = {tier: mean for tier, mean in known.items() if mean is not None}
    if known:
        return max(known, key=lambda tier: known[tier])
    tier_of_row = np.repeat(file.episode_tiers, np.diff(file.episode_starts))
    rates = {
        tier: float(file.rewards[tier_of_row == position].mean())
        for position, tier in enumerate(file.tiers)
        if (tier_of_row == position).any()
    }
    return max(rates, key=lambda tier: rates[tier])


def _protocol(config: ProbeConfig) -> dict[str, Any]:
    return {
        "episodes": config.episodes,
        "envs_per_game": min(_SLOTS, config.episodes),
        "max_frames": config.max_frames,
        "seed": config.seed + 1000,  # as evaluations, apart from the data's seeds
    }


def describe(results: dict[str, Probed]) -> str:
    """The table for a terminal; the share after the bar is what the most frequent action gets."""
    lines = [
        _COLUMNS.format(
            *("game", "cloned", "nats", "accuracy", "at changes"),
            *("clone", "data", "constant", "random"),
        )
    ]
    for name, result in results.items():
        p = result.prediction
        baselines = result.baselines
        scores = [
            result.scores.mean,
            result.data_mean,
            None if baselines is None else baselines.constant.mean,
            None if baselines is None else baselines.random.mean,
        ]
        lines.append(
            _COLUMNS.format(
                *(name, "+".join(result.tiers)[:10]),
                f"{p.cross_entropy:.2f} | {p.prior_cross_entropy:.2f}",
                f"{p.accuracy:.2f} | {p.prior_accuracy:.2f}",
                f"{p.change_accuracy:.2f} | {p.prior_change_accuracy:.2f}",
                *("-" if score is None else f"{score:.1f}" for score in scores),
            )
        )
    seconds = sum(result.seconds for result in results.values())
    lines.append(
        "Held-out episodes: clone | always guessing by how often each action is taken. "
        f"Scores: means of full games. {seconds:.0f} s in all."
    )
    return "\n".join(lines)


def _keep(results: dict[str, Probed], config: ProbeConfig, out: Path) -> None:
    """Adds the clone to a scores file as an evaluation of its own."""
    scores = ScoreFile.load(out) if out.exists() else ScoreFile()
    settings = make_settings(
        **_protocol(config), planner="sampled" if config.sample else "most probable"
    )
    evaluation = Evaluation(
        config.label,
        {name: result.scores for name, result in results.items()},
        settings,
        provenance={
            "config": asdict(config),
            "predictions": {name: asdict(result.prediction) for name, result in results.items()},
            "tiers": {name: list(result.tiers) for name, result in results.items()},
        },
    )
    others = [e for e in scores.evaluations if e.label != config.label]
    scores.evaluations = [*others, evaluation]
    for name, result in results.items():
        if result.baselines is not None:
            scores.baselines.setdefault(name, result.baselines)
        scores.data_means.setdefault(name, result.data_mean)
    scores.save(out)
