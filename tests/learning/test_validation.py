"""Validation: exact over batches, without a trace in training, on episodes never learned from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jowa.cli import main
from jowa.data.episodes import EpisodeFile
from jowa.data.sampler import Sampler
from jowa.data.segments import Batch, SegmentDataset
from jowa.learning.accuracy import share
from jowa.learning.compute import Compute
from jowa.learning.config import PhaseConfig
from jowa.learning.distributed import Processes
from jowa.learning.loss_config import LossConfig
from jowa.learning.monitor import LogConfig
from jowa.learning.tokenize import make_phase, segments_of
from jowa.learning.validation import Validation, averages

CPU = Compute(torch.device("cpu"), torch.float32)
LOSSES = LossConfig(tokenizer=1.0, world_model=0.5, q=1.0, n_step=2)
Maker = Callable[..., Any]


@pytest.fixture
def held_out(data: list[EpisodeFile]) -> SegmentDataset:
    return SegmentDataset(data, hold_out=2, held_out=True)


def test_values_are_those_of_all_batches_as_one(
    held_out: SegmentDataset, make_objective: Maker
) -> None:
    objective = make_objective(LOSSES)
    validation = Validation(held_out, Sampler(held_out, 4, seed=0), 3, CPU)
    values = validation(objective)
    parts = [held_out.batch(*validation.sampler.at(number)) for number in range(3)]
    with torch.no_grad():
        _, metrics, _ = objective(Batch.cat(parts), detailed=True)
    together = averages(metrics, CPU)
    # How many codes a batch uses, and how well they serve, is said of a batch.
    assert {f"validation/{name}" for name in together} == set(values)
    for name, value in together.items():
        if not name.startswith("tokenizer/codes"):
            assert values[f"validation/{name}"] == pytest.approx(value, rel=1e-4), name


def test_it_leaves_no_trace_and_repeats(held_out: SegmentDataset, make_objective: Maker) -> None:
    # REM draws weights by chance.
    objective = make_objective(dataclasses.replace(LOSSES, tokenizer=0.0, rem=True)).train()
    validation = Validation(held_out, Sampler(held_out, 4, seed=0), 2, CPU)
    before = {name: t.clone() for name, t in objective.state_dict().items()}
    random = torch.get_rng_state()
    first, second = validation(objective), validation(objective)
    assert first == second and "validation/accuracy/changed_tokens" in first
    assert torch.equal(torch.get_rng_state(), random)
    assert objective.training and objective.model.training
    for name, tensor in objective.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in objective.parameters())
    torch.manual_seed(5)  # wherever training has come by then
    assert validation(objective) == first
    assert validation(objective.eval()) == first, "nothing is dropped out"


def test_shares_add_up_over_batches_instead_of_being_averaged() -> None:
    few = share(torch.tensor([True, False]), torch.tensor([True, False]))
    many = share(torch.zeros(9, dtype=torch.bool), torch.ones(9, dtype=torch.bool))
    none = share(torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool))
    metrics = {"found": few + many, "absent": none, "loss": torch.tensor(2.5)}
    assert averages(metrics, CPU) == {"found": pytest.approx(0.1), "loss": 2.5}


@pytest.mark.parametrize("processes", [1, 4])
def test_few_segments_are_a_smaller_batch(
    data: list[EpisodeFile], make_objective: Maker, processes: int
) -> None:
    """What is held out is lost to training, so it must tell something however little it is."""
    segments = segments_of(data, PhaseConfig(), hold_out=3)
    assert segments.held_out is not None
    held_out = segments.held_out.num_segments
    config = PhaseConfig(batch_size=4 * (held_out // 4 + 1))
    several = dataclasses.replace(CPU, processes=Processes(size=processes))
    log = LogConfig(validation_batches=1)
    phase = make_phase("x", config, make_objective(LOSSES), segments, log, 0, several)
    assert phase.validation is not None
    drawn = phase.validation.sampler.global_batch(0)
    assert len(drawn) == processes * (held_out // processes) >= 4


def test_a_run_validates_when_due_and_at_its_end(done: Any, tmp_path: Path) -> None:
    command = done.changed("pretrain", run=str(tmp_path / "run"))
    often = ["data.hold_out=2", "log.validation=4", "log.validation_batches=2"]
    assert main([*command, *often, "log.scalars=100", "log.details=100"]) == 0
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [x["step"] for x in lines if "validation/loss/total" in x]
    assert logged == [4, 8, 10], "stage 1 ends at 4, stage 2 after 6 more"
    assert all(np.isfinite(x["validation/loss/total"]) for x in lines if x["step"] in logged)
    assert "validation/accuracy/changed_tokens" in lines[-1]


@pytest.mark.parametrize("wrong", ["1", "-2"])
def test_all_or_less_than_nothing_cannot_be_held_out(
    done: Any, complaint: Maker, tmp_path: Path, wrong: str
) -> None:
    command = done.changed("pretrain", run=str(tmp_path / "run"), **{"data.hold_out": wrong})
    said = complaint(command)
    assert f"hold_out is {wrong}" in said and "20" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["tokenize", "pretrain"])
@pytest.mark.parametrize("wrong", ["0", "1.5"])
def test_a_share_of_the_episodes_that_cannot_be_is_refused(
    done: Any, tmp_path: Path, complaint: Maker, verb: str, wrong: str
) -> None:
    command = done.changed(verb, run=str(tmp_path / "run"), **{"data.share": wrong})
    said = complaint(command)
    assert "data.share is" in said and "at most 1" in said
    assert not (tmp_path / "run").exists()
