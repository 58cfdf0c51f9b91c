"""Statistics of scores as functions of arrays: aggregates, intervals, profiles, improvement.

They follow Agarwal et al. 2021 ("Deep RL at the edge of the statistical precipice") and agree with
the numbers of its library, rliable. An aggregate takes normalised scores of shape (runs, games),
where a run is one training seed and a single row may come without its axis. Intervals come from a
bootstrap within each game; the generator is always explicit, so that a report is the same every
time it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]  # of scores (runs, games)
Runs = Sequence[ArrayLike]  # the episodes of one game: (episodes,) for every run
Interval = tuple[float, float]

CONFIDENCE = 0.95
RESAMPLES = 2000


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean after cutting a quarter of the values from each end."""
    # scipy.stats.trim_mean is the same, but far too slow for thousands of draws.
    values = np.sort(_matrix(scores), axis=None)
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean())


def median(scores: ArrayLike) -> float:
    """Median over games of the mean over runs."""
    return float(np.median(_matrix(scores).mean(axis=0)))


def mean(scores: ArrayLike) -> float:
    """Mean over games and runs."""
    return float(_matrix(scores).mean())


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> float:
    """How far scores fall short of `target` on average; what exceeds it does not count."""
    return target - float(np.minimum(_matrix(scores), target).mean())


def superhuman_games(scores: ArrayLike) -> int:
    """Number of games whose mean over runs is 1 or more."""
    return int((_matrix(scores).mean(axis=0) >= 1).sum())


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """(thresholds,) share of the scores of all runs and games that lie above each threshold."""
    levels = np.asarray(thresholds, dtype=np.float64)
    return (_matrix(scores).ravel() > levels[:, None]).mean(axis=1)


def probability_of_improvement(scores: ArrayLike, other: ArrayLike) -> float:
    """P(one of `scores` is above one of `other`), a tie counting half, averaged over games.

    Both are (runs, games) of the same games; their numbers of runs may differ.
    """
    return float(np.mean(win_rate(_matrix(scores).T, _matrix(other).T)))


def win_rate(scores: Floats, other: Floats) -> Floats:
    """(...,) P(above) + P(equal) / 2 for scores (..., n) against (..., m): Mann-Whitney's U."""
    n, m = scores.shape[-1], other.shape[-1]
    ranks = stats.rankdata(np.concatenate([scores, other], axis=-1), axis=-1)[..., :n]
    return np.asarray((ranks.sum(axis=-1) - n * (n + 1) / 2) / (n * m))


def redraw(runs: Runs, resamples: int, rng: np.random.Generator) -> list[Floats]:
    """The episodes of one game drawn anew: an array (resamples, episodes of the run) for each run.

    In each run's place a run is drawn, then episodes of that run, all with replacement: what is
    left to chance in training and in play. With one run only episodes vary; with one number a run
    this is rliable's bootstrap, stratified by game over runs.
    """
    values = [np.asarray(run, dtype=np.float64).ravel() for run in runs]
    lengths = np.array([len(run) for run in values])
    if not values or not lengths.all():
        raise ValueError("every game needs a run, and every run an episode, to draw from")
    padded = np.zeros((len(values), lengths.max()))
    for row, run in zip(padded, values, strict=True):
        row[: len(run)] = run
    drawn = []
    for length in lengths:
        run_ = rng.integers(len(values), size=(resamples, 1))
        drawn.append(padded[run_, rng.integers(lengths[run_], size=(resamples, length))])
    return drawn


def redrawn_means(games: Sequence[Runs], resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, runs, games) mean scores of episodes drawn anew within every game."""
    if not games:
        raise ValueError("an interval needs the scores of at least one game")
    columns = [
        np.stack([run.mean(axis=1) for run in redraw(runs, resamples, rng)], axis=1)
        for runs in games
    ]
    return np.stack(columns, axis=2)


def percentiles(values: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Lower and upper end, (...) each, of the middle `confidence` of values (resamples, ...)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def interval_of(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Percentile interval of a statistic's values (resamples,)."""
    low, high = percentiles(np.asarray(values, dtype=np.float64), confidence)
    return float(low), float(high)


def profile_band(
    games: Sequence[Runs],
    thresholds: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Lower and upper end, (thresholds,) each, of the performance profile's pointwise interval."""
    draws = redrawn_means(games, resamples, rng)
    levels = np.asarray(thresholds, dtype=np.float64)
    shares = np.stack([(draws > level).mean(axis=(1, 2)) for level in levels], axis=1)
    return percentiles(shares, confidence)


def improvement_interval(
    games: Sequence[Runs],
    others: Sequence[Runs],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> Interval:
    """Interval of the probability that an episode of `games` scores more than one of `others`."""
    rates = []
    for pair in zip(games, others, strict=True):
        draws = [np.concatenate(redraw(runs, resamples, rng), axis=1) for runs in pair]
        rates.append(win_rate(*draws))
    return interval_of(np.mean(rates, axis=0), confidence)


def difference_interval(
    first: Runs,
    second: Runs,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    rng: np.random.Generator,
) -> Interval:
    """Interval of mean(second) - mean(first) in one game, both drawn anew independently."""
    means = [redrawn_means([runs], resamples, rng).mean(axis=(1, 2)) for runs in (first, second)]
    return interval_of(means[1] - means[0], confidence)


def _matrix(scores: ArrayLike) -> Floats:
    """Scores as (runs, games)."""
    matrix = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if matrix.size == 0:
        raise ValueError("a statistic needs at least one value")
    return matrix
