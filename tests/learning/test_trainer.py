"""The training loop: going on exactly where it stopped, refusing bad numbers, finishing once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jowa.data.episodes import EpisodeFile
from jowa.data.loader import Loading
from jowa.data.segments import Sampler, SegmentDataset
from jowa.errors import UserError
from jowa.learning.checkpoint import complete, find, load
from jowa.learning.compute import Compute
from jowa.learning.loss_config import LossConfig
from jowa.learning.monitor import LogConfig
from jowa.learning.objective import Objective
from jowa.learning.optim import OptimizerConfig
from jowa.learning.trainer import Phase, Stopped, Trainer

CPU = Compute(torch.device("cpu"), torch.float32)
NANO = {"codebook_width": 4, "copy_previous": True, "reader_width": 8, "bell_start": 1.0}
FIRST = LossConfig(tokenizer=1.0, world_model=1.0)
SECOND = LossConfig(tokenizer=0.5, world_model=0.5, q=1.0, n_step=2)
Experiment = Callable[..., Trainer]
STEPS = 7


def curves(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "seconds" and not k.startswith("speed/")}
        for line in lines
    ]


def assert_same_run(run: Path, other: Path) -> None:
    """The same log, bit for bit, and the same weights, optimiser and random state."""
    assert json.dumps(curves(run)) == json.dumps(curves(other))
    for file in ("model", "tokenizer", "training"):
        ours = load_file(find(run) / f"{file}.safetensors")
        theirs = load_file(find(other) / f"{file}.safetensors")
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("stop", [2, 3, 7, 9, 13])
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, two_phases: Experiment, stop: int
) -> None:
    """SIGTERM inside the first phase, at a checkpoint, at the switch, and in the second phase."""
    two_phases(tmp_path / "straight")

    def terminate(step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        two_phases(tmp_path / "stopped", terminate)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert load(find(tmp_path / "stopped")).step == stop
    two_phases(tmp_path / "stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_reading_ahead_changes_nothing_even_where_a_run_is_stopped(
    tmp_path: Path, two_phases: Experiment
) -> None:
    """With batches on their way when SIGTERM comes, in either phase."""
    two_phases(tmp_path / "straight")
    run, ahead = tmp_path / "stopped", Loading(workers=2)
    for stop in (2, 9):

        def terminate(step: int, stop: int = stop) -> None:
            if step == stop:
                assert len(multiprocessing.active_children()) == 2
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Stopped):
            two_phases(run, terminate, loading=ahead)
        assert load(find(run)).step == stop
        assert multiprocessing.active_children() == []
    two_phases(run, loading=ahead)
    assert_same_run(tmp_path / "straight", run)


def test_a_stopped_baseline_goes_on_bit_for_bit(tmp_path: Path, two_phases: Experiment) -> None:
    cloning = LossConfig(cloning=1.0)

    def terminate(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    two_phases(tmp_path / "straight", second=cloning)
    with pytest.raises(Stopped):
        two_phases(tmp_path / "stopped", terminate, second=cloning)
    two_phases(tmp_path / "stopped", second=cloning)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("baseline", [LossConfig(q=1.0), LossConfig(cloning=1.0)])
def test_baselines_leave_the_world_model_as_it_is(
    tmp_path: Path, two_phases: Experiment, baseline: LossConfig
) -> None:
    """The first phase trains it; the second trains the Q head and its reader alone."""
    run = tmp_path / "run"
    two_phases(run, second=baseline, scalars=7)
    before, after = (load(run / "checkpoints" / f"step_{n:08d}") for n in (STEPS, 2 * STEPS))
    for name, tensor in before.tensors["model"].items():
        if name.endswith("weight"):
            kept = torch.equal(tensor, after.tensors["model"][name])
            assert kept == (not name.startswith(("reader", "q_head", "target_q_head"))), name


class Crash(Exception):
    pass


def test_a_crashed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, two_phases: Experiment
) -> None:
    """Steps after the checkpoint are done again; the log holds each once."""
    two_phases(tmp_path / "straight")

    def crash(step: int) -> None:
        if step == 12:
            raise Crash

    with pytest.raises(Crash):
        two_phases(tmp_path / "crashed", crash)
    assert load(find(tmp_path / "crashed")).step == 10
    assert curves(tmp_path / "crashed")[-1]["step"] == 12
    with (tmp_path / "crashed" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 13, "pha')  # as a kill leaves it
    two_phases(tmp_path / "crashed")
    assert_same_run(tmp_path / "straight", tmp_path / "crashed")


def test_a_finished_run_trains_no_more(tmp_path: Path, two_phases: Experiment) -> None:
    run = tmp_path / "run"
    two_phases(run)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    steps: list[int] = []
    trainer = two_phases(run, steps.append)
    assert steps == [] and trainer.position.step == 2 * STEPS
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_learning_lowers_the_loss_and_logs_each_term_once(
    tmp_path: Path, two_phases: Experiment
) -> None:
    two_phases(tmp_path / "run")
    lines = curves(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 2 * STEPS + 1))
    assert lines[6]["world_model/observation"] < lines[0]["world_model/observation"]
    assert {"q/td", "q/cql", "loss/total", "gradient_norm/model", "rate/model"} <= lines[-1].keys()
    assert lines[0]["rate/model"] == pytest.approx(1e-3)


def test_other_data_cannot_go_on_with_an_old_run(
    tmp_path: Path,
    two_phases: Experiment,
    data: list[EpisodeFile],
    make_tokenizer: Callable[..., Any],
    make_model: Callable[..., Any],
) -> None:
    """The same games, collected anew."""

    def terminate(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        two_phases(tmp_path / "run", terminate)
    tokenizer, model = make_tokenizer(patches_per_frame=6), make_model(**NANO)
    trainer = Trainer(tmp_path / "run", tokenizer, model, CPU, LogConfig(), {}, 1, dict)
    dataset = SegmentDataset(data[:1])
    sampler = Sampler(dataset, 4, seed=0, reward_fraction=0.25)
    objective = Objective(tokenizer, model, FIRST)
    with pytest.raises(UserError, match="cannot resume"):
        trainer.train(Phase("first", STEPS, objective, dataset, sampler, OptimizerConfig()))


@pytest.mark.parametrize("scalars", [1, 100])
def test_a_gradient_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, two_phases: Experiment, monkeypatch: pytest.MonkeyPatch, scalars: int
) -> None:
    """Also where the host looks only later: nothing is learned from that step on."""
    forward = Objective.forward
    weights: list[dict[str, torch.Tensor]] = []
    objectives: list[Objective] = []
    bad: list[torch.Tensor] = []

    def sometimes_nan(self: Objective, batch: Any, *rest: Any, **more: Any) -> Any:
        loss, metrics, statistics = forward(self, batch, *rest, **more)
        objectives.append(self)
        weights.append({n: p.detach().clone() for n, p in self.named_parameters()})
        if len(weights) == 5:
            bad.append(batch.keys)
        if bad and torch.equal(batch.keys, bad[0]):
            loss = loss * torch.nan
            metrics["world_model/observation"] = loss.detach()
        return loss, metrics, statistics

    monkeypatch.setattr(Objective, "forward", sometimes_nan)
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"^step 4 .*world_model/observation") as caught:
        two_phases(run, scalars=scalars)
    (path,) = run.glob("bad_batch*.safetensors")
    assert str(path) in str(caught.value)
    assert load_file(path)["observations"].shape == (4, 8, 84, 84)
    for name, parameter in objectives[-1].named_parameters():
        assert torch.equal(parameter, weights[4][name]), name
    assert load(find(run)).step == 3
    assert all(np.isfinite(line["loss/total"]) for line in curves(run))
    # Once the cause is gone the run goes on.
    monkeypatch.setattr(Objective, "forward", forward)
    two_phases(tmp_path / "straight", scalars=scalars)
    two_phases(run, scalars=scalars)
    assert_same_run(tmp_path / "straight", run)


def test_the_target_head_is_that_of_the_last_second_step(
    tmp_path: Path, two_phases: Experiment
) -> None:
    """It is updated every two steps of seven: after 2, 4 and 6 of each phase."""
    two_phases(tmp_path / "run", checkpoint=1, keep=99)
    head, target = (
        {
            folder.name: load(folder).tensors["model"][f"{name}.linear1.weight"]
            for folder in complete(tmp_path / "run")
        }
        for name in ("q_head", "target_q_head")
    )
    for step in range(9, 15):  # of the second phase, which trains Q
        updated = 7 + (step - 7) // 2 * 2
        assert torch.equal(target[f"step_{step:08d}"], head[f"step_{updated:08d}"]), step
        changed = not torch.equal(head[f"step_{step:08d}"], head[f"step_{step - 1:08d}"])
        assert changed, "or the steps could not be told apart"
