"""The two environments follow the evaluation protocol and agree with each other."""

from __future__ import annotations

import numpy as np
import pytest

from jowa.envs import AtariEnv, AtariVector
from jowa.errors import UserError
from jowa.games import get


def play_both(name: str, steps: int, sticky: float) -> None:
    game = get(name)
    single, vector = AtariEnv(game, sticky=sticky), AtariVector(game, 2, sticky=sticky)
    frame, frames = single.reset(5), vector.reset(np.array([5, 6]))
    assert np.array_equal(frame, frames[0])
    rng = np.random.default_rng(0)
    for step in range(steps):
        action = int(rng.choice(game.action_ids))
        frame, reward, terminated, truncated = single.step(action)
        frames, rewards, ends, cuts = vector.step(np.array([action, action]))
        assert (reward, terminated, truncated) == (rewards[0], ends[0], cuts[0]), step
        if terminated or truncated:  # the frame after the last action is never used
            return
        assert np.array_equal(frame, frames[0]), step


@pytest.mark.parametrize("name", ["Breakout", "SpaceInvaders", "Boxing"])
def test_single_and_vector_give_the_same_frames_and_rewards(name: str) -> None:
    play_both(name, 400, sticky=0.0)


def test_same_seed_gives_the_same_sticky_actions_in_both() -> None:
    play_both("Pong", 300, sticky=0.25)


def test_scores_are_raw_and_not_clipped() -> None:
    env = AtariVector(get("SpaceInvaders"), 1)
    env.reset(np.array([0]))
    rewards = [env.step(np.array([1]))[1] for _ in range(400)]
    assert rewards[0].dtype == np.float32
    assert max(reward[0] for reward in rewards) > 1


@pytest.mark.parametrize("max_frames", [40, 42])
def test_cap_counts_emulator_frames(max_frames: int) -> None:
    game = get("Pong")
    single = AtariEnv(game, max_frames=max_frames)
    single.reset(0)
    vector = AtariVector(game, 2, max_frames=max_frames)
    vector.reset(np.array([0, 1]))
    steps = -(-max_frames // 4)
    for step in range(1, steps + 1):
        _, _, terminated, truncated = single.step(0)
        _, _, ends, cuts = vector.step(np.zeros(2, dtype=np.int64))
        assert not terminated and not ends.any()
        assert truncated == (step == steps) and (cuts == truncated).all()


def test_reset_where_leaves_the_others_alone_and_repeats_by_seed() -> None:
    game = get("Breakout")
    env = AtariVector(game, 3)
    first = env.reset(np.array([1, 2, 3]))
    play = [env.step(np.full(3, 1 + step % 2 * 2))[0] for step in range(30)]
    frames = env.reset_where(np.array([False, True, False]), np.array([2]))
    assert np.array_equal(frames[[0, 2]], play[-1][[0, 2]])
    assert np.array_equal(frames[1], first[1])
    again = [env.step(np.full(3, 1 + step % 2 * 2))[0] for step in range(30)]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(again, play, strict=True))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(again, play, strict=True))


def test_a_copy_reset_after_its_end_starts_at_its_seed() -> None:
    env = AtariVector(get("Pong"), 2, max_frames=8)
    first = env.reset(np.array([1, 2]))
    env.step(np.zeros(2, dtype=np.int64))
    assert env.step(np.zeros(2, dtype=np.int64))[3].all()
    assert np.array_equal(env.reset(np.array([1, 2])), first)
    assert not env.step(np.zeros(2, dtype=np.int64))[3].any()


def test_reset_without_seed_continues_the_random_stream() -> None:
    def two_games() -> list[np.ndarray]:
        env = AtariEnv(get("Pong"), max_frames=400)
        rams = []
        for seed in (9, None):
            env.reset(seed)
            for step in range(100):
                env.step(3 + step % 2)
            rams.append(env.ram())
        return rams

    first, second = two_games(), two_games()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_ram_and_colour_screen() -> None:
    env = AtariEnv(get("Breakout"))
    env.reset(0)
    assert env.ram().shape == (128,) and env.ram().dtype == np.uint8
    assert env.rgb().shape == (210, 160, 3) and env.rgb().dtype == np.uint8


def test_wrong_settings_are_explained() -> None:
    with pytest.raises(UserError, match="max_frames"):
        AtariEnv(get("Pong"), max_frames=0)
    with pytest.raises(UserError, match="sticky"):
        AtariVector(get("Pong"), 1, sticky=1.5)
    with pytest.raises(UserError, match="seed"):
        AtariEnv(get("Pong")).reset(-1)
