"""The commands from data to report, at a tiny size on real games."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jowa import agent
from jowa.cli import main
from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.learning.checkpoint import find, load
from jowa.learning.tokenize import picture_batch
from jowa.planning.config import PlannerConfig

BASE = {"world_model/observation", "world_model/reward", "world_model/end", "gradient_norm/model"}
TOKENS = {"tokenizer/reconstruction", "tokenizer/commitment", "tokenizer/foreground_kept"}
Q = {"q/td", "q/cql", "q/data_actions", "q/greedy_is_data_action"}


def curves(run: Path) -> list[dict[str, Any]]:
    """The log's lines, which are JSON by the letter: NaN is none."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_every_loss_term_is_logged_and_finite(done: Any) -> None:
    for run, phase, names in (
        ("tokenize", "tokenizer", TOKENS),
        ("pretrain", "stage1", BASE | TOKENS),
        ("pretrain", "stage2", BASE | Q),
        ("finetune", "finetune", BASE | TOKENS | Q),
        ("scratch", "finetune", BASE | TOKENS | Q),
    ):
        lines = [line for line in curves(done[run]) if line["phase"] == phase]
        logged = {name for line in lines for name in line}
        assert names <= logged, (run, phase, names - logged)
        for line in lines:
            assert np.isfinite(line["loss/total"]) and line["speed/tokens_per_second"] > 0
    steps = [(line["step"], line["phase"]) for line in curves(done["pretrain"])]
    expected = [(s, "stage1") for s in range(1, 5)] + [(s, "stage2") for s in range(5, 11)]
    assert steps == expected


