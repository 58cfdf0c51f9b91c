"""Baselines: the right best action, and a cache that never serves other settings."""

from __future__ import annotations

import numpy as np
import pytest

from jowa.evaluation import baselines
from jowa.evaluation.baselines import ConstantPolicy, RandomPolicy, baseline_scores, best_constant
from jowa.games import get

FREEWAY, PONG = get("Freeway"), get("Pong")
SHORT = {"episodes": 2, "envs_per_game": 2, "seed": 3, "max_frames": 1600}


def test_always_up_is_the_best_constant_of_freeway():
    action, scores = best_constant([FREEWAY], **SHORT)["Freeway"]
    assert action == "UP"
    assert set(scores) == set(FREEWAY.actions)
    assert scores["UP"].mean > 0 == scores["NOOP"].mean


def test_best_constant_of_several_games_equals_each_alone():
    protocol = {**SHORT, "max_frames": 400}
    both = best_constant([FREEWAY, PONG], **protocol)
    assert both["Pong"] == best_constant([PONG], **protocol)["Pong"]
    assert set(both["Pong"][1]) == set(PONG.actions)


def test_random_policy_is_uniform_over_legal_actions_and_differs_by_slot():
    policy = RandomPolicy(0)
    games = np.full(3, PONG.id)
    frames = np.zeros((3, 84, 84), np.uint8)
    policy.reset(np.ones(3, dtype=bool))
    actions = np.array([policy.act(frames, games) for _ in range(3000)])
    _, counts = np.unique(actions, return_counts=True)
    assert set(np.unique(actions)) == set(PONG.action_ids)
    assert counts.max() / counts.min() < 1.2
    assert not np.array_equal(actions[:, 0], actions[:, 1])


def test_random_policy_plays_each_episode_differently():
    policy = RandomPolicy(0)
    games, frames = np.array([PONG.id]), np.zeros((1, 84, 84), np.uint8)
    runs = []
    for _ in range(2):
        policy.reset(np.array([True]))
        runs.append([int(policy.act(frames, games)[0]) for _ in range(30)])
    assert runs[0] != runs[1]


def test_constant_policy_answers_by_game():
    policy = ConstantPolicy({PONG.id: 3, FREEWAY.id: 2})
    frames = np.zeros((3, 84, 84), np.uint8)
    assert policy.act(frames, np.array([FREEWAY.id, PONG.id, PONG.id])).tolist() == [2, 3, 3]


def test_cache_serves_only_the_same_settings(tmp_path, monkeypatch):
    first = baseline_scores(FREEWAY, **SHORT, cache_dir=tmp_path)
    assert first.constant_action == "UP"
    assert first.constant.mean == max(first.constant_means.values())
    assert len(first.random.scores) == 2

    def fail(*args, **kwargs):
        raise RuntimeError("played")

    monkeypatch.setattr(baselines, "play", fail)
    assert baseline_scores(FREEWAY, **SHORT, cache_dir=tmp_path) == first
    for change in ({"seed": 4}, {"max_frames": 1604}, {"episodes": 3}, {"epsilon": 0.1}):
        with pytest.raises(RuntimeError, match="played"):
            baseline_scores(FREEWAY, **{**SHORT, **change}, cache_dir=tmp_path)
    next(tmp_path.glob("Freeway-*.json")).write_text("{torn")
    with pytest.raises(RuntimeError, match="played"):
        baseline_scores(FREEWAY, **SHORT, cache_dir=tmp_path)
