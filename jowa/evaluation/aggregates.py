"""Many games in one number: the statistics of raw scores by game, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jowa.evaluation import statistics
from jowa.evaluation.scores import AgentScores, normalisable, normalise
from jowa.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Floats,
    Interval,
    Statistic,
    interval_of,
    redrawn_means,
)

# Intervals in a report must not change from one making to the next.
BOOTSTRAP_SEED = 0

Episodes = Mapping[str, ArrayLike]  # the raw scores (episodes,) of every game
Runs = Episodes | Sequence[Episodes]  # of one run, or of several: the seeds of one agent


@dataclass(frozen=True)
class Measure:
    """A statistic of normalised scores, as tables name it. `by` is "human" or "dqn"."""

    key: str
    title: str
    statistic: Statistic
    by: str = "human"
    is_count: bool = False


IQM = Measure("iqm", "IQM", statistics.iqm)
MEASURES = (
    IQM,
    Measure("median", "Median", statistics.median),
    Measure("mean", "Mean", statistics.mean),
    Measure("optimality_gap", "Optimality gap", statistics.optimality_gap),
    Measure("superhuman", "Superhuman games", statistics.superhuman_games, is_count=True),
    Measure("iqm_dqn", "IQM by DQN", statistics.iqm, by="dqn"),
)


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95% interval, None where single episodes leave it unknown."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Profile:
    """Share of a run's games above each threshold of normalised score, with a 95% band."""

    label: str
    thresholds: Floats
    share: Floats
    low: Floats
    high: Floats


def interval(
    scores: Runs,
    statistic: Statistic = statistics.iqm,
    *,
    by: str | None = "human",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> Interval:
    """Percentile bootstrap interval of `statistic` over the games' normalised mean scores.

    `scores` maps game names to raw episode scores; a sequence of such mappings holds the seeds of
    one agent, which must have the same games. Seeds are drawn anew within each game and episodes
    within their seed; games are not: the interval covers chance in play and in training (where
    there are several seeds), not in the choice of games. `by=None` leaves scores raw. Raises
    UserError for a game without a published score (see `normalisable`).
    """
    draws = redrawn_means(_normalised(scores, by), resamples, rng)
    return interval_of([statistic(draw) for draw in draws], confidence)


def profile(
    scores: Runs,
    thresholds: ArrayLike,
    *,
    label: str = "",
    by: str | None = "human",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> Profile:
    """Performance profile of mean scores over games and seeds, and its pointwise interval."""
    games = _normalised(scores, by)
    low, high = statistics.profile_band(
        games, thresholds, confidence=confidence, resamples=resamples, rng=rng
    )
    share = statistics.performance_profile(_means(games), thresholds)
    return Profile(label, np.asarray(thresholds, dtype=np.float64), share, low, high)


def improvement(
    scores: Runs,
    other: Runs,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> Estimate:
    """Probability that an episode of `scores` beats one of `other`, averaged over their games.

    Ties count half. Raw scores serve, so that no game is left out; both must have the same games.
    """
    sides = [_by_game(runs) for runs in (scores, other)]
    if sides[0].keys() != sides[1].keys():
        raise ValueError("a probability of improvement needs the same games on both sides")
    games = [sides[0][name] for name in sides[0]]
    others = [sides[1][name] for name in sides[0]]
    rates = [
        statistics.win_rate(np.concatenate(one), np.concatenate(two))
        for one, two in zip(games, others, strict=True)
    ]
    spread = statistics.improvement_interval(
        games, others, confidence=confidence, resamples=resamples, rng=rng
    )
    return Estimate(float(np.mean(rates)), spread)


def _by_game(scores: Runs) -> dict[str, list[Floats]]:
    """Raw episode scores by game and run; every run must have the same games."""
    runs = [scores] if isinstance(scores, Mapping) else list(scores)
    if not runs or not runs[0]:
        raise ValueError("there are no games to take scores from")
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("every seed of an agent must have the same games")
    return {
        name: [np.asarray(run[name], dtype=np.float64).ravel() for run in runs] for name in runs[0]
    }


def _normalised(scores: Runs, by: str | None) -> list[list[Floats]]:
    """Episode scores by game and run, normalised unless `by` is None."""
    found = []
    for name, runs in _by_game(scores).items():
        # A straight line maps raw to normalised scores, so two of its points normalise them all.
        zero, one = (0.0, 1.0) if by is None else [normalise(name, x, by) for x in (0.0, 1.0)]
        found.append([zero + run * (one - zero) for run in runs])
    return found


def _means(games: Sequence[Sequence[Floats]]) -> Floats:
    """(runs, games) mean scores."""
    return np.array([[run.mean() for run in runs] for runs in games]).T


def raw_scores(agent: AgentScores, names: Sequence[str]) -> list[dict[str, list[float]]]:
    """Raw episode scores of the named games, for each seed."""
    return [{name: seed.games[name].scores for name in names} for seed in agent.seeds]


def estimates(scores: Runs) -> dict[str, Estimate]:
    """Every measure that these games allow, by its key; of several seeds the mean of theirs.

    One seed's measure is what is published, and trimming all seeds together cuts another share of
    15 games: the mean over seeds compares with both. The games must have human scores; those
    without a DQN score are not in `iqm_dqn`, which is missing where no game has one. Intervals are
    None where there is one seed that played a game only once.
    """
    found = {}
    runs = [scores] if isinstance(scores, Mapping) else list(scores)
    for by in ("human", "dqn"):
        kept, _ = normalisable(runs[0], by)
        if not kept:
            continue
        games, draws = _normalised([{name: run[name] for name in kept} for run in runs], by), None
        if len(runs) > 1 or all(run.size > 1 for game in games for run in game):
            draws = redrawn_means(games, RESAMPLES, np.random.default_rng(BOOTSTRAP_SEED))
        for measure in (measure for measure in MEASURES if measure.by == by):
            spread = None
            if draws is not None:
                spread = interval_of([_over_seeds(measure, draw) for draw in draws])
            found[measure.key] = Estimate(_over_seeds(measure, _means(games)), spread)
    return found


def _over_seeds(measure: Measure, scores: Floats) -> float:
    """Mean of the measure's values for each run of scores (runs, games)."""
    return float(sum(measure.statistic(run) for run in scores) / len(scores))
