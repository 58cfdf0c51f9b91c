"""The training loop: going on exactly where it stopped, refusing bad numbers, finishing once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jowa.data.episodes import EpisodeFile
from jowa.data.loader import INLINE, Loading
from jowa.data.segments import Sampler, SegmentDataset
from jowa.errors import UserError
from jowa.learning.checkpoint import complete, find, load, newest
from jowa.learning.compute import Compute
from jowa.learning.monitor import LogConfig
from jowa.learning.objective import LossConfig, Objective
from jowa.learning.optim import OptimizerConfig
from jowa.learning.record import starts
from jowa.learning.trainer import Phase, Stopped, Trainer

CPU = Compute(torch.device("cpu"), torch.float32)
NANO = {"codebook_width": 4, "copy_previous": True, "summary_width": 8, "bell_start": 1.0}
FIRST = LossConfig(tokenizer=1.0, world_model=1.0)
SECOND = LossConfig(tokenizer=0.5, world_model=0.5, q=1.0, n_step=2)
Experiment = Callable[..., Trainer]
STEPS = 7


@pytest.fixture
def experiment(
    data: list[EpisodeFile], make_tokenizer: Callable[..., Any], make_model: Callable[..., Any]
) -> Experiment:
    """Trains two phases of seven steps in a run directory, as the commands do."""
    dataset = SegmentDataset(data)

    def run(
        path: Path,
        at_step: Callable[[int], None] = lambda step: None,
        checkpoint: int = 3,
        scalars: int = 1,
        loading: Loading = INLINE,
        second: LossConfig = SECOND,
        **keeping: Any,
    ) -> Trainer:
        tokenizer, model = make_tokenizer(patches_per_frame=6), make_model(**NANO)
        trainer: Trainer

        def pictures() -> dict[str, np.ndarray]:
            at_step(trainer.position.step)
            return {"grey": np.zeros((8, 8), dtype=np.uint8)}

        often = {"scalars": scalars, "details": 2 * scalars, "pictures": 1}
        log = LogConfig(**often, checkpoint=checkpoint, **{"keep": 2, **keeping})
        path.mkdir(exist_ok=True)
        trainer = Trainer(
            path, tokenizer, model, CPU, log, {"games": []}, 1, pictures, loading=loading
        )
        for name, losses in (("first", FIRST), ("second", second)):
            if not trainer.finished(name):
                sampler = Sampler(dataset, 4, seed=0, reward_fraction=0.25)
                optimizer = OptimizerConfig(3e-3, 3e-3, warmup=3, decay="cosine")
                objective = Objective(tokenizer, model, losses)
                trainer.train(Phase(name, STEPS, objective, dataset, sampler, optimizer, 2))
        return trainer

    return run


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
    tmp_path: Path, experiment: Experiment, stop: int
) -> None:
    """SIGTERM inside the first phase, at a checkpoint, at the switch, and in the second phase."""
    experiment(tmp_path / "straight")

    def terminate(step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        experiment(tmp_path / "stopped", terminate)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert load(find(tmp_path / "stopped")).step == stop
    experiment(tmp_path / "stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_reading_ahead_changes_nothing_even_where_a_run_is_stopped(
    tmp_path: Path, experiment: Experiment
) -> None:
    """With batches on their way when SIGTERM comes, in either phase."""
    experiment(tmp_path / "straight")
    run, ahead = tmp_path / "stopped", Loading(workers=2)
    for stop in (2, 9):

        def terminate(step: int, stop: int = stop) -> None:
            if step == stop:
                assert len(multiprocessing.active_children()) == 2
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Stopped):
            experiment(run, terminate, loading=ahead)
        assert load(find(run)).step == stop
        assert multiprocessing.active_children() == []
    experiment(run, loading=ahead)
    assert_same_run(tmp_path / "straight", run)


def test_a_stopped_baseline_goes_on_bit_for_bit(tmp_path: Path, experiment: Experiment) -> None:
    cloning = LossConfig(cloning=1.0)

    def terminate(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    experiment(tmp_path / "straight", second=cloning)
    with pytest.raises(Stopped):
        experiment(tmp_path / "stopped", terminate, second=cloning)
    experiment(tmp_path / "stopped", second=cloning)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("baseline", [LossConfig(q=1.0), LossConfig(cloning=1.0)])
def test_baselines_leave_the_heads_of_the_world_model_as_they_are(
    tmp_path: Path, experiment: Experiment, baseline: LossConfig
) -> None:
    """The first phase trains them; the second trains backbone and Q head alone."""
    run = tmp_path / "run"
    experiment(run, second=baseline, scalars=7)
    before, after = (load(run / "checkpoints" / f"step_{n:08d}") for n in (STEPS, 2 * STEPS))
    world = ("observation_head", "reward_head", "end_head", "copy_gate")
    for name, tensor in before.tensors["model"].items():
        kept = torch.equal(tensor, after.tensors["model"][name])
        if name.startswith(world):
            assert kept, name
        elif name.endswith(("qkv.weight", "q_head.linear1.weight")):
            assert not kept, name


class Crash(Exception):
    pass


def test_a_crashed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, experiment: Experiment
) -> None:
    """Steps after the checkpoint are done again; the log holds each once."""
    experiment(tmp_path / "straight")

    def crash(step: int) -> None:
        if step == 12:
            raise Crash

    with pytest.raises(Crash):
        experiment(tmp_path / "crashed", crash)
    assert load(find(tmp_path / "crashed")).step == 10
    assert curves(tmp_path / "crashed")[-1]["step"] == 12
    with (tmp_path / "crashed" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 13, "pha')  # as a kill leaves it
    experiment(tmp_path / "crashed")
    assert_same_run(tmp_path / "straight", tmp_path / "crashed")


def test_a_finished_run_trains_no_more(tmp_path: Path, experiment: Experiment) -> None:
    run = tmp_path / "run"
    experiment(run)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    steps: list[int] = []
    trainer = experiment(run, steps.append)
    assert steps == [] and trainer.position.step == 2 * STEPS
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_learning_lowers_the_loss_and_logs_each_term_once(
    tmp_path: Path, experiment: Experiment
) -> None:
    experiment(tmp_path / "run")
    lines = curves(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 2 * STEPS + 1))
    assert lines[6]["world_model/observation"] < lines[0]["world_model/observation"]
    assert {"q/td", "q/cql", "loss/total", "gradient_norm/model", "rate/model"} <= lines[-1].keys()
    assert lines[0]["rate/model"] == pytest.approx(1e-3)


def test_other_data_cannot_go_on_with_an_old_run(
    tmp_path: Path,
    experiment: Experiment,
    data: list[EpisodeFile],
    make_tokenizer: Callable[..., Any],
    make_model: Callable[..., Any],
) -> None:
    """The same games, collected anew."""

    def terminate(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        experiment(tmp_path / "run", terminate)
    tokenizer, model = make_tokenizer(patches_per_frame=6), make_model(**NANO)
    trainer = Trainer(tmp_path / "run", tokenizer, model, CPU, LogConfig(), {}, 1, dict)
    dataset = SegmentDataset(data[:1])
    sampler = Sampler(dataset, 4, seed=0, reward_fraction=0.25)
    objective = Objective(tokenizer, model, FIRST)
    with pytest.raises(UserError, match="cannot resume"):
        trainer.train(Phase("first", STEPS, objective, dataset, sampler, OptimizerConfig()))


@pytest.mark.parametrize("scalars", [1, 100])
def test_a_gradient_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch, scalars: int
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
        experiment(run, scalars=scalars)
    (path,) = run.glob("bad_batch*.safetensors")
    assert str(path) in str(caught.value)
    assert load_file(path)["observations"].shape == (4, 8, 84, 84)
    for name, parameter in objectives[-1].named_parameters():
        assert torch.equal(parameter, weights[4][name]), name
    assert load(find(run)).step == 3
    assert all(np.isfinite(line["loss/total"]) for line in curves(run))
    # Once the cause is gone the run goes on.
    monkeypatch.setattr(Objective, "forward", forward)
    experiment(tmp_path / "straight", scalars=scalars)
    experiment(run, scalars=scalars)
    assert_same_run(tmp_path / "straight", run)


def scores(run: Path) -> dict[int, float | None]:
    """Of every checkpoint there is, by its step."""
    return {saved.step: saved.state["score"]["mean"] for saved in map(load, complete(run))}


def test_the_score_is_the_mean_over_the_steps_since_the_checkpoint_before(
    tmp_path: Path, experiment: Experiment
) -> None:
    experiment(tmp_path / "run", keep=99)
    losses = [line["loss/total"] for line in curves(tmp_path / "run")]
    expected = {step: sum(losses[first:step]) / (step - first) for first, step in SPANS}
    assert scores(tmp_path / "run") == pytest.approx(expected, rel=1e-12)


SPANS = [(0, 3), (3, 6), (6, 7), (7, 10), (10, 13), (13, 14)]


@pytest.mark.parametrize("stop", [2, 3, 8])
def test_stops_do_not_change_which_checkpoints_are_the_best(
    tmp_path: Path, experiment: Experiment, stop: int
) -> None:
    keeping = {"keep": 1, "keep_best": 2, "best_metric": "world_model/reward"}
    experiment(tmp_path / "all", keep=99, best_metric="world_model/reward")
    experiment(tmp_path / "straight", **keeping)

    def terminate(step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        experiment(tmp_path / "stopped", terminate, **keeping)
    experiment(tmp_path / "stopped", **keeping)
    every = scores(tmp_path / "all")
    first = sorted((mean, step) for step, mean in every.items() if step <= STEPS)
    second = sorted((mean, step) for step, mean in every.items() if step > STEPS)
    stay = {step for _, step in first[:2] + second[:2]} | {STEPS, 2 * STEPS}
    assert scores(tmp_path / "straight") == {step: every[step] for step in sorted(stay)}
    assert scores(tmp_path / "stopped") == scores(tmp_path / "straight")


def test_a_metric_that_is_not_logged_is_refused_at_once(
    tmp_path: Path, experiment: Experiment
) -> None:
    with pytest.raises(UserError, match=r"'q/tdd', which first does not log: .*loss/total") as told:
        experiment(tmp_path / "run", keep_best=1, best_metric="q/tdd")
    assert "\n" not in str(told.value)
    assert newest(tmp_path / "run") is None
    # Where the best are not kept it does not matter.
    experiment(tmp_path / "run", best_metric="q/tdd")
    assert set(scores(tmp_path / "run").values()) == {None}


def test_every_start_is_written_down(
    tmp_path: Path, experiment: Experiment, data: list[EpisodeFile]
) -> None:
    def terminate(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        experiment(tmp_path / "run", terminate)
    (first,) = starts(tmp_path / "run")
    experiment(tmp_path / "run")
    experiment(tmp_path / "run")  # finished: nothing starts
    again, second = starts(tmp_path / "run")
    assert again == first
    assert (first["step"], first["phase"]) == (0, "first")
    assert (second["step"], second["phase"]) == (9, "second")
    assert first["data"] == {file.game.name: file.fingerprint for file in data}
    assert first["command"] == sys.argv and first["seed"] == 1
    assert first["versions"]["torch"] == torch.__version__
    assert first["device"] == "cpu" and first["processes"] == 1
    assert first["machine"]["cores"] >= 1 and first["machine"]["cpu"]
    assert datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 3}', '{"start": []}'])
def test_a_damaged_record_is_not_overwritten(
    tmp_path: Path, experiment: Experiment, content: str
) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        experiment(tmp_path)
    assert (tmp_path / "run.json").read_text() == content
