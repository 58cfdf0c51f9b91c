"""Score statistics against hand-computed values, the published ones, and rliable's."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import jowa.scores
from jowa.evaluation import statistics
from jowa.evaluation.aggregates import estimates
from jowa.games import GAMES
from jowa.scores import (
    improvement,
    interval,
    iqm,
    mean,
    median,
    normalise,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile,
    superhuman_games,
)

PUBLISHED = json.loads(files("jowa").joinpath("published_scores.json").read_text())
RLIABLE = json.loads((Path(__file__).parents[1] / "fixtures" / "rliable.json").read_text())
SCORES, OTHERS = np.array(RLIABLE["scores"]), np.array(RLIABLE["others"])  # (7, 6) and (4, 6)
NAMES = ("Assault", "Boxing", "Breakout", "Pong", "Seaquest", "Zaxxon")


def runs_of(matrix: np.ndarray) -> list[dict[str, list[float]]]:
    """Normalised scores (runs, games) as raw scores by game, one number a run."""
    ends = [(GAMES[name].random, GAMES[name].human) for name in NAMES]
    return [
        {
            name: [low + x * (top - low)]
            for name, (low, top), x in zip(NAMES, ends, row, strict=True)
        }
        for row in matrix
    ]


def test_iqm_by_hand():
    assert iqm([1, 2, 3, 4]) == 2.5
    assert iqm([0, 0, 3, 5, 1000, -1000, 4, 100]) == 3.0  # the mean of 0, 3, 4, 5
    assert iqm([7.0]) == 7.0
    with pytest.raises(ValueError, match="at least one"):
        iqm([])


def test_aggregates_by_hand():
    runs = [[0.0, 0.5, 3.0], [0.2, 0.5, 1.0]]
    assert median(runs) == 0.5
    assert mean(runs) == pytest.approx(5.2 / 6)
    assert optimality_gap(runs) == pytest.approx(1 - 3.2 / 6)
    assert superhuman_games(runs) == 1
    assert superhuman_games([1.0, 0.999, 7.0]) == 2
    assert list(performance_profile(runs, [0.0, 0.5, 2.0])) == pytest.approx([5 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize("agent", sorted(PUBLISHED["raw_scores"]))
def test_published_aggregates_follow_from_published_scores(agent):
    raw, expected = PUBLISHED["raw_scores"][agent], PUBLISHED["aggregates"][agent]
    found = estimates({game: [score] for game, score in raw.items()})
    for ours, theirs in (("iqm", "iqm_hns"), ("median", "median_hns"), ("mean", "mean_hns")):
        assert found[ours].value == pytest.approx(expected[theirs], abs=1e-4)
    assert found["iqm_dqn"].value == pytest.approx(expected["iqm_dns"], abs=1e-4)
    assert found["superhuman"].value == expected["superhuman_games"]
    assert len(PUBLISHED["raw_scores"]) == 13


AGGREGATES = {
    "iqm": iqm,
    "median": median,
    "mean": mean,
    "optimality_gap": optimality_gap,
}


@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_are_those_of_rliable(name):
    """Intervals to the error of 2,000 draws; a wrong resampling is off by far more."""
    theirs, statistic = RLIABLE["aggregates"][name], AGGREGATES[name]
    assert statistic(SCORES) == pytest.approx(theirs["value"], abs=1e-12)
    ours = interval(runs_of(SCORES), statistic, rng=np.random.default_rng(0))
    low, high = theirs["interval"]
    assert ours == pytest.approx((low, high), abs=0.12 * (high - low))


def test_profile_is_that_of_rliable():
    theirs = {name: np.array(values) for name, values in RLIABLE["profile"].items()}
    found = performance_profile(SCORES, theirs["thresholds"])
    assert found == pytest.approx(theirs["share"], abs=1e-12)
    ours = profile(runs_of(SCORES), theirs["thresholds"], rng=np.random.default_rng(0))
    assert ours.share == pytest.approx(theirs["share"])
    assert ours.low == pytest.approx(theirs["low"], abs=0.03)
    assert ours.high == pytest.approx(theirs["high"], abs=0.03)


def test_probability_of_improvement_is_that_of_rliable():
    theirs = RLIABLE["improvement"]
    assert probability_of_improvement(SCORES, OTHERS) == pytest.approx(theirs["value"], abs=1e-12)
    back = probability_of_improvement(OTHERS, SCORES)
    assert back == pytest.approx(theirs["reversed"], abs=1e-12)
    found = improvement(runs_of(SCORES), runs_of(OTHERS), rng=np.random.default_rng(0))
    assert found.value == pytest.approx(theirs["value"])
    assert found.interval == pytest.approx(theirs["interval"], abs=0.03)


def test_interval_is_reproducible_from_its_generator():
    raw = {"Pong": [-21.0, -3.0, 5.0, 9.0], "Breakout": [1.0, 20.0, 33.0]}
    first, again, other = (interval(raw, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == again != other
    centre = iqm([normalise(game, float(np.mean(values))) for game, values in raw.items()])
    assert first[0] < centre < first[1]


def test_interval_of_constant_scores_is_a_point():
    low, high = interval({"Pong": [3.0, 3.0]}, rng=np.random.default_rng(0))
    assert low == high == pytest.approx(normalise("Pong", 3.0))


def test_interval_matches_the_standard_error_and_covers_the_truth():
    rng = np.random.default_rng(0)
    centre, spread, episodes = 10.0, 4.0, 40
    hits, widths = 0, []
    for _ in range(200):
        raw = {"AirRaid": rng.normal(centre, spread, episodes)}
        low, high = interval(raw, mean, by=None, resamples=400, rng=rng)
        hits += low <= centre <= high
        widths.append(high - low)
    assert 0.88 <= hits / 200 <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread / episodes**0.5, rel=0.1)


def test_interval_resamples_within_games():
    """Two games of constant but different scores leave nothing to chance."""
    raw = {"Pong": [1.0] * 5, "Breakout": [30.0] * 5}
    low, high = interval(raw, np.mean, by=None, rng=np.random.default_rng(0))
    assert low == high == 15.5


def test_seeds_that_differ_widen_the_interval():
    """Episodes of a seed are alike here, so that all the chance is between the seeds."""
    rng = np.random.default_rng(0)
    seeds = [{"Pong": rng.normal(place, 0.01, 16)} for place in (-9.0, -3.0, 0.0, 3.0, 9.0)]
    low, high = interval(seeds, mean, by=None, rng=rng)
    error = np.std([-9, -3, 0, 3, 9]) / 5**0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    pooled = {"Pong": np.concatenate([seed["Pong"] for seed in seeds])}
    assert np.diff(interval(pooled, mean, by=None, rng=rng))[0] < 0.5 * (high - low)
    with pytest.raises(ValueError, match="same games"):
        interval([{"Pong": [1.0]}, {"Boxing": [1.0]}], rng=rng)


def test_difference_interval_tells_apart_what_differs():
    rng = np.random.default_rng(0)
    worse, better = rng.normal(0, 1, 30), rng.normal(3, 1, 30)
    low, high = statistics.difference_interval([worse], [better], rng=rng)
    assert 2 < low < 3 < high < 4
    low, high = statistics.difference_interval([worse], [worse], rng=rng)
    assert low < 0 < high


def test_improvement_needs_no_human_score_but_the_same_games():
    better, worse = {"Pooyan": [5.0, 6.0, 7.0]}, {"Pooyan": [1.0, 5.0]}
    found = improvement(better, worse, rng=np.random.default_rng(0))
    assert found.value == pytest.approx(5.5 / 6)
    assert found.interval[1] == 1.0
    with pytest.raises(ValueError, match="same games"):
        improvement(better, {"Pong": [1.0]}, rng=np.random.default_rng(0))


def test_measures_of_several_seeds_are_the_means_of_theirs():
    rng = np.random.default_rng(0)
    seeds = [{name: rng.normal(50, 30, 4) for name in NAMES} for _ in range(3)]
    apart, together = [estimates(seed) for seed in seeds], estimates(seeds)
    for key in ("iqm", "median", "superhuman", "iqm_dqn"):
        expected = np.mean([found[key].value for found in apart])
        assert together[key].value == pytest.approx(expected)
        low, high = together[key].interval
        assert low <= together[key].value <= high


def test_public_names():
    assert all(hasattr(jowa.scores, name) for name in jowa.scores.__all__)
    assert sum(game.human is None for game in GAMES.values()) == 4
