"""The published recipe at tiny sizes: convolutional tokenizer, both stages, settings by game."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jowa.cli import main
from jowa.learning.checkpoint import find, load
from jowa.models.lpips import LPIPS

CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]
TINY = [
    *["tokenizer.vocabulary=24", "tokenizer.code_width=8", "tokenizer.channels=4"],
    *["model.vocabulary=24", "model.q_width=16", "model.transformer.layers=1"],
    *["model.transformer.width=16", "model.transformer.heads=2"],
    *["stage1.steps=2", "stage2.steps=2", "stage1.batch_size=2", "stage2.batch_size=2"],
]
OWN = "+planner.per_game.other={Pong: [2, 2, 1], Freeway: [1, 1, 0]}"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    run = tmp_path_factory.mktemp("published") / "run"
    data = [f"data.root={data_root}", "data.games=[Pong,Freeway]", f"run={run}"]
    assert main(["pretrain", "experiment=published", *TINY, *data, *CPU]) == 0
    return run


def test_the_published_recipe_trains_the_published_networks(pretrained: Path) -> None:
    state = load(find(pretrained)).state
    assert state["tokenizer"]["kind"] == "conv"
    assert not state["model"]["reader_width"] and not state["model"]["copy_previous"]
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    stages = {line["phase"]: line for line in lines}
    assert stages["stage1"]["rate/model"] == stages["stage1"]["rate/tokenizer"] == 1e-4
    assert stages["stage2"]["rate/model"] == 5e-5
    assert "tokenizer/reconstruction" in stages["stage1"] and "q/td" in stages["stage2"]


def test_finetuning_goes_on_from_it(pretrained: Path, data_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["finetune", "experiment=published", f"checkpoint={pretrained}", f"run={run}"]
    command += ["game=Breakout", f"root={data_root}", "like=Pong"]
    assert main([*command, "training.steps=2", "training.batch_size=2", *CPU]) == 0
    assert load(find(run)).state["tokenizer"]["kind"] == "conv"


def test_settings_by_game_are_used_and_said(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    command = ["evaluate", f"checkpoint={pretrained}", f"out={out}", "planner=published"]
    command += ["episodes=1", "max_frames=40", "baselines=false", *CPU]
    assert main([*command, OWN]) == 0
    assert "tuned on the evaluation returns" in capsys.readouterr().out
    (evaluation,) = json.loads(out.read_text())["evaluations"]
    settings = evaluation["settings"]
    assert settings["context_beam_width_horizon"] == {"Pong": [2, 2, 1], "Freeway": [1, 1, 0]}
    assert "tuned on the evaluation returns" in settings["note"]
    assert set(evaluation["games"]) == {"Pong", "Freeway"}
    # The same again is kept; another setting is not the same.
    assert main([*command, OWN]) == 0
    assert "kept" in capsys.readouterr().out
    assert main([*command, OWN.replace("2, 2, 1", "2, 1, 1")]) == 0
    assert "kept" not in capsys.readouterr().out
    assert main(["report", f"out={tmp_path}/report", f"scores=[{out}]"]) == 0
    assert "tuned on the evaluation returns" in (tmp_path / "report" / "report.md").read_text()


def test_settings_for_other_sizes_or_games_are_refused(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", f"checkpoint={pretrained}", f"out={tmp_path}/s.json", *CPU]
    assert main([*command, "planner=published"]) == 2
    error = capsys.readouterr().err
    assert "40m, 70m, 150m" in error and "1 layers of width 16" in error
    own = "+planner.per_game.other={Pong: [1, 1, 0]}"
    assert main([*command, "planner=published", own]) == 2
    assert "Freeway" in capsys.readouterr().err
    short = "+planner.per_game.other={Pong: [1, 1], Freeway: [1, 1, 0]}"
    assert main([*command, "planner=published", short]) == 2
    assert "[1, 1] for Pong: write three numbers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_perceptual_loss_reads_a_released_tokenizer_file(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {f"module.lpips.{name}": t.abs() for name, t in LPIPS().state_dict().items()}
    torch.save(weights, tmp_path / "tokenizer.pt")
    command = ["tokenize", f"run={tmp_path}/run", f"data.root={data_root}", "data.games=[Pong]"]
    command += ["tokenizer=published", *TINY[:3], "training.steps=1", "training.batch_size=2", *CPU]
    on = "tokenizer.perceptual_weight=1"
    assert main([*command, on]) == 2
    assert "perceptual=FILE" in capsys.readouterr().err
    assert main([*command, f"perceptual={tmp_path}/tokenizer.pt"]) == 2
    assert "perceptual_weight" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*command, on, f"perceptual={tmp_path}/tokenizer.pt"]) == 0
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["tokenizer/perceptual"] > 0
    saved = load(find(tmp_path / "run"), ("tokenizer",)).tensors["tokenizer"]
    assert not any("lpips" in name for name in saved)