def test_tensorboard_holds_scalars_and_pictures(done: Any) -> None:
    seen: dict[str, list[int]] = {}
    images: set[str] = set()
    for file in sorted((done["pretrain"] / "tensorboard").glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            seen.setdefault(name, []).extend(event.step for event in events.Scalars(name))
        images |= set(events.Tags()["images"])
    assert seen["world_model/observation"] == list(range(1, 11))
    assert seen["q/td"] == list(range(5, 11))
    assert images == {"reconstructions", "dream"}


def test_pictures_show_frames_above_what_the_model_makes_of_them(done: Any) -> None:
    for run, names, games in (
        ("tokenize", ["reconstructions"], 2),
        ("pretrain", ["reconstructions", "dream"], 2),
        ("finetune", ["reconstructions", "dream"], 1),
    ):
        for name in names:
            picture = np.asarray(Image.open(done[run] / "images" / f"{name}.png"))
            assert picture.shape == (games * 2 * 86, 8 * 86)
            upper, lower = picture[:84, :84], picture[86:170, :84]
            assert upper.std() > 0 and np.abs(upper.astype(int) - lower).mean() < 40


def test_the_tokenizer_trains_in_stage1_and_is_frozen_in_stage2(done: Any) -> None:
    alone = load(find(done["tokenize"]), ("tokenizer",)).tensors["tokenizer"]
    pretrained = load(find(done["pretrain"]))
    assert pretrained.step == 10
    assert pretrained.state["position"]["done"] == ["stage1", "stage2"]
    name = "encoder.0.weight"
    assert not torch.equal(alone[name], pretrained.tensors["tokenizer"][name])
    assert torch.equal(
        pretrained.tensors["model"]["codebook"], pretrained.tensors["tokenizer"]["codes"]
    )
    before = load(done["pretrain"] / "checkpoints" / "step_00000007").tensors["tokenizer"]
    for name, tensor in pretrained.tensors["tokenizer"].items():
        assert torch.equal(before[name], tensor), name
    # Both the tokenizer alone and the pretrained one left their tokens beside the data.
    assert len(list((done.data / "tokens").glob("*/Pong-*.npy"))) == 2


def test_finetuning_starts_from_the_pretrained_weights_and_scratch_does_not(
    done: Any,
) -> None:
    pretrained = load(find(done["pretrain"])).tensors["model"]
    name = "transformer.blocks.0.mlp.0.weight"

    def change(run: str) -> float:
        now = load(find(done[run])).tensors["model"][name]
        return float((now - pretrained[name]).norm() / pretrained[name].norm())

    assert 0 < change("finetune") < 0.2 < change("scratch")
    assert load(find(done["finetune"])).state["games"] == ["Pong", "Freeway", "Breakout"]
    assert load(find(done["scratch"])).state["games"] == ["Breakout"]


def test_scores_files_hold_every_evaluation(done: Any) -> None:
    scores = json.loads((done["scores.json"]).read_text())
    by_label = {e["label"]: e for e in scores["evaluations"]}
    assert list(by_label) == ["greedy", "beam"]
    assert set(by_label["greedy"]["games"]) == {"Pong", "Freeway"}
    assert set(by_label["beam"]["games"]) == {"Freeway"}
    assert by_label["beam"]["settings"]["horizon"] == 2
    assert by_label["greedy"]["settings"]["horizon"] == 0
    assert set(scores["baselines"]) == {"Pong", "Freeway"}
    assert set(scores["data_means"]) == {"Pong", "Freeway"}
    held_out = json.loads((done["held_out.json"]).read_text())
    assert [e["label"] for e in held_out["evaluations"]] == ["fine-tuned", "scratch"]
    (game,) = held_out["evaluations"][0]["games"].values()
    assert game["steps"] == [10] and game["truncated"] == [True]


def film_size(path: Path) -> tuple[int, int]:
    """Width and height of an mp4."""
    reader = imageio_ffmpeg.read_frames(str(path))
    size: tuple[int, int] = next(reader)["size"]
    reader.close()
    return size


def test_greedy_play_is_filmed_without_futures(done: Any, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    options = {"planner": "greedy", "max_steps": "2", "out": str(film)}
    assert main(done.changed("watch", **options)) == 0
    assert film_size(film) == (736, 540)
    assert imageio_ffmpeg.count_frames_and_secs(str(film))[0] == 2


@pytest.mark.parametrize("objective", ["cloning", "no_world_model"])
def test_a_baseline_is_trained_played_and_not_planned_with(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str], objective: str
) -> None:
    run, out = tmp_path / "run", tmp_path / "scores.json"
    assert main([*done.changed("pretrain", run=str(run)), f"objective={objective}"]) == 0
    lines = [line for line in curves(run) if line["phase"] == "stage2"]
    assert ("cloning/cross_entropy" in lines[-1]) == (objective == "cloning")
    assert not any(name.startswith("world_model/") for line in lines for name in line)
    play = done.changed("greedy", checkpoint=str(run), out=str(out), games="[Pong]")
    assert main([*play, "baselines=false"]) == 0
    assert "Pong" in json.loads(out.read_text())["evaluations"][0]["games"]
    planned = {"checkpoint": str(run), "planner": "beam"}
    for command in (
        done.changed("greedy", out=str(out), games="[Pong]", **planned),
        done.changed("watch", game="Pong", **planned),
    ):
        line = complaint(command)
        assert "without a world model" in line and "planner=greedy" in line
    with pytest.raises(UserError, match="planner=greedy"):
        agent.load(run, planner=PlannerConfig())
    assert agent.load(run).planner.horizon == 0


def test_the_film_plays_and_the_report_stands_alone(done: Any) -> None:
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(done["film.mp4"]))
    assert frames == 6
    assert film_size(done["film.mp4"]) == (960, 540)
    html = (done["report"] / "report.html").read_text()
    for words in ("fine-tuned", "scratch", "greedy", "beam", "Breakout", "data:video/mp4"):
        assert words in html
    assert (done["report"] / "report.md").stat().st_size > 500


