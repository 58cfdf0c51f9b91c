"""Windows, batches and the sampler, against slow references in plain Python."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeFile, EpisodeWriter
from jowa.data.sampler import Balance
from jowa.data.segments import Batch, Pad, Sampler, SegmentDataset, _chosen, windows
from jowa.data.tokens import PLACES, place
from jowa.errors import UserError
from jowa.games import get

PADS: tuple[Pad, Pad] = ("right", "left")


def reference_windows(lengths: list[int], length: int, stride: int, pad: Pad) -> list[list[int]]:
    out, first = [], 0
    for steps in lengths:
        if pad == "right":
            for start in range(0, steps, stride):
                out.append([first + start, first + min(start + length, steps)])
        else:
            ends = list(range(steps, 0, -stride))
            for stop in reversed(ends):
                out.append([first + max(stop - length, 0), first + stop])
        first += steps
    return out


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    length=st.integers(1, 10),
    stride=st.integers(1, 10),
    pad=st.sampled_from(PADS),
)
@settings(max_examples=200, deadline=None)
def test_windows_equal_the_reference_and_cover_every_step(
    lengths: list[int], length: int, stride: int, pad: Pad
) -> None:
    stride = min(stride, length)
    starts = np.cumsum([0, *lengths])
    found = windows(starts, length, stride, pad)
    assert found.tolist() == reference_windows(lengths, length, stride, pad)
    covered = {row for start, stop in found.tolist() for row in range(start, stop)}
    assert covered == set(range(sum(lengths)))


def _write(path: Path, lengths: list[int], seed: int, reward_rate: float = 0.1) -> EpisodeFile:
    """An episode file whose frames tell their row: pixel (0, 0) is row % 251 + 1."""
    rng = np.random.default_rng(seed)
    row = 0
    with EpisodeWriter(path, get(path.stem.split("-")[0]), source="a test") as writer:
        for steps in lengths:
            frames = np.zeros((steps, 84, 84), np.uint8)
            frames[:, 0, 0] = np.arange(row, row + steps) % 251 + 1
            rewards = rng.choice([-3.0, 5.0], steps) * (rng.random(steps) < reward_rate)
            end = int(rng.choice([END_NONE, END_TERMINAL, END_TRUNCATED], p=[0.2, 0.5, 0.3]))
            actions = rng.integers(0, 18, steps).astype(np.uint8)
            writer.add(frames, actions, rewards.astype(np.float32), end)
            row += steps
    return EpisodeFile(path)


def _tokens(file: EpisodeFile) -> np.ndarray:
    rows = np.arange(1, file.num_transitions + 1, dtype=np.uint16)
    return rows[:, None] + np.arange(36, dtype=np.uint16) * 1000


@pytest.fixture
def files(tmp_path: Path) -> list[EpisodeFile]:
    return [
        _write(tmp_path / "Pong.h5", [1, 8, 30, 3, 65], 1),
        _write(tmp_path / "Breakout.h5", [21, 2, 7], 2),
        _write(tmp_path / "Breakout-more.h5", [9, 40], 3),
    ]


def _check_batch(
    batch: Batch, files: list[EpisodeFile], indices: np.ndarray, pad: Pad, tokens: bool
) -> None:
    """Compare a batch with one built step by step."""
    cut = [
        (file, start, stop)
        for file in files
        for start, stop in reference_windows(np.diff(file.episode_starts).tolist(), 8, 4, pad)
    ]
    for number, index in enumerate(indices):
        file, start, stop = cut[index]
        real = range(stop - start) if pad == "right" else range(8 - (stop - start), 8)
        assert batch.games[number] == file.game.id
        for step in range(8):
            mask = bool(batch.mask_padding[number, step])
            assert mask == (step in real)
            if not mask:
                for field in (batch.observations, batch.actions, batch.rewards, batch.ends):
                    assert not field[number, step].any()
                continue
            row = start + step - real.start
            assert batch.actions[number, step] == file.actions[row]
            assert batch.rewards[number, step] == file.rewards[row]
            assert batch.ends[number, step] == (file.ends[row] == END_TERMINAL)
            expected = _tokens(file)[row] if tokens else file.frames(np.array([row]))[0]
            np.testing.assert_array_equal(batch.observations[number, step].numpy(), expected)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("source", ["frames", "cached", "memory", "mapped", "device"])
def test_batches_equal_the_reference(files: list[EpisodeFile], pad: Pad, source: str) -> None:
    tokens: list[np.ndarray] | torch.Tensor | None = None
    if source in PLACES:
        tokens = place([_tokens(file) for file in files], source, torch.device("cpu"), 0)
    if source == "cached":
        for file in files:
            file.cache()
    dataset = SegmentDataset(files, tokens, pad=pad)
    indices = np.random.default_rng(0).permutation(dataset.num_segments)
    batch = dataset.batch(indices)
    _check_batch(batch, files, indices, pad, tokens is not None)
    assert (batch.ends.sum(1) <= 1).all() and batch.ends.any()
    assert batch.rewards.dtype == torch.float32 and batch.rewards.abs().max() == 1
    assert batch.actions.dtype == batch.games.dtype == torch.int64
    assert batch.mask_padding.dtype == batch.ends.dtype == torch.bool
    assert batch.observations.dtype == (torch.uint8 if tokens is None else torch.int64)
    same = batch.to("cpu")
    assert torch.equal(same.observations, batch.observations)


@pytest.mark.parametrize("pad", PADS)
def test_an_end_stands_only_on_the_last_real_step(files: list[EpisodeFile], pad: Pad) -> None:
    dataset = SegmentDataset(files, pad=pad)
    batch = dataset.batch(np.arange(dataset.num_segments))
    after = torch.zeros_like(batch.mask_padding)
    after[:, :-1] = batch.mask_padding[:, 1:]
    assert not (batch.ends & after).any()


def test_rewarding_segments_are_known(files: list[EpisodeFile]) -> None:
    dataset = SegmentDataset(files, pad="left")
    batch = dataset.batch(np.arange(dataset.num_segments))
    np.testing.assert_array_equal(dataset.segment_has_reward, (batch.rewards != 0).any(1).numpy())
    np.testing.assert_array_equal(dataset.segment_game, batch.games.numpy())
    assert 0 < dataset.segment_has_reward.mean() < 1


class FakeSegments:
    """What the sampler needs to know of a dataset."""

    def __init__(self, sizes: dict[int, int], rewarding: dict[int, int]) -> None:
        self.segment_game = np.repeat(list(sizes), list(sizes.values())).astype(np.int64)
        self.segment_has_reward = np.concatenate(
            [np.arange(size) < rewarding[game] for game, size in sizes.items()]
        )
        self.num_segments = len(self.segment_game)
        self.fingerprint = json.dumps([sizes, rewarding])


DATA = FakeSegments({3: 50, 7: 120, 40: 31}, {3: 10, 7: 0, 40: 2})


@given(
    sizes=st.lists(st.tuples(st.integers(4, 30), st.integers(0, 4)), min_size=1, max_size=5),
    batch_size=st.sampled_from([1, 3, 4]),
    fraction=st.sampled_from([0.0, 0.25, 0.7, 1.0]),
    balance=st.sampled_from(["games", "uniform"]),
    step=st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_resume_is_exact_anywhere(
    sizes: list[tuple[int, int]], batch_size: int, fraction: float, balance: Balance, step: int
) -> None:
    data = FakeSegments(
        {game: size for game, (size, _) in enumerate(sizes)},
        {game: rewarding for game, (_, rewarding) in enumerate(sizes)},
    )

    def make(seed: int = 5) -> Sampler:
        return Sampler(data, batch_size, seed=seed, balance=balance, reward_fraction=fraction)

    whole = make()
    batches = [next(whole) for _ in range(step + 20)]
    first = make()
    for _ in range(step):
        next(first)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for number in range(step, step + 20):
        np.testing.assert_array_equal(next(second), batches[number])
        np.testing.assert_array_equal(next(first), batches[number])


@pytest.mark.parametrize("balance", ["games", "uniform"])
@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_ranks_together_draw_the_batch_of_one_process(balance: Balance, fraction: float) -> None:
    def make(rank: int, world_size: int) -> Sampler:
        return Sampler(
            DATA,
            24,
            seed=2,
            balance=balance,
            reward_fraction=fraction,
            rank=rank,
            world_size=world_size,
        )

    one, four = make(0, 1), [make(rank, 4) for rank in range(4)]
    for _ in range(30):
        shares = [next(sampler) for sampler in four]
        assert {len(share) for share in shares} == {6}
        np.testing.assert_array_equal(np.concatenate(shares), next(one))
    # A checkpoint of four ranks resumes on two.
    two = [make(rank, 2) for rank in range(2)]
    for sampler in two:
        sampler.load_state_dict(four[3].state_dict())
    np.testing.assert_array_equal(np.concatenate([next(sampler) for sampler in two]), next(one))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 24])
def test_games_have_equal_shares(batch_size: int) -> None:
    sampler = Sampler(DATA, batch_size, seed=0, balance="games", reward_fraction=0.3)
    total: Counter[int] = Counter()
    for _ in range(60):
        games = DATA.segment_game[next(sampler)].tolist()
        counts = [games.count(game) for game in (3, 7, 40)]
        assert max(counts) - min(counts) <= 1
        total.update(games)
    assert max(total.values()) - min(total.values()) <= 1


def test_an_epoch_draws_every_segment_once() -> None:
    uniform = Sampler(DATA, 67, seed=0, balance="uniform")  # 201 segments are three batches
    epochs = [np.concatenate([next(uniform) for _ in range(3)]) for _ in range(3)]
    for drawn in epochs:
        assert sorted(drawn.tolist()) == list(range(201))
    assert not np.array_equal(epochs[0], epochs[1])

    balanced = Sampler(DATA, 30, seed=0, balance="games")
    drawn = np.concatenate([next(balanced) for _ in range(40)])
    for game, size in ((3, 50), (7, 120), (40, 31)):
        mine = drawn[DATA.segment_game[drawn] == game]
        for epoch in range(len(mine) // size):
            assert len(set(mine[epoch * size : (epoch + 1) * size].tolist())) == size


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_the_reward_fraction_is_held_in_every_batch(fraction: float) -> None:
    data = FakeSegments({0: 4000, 1: 4000}, {0: 5, 1: 7})  # hardly ever drawn by chance
    sampler = Sampler(data, 20, seed=0, balance="games", reward_fraction=fraction)
    plain = Sampler(data, 20, seed=0, balance="games")
    counts, by_chance = (
        np.array([data.segment_has_reward[next(draws)].sum() for _ in range(50)])
        for draws in (sampler, plain)
    )
    assert (counts >= 20 * fraction - 1).all()
    assert counts.mean() == pytest.approx(20 * fraction, abs=0.3)
    assert by_chance.mean() < 0.3


def test_a_game_without_rewards_is_still_drawn() -> None:
    sampler = Sampler(DATA, 24, seed=0, balance="games", reward_fraction=1.0)
    drawn = np.concatenate([next(sampler) for _ in range(30)])
    poor = drawn[DATA.segment_game[drawn] == 7]
    assert set(poor.tolist()) == set(range(50, 170))
    assert DATA.segment_has_reward[drawn[DATA.segment_game[drawn] != 7]].all()


def test_seeds_differ() -> None:
    draws = [next(Sampler(DATA, 24, seed=seed, balance="games")) for seed in (0, 1)]
    assert not np.array_equal(draws[0], draws[1])


def test_mistakes_are_told() -> None:
    for batch_size, world_size, match in (
        (202, 1, "only 201 segments for a batch of 202"),
        (10, 4, "cannot be split over 4"),
    ):
        with pytest.raises(UserError, match=match):
            Sampler(DATA, batch_size, seed=0, balance="games", world_size=world_size)
    with pytest.raises(UserError, match="between 0 and 1"):
        Sampler(DATA, 4, seed=0, balance="games", reward_fraction=1.5)
    saved = Sampler(DATA, 4, seed=0, balance="games").state_dict()
    for other in (
        Sampler(DATA, 4, seed=1, balance="games"),
        Sampler(DATA, 5, seed=0, balance="games"),
        Sampler(FakeSegments({3: 50}, {3: 1}), 4, seed=0, balance="games"),
    ):
        with pytest.raises(UserError, match="cannot resume"):
            other.load_state_dict(saved)


@pytest.mark.parametrize("pad", PADS)
def test_held_out_episodes_are_never_learned_from(files: list[EpisodeFile], pad: Pad) -> None:
    def starts(dataset: SegmentDataset) -> list[int]:
        rows, _ = dataset._rows(np.arange(dataset.num_segments))
        return [int(row) for row in rows[:, 0]]

    everything = SegmentDataset(files, pad=pad)
    learned = SegmentDataset(files, pad=pad, hold_out=2)
    held_out = SegmentDataset(files, pad=pad, hold_out=2, held_out=True)
    assert sorted(starts(learned) + starts(held_out)) == sorted(starts(everything))
    first = 0
    for file in files:
        number = np.searchsorted(file.episode_starts[1:], np.arange(file.num_transitions), "right")
        for dataset, odd in ((learned, 0), (held_out, 1)):
            mine = [row - first for row in starts(dataset)]
            mine = [row for row in mine if 0 <= row < file.num_transitions]
            assert mine and {int(number[row]) % 2 for row in mine} == {odd}
        first += file.num_transitions
    names = {dataset.fingerprint for dataset in (everything, learned, held_out)}
    assert len(names) == 3, "an order of segments fits the segments it was made for only"


@pytest.mark.parametrize("pad", PADS)
def test_a_share_of_the_episodes_is_spread_evenly_and_leaves_those_held_out(
    files: list[EpisodeFile], pad: Pad
) -> None:
    whole = SegmentDataset(files, pad=pad, hold_out=3)
    part = SegmentDataset(files, pad=pad, hold_out=3, share=0.5)
    held_out = SegmentDataset(files, pad=pad, hold_out=3, held_out=True, share=0.5)
    assert (
        held_out.fingerprint
        == SegmentDataset(files, hold_out=3, held_out=True, pad=pad).fingerprint
    )
    assert part.fingerprint != whole.fingerprint
    first = 0
    for number, file in enumerate(files):
        mine = part._file_of_segment == number
        starts = part._rows(np.flatnonzero(mine))[0][:, 0] - first
        episodes = set(np.searchsorted(file.episode_starts[1:], starts, "right").tolist())
        kept = [e for e in range(file.num_episodes) if e % 3 != 2]
        assert episodes == set(kept[1::2])
        first += file.num_transitions


@pytest.mark.parametrize("hold_out", [0, 3, 20])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.4, 0.5, 0.99])
def test_a_share_is_that_part_of_the_episodes_not_held_out(hold_out: int, share: float) -> None:
    """Whatever the two periods have in common."""
    episodes = np.arange(401)
    whole = _chosen(episodes, 1, hold_out, False, 1.0)
    part = _chosen(episodes, 1, hold_out, False, share)
    assert not (part & ~whole).any()
    assert 0 <= share * whole.sum() - part.sum() < 1
    assert np.ptp(np.diff(np.flatnonzero(part[whole]))) <= 1  # evenly spread


def test_a_share_that_leaves_nothing_of_a_game_is_refused(files: list[EpisodeFile]) -> None:
    with pytest.raises(UserError, match=rf"share=0.001 .* of {files[0].game.name} .*raise it"):
        SegmentDataset(files, share=0.001)
