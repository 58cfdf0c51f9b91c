"""Playing episodes: fixed numbers, seeds, independence of games, the cap, exploration."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from jowa.errors import UserError
from jowa.evaluation.baselines import ConstantPolicy, RandomPolicy
from jowa.evaluation.rollout import by_game, play, play_seats, seats
from jowa.games import LEGAL_ACTIONS, get

PONG, BREAKOUT, FREEWAY = get("Pong"), get("Breakout"), get("Freeway")
SHORT = {"episodes": 3, "envs_per_game": 2, "seed": 5, "max_frames": 240}


class FakeVector:
    """Episodes whose length and reward follow from the seed; long episodes score high."""

    def __init__(self, game, num_envs, *, max_frames, sticky):
        self.length = np.zeros(num_envs, dtype=int)
        self.time = np.zeros(num_envs, dtype=int)
        self.sent: list[np.ndarray] = []
        self.cap = max_frames // 4

    def reset(self, seeds):
        return self.reset_where(np.ones(len(self.length), dtype=bool), seeds)

    def reset_where(self, which, seeds):
        assert len(seeds) == which.sum()
        self.length[which] = 1 + np.asarray(seeds) % 40
        self.time[which] = 0
        return self._frames()

    def step(self, actions):
        self.sent.append(np.array(actions))
        self.time += 1
        terminated = self.time == self.length
        truncated = (self.time >= self.cap) & ~terminated
        return self._frames(), np.ones(len(actions), np.float32), terminated, truncated

    def close(self):
        pass

    def _frames(self):
        return np.zeros((len(self.length), 84, 84), np.uint8)


class Recorder(ConstantPolicy):
    """Keeps what it is told."""

    def __init__(self, actions):
        super().__init__(actions)
        self.resets = []
        self.sent = []
        self.actives = []

    def reset(self, which):
        self.resets.append(which.copy())

    def act(self, frames, games, active=None):
        self.actives.append(active.copy())
        return super().act(frames, games, active)

    def executed(self, actions):
        self.sent.append(actions.copy())


def fake_play(policy, games, **changes):
    settings = {"episodes": 20, "envs_per_game": 4, "seed": 1, "max_frames": 4000, **changes}
    return play(policy, games, make_vector=FakeVector, **settings)


def test_each_slot_plays_its_share_of_the_episodes():
    results = fake_play(RandomPolicy(0), [PONG, BREAKOUT], episodes=7, envs_per_game=3)
    counts = Counter((result.game, result.slot) for result in results)
    assert counts == {(g, s): n for g in ("Pong", "Breakout") for s, n in enumerate((3, 2, 2))}
    assert [r.game for r in results] == ["Pong"] * 7 + ["Breakout"] * 7
    assert [(r.slot, r.episode) for r in results[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_no_more_slots_than_episodes():
    assert {r.slot for r in fake_play(RandomPolicy(0), [PONG], episodes=2)} == {0, 1}


def test_mean_is_not_biased_to_short_episodes():
    """Lengths are uniform on 1..40 and the score is the length, so the mean must be near 20.5."""
    results = fake_play(RandomPolicy(0), [PONG], episodes=800, envs_per_game=200)
    assert np.mean([r.score for r in results]) == pytest.approx(20.5, abs=1.5)
    assert all(r.score == r.steps for r in results)


def test_policy_is_reset_per_episode_and_told_what_was_sent():
    policy = Recorder({PONG.id: 3})
    results = fake_play(policy, [PONG], episodes=6, envs_per_game=2, epsilon=0.5)
    assert policy.resets[0].all()
    assert sum(int(which.sum()) for which in policy.resets) == 6
    sent, active = np.array(policy.sent), np.array(policy.actives)
    assert active.sum() == sum(r.steps for r in results)
    played = sent[active]
    assert 0.4 < np.mean(played == 3) < 0.8  # half chosen, and a sixth of the random half
    assert set(played) == set(PONG.action_ids)
    assert (sent[~active] == 0).all()


def test_every_random_action_is_legal_and_illegal_choices_are_caught():
    policy = Recorder({PONG.id: 0, FREEWAY.id: 0})
    fake_play(policy, [PONG, FREEWAY], epsilon=1.0)
    ids = np.repeat([PONG.id, FREEWAY.id], 4)
    assert LEGAL_ACTIONS[ids[None], np.array(policy.sent)].all()
    with pytest.raises(AssertionError, match="illegal"):
        fake_play(ConstantPolicy({FREEWAY.id: 17}), [FREEWAY])


def test_progress_sees_every_step_and_every_episode_as_it_ends():
    policy, seen = Recorder({PONG.id: 0}), []
    results = fake_play(policy, [PONG], progress=lambda ended: seen.append(list(ended)))
    assert len(seen) == len(policy.sent)
    assert all(now[: len(before)] == before for before, now in pairwise(seen))
    assert sorted(seen[-1], key=lambda r: (r.slot, r.episode)) == results


def test_a_slot_plays_the_same_without_the_others():
    slots = [seat for seat in seats([BREAKOUT, PONG], 3, 2) if (seat.game, seat.slot) != (PONG, 0)]
    held = ConstantPolicy({PONG.id: 3, BREAKOUT.id: 1})
    protocol = {"seed": 5, "max_frames": 2000}
    apart = play_seats(held, slots, **protocol)
    together = play(held, [BREAKOUT, PONG], episodes=3, envs_per_game=2, **protocol)
    assert apart == [r for r in together if (r.game, r.slot) != ("Pong", 0)]
    assert len({(r.score, r.steps) for r in apart}) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"episodes": 0},
        {"envs_per_game": 0},
        {"max_frames": 3},
        {"seed": -1},
        {"epsilon": 1.5},
    ],
)
def test_impossible_settings_are_named(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        fake_play(RandomPolicy(0), [PONG], **changes)


def test_games_must_be_distinct_and_present():
    with pytest.raises(UserError, match="twice"):
        fake_play(RandomPolicy(0), [PONG, PONG])
    with pytest.raises(UserError, match="no game"):
        fake_play(RandomPolicy(0), [])


def test_real_games_reproduce_whatever_is_played_beside_them():
    together = play(RandomPolicy(0), [BREAKOUT, PONG, FREEWAY], **SHORT)
    alone = play(RandomPolicy(0), [PONG], **SHORT)
    assert [r for r in together if r.game == "Pong"] == alone
    longer = {**SHORT, "max_frames": 4000}
    first, again = (play(RandomPolicy(1), [BREAKOUT], **longer) for _ in range(2))
    other = play(RandomPolicy(1), [BREAKOUT], **{**longer, "seed": 6})
    assert first == again != other
    assert len({(r.score, r.steps) for r in first}) > 1


def test_cap_is_honoured_and_flagged_in_real_games():
    capped = play(ConstantPolicy({PONG.id: 0}), [PONG], **SHORT)
    assert [r.steps for r in capped] == [60, 60, 60]
    assert all(r.truncated for r in capped)
    finished = play(
        ConstantPolicy({PONG.id: 0}),
        [PONG],
        episodes=1,
        envs_per_game=1,
        seed=0,
        max_frames=108_000,
        epsilon=0.0,
    )
    assert finished[0].score == -21 and not finished[0].truncated


def test_by_game_groups_episodes():
    grouped = by_game(fake_play(RandomPolicy(0), [PONG, BREAKOUT], episodes=3))
    assert list(grouped) == ["Pong", "Breakout"]
    assert len(grouped["Pong"].scores) == len(grouped["Pong"].steps) == 3
    assert grouped["Pong"].truncated == [False] * 3
