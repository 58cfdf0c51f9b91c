"""The player that searches the emulator: strong, privileged, and blind to sticky actions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jowa.collecting.behaviours import RandomBehaviour, Tier
from jowa.collecting.collect import collect
from jowa.collecting.scene import Behaviour, Scene
from jowa.collecting.search import SearchBehaviour, SearchConfig
from jowa.data.episodes import EpisodeFile
from jowa.envs import AtariEnv, Simulator
from jowa.games import get

CHEAP = SearchConfig(lookahead=16, horizon=32, replan=4)


def play(env: AtariEnv, behaviour: Behaviour, steps: int) -> tuple[list[int], list[bytes], float]:
    """Actions, frames and raw return of `steps` steps."""
    frame, executed = env.reset(7), None
    actions: list[int] = []
    frames: list[bytes] = []
    total = 0.0
    for _ in range(steps):
        executed = behaviour.act({0: Scene(env, frame, executed)})[0]
        actions.append(executed)
        frame, reward, terminated, _ = env.step(executed)
        frames.append(frame.tobytes())
        total += reward
        if terminated:
            frame, executed = env.reset(), None
    return actions, frames, total


class Replay:
    """Plays given actions."""

    def __init__(self, actions: list[int]) -> None:
        self._actions = iter(actions)

    def act(self, scenes: Mapping[int, Scene]) -> dict[int, int]:
        return {row: next(self._actions) for row in scenes}


@pytest.mark.parametrize("name", ["SpaceInvaders", "Breakout"])
def test_search_beats_random_play_and_leaves_the_real_game_alone(name: str) -> None:
    game = get(name)
    search = SearchBehaviour(game, CHEAP, np.random.default_rng(0))
    actions, frames, score = play(AtariEnv(game), search, 200)
    randomly = play(AtariEnv(game), RandomBehaviour(game, np.random.default_rng(0)), 1000)[2] / 5
    assert score > 1.5 * randomly + 1
    # The same actions without any search between them: the sticky stream is where it would be.
    assert play(AtariEnv(game), Replay(actions), 200)[1:] == (frames, score)


@pytest.mark.parametrize(("sticky", "agreeing"), [(0.0, 1.0), (0.25, 0.75)])
def test_no_action_sticks_in_the_simulator_whatever_sticks_in_the_game(
    sticky: float, agreeing: float
) -> None:
    game = get("Pong")
    real, simulator = AtariEnv(game, sticky=sticky), Simulator(game)
    real.reset(0)
    right, left = 3, 4
    same = []
    for step in range(700):  # every action differs from the one before, so sticking shows
        simulator.restore(real.state())
        action = left if step % 2 else right
        reward = real.step(action)[1]
        same.append(
            simulator.step(action) == reward and np.array_equal(simulator.ram(), real.ram())
        )
    assert np.mean(same) == pytest.approx(agreeing, abs=0.05 if sticky else 0.0)


def test_the_simulator_sees_the_end_of_the_game() -> None:
    game = get("SpaceInvaders")
    real, simulator = AtariEnv(game, sticky=0.0), Simulator(game)
    real.reset(3)
    simulator.restore(real.state())
    over, fire = False, 1
    while not over:
        _, reward, over, _ = real.step(fire)
        assert (simulator.step(fire), simulator.over) == (reward, over)


def test_a_plan_is_worth_its_discounted_rewards_less_lost_lives() -> None:
    game = get("Breakout")
    env = AtariEnv(game, sticky=0.0)
    env.reset(0)
    noop, fire, left = 0, 1, 4
    config = SearchConfig(horizon=120, lookahead=30, gamma=0.99, life_penalty=5.0)
    search = SearchBehaviour(game, config, np.random.default_rng(0))
    waiting, steps = search._simulate([noop] * 120, [search._root(env)])
    assert (waiting.value, steps, len(waiting.marks)) == (0.0, 120, 30)
    losing = [fire] + [left] * 119
    lost, steps = search._simulate(losing, [search._root(env)])
    rewards = []
    simulator = Simulator(game)
    simulator.restore(env.state())
    while simulator.lives == 5:
        rewards.append(simulator.step(losing[len(rewards)]))
    discounts = 0.99 ** np.arange(len(rewards))
    mean = np.mean([r for r in rewards if r]) if any(rewards) else 1.0
    expected = (rewards * discounts).sum() - 5.0 * mean * discounts[-1]
    assert steps == len(rewards) < 120
    assert lost.value == pytest.approx(expected)
    # From a mark on, a changed plan is worth what it is worth from the start on.
    changed = losing[:12] + [noop] * 108
    parts = search._simulate(changed, lost.marks[:4])[0]
    fresh = search._simulate(changed, [search._root(env)])[0]
    assert parts.value == pytest.approx(fresh.value, abs=1e-12)


def test_collected_search_says_that_it_is_privileged(tmp_path: Path) -> None:
    tiers = [Tier("search", "search", 1.0, epsilon=0.1, search=CHEAP)]
    options: dict[str, Any] = {"short_episode_steps": 20, "short_share": 0.5, "max_frames": 120}
    collect(["Breakout"], tmp_path, transitions=60, tiers=tiers, seed=0, **options)
    with EpisodeFile(tmp_path / "Breakout.h5") as file:
        assert "privileged" in file.source
        assert file.provenance["tiers"][0]["search"]["lookahead"] == 16
        assert file.num_transitions == 60
