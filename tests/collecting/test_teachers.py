"""The teachers play by what they see, and better than random."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from jowa.collecting.behaviours import Noise, RandomBehaviour, ScriptedBehaviour, Tier
from jowa.collecting.scene import Behaviour, Scene
from jowa.collecting.teachers import TEACHERS, teacher
from jowa.envs import AtariEnv
from jowa.errors import UserError
from jowa.games import get


class Holding:
    """Always the same action."""

    def __init__(self, action: int) -> None:
        self._action = action

    def act(self, scenes: Mapping[int, Scene]) -> dict[int, int]:
        return dict.fromkeys(scenes, self._action)


def score(name: str, behaviour: Behaviour, steps: int) -> float:
    """Points in the first `steps` steps of play, games one after the other."""
    env = AtariEnv(get(name))
    frame, executed = env.reset(11), None
    points = 0.0
    for _ in range(steps):
        executed = behaviour.act({0: Scene(env, frame, executed)})[0]
        frame, reward, terminated, _ = env.step(executed)
        points += reward
        if terminated:
            frame, executed = env.reset(), None
    return points


@pytest.mark.parametrize(
    ("name", "steps", "margin"),
    [
        ("Boxing", 1700, 10),
        ("Breakout", 1000, 15),
        ("DemonAttack", 2000, 400),
        ("Enduro", 1500, 25),
        ("Freeway", 2000, 24),
        ("Frostbite", 1000, 1500),
        ("KungFuMaster", 1000, 2500),
        ("Pong", 1000, 10),
        ("SpaceInvaders", 1000, 150),
        ("Tennis", 1000, 10),
    ],
)
def test_teacher_beats_random_play(name: str, steps: int, margin: float) -> None:
    game = get(name)
    random = score(name, RandomBehaviour(game, np.random.default_rng(0)), steps)
    assert score(name, ScriptedBehaviour(game), steps) >= random + margin


@pytest.mark.parametrize(
    ("name", "steps", "margin"),
    [("Enduro", 1500, 20), ("Frostbite", 600, 700), ("KungFuMaster", 500, 1000)],
)
def test_teacher_beats_every_constant_action(name: str, steps: int, margin: float) -> None:
    game = get(name)
    best = max(score(name, Holding(action), steps) for action in game.action_ids)
    assert score(name, ScriptedBehaviour(game), steps) >= best + margin


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_teacher_is_a_pure_function_that_plays_legal_actions(name: str) -> None:
    game = get(name)
    rng = np.random.default_rng(3)
    pairs = rng.integers(0, 256, size=(200, 2, 128), dtype=np.uint8)
    actions = [TEACHERS[name](now, before) for now, before in pairs]
    assert set(actions) <= set(game.action_ids)
    assert actions == [TEACHERS[name](now, before) for now, before in pairs]


@pytest.mark.parametrize("name", ["Breakout", "Boxing"])
def test_a_slow_teacher_does_late_what_a_quick_one_does_at_once(name: str) -> None:
    """Also in a second episode, of which it must not remember the first."""
    game, rng = get(name), np.random.default_rng(0)
    env, late = AtariEnv(game), 3
    quick, slow = ScriptedBehaviour(game), ScriptedBehaviour(game, reaction_steps=late)
    for seed in (5, 6):
        frame, executed = env.reset(seed), None
        at_once, later = [], []
        for _ in range(150):
            scenes = {0: Scene(env, frame, executed)}
            at_once.append(quick.act(scenes)[0])
            later.append(slow.act(scenes)[0])
            executed = game.action_ids[rng.integers(len(game.action_ids))]
            frame = env.step(executed)[0]
        assert later[late:] == at_once[:-late] and len(set(at_once)) > 2
        assert later[:late] == at_once[:1] * late


def test_game_without_teacher_names_those_with_one() -> None:
    with pytest.raises(UserError, match=r"Asterix has no scripted teacher.*Breakout.*Pong"):
        teacher(get("Asterix"))


def actions_of(tier: Tier, steps: int = 4000, seed: int = 0) -> np.ndarray:
    """Actions of a noisy tier over a player that stands still (Boxing)."""
    noise = Noise(get("Boxing"), tier, np.random.default_rng(seed))
    return np.array([noise(0) for _ in range(steps)])


def test_epsilon_replaces_its_share_of_actions() -> None:
    replaced = actions_of(Tier("t", "scripted", 1.0, epsilon=0.3)) != 0
    assert abs(replaced.mean() - 0.3 * 17 / 18) < 0.03
    assert not (actions_of(Tier("t", "scripted", 1.0)) != 0).any()


def test_bursts_are_runs_of_held_random_actions() -> None:
    actions = actions_of(Tier("t", "scripted", 1.0, burst_probability=0.02, burst_steps=10))
    away = actions != 0
    # 0.02 bursts a step of 5.5 steps on average, seldom the still action itself.
    assert 0.05 < away.mean() < 0.15
    held = (actions[1:] == actions[:-1])[away[1:] & away[:-1]].mean()
    assert held > 0.4


def test_noise_repeats_by_seed() -> None:
    tier = Tier("t", "scripted", 1.0, epsilon=0.2, burst_probability=0.05)
    assert np.array_equal(actions_of(tier, seed=1), actions_of(tier, seed=1))
    assert not np.array_equal(actions_of(tier, seed=1), actions_of(tier, seed=2))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"behaviour": "clever", "share": 1.0}, "scripted"),
        ({"behaviour": "random", "share": 1.5}, "share"),
        ({"behaviour": "random", "share": 1.0, "epsilon": -0.1}, "epsilon"),
        ({"behaviour": "random", "share": 1.0, "burst_steps": 0}, "burst_steps"),
        ({"behaviour": "scripted", "share": 1.0, "reaction_steps": -1}, "reaction_steps=-1"),
        ({"behaviour": "random", "share": 1.0, "reaction_steps": 3}, "only behaviour=scripted"),
    ],
)
def test_wrong_tiers_are_explained(settings: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Tier("mine", **settings)  # type: ignore[arg-type]
