"""Score statistics against hand-computed and published values; the scores file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jowa.scores
from jowa.errors import UserError
from jowa.evaluation.scores import (
    Evaluation,
    GameBaselines,
    GameScores,
    ScoreFile,
    difference_interval,
    interval,
    iqm,
    make_settings,
    normalise,
)
from jowa.games import GAMES, get

PUBLISHED = json.loads(
    (Path(__file__).parents[2] / "eval" / "published" / "scores.json").read_text()
)
FULL = {"episodes": 16, "envs_per_game": 16, "max_frames": 108_000, "seed": 0}


def test_normalise_maps_random_to_0_and_human_to_1():
    pong = get("Pong")
    assert normalise("Pong", pong.random) == 0
    assert normalise("Pong", pong.human) == 1
    assert normalise("Pong", (pong.random + pong.dqn) / 2, by="dqn") == pytest.approx(0.5)


def test_games_without_a_human_score_cannot_be_normalised():
    with pytest.raises(UserError, match="Pooyan"):
        normalise("Pooyan", 100.0)
    assert normalise("Pooyan", get("Pooyan").dqn, by="dqn") == 1
    with pytest.raises(UserError, match="'gopher'"):
        normalise("Pong", 0.0, by="gopher")
    with pytest.raises(UserError, match="Pong"):
        normalise("Pongg", 0.0)


def test_iqm_by_hand():
    assert iqm([1, 2, 3, 4]) == 2.5
    assert iqm([0, 0, 3, 5, 1000, -1000, 4, 100]) == 3.0  # the mean of 0, 3, 4, 5
    assert iqm([7.0]) == 7.0
    with pytest.raises(ValueError, match="at least one"):
        iqm([])


@pytest.mark.parametrize("agent", sorted(PUBLISHED["raw_scores"]))
def test_published_aggregates_follow_from_published_scores(agent):
    raw, expected = PUBLISHED["raw_scores"][agent], PUBLISHED["aggregates"][agent]
    human = np.array([normalise(game, score) for game, score in raw.items()])
    dqn = [normalise(game, score, by="dqn") for game, score in raw.items()]
    assert iqm(human) == pytest.approx(expected["iqm_hns"], abs=1e-4)
    assert np.median(human) == pytest.approx(expected["median_hns"], abs=1e-4)
    assert np.mean(human) == pytest.approx(expected["mean_hns"], abs=1e-4)
    assert iqm(dqn) == pytest.approx(expected["iqm_dns"], abs=1e-4)
    assert (human >= 1).sum() == expected["superhuman_games"]


def test_interval_is_reproducible_from_its_generator():
    scores = {"Pong": [-21.0, -3.0, 5.0, 9.0], "Breakout": [1.0, 20.0, 33.0]}
    first, again, other = (interval(scores, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == again != other
    centre = iqm([normalise(game, float(np.mean(values))) for game, values in scores.items()])
    assert first[0] < centre < first[1]


def test_interval_of_constant_scores_is_a_point():
    low, high = interval({"Pong": [3.0, 3.0]}, rng=np.random.default_rng(0))
    assert low == high == pytest.approx(normalise("Pong", 3.0))


def test_interval_matches_the_standard_error_and_covers_the_truth():
    rng = np.random.default_rng(0)
    mean, spread, episodes = 10.0, 4.0, 40
    hits, widths = 0, []
    for _ in range(200):
        scores = {"AirRaid": rng.normal(mean, spread, episodes)}
        low, high = interval(scores, np.mean, by=None, resamples=400, rng=rng)
        hits += low <= mean <= high
        widths.append(high - low)
    assert 0.88 <= hits / 200 <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread / episodes**0.5, rel=0.1)


def test_interval_resamples_within_games():
    """Two games of constant but different scores leave nothing to chance."""
    scores = {"Pong": [1.0] * 5, "Breakout": [30.0] * 5}
    low, high = interval(scores, np.mean, by=None, rng=np.random.default_rng(0))
    assert low == high == 15.5


def test_difference_interval_tells_apart_what_differs():
    rng = np.random.default_rng(0)
    worse, better = rng.normal(0, 1, 30), rng.normal(3, 1, 30)
    low, high = difference_interval(list(worse), list(better), rng=rng)
    assert 2 < low < 3 < high < 4
    low, high = difference_interval(list(worse), list(worse), rng=rng)
    assert low < 0 < high


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, True), ({"max_frames": 4000}, False), ({"episodes": 4}, False), ({"sticky": 0.0}, False)],
)
def test_settings_say_whether_they_are_the_protocol(change, expected):
    settings = make_settings(**{**FULL, **change})
    assert settings["is_protocol"] is expected
    assert set(settings["versions"]) == {"jowa", "ale-py", "torch"}


def test_evaluation_with_too_few_episodes_is_not_the_protocol():
    settings = make_settings(**FULL)
    assert Evaluation("a", {"Pong": GameScores("Pong", [1.0] * 16)}, settings).is_protocol
    assert not Evaluation("a", {"Pong": GameScores("Pong", [1.0] * 3)}, settings).is_protocol


def example_file() -> ScoreFile:
    pong = GameScores("Pong", [1.0, -21.0], [700, 800], [False, True])
    evaluation = Evaluation("greedy", {"Pong": pong}, make_settings(**FULL), "runs/a")
    baselines = {"Pong": GameBaselines("Pong", pong, pong, "NOOP", {"NOOP": -10.0})}
    return ScoreFile([evaluation], baselines, {"command": "jowa evaluate"})


def test_score_file_round_trip(tmp_path):
    path = tmp_path / "new" / "scores.json"
    example_file().save(path)
    assert ScoreFile.load(path) == example_file()
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    example_file().save(path)
    broken = example_file()
    broken.evaluations[0].games["Pong"].scores[0] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        broken.save(path)
    assert ScoreFile.load(path) == example_file()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 99}', '{"version": 1, "evaluations": []}', "\x00"]
)
def test_unreadable_score_files_are_named(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"scores\.json"):
        ScoreFile.load(path)


def test_missing_score_file_is_named(tmp_path):
    with pytest.raises(UserError, match="jowa evaluate"):
        ScoreFile.load(tmp_path / "none.json")


def test_public_names():
    assert jowa.scores.normalise is normalise
    assert jowa.scores.iqm is iqm
    assert jowa.scores.interval is interval
    assert sum(game.human is None for game in GAMES.values()) == 4
