"""Cloning by pixels: what is held out, what is seen, and that it learns what can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jowa.data.episodes import END_TERMINAL, EpisodeFile, EpisodeWriter
from jowa.errors import UserError
from jowa.games import get
from jowa.learning.pixel_cloning import Play, predict, read_play, train_clone
from jowa.models.pixel_clone import PixelClone, stacked

CPU = torch.device("cpu")
LENGTHS = [20, 5, 30, 12, 8, 25, 3, 40, 10, 15, 22]


@pytest.fixture
def file(tmp_path: Path) -> EpisodeFile:
    """Breakout in which the side of a bright square says what the good tier does; the bad tier
    does anything."""
    game, rng = get("Breakout"), np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "Breakout.h5", game, source="a test", tiers=("bad", "good")) as w:
        for number, length in enumerate(LENGTHS * 6):
            tier = int(number % 3 > 0)
            choice = rng.integers(4, size=length)
            frames = rng.integers(0, 60, (length, 84, 84), dtype=np.uint8)
            for step, place in enumerate(choice):
                frames[step, 30:50, 20 * place : 20 * place + 12] = 220
            done = choice if tier else rng.integers(4, size=length)
            actions = np.array(game.action_ids)[done]
            w.add(frames, actions, np.full(length, tier), END_TERMINAL, tier)
    return EpisodeFile(tmp_path / "Breakout.h5")


def _train(play: Play, seed: int = 0) -> PixelClone:
    options = {"steps": 60, "batch_size": 32, "learning_rate": 1e-3, "device": CPU}
    return train_clone(play, 4, seed=seed, **options)


def test_a_clone_predicts_held_out_play_that_follows_the_screen(file: EpisodeFile) -> None:
    play = read_play(file, ["good"], 10_000, seed=0)
    prediction = predict(_train(play), play, 4, CPU)
    assert prediction.accuracy > 0.9 > 0.5 > prediction.prior_accuracy
    assert prediction.change_accuracy > 0.9
    assert prediction.cross_entropy < 0.4 < 1.3 < prediction.prior_cross_entropy


def test_random_play_cannot_be_cloned(file: EpisodeFile) -> None:
    play = read_play(file, ["bad"], 10_000, seed=0)
    prediction = predict(_train(play), play, 4, CPU)
    assert prediction.accuracy < 0.45
    assert prediction.cross_entropy > prediction.prior_cross_entropy - 0.05


def test_the_same_seed_trains_the_same_clone(file: EpisodeFile) -> None:
    play = read_play(file, ["good"], 300, seed=0)
    weights = [
        torch.cat([p.flatten() for p in _train(play, seed).parameters()]) for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_held_out_episodes_are_whole_and_of_the_tier(file: EpisodeFile) -> None:
    play = read_play(file, ["good"], 10_000, seed=0)
    tier_of_row = np.repeat(file.episode_tiers, np.diff(file.episode_starts))
    assert len(play.actions) == (tier_of_row == 1).sum()
    starts = play.first_rows.unique()
    assert len(starts) == (file.episode_tiers == 1).sum()
    for start in starts:
        assert len(play.held_out[play.first_rows == start].unique()) == 1
    assert 0.02 < play.held_out.float().mean() < 0.3
    # frames, actions and rows belong together: the square says the action
    columns = play.frames[:, 40].float()
    seen = torch.stack([columns[:, 20 * p : 20 * p + 12].mean(1) for p in range(4)], 1).argmax(1)
    assert torch.equal(seen, play.actions)


def test_a_budget_takes_whole_episodes_by_chance(file: EpisodeFile) -> None:
    few = [read_play(file, ["good"], 100, seed=seed) for seed in (0, 1)]
    assert all(100 <= len(play.actions) < 100 + max(LENGTHS) for play in few)
    assert not torch.equal(few[0].frames[:20], few[1].frames[:20])


def test_frames_before_an_episode_are_its_first(file: EpisodeFile) -> None:
    rows = torch.tensor([7, 8, 10, 30])
    first = torch.tensor([7, 7, 7, 7])
    expected = [[7, 7, 7, 7], [7, 7, 7, 8], [7, 8, 9, 10], [27, 28, 29, 30]]
    assert stacked(rows, first).tolist() == expected


def test_changes_count_from_the_episode(file: EpisodeFile) -> None:
    play = Play(
        torch.zeros(6, 84, 84, dtype=torch.uint8),
        torch.tensor([1, 1, 2, 2, 2, 1]),
        torch.tensor([0, 0, 0, 3, 3, 3]),
        torch.zeros(6, dtype=torch.bool),
    )
    assert play.changes().tolist() == [True, False, True, True, False, True]


@pytest.mark.parametrize(
    ("tiers", "transitions", "words"),
    [(["best"], 100, ["best", "bad, good"]), (["good"], 1, ["raise transitions"])],
)
def test_what_cannot_be_probed_is_a_sentence(
    file: EpisodeFile, tiers: list[str], transitions: int, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        read_play(file, tiers, transitions, seed=0)
    for word in words:
        assert word in str(error.value)
