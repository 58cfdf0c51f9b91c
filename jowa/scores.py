"""Public names of the score statistics; see their docstrings.

Of raw scores by game: `normalise`, `normalisable`, `interval`, `profile`, `improvement`. Of arrays
of normalised scores (runs, games): `iqm`, `median`, `mean`, `optimality_gap`, `superhuman_games`,
`performance_profile`, `probability_of_improvement`. `ScoreFile` reads what `jowa evaluate` writes.
"""

from jowa.evaluation.aggregates import Estimate, Profile, improvement, interval, profile
from jowa.evaluation.scores import ScoreFile, normalisable, normalise
from jowa.evaluation.statistics import (
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    superhuman_games,
)

__all__ = [
    "Estimate",
    "Profile",
    "ScoreFile",
    "improvement",
    "interval",
    "iqm",
    "mean",
    "median",
    "normalisable",
    "normalise",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "profile",
    "superhuman_games",
]
