"""Imagined data: real contexts, the planner's steps, and what learns from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jowa.data.episodes import EpisodeFile
from jowa.data.loader import INLINE, Loader
from jowa.data.segments import Batch, Sampler, SegmentDataset
from jowa.learning.compute import Compute
from jowa.learning.imagination import Imagination, joined
from jowa.learning.loss_config import LossConfig
from jowa.learning.losses import target_rows
from jowa.learning.monitor import LogConfig
from jowa.learning.objective import Objective
from jowa.learning.tokenize import Segments, make_phase
from jowa.learning.trainer import read
from jowa.models.tokenizer import to_bytes
from jowa.planning.beam import imagine
from jowa.planning.paths import Path as PlannedPath

CPU = Compute(torch.device("cpu"), torch.float32)
Maker = Callable[..., Any]


def made_by(imagination: Imagination, objective: Objective, step: int = 0) -> Batch:
    imagination.refresh(step, objective, CPU)
    assert imagination.buffer is not None
    return imagination.buffer


def assert_equal(ours: Batch, theirs: Batch) -> None:
    for name, tensor in vars(ours).items():
        assert torch.equal(tensor, getattr(theirs, name)), name


@pytest.mark.parametrize(
    ("frames", "pad", "going", "options"),
    [
        (True, "right", 1.0, {}),
        (True, "left", 1.0, {"context": 3, "horizon": 1}),
        (True, "right", 0.0, {"context": 1}),
        (False, "left", 0.0, {"beam_width": 3}),  # some end
        (False, "right", 0.0, {"context": 1, "horizon": 4}),
        (False, "right", 1.0, {"context": 2, "horizon": 3}),
    ],
)
def test_segments_are_real_contexts_and_then_the_planners_path(
    data: list[EpisodeFile],
    random_tokens: list[np.ndarray],
    make_objective: Maker,
    make_imagination: Maker,
    frames: bool,
    pad: str,
    going: float,
    options: dict[str, int],
) -> None:
    objective = make_objective(going=going)
    imagination = make_imagination(frames, pad, segments=12, **options)
    made, model = made_by(imagination, objective), objective.model
    H, W = options.get("horizon", 2), options.get("beam_width", 2)
    C = options.get("context", 8 - H)
    assert not any(tensor.is_inference() for tensor in vars(made).values())
    ids, tokens = [file.game.id for file in data], random_tokens
    assert set(made.games.tolist()) == set(ids)
    for s in range(12):
        file = data[ids.index(int(made.games[s]))]
        shown = file.frames(np.arange(file.num_transitions))
        shown = shown if frames else tokens[ids.index(file.game.id)]
        # The context is somewhere in the data, as it was, inside one episode.
        places = [
            row
            for first, stop in zip(file.episode_starts[:-1], file.episode_starts[1:], strict=True)
            for row in range(first, stop - C + 1)
            if (made.observations[s, :C].numpy() == shown[row : row + C]).all()
            and (made.actions[s, : C - 1].numpy() == file.actions[row : row + C - 1]).all()
            and (made.rewards[s, : C - 1].numpy() == file.rewards[row : row + C - 1]).all()
        ]
        assert places and not file.ends[places[0] : places[0] + C - 1].any()
        assert not made.imagined[s, : C - 1].any() and made.mask_padding[s, :C].all()
        # From its newest frame on the steps are those of the planner.
        part = made.select(slice(s, s + 1))
        seen = part.observations[:, :C]
        if frames:
            games = part.games.repeat(C)
            seen = objective.tokenizer.encode(seen.flatten(0, 1).unsqueeze(1), games).unsqueeze(0)
        path = imagine(model, seen, part.actions[:, : C - 1], part.games, W, H)
        ended = [i for i in range(H) if path.ends[0, i]]
        count = C - 1 + (ended[0] + 1 if ended else H + 1)
        assert made.mask_padding[s].tolist() == [t < count for t in range(8)]
        assert made.imagined[s].tolist() == [C - 1 <= t < count for t in range(8)]
        steps = min(count - C + 1, H)
        assert torch.equal(made.actions[s, C - 1 : count], path.actions[0, : count - C + 1])
        assert torch.equal(made.rewards[s, C - 1 : C - 1 + steps], path.rewards[0, :steps])
        assert torch.equal(made.ends[s, C - 1 : C - 1 + steps], path.ends[0, :steps])
        imagined = path.frames[0, : count - C]
        if frames:
            imagined = to_bytes(objective.tokenizer.decode(imagined, part.games.repeat(count - C)))
        assert torch.equal(made.observations[s, C:count], imagined)
        assert model.legal_actions[part.games, made.actions[s, :count]].all()
        # What lies behind is padding.
        for name in ("observations", "actions", "rewards", "ends"):
            assert not getattr(made, name)[s, count:].any(), name
        assert made.rewards[s, count - 1] == 0 or ended


@pytest.mark.parametrize("pad", ["right", "left"])
def test_every_context_is_whole(make_imagination: Maker, pad: str) -> None:
    """From all segments that are long enough, however they are padded, and at all their places."""
    roots = make_imagination(False, pad, context=3).roots
    steps = roots.dataset.segment_steps
    count = int((steps >= 3).sum())
    assert (steps < 3).any() and ((steps > 3) & (steps < 8)).any()
    assert roots.num_segments == count
    seen = set()
    for place in range(6):
        contexts = roots.contexts(np.arange(count), np.full(count, place))
        assert contexts.mask_padding.all() and not contexts.ends[:, :-1].any()
        seen.update(tuple(frame) for frame in contexts.observations[:, -1].tolist())
    # Every frame that two others precede in a segment can be dreamt on from.
    whole = roots.dataset.batch(np.arange(len(steps)))
    newest = whole.mask_padding.cumsum(1) >= 3
    frames = whole.observations[newest & whole.mask_padding]
    assert seen == {tuple(frame) for frame in frames.tolist()}


def test_an_imagined_end_is_the_last_step(make_imagination: Maker) -> None:
    dataset = make_imagination(frames=False).dataset
    numbers = np.flatnonzero(dataset.segment_steps == 8)[:3]
    whole = dataset.batch(numbers)
    contexts = Batch(**{n: t[:, :5] if t.ndim > 1 else t for n, t in vars(whole).items()})
    ends = torch.tensor([[False, False], [False, True], [True, False]])
    frames, ones = torch.full((3, 2, 36), 7), torch.ones(3, 2)
    path = PlannedPath(frames, torch.full((3, 3), 2), ones, ends, torch.zeros(3))
    segments = joined(contexts, path, frames, 8)
    real, dreamt = segments.mask_padding.sum(1).tolist(), segments.imagined.sum(1).tolist()
    assert (real, dreamt) == ([7, 6, 5], [3, 2, 1])
    rows = target_rows(segments.ends, segments.mask_padding)
    # The last imagined frame has no successor; an end needs none.
    assert rows.sum(1).tolist() == [6, 6, 5]
    assert segments.rewards[:, 4:].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert segments.observations[:, 5:, 0].tolist() == [[7, 7, 0], [7, 0, 0], [0, 0, 0]]


def gradients(objective: Objective, batch: Batch) -> tuple[dict[str, Tensor], Any, Any]:
    objective.zero_grad()
    loss, metrics, statistics = objective(batch, detailed=True)
    loss.backward()
    found = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return found, metrics, statistics


def test_world_model_and_tokenizer_learn_nothing_from_imagined_steps(
    make_objective: Maker, make_imagination: Maker
) -> None:
    """Whatever they hold: only the Q losses notice."""
    imagination = make_imagination()
    rest = imagination.batch(0)
    mixed = Batch.cat([rest, made_by(imagination, make_objective())])
    dreamt = mixed.imagined
    other = dataclasses.replace(
        mixed,
        observations=torch.where(
            dreamt[..., None, None], 255 - mixed.observations, mixed.observations
        ),
        actions=torch.where(dreamt, 1, mixed.actions),
        rewards=torch.where(dreamt, 1.0 - mixed.rewards, mixed.rewards),
        ends=mixed.ends ^ dreamt,
    )
    assert dreamt.sum(1).tolist() == [0] * 4 + [3] * 8
    without = dataclasses.replace(
        mixed, mask_padding=mixed.real, imagined=rest.imagined.new_zeros(dreamt.shape)
    )
    world = make_objective(LossConfig(tokenizer=1.0, world_model=0.5), patches=36)
    ours, metrics, statistics = gradients(world, mixed)
    assert any(name.startswith("tokenizer.encoder") for name in ours)
    assert any(name.startswith("model.observation_head") for name in ours)
    for batch in (other, without):
        theirs, others, more = gradients(world, batch)
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-7, msg=name)
        for name, value in metrics.items():
            torch.testing.assert_close(value, others[name], equal_nan=True, msg=name)
        for name in ("counts", "sums", "power"):
            torch.testing.assert_close(getattr(statistics, name), getattr(more, name))
    values = make_objective(LossConfig(q=1.0))
    ours, metrics, _ = gradients(values, mixed)
    for batch in (other, without):
        theirs, others, _ = gradients(values, batch)
        assert abs(float(metrics["q/td"] - others["q/td"])) > 1e-3
        same = metrics["q/greedy_is_data_action"], others["q/greedy_is_data_action"]
        assert torch.equal(*same)
        for name in ("q_head.linear3.bias", "reader.hidden.weight"):
            assert not torch.allclose(ours[f"model.{name}"], theirs[f"model.{name}"]), name


def test_refreshing_changes_nothing_but_the_buffer(
    make_objective: Maker, make_imagination: Maker
) -> None:
    objective = make_objective().train()
    objective.tokenizer.eval()
    objective.model.reward_head.eval()
    modes = {name: part.training for name, part in objective.named_modules()}
    state = {n: t.clone() for n, t in objective.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = made_by(make_imagination(), objective)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: part.training for name, part in objective.named_modules()} == modes
    assert all(torch.equal(t, state[n]) for n, t in objective.state_dict().items())
    assert all(p.grad is None for p in objective.parameters())
    # Dropout is off: the same again gives the same.
    assert_equal(made_by(make_imagination(), objective), first)


def test_batches_are_a_function_of_step_and_rank(
    make_objective: Maker, make_imagination: Maker
) -> None:
    objective = make_objective()
    alone = make_imagination(False, segments=8, batch=8)
    pair = [make_imagination(False, rank=rank, size=2, segments=4) for rank in (0, 1)]
    # Real until something is imagined: together as much and the same as one process's.
    halves = [each.batch(5) for each in pair]
    assert_equal(Batch.cat(halves), alone.batch(5))
    assert not alone.batch(5).imagined.any()
    # So are the contexts; what is drawn from buffers of their own is drawn anew at every step.
    together = Batch.cat([made_by(each, objective, 300) for each in pair])
    assert torch.equal(together.actions[:, :5], made_by(alone, objective, 300).actions[:, :5])
    for each in pair:
        batch = each.batch(7)
        assert batch.imagined.any(1).all() and len(batch.games) == 4
        assert_equal(each.batch(7), batch)
        assert not torch.equal(each.batch(8).observations, batch.observations)
    keys = torch.cat([each.batch(7).keys for each in pair])
    assert torch.equal(keys, alone.batch(7).keys) and len(keys.unique()) == 8
    pair[1].buffer = pair[0].buffer
    assert not torch.equal(pair[0].batch(7).observations, pair[1].batch(7).observations)


def test_the_oldest_segments_fall_out(make_objective: Maker, make_imagination: Maker) -> None:
    objective = make_objective()
    imagination = make_imagination(False, segments=6, buffer=16, every=10, start=5)
    assert [step for step in range(30) if imagination.due(step)] == [5, 15, 25]
    empty = imagination.metrics(CPU.device)
    first = made_by(imagination, objective, 5)
    second = made_by(imagination, objective, 15)
    third = made_by(imagination, objective, 25)
    assert [len(b.games) for b in (first, second, third)] == [6, 12, 16]
    assert_equal(second.select(slice(0, 6)), first)
    assert_equal(third.select(slice(0, 10)), second.select(slice(2, 12)))
    assert not torch.equal(third.keys[-6:], first.keys)  # other contexts every time
    metrics = imagination.metrics(CPU.device)
    assert metrics["imagination/segments"] == 16 and metrics["imagination/reward"].abs() <= 1
    # Processes with nothing yet log the same names as the others.
    assert empty.keys() == metrics.keys() and empty["imagination/segments"] == 0


def test_without_a_share_nothing_is_imagined(
    data: list[EpisodeFile], make_objective: Maker, phase_config: Maker
) -> None:
    dataset = SegmentDataset(data)
    phase = make_phase(
        "x", phase_config(), make_objective(), Segments(dataset), LogConfig(), 4, CPU
    )
    sampler = Sampler(dataset, 6, seed=4, reward_fraction=0.25)
    assert phase.imagination is None
    batches = Loader(dataset, phase.sampler, INLINE, CPU.device)
    for _ in range(3):
        batch = dataset.batch(*sampler.at(phase.sampler.step))
        assert_equal(read(phase, batches), batch)


def test_a_batch_is_part_real_and_part_imagined(
    data: list[EpisodeFile], make_objective: Maker, phase_config: Maker
) -> None:
    objective, dataset = make_objective(), SegmentDataset(data)
    config = phase_config(share=1 / 3, segments=4, buffer=8, start=2)
    phase = make_phase("x", config, objective, Segments(dataset), LogConfig(), 4, CPU)
    assert phase.imagination is not None
    batches = Loader(dataset, phase.sampler, INLINE, CPU.device)
    read(phase, batches), read(phase, batches)
    phase.imagination.refresh(2, objective, CPU)
    batch = read(phase, batches)
    assert batch.imagined.any(1).tolist() == [False] * 4 + [True] * 2
    sampler = Sampler(dataset, 4, seed=4, reward_fraction=0.25)
    assert_equal(batch.select(slice(0, 4)), dataset.batch(*sampler.at(2)))
    assert len(batch.keys.unique()) == 6


def test_rewards_of_a_world_model_that_counts_them_more_are_those_expected(
    make_objective: Maker, make_imagination: Maker
) -> None:
    """With the weight taken out, as at play; the likeliest would be rewards too often."""
    losses = LossConfig(tokenizer=1.0, world_model=0.5, q=1.0, n_step=2, reward_weight=4.0)
    objective = make_objective(losses, going=9.0)
    made = made_by(make_imagination(horizon=1, context=3, segments=6), objective)
    frames, games = made.observations[:, :3], made.games
    tokens = objective.tokenizer.encode(
        frames.flatten(0, 1).unsqueeze(1), games.repeat_interleave(3)
    ).view(6, 3, 36)
    args = (objective.model, tokens, made.actions[:, :2], games, 2, 1)
    expected = imagine(*args, reward_weight=4.0).rewards[:, 0]
    torch.testing.assert_close(made.rewards[:, 2], expected)
    assert not torch.equal(expected, imagine(*args).rewards[:, 0])
