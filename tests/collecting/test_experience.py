"""Experience kept as actions: episodes, the draw from them, learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jowa.collecting.experience import (
    STAGES,
    Experience,
    concatenate,
    curve,
    derived_seed,
    draw,
    write_episodes,
)
from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeWriter
from jowa.envs import AtariEnv
from jowa.errors import UserError
from jowa.games import get


def synthetic(steps: int, environments: int, episode: int, seed: int = 0) -> Experience:
    """Episodes of 1 to 2 * `episode` steps whose every reward is the number of its row."""
    rng = np.random.default_rng(seed)
    ends = np.zeros((steps, environments), dtype=np.uint8)
    for column in range(environments):
        row = -1
        while (row := row + int(rng.integers(1, 2 * episode + 1))) < steps:
            ends[row, column] = rng.choice([END_TERMINAL, END_TRUNCATED])
    rewards = np.repeat(np.arange(steps, dtype=np.float32)[:, None], environments, axis=1)
    return Experience(np.zeros((steps, environments), dtype=np.uint8), rewards, ends)


def test_episodes_are_what_lies_between_ends_and_the_last_may_be_cut() -> None:
    ends = np.array([[0, 0], [1, 0], [0, 0], [0, 2]], dtype=np.uint8)
    rewards = np.array([[1, 10], [2, 20], [3, 30], [4, 40]], dtype=np.float32)
    experience = Experience(np.zeros((4, 2), dtype=np.uint8), rewards, ends)
    episodes = [
        (e.environment, e.number, e.start, e.stop, e.end, experience.score(e))
        for e in experience.episodes()
    ]
    assert episodes == [
        (0, 0, 0, 2, END_TERMINAL, 3.0),
        (0, 1, 2, 4, END_NONE, 7.0),
        (1, 0, 0, 4, END_TRUNCATED, 100.0),
    ]


def test_the_draw_holds_the_same_part_of_every_stage() -> None:
    experience = synthetic(steps=20_000, environments=4, episode=25)
    episodes = draw(experience, 20_000, seed=1)
    assert episodes == draw(experience, 20_000, seed=1) != draw(experience, 20_000, seed=2)
    assert len(set(episodes)) == len(episodes)
    assert [e.stop for e in episodes] == sorted(e.stop for e in episodes)
    assert 20_000 <= sum(e.length for e in episodes) < 20_000 + 50
    rows = curve(experience, episodes)
    assert len(rows) == STAGES
    assert all(abs(row["kept_transitions"] - 1000) < 100 for row in rows), rows
    assert sum(row["kept_episodes"] for row in rows) == len(episodes)


def test_the_draw_may_be_from_the_last_part_only() -> None:
    experience = synthetic(steps=20_000, environments=4, episode=25)
    episodes = draw(experience, 2_000, seed=1, last=0.1)
    assert min(e.stop for e in episodes) > 18_000
    assert 2_000 <= sum(e.length for e in episodes) < 2_000 + 50
    inside = curve(experience, episodes)[-2:]  # evenly over that part
    assert all(abs(row["kept_transitions"] - 1000) < 100 for row in inside), inside
    everything = draw(experience, 20_000, seed=1, last=0.1)
    assert everything == [e for e in experience.episodes() if e.stop > 18_000]
    assert draw(experience, 1, seed=1, last=1e-9)  # never nothing: some games end the experience


def test_every_episode_is_as_likely_to_be_drawn_as_another() -> None:
    experience = synthetic(steps=400, environments=4, episode=5)
    episodes = experience.episodes()
    count = dict.fromkeys(episodes, 0)
    for seed in range(600):
        for episode in draw(experience, 400, seed):
            count[episode] += 1
    # A quarter of what is there; the standard deviation of a mean over 600 draws is below 0.02.
    parts = np.array(list(count.values())) / 600
    by_length = [parts[[e.length > 5 for e in episodes]], parts[[e.length <= 5 for e in episodes]]]
    assert all(abs(part.mean() - 0.25) < 0.03 for part in by_length), by_length
    assert parts.min() > 0.12 and parts.max() < 0.45


def test_a_draw_of_no_less_than_there_is_keeps_everything() -> None:
    experience = synthetic(steps=500, environments=3, episode=40)
    episodes = draw(experience, 1500, seed=0)
    assert sum(e.length for e in episodes) == 1500
    assert sorted(e.end for e in episodes)[:3] == [END_NONE] * 3


def test_the_curve_gives_mean_scores_of_finished_games_by_stage() -> None:
    experience = synthetic(steps=2000, environments=2, episode=20)
    rows = curve(experience, [])
    assert rows[0]["from_step"] == 0 and rows[-1]["to_step"] == 4000
    for stage, row in enumerate(rows):
        inside = [
            experience.score(e)
            for e in experience.episodes()
            if stage * 100 < e.stop <= (stage + 1) * 100 and e.end != END_NONE
        ]
        assert row["episodes"] == len(inside) > 0
        assert row["mean_return"] == pytest.approx(np.mean(inside))
    lone = curve(synthetic(steps=40, environments=1, episode=1000), [])
    assert {row["mean_return"] for row in lone} == {None}


def test_parts_join_to_the_whole() -> None:
    whole = synthetic(steps=90, environments=2, episode=10)
    parts = [Experience(*(a[i : i + 30] for a in vars(whole).values())) for i in (0, 30, 60)]
    assert concatenate(parts).episodes() == whole.episodes()


def test_play_that_the_emulator_does_not_repeat_is_refused(tmp_path: Path) -> None:
    game, seed = get("Pong"), (5, 6)
    env = AtariEnv(game, max_frames=120)
    env.reset(derived_seed(*seed, 0, 0))
    rewards = np.array([[env.step(3)[1]] for _ in range(30)], dtype=np.float32)
    actions, ends = np.full((30, 1), 3, dtype=np.uint8), np.zeros((30, 1), dtype=np.uint8)
    ends[-1] = END_TRUNCATED

    def write(rewards: np.ndarray, ends: np.ndarray) -> None:
        experience = Experience(actions, rewards, ends)
        with EpisodeWriter(tmp_path / "Pong.h5", game, source="a test") as writer:
            write_episodes(
                writer,
                game,
                experience,
                experience.episodes(),
                seed=seed,
                max_frames=120,
                progress=lambda _: None,
            )

    write(rewards, ends)
    other_rewards, other_ends = rewards.copy(), ends.copy()
    other_rewards[7] += 1
    other_ends[-1] = END_TERMINAL
    for wrong in ((other_rewards, ends), (rewards, other_ends)):
        with pytest.raises(UserError, match="Pong: its version is another"):
            write(*wrong)
