"""Training with imagined data: going on exactly, refusing what cannot work, the commands."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jowa.cli import main
from jowa.data.episodes import EpisodeFile
from jowa.data.segments import Batch, SegmentDataset
from jowa.errors import UserError
from jowa.learning.checkpoint import find, load
from jowa.learning.checks import check_phase
from jowa.learning.compute import Compute
from jowa.learning.distributed import Processes
from jowa.learning.imagination import ImaginationConfig
from jowa.learning.loss_config import LossConfig, check_losses
from jowa.learning.objective import Objective
from jowa.learning.tokenize import Segments, make_phase
from jowa.learning.trainer import LogConfig, Stopped, Trainer
from jowa.models.world_action import WorldActionConfig

CPU = Compute(torch.device("cpu"), torch.float32)
Maker = Callable[..., Any]


@pytest.fixture
def experiment(
    data: list[EpisodeFile], make_objective: Maker, phase_config: Maker
) -> Callable[..., None]:
    """Fine-tunes for a few steps with imagined data in a run directory, as the command does."""

    def run(
        path: Path, at_step: Callable[[int], None] = lambda step: None, scalars: int = 1
    ) -> None:
        objective = make_objective()
        tokenizer, model = objective.tokenizer, objective.model
        trainer: Trainer

        def pictures() -> dict[str, np.ndarray]:
            at_step(trainer.position.step)
            return {"grey": np.zeros((8, 8), dtype=np.uint8)}

        log = LogConfig(scalars=scalars, details=2 * scalars, pictures=1, checkpoint=3, keep=2)
        path.mkdir(exist_ok=True)
        trainer = Trainer(path, tokenizer, model, CPU, log, {"games": []}, 1, pictures)
        if not trainer.finished("x"):
            config = phase_config(share=0.5, segments=4, buffer=6, every=2, start=1)
            segments = Segments(SegmentDataset(data))
            trainer.train(make_phase("x", config, objective, segments, log, 4, CPU))

    return run


def curves(run: Path) -> str:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "speed/")
    return json.dumps([{k: v for k, v in x.items() if not k.startswith(timed)} for x in lines])


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, experiment: Callable[..., None], stop: int
) -> None:
    """Before anything is imagined, just before a refresh, between two, with a full buffer."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    experiment(straight)

    def terminate(step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        experiment(stopped, terminate)
    assert load(find(stopped)).step == stop
    experiment(stopped)
    assert curves(stopped) == curves(straight) and '"imagination/reward"' in curves(straight)
    for file in ("model", "tokenizer", "training"):
        ours, theirs = (load_file(find(run) / f"{file}.safetensors") for run in (stopped, straight))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    assert len(ours["imagination/0/games"]) == 6


def test_a_bad_step_is_shown_with_the_segments_it_had(
    tmp_path: Path, experiment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is noticed only later, when a refresh was due."""
    forward = Objective.forward
    seen: list[Batch] = []

    def sometimes_nan(self: Objective, batch: Batch, *rest: Any, **more: Any) -> Any:
        result = forward(self, batch, *rest, **more)
        seen.extend([batch] if batch.imagined.any() else [])
        return result._replace(loss=result.loss * torch.nan) if len(seen) == 3 else result

    monkeypatch.setattr(Objective, "forward", sometimes_nan)
    with pytest.raises(UserError, match=r"^step 3 "):
        experiment(tmp_path / "run", scalars=100)
    (path,) = (tmp_path / "run").glob("bad_batch*.safetensors")
    assert len(seen) == 5  # steps 1 to 4, and the bad one done again
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, vars(seen[2])[name]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 1.0}, r"share is 1\.0.*less than 1"),
        ({"share": -0.1}, r"share is -0\.1"),
        ({"horizon": 0}, r"horizon is 0; use 1 or more"),
        ({"beam_width": 0}, r"beam_width is 0"),
        ({"every": 0}, r"every is 0"),
        ({"start": -1}, r"start is -1"),
        ({"segments": 0}, r"segments is 0"),
        ({"context": 7}, r"7 frames of context.*horizon of 2.*x\.length=8"),
        ({"horizon": 8}, r"at least 1 frame of context"),
        ({"buffer": 3}, r"buffer is 3.*4 segments"),
        ({"share": 0.05}, r"batch of 6.*batch_size"),
        ({"share": 0.95}, r"batch of 6.*batch_size"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    phase_config: Maker, changes: dict[str, Any], words: str
) -> None:
    good = {"share": 0.5, "segments": 4, "buffer": 8}
    check_phase("x", phase_config(**good))
    with pytest.raises(UserError, match=words):
        check_phase("x", phase_config(**(good | changes)))


def test_games_share_a_batch_as_the_phase_says(
    data: list[EpisodeFile], make_objective: Maker, phase_config: Maker
) -> None:
    """Of two games, one with hardly any data."""
    dataset, objective = SegmentDataset(data), make_objective()
    dataset.segment_game = np.arange(dataset.num_segments) // (dataset.num_segments - 6)
    least = {}
    for balance in ("games", "uniform"):
        config = dataclasses.replace(phase_config(), balance=balance)
        sampler = make_phase("x", config, objective, Segments(dataset), LogConfig(), 0, CPU).sampler
        least[balance] = min(dataset.segment_game[next(sampler)].sum() for _ in range(8))
    assert least == {"games": 3, "uniform": 0}
    with pytest.raises(UserError, match="balance must be 'games' or 'uniform', not 'size'"):
        config = dataclasses.replace(phase_config(), balance="size")
        make_phase("x", config, objective, Segments(dataset), LogConfig(), 0, CPU)


def test_what_the_phase_cannot_use_is_refused(
    data: list[EpisodeFile], make_objective: Maker, phase_config: Maker
) -> None:
    config = phase_config(share=0.5, segments=4)
    with pytest.raises(UserError, match=r"losses\.q is 0"):
        check_phase("x", dataclasses.replace(config, losses=LossConfig(world_model=1.0)))
    dataset, objective = SegmentDataset(data), make_objective()
    two = dataclasses.replace(CPU, processes=Processes(0, 2))
    with pytest.raises(UserError, match=r"3 real and 3 imagined .* over 2 processes"):
        make_phase("x", config, objective, Segments(dataset), LogConfig(), 0, two)
    losses = dataclasses.replace(config.losses, world_one_in=2)
    with pytest.raises(UserError, match=r"3 real and 3 imagined .* groups of 2"):
        make_phase(
            "x",
            dataclasses.replace(config, losses=losses),
            objective,
            Segments(dataset),
            LogConfig(),
            0,
            CPU,
        )
    many = dataclasses.replace(config, imagination=ImaginationConfig(share=0.5, segments=1000))
    with pytest.raises(UserError, match=r"only \d+ segments .* 6 steps .* 1000"):
        make_phase("x", many, objective, Segments(dataset), LogConfig(), 0, CPU)
    combo = LossConfig(q=1.0, penalty="combo")
    check_losses("x", combo, WorldActionConfig(), imagines=True)
    with pytest.raises(UserError, match=r"combo.*x\.imagination\.share"):
        check_losses("x", combo, WorldActionConfig())


def test_the_commands_imagine(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1", "log.scalars=1"]
    sizes = [
        *["tokenizer.vocabulary=32", "tokenizer.code_width=4", "tokenizer.hidden=16"],
        *["tokenizer.patches_per_frame=3", "model.vocabulary=32", "model.codebook_width=4"],
        *["model.reader_width=8", "model.q_width=16", "model.transformer.layers=1"],
        *["model.transformer.width=16", "stage1.steps=2", "stage1.batch_size=4"],
    ]

    def dreaming(phase: str) -> list[str]:
        values = ["share=0.5", "segments=4", "buffer=8", "every=2", "start=1"]
        more = [f"{phase}.steps=4", f"{phase}.batch_size=4", f"{phase}.losses.penalty=combo"]
        return [*more, *[f"{phase}.imagination.{value}" for value in values]]

    def logged(run: Path) -> list[dict[str, float]]:
        return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]

    first, second = tmp_path / "pretrain", tmp_path / "finetune"
    games = ["data.games=[Pong,Freeway]", f"data.root={data_root}"]
    pretrain = ["pretrain", f"run={first}", *games, *sizes, *small, *dreaming("stage2")]
    assert main(pretrain) == 0
    assert [x.get("imagination/segments") for x in logged(first)] == [None, None, 0, 4, 4, 8]
    held_out = ["game=Breakout", f"root={data_root}", f"checkpoint={first}"]
    finetune = ["finetune", f"run={second}", *held_out, *small, *dreaming("training")]
    assert main(finetune) == 0
    assert [x["imagination/segments"] for x in logged(second)] == [0, 4, 4, 8]
    assert main([*pretrain, f"run={tmp_path}/x", "stage1.imagination.share=0.5"]) == 2
    assert "only Q losses learn from imagined data" in capsys.readouterr().err


def test_a_batch_draws_rewards_as_the_phase_says(
    data: list[EpisodeFile], make_objective: Maker, phase_config: Maker
) -> None:
    """Of segments of which one in a hundred has any."""
    dataset, objective = SegmentDataset(data), make_objective()
    dataset.segment_has_reward = np.arange(dataset.num_segments) % 100 == 0
    drawn = {}
    for fraction in (0.0, 0.5):
        config = dataclasses.replace(phase_config(), reward_fraction=fraction)
        sampler = make_phase("x", config, objective, Segments(dataset), LogConfig(), 0, CPU).sampler
        drawn[fraction] = sum(dataset.segment_has_reward[next(sampler)].sum() for _ in range(8))
    assert drawn[0.0] < 8 and drawn[0.5] >= 24  # of 48