def test_the_same_commands_again_redo_nothing(done: Any) -> None:
    before = done.files()
    for name in ("tokenize", "pretrain", "finetune", "scratch"):
        assert done(name) == 0
    assert done.files() == before
    scores = (done["scores.json"]).read_text()
    assert done("greedy") == 0 and done("beam") == 0
    assert (done["scores.json"]).read_text() == scores


def test_a_finished_run_may_be_moved(done: Any, tmp_path: Path) -> None:
    shutil.copytree(done["tokenize"], tmp_path / "moved")
    before = (tmp_path / "moved" / "metrics.jsonl").read_text()
    assert main(done.changed("tokenize", run=str(tmp_path / "moved"))) == 0
    assert (tmp_path / "moved" / "metrics.jsonl").read_text() == before


def test_a_run_from_before_an_option_existed_goes_on(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done["pretrain"], run)
    config = json.loads((run / "config.json").read_text())
    assert config["stage2"]["losses"].pop("cloning") == 0.0
    (run / "config.json").write_text(json.dumps(config))
    command = done.changed("pretrain", run=str(run))
    assert main(command) == 0
    assert curves(run) == curves(done["pretrain"])
    line = complaint([*command, "stage2.losses.cloning=0.5"])
    assert "stage2.losses.cloning" in line and "0.0" in line and "0.5" in line


def test_a_saved_agent_acts_again_the_same(done: Any) -> None:
    with EpisodeFile(done.data / "Pong.h5") as file:
        frames, game = file.frames(np.arange(6)), np.array([file.game.id])
    first, second = agent.load(done["pretrain"]), agent.load(find(done["pretrain"]))
    actions = [int(first.act(frame[None], game)[0]) for frame in frames]
    assert actions == [int(second.act(frame[None], game)[0]) for frame in frames]
    assert first.model.legal_actions[game[0], actions].all()


def test_a_stage_of_no_steps_is_left_out_and_resumes(done: Any, tmp_path: Path) -> None:
    """stage1.steps=0 trusts the given tokenizer; a stop in stage 2 must not start it anew."""
    command = done.changed("pretrain", run=str(tmp_path), **{"stage1.steps": "0"})
    assert main(command) == 0
    straight = curves(tmp_path)
    assert [line["phase"] for line in straight] == ["stage2"] * 6
    # As if killed after step 3, which is a checkpoint.
    folder = tmp_path / "checkpoints"
    for path in folder.glob("step_*"):
        if path.name != "step_00000003":
            shutil.rmtree(path)
    assert main(command) == 0
    assert [line["step"] for line in curves(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert curves(tmp_path)[-1]["loss/total"] == straight[-1]["loss/total"]


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(
    done: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = {"log.checkpoint": "1000", "stage2.steps": "12"}
    command = done.changed("pretrain", run=str(run), **options)
    slow = done.changed("pretrain", run=str(run), **options, **{"log.pictures": "1"})
    process = subprocess.Popen(
        [sys.executable, "-m", "jowa", *slow],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count("stage2") >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "the same command goes on" in errors
    stopped = load(find(run)).step
    assert 6 <= stopped < 16
    assert main(command) == 0
    straight = done.changed("pretrain", run=str(tmp_path / "straight"), **options)
    assert main(straight) == 0

    def losses(path: Path) -> list[float]:
        return [line["loss/total"] for line in curves(path)]

    assert losses(run) == losses(tmp_path / "straight")


def test_pictures_show_whole_segments(data: list[EpisodeFile]) -> None:
    batch = picture_batch(data)
    assert batch.mask_padding.all()
    assert sorted(batch.games.tolist()) == sorted(file.game.id for file in data)


def test_a_fine_tuned_agent_reads_its_tokenizers_codes_as_they_are(done: Any) -> None:
    """Its tokenizer's last update comes after the model was last told of the codes."""
    player = agent.load(done["finetune"])
    assert torch.equal(player.model.pictures, player.tokenizer.code_pictures())
    assert torch.equal(player.model.codebook, player.tokenizer.codebook)
