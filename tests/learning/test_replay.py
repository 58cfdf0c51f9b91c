"""A step as one CUDA graph is the same step. Needs a GPU, but for what refuses to run without."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from jowa.data.episodes import EpisodeFile
from jowa.data.segments import Batch, SegmentDataset
from jowa.errors import UserError
from jowa.learning.compute import Compute
from jowa.learning.distributed import Processes
from jowa.learning.loss_config import LossConfig
from jowa.learning.objective import Objective
from jowa.learning.optim import OptimizerConfig, build_optimizer
from jowa.learning.step import Step
from jowa.models.transformer import Attention

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup=4, decay="cosine")
STEPS = 12
Maker = Callable[..., Objective]


def make_step(
    objective: Objective,
    replay: bool,
    dropout: float = 0.0,
    where: str = "cuda",
    compile: bool = False,
) -> Step:
    device = torch.device(where)
    objective.to(device).train()
    objective.freeze_unused()
    for module in objective.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        if isinstance(module, Attention):
            module.dropout = dropout
    optimizer, compute = build_optimizer(objective, OPTIMIZER), Compute(device, torch.float32)
    return Step(objective, optimizer, OPTIMIZER, compute, STEPS, 5, compile, replay)


@pytest.fixture
def batch(data: list[EpisodeFile]) -> Batch:
    """Segments of frames of both games, some of them short."""
    return SegmentDataset(data).batch(np.arange(0, 80, 5))


@needs_gpu
@pytest.mark.parametrize(
    "losses",
    [
        LossConfig(world_model=0.5, q=1.0, n_step=3, reward_weight=4.0, world_one_in=4),
        LossConfig(tokenizer=1.0, world_model=0.5, q=1.0),
        LossConfig(cloning=1.0),
    ],
)
def test_weights_metrics_and_counters_are_those_of_ordinary_steps(
    losses: LossConfig, make_objective: Maker, batch: Batch
) -> None:
    def is_sure(name: str) -> bool:
        # A tokenizer that learns adds up atomically, by which near ties of patches between codes
        # are decided, and with them what the model is taught; its own losses do not care.
        own = name.startswith("tokenizer") and "code" not in re.split("[./]", name)[-1]
        return own or not losses.tokenizer

    plain, replayed = (make_step(make_objective(losses), replay) for replay in (False, True))
    batch, before = batch.to("cuda"), copy.deepcopy(plain.objective.state_dict())
    for number in range(STEPS):
        # Other batches of the same shape, and now and then a detailed step, which is no replay.
        rolled = Batch(**{name: t.roll(number, 0) for name, t in vars(batch).items()})
        expected, found = (step(rolled, number, number % 6 == 0) for step in (plain, replayed))
        for name in filter(is_sure, expected):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    theirs = plain.objective.state_dict()
    for name, value in replayed.objective.state_dict().items():
        if not losses.tokenizer:
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)
        elif is_sure(name):
            apart, moved = (
                (value.float() - other[name].float()).norm() for other in (theirs, before)
            )
            assert apart <= 0.05 * moved, name
    assert sum(not torch.equal(before[name], value) for name, value in theirs.items()) > 5


@needs_gpu
@pytest.mark.parametrize(
    ("losses", "sure"),  # as above
    [
        (LossConfig(tokenizer=1.0, world_model=0.5), "tokenizer/reconstruction"),
        (LossConfig(world_model=0.5, q=1.0, world_one_in=2), "loss/total"),
    ],
)
def test_a_compiled_step_that_reads_frames_replays_to_the_same_losses(
    losses: LossConfig, sure: str, make_objective: Maker, batch: Batch
) -> None:
    plain = make_step(make_objective(losses), replay=False)
    compiled = make_step(make_objective(losses), replay=True, compile=True)
    batch = batch.to("cuda")
    for number in range(8):
        expected, found = (step(batch, number, False)[sure] for step in (plain, compiled))
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


@needs_gpu
def test_nothing_is_learned_from_numbers_that_are_not_finite(
    make_objective: Maker, batch: Batch
) -> None:
    step = make_step(make_objective(LossConfig(world_model=1.0, q=1.0)), replay=True)
    batch = batch.to("cuda")
    for number in range(6):
        step(batch, number, False)
    before = copy.deepcopy(step.objective.state_dict())
    step(dataclasses.replace(batch, rewards=batch.rewards * torch.nan), 6, False)
    step(batch, 7, False)
    assert int(step.guard.bad_step) == 6
    for name, value in step.objective.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_step_draws_new_dropouts_and_counts_as_a_change_of_the_weights(
    where: str, make_objective: Maker, batch: Batch
) -> None:
    objective = make_objective(LossConfig(world_model=1.0))
    step = make_step(objective, where == "cuda", dropout=0.5, where=where)
    batch = batch.to(where)
    for group in step.optimizer.param_groups:
        group["base_lr"] = 0.0
    weight, version, losses = step.objective.model.action_embedding.weight, -1, set()
    for number in range(8):
        losses.add(float(step(batch, number, False)["loss/total"]))
        assert weight._version > version
        version = weight._version
    assert len(losses) == 8


@pytest.mark.parametrize("processes", [Processes(), Processes(0, 2)])
def test_a_replay_that_cannot_be_is_refused(processes: Processes) -> None:
    compute = Compute(torch.device("cpu"), torch.float32, processes)
    assert not compute.replays(None)
    assert not compute.replays(False)
    with pytest.raises(UserError, match="replay=true"):
        compute.replays(True)
