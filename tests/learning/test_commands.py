"""The commands from data to report, at a tiny size on real games."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
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

CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]
LOG = ["log.scalars=1", "log.details=2", "log.pictures=4", "log.checkpoint=3"]
TOKENIZER = [
    "tokenizer.vocabulary=64",
    "tokenizer.code_width=8",
    "tokenizer.hidden=16",
    "tokenizer.patches_per_frame=4",
]
MODEL = [
    "model.vocabulary=64",
    "model.codebook_width=8",
    "model.q_width=16",
    "model.transformer.layers=1",
    "model.transformer.width=16",
]
PLAY = ["episodes=1", "envs_per_game=1", "max_frames=40"]
STAGES = ["stage1.steps=4", "stage1.batch_size=4", "stage2.steps=6", "stage2.batch_size=4"]
BASE = {"world_model/observation", "world_model/reward", "world_model/end", "gradient_norm/model"}
TOKENS = {"tokenizer/reconstruction", "tokenizer/commitment", "tokenizer/foreground_kept"}
Q = {"q/td", "q/cql", "q/data_actions", "q/greedy_is_data_action"}


@dataclass
class Pipeline:
    """Folders of one run of everything, and the commands that made them."""

    root: Path
    data: Path
    commands: dict[str, list[str]]

    def __call__(self, name: str) -> int:
        return main(self.commands[name])

    def __getitem__(self, name: str) -> Path:
        return self.root / name

    def files(self) -> dict[Path, int]:
        found = [*self.root.rglob("*"), *self.data.rglob("*")]
        return {p: p.stat().st_mtime_ns for p in found if p.is_file()}


def recipes(root: Path, data: Path) -> dict[str, list[str]]:
    games = ["data.games=[Pong,Freeway]", f"data.root={data}"]
    held_out = ["game=Breakout", f"root={data}", f"checkpoint={root}/pretrain"]
    train = ["training.steps=4", "training.batch_size=4"]
    scores = f"out={root}/scores.json"
    return {
        "tokenize": ["tokenize", f"run={root}/tokenize", *games, *train, *TOKENIZER, *LOG, *CPU],
        "pretrain": [
            *["pretrain", f"run={root}/pretrain", f"tokenizer_from={root}/tokenize"],
            *[*games, *TOKENIZER, *MODEL, *STAGES, *LOG, *CPU],
        ],
        "greedy": [
            *["evaluate", f"checkpoint={root}/pretrain", scores, "label=greedy"],
            *["planner=greedy", f"data_root={data}", *PLAY, *CPU],
        ],
        "beam": [
            *["evaluate", f"checkpoint={root}/pretrain", scores, "label=beam", "games=[Freeway]"],
            *["planner=beam", "baselines=false", *PLAY, *CPU],
        ],
        "finetune": [
            *["finetune", f"run={root}/finetune", "like=Pong", *held_out, *train, *LOG, *CPU]
        ],
        "scratch": [
            *["finetune", f"run={root}/scratch", "from_scratch=true", "seed=5"],
            *[*held_out, *train, *LOG, *CPU],
        ],
        "finetuned": [
            *["evaluate", f"checkpoint={root}/finetune", f"out={root}/held_out.json"],
            *["label=fine-tuned", "games=[Breakout]", "planner=greedy", *PLAY, *CPU],
        ],
        "scratched": [
            *["evaluate", f"checkpoint={root}/scratch", f"out={root}/held_out.json"],
            *["label=scratch", "planner=greedy", *PLAY, *CPU],
        ],
        "watch": [
            *["watch", f"checkpoint={root}/finetune", "game=Breakout", f"out={root}/film.mp4"],
            *["max_steps=6", *CPU],
        ],
        "report": [
            *["report", f"out={root}/report", f"scores=[{root}/scores.json,{root}/held_out.json]"],
            *[f"runs=[{root}/pretrain,{root}/finetune]", f"film={root}/film.mp4"],
            'compare=["scratch|fine-tuned"]',
        ],
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Pipeline:
    root = tmp_path_factory.mktemp("pipeline")
    # As users give it, the data lies where it was collected and the tokens beside it.
    data = root / "data"
    shutil.copytree(data_root, data, ignore=shutil.ignore_patterns("tokens"))
    pipeline = Pipeline(root, data, recipes(root, data))
    for name in pipeline.commands:
        assert pipeline(name) == 0, name
    return pipeline


def curves(run: Path) -> list[dict[str, Any]]:
    """The log's lines, which are JSON by the letter: NaN is none."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_every_loss_term_is_logged_and_finite(done: Pipeline) -> None:
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


def test_tensorboard_holds_scalars_and_pictures(done: Pipeline) -> None:
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


def test_pictures_show_frames_above_what_the_model_makes_of_them(done: Pipeline) -> None:
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


def test_the_tokenizer_trains_in_stage1_and_is_frozen_in_stage2(done: Pipeline) -> None:
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
    done: Pipeline,
) -> None:
    pretrained = load(find(done["pretrain"])).tensors["model"]
    name = "transformer.blocks.0.mlp.0.weight"

    def change(run: str) -> float:
        now = load(find(done[run])).tensors["model"][name]
        return float((now - pretrained[name]).norm() / pretrained[name].norm())

    assert 0 < change("finetune") < 0.2 < change("scratch")
    assert load(find(done["finetune"])).state["games"] == ["Pong", "Freeway", "Breakout"]
    assert load(find(done["scratch"])).state["games"] == ["Breakout"]


def test_scores_files_hold_every_evaluation(done: Pipeline) -> None:
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


def test_greedy_play_is_filmed_without_futures(done: Pipeline, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    options = {"planner": "greedy", "max_steps": "2", "out": str(film)}
    assert main(changed(done.commands["watch"], **options)) == 0
    assert film_size(film) == (736, 540)
    assert imageio_ffmpeg.count_frames_and_secs(str(film))[0] == 2


@pytest.mark.parametrize("objective", ["cloning", "no_world_model"])
def test_a_baseline_is_trained_played_and_not_planned_with(
    done: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    run, out = tmp_path / "run", tmp_path / "scores.json"
    assert main([*changed(done.commands["pretrain"], run=str(run)), f"objective={objective}"]) == 0
    lines = [line for line in curves(run) if line["phase"] == "stage2"]
    assert ("cloning/cross_entropy" in lines[-1]) == (objective == "cloning")
    assert not any(name.startswith("world_model/") for line in lines for name in line)
    play = changed(done.commands["greedy"], checkpoint=str(run), out=str(out), games="[Pong]")
    assert main([*play, "baselines=false"]) == 0
    assert "Pong" in json.loads(out.read_text())["evaluations"][0]["games"]
    for command in (play, changed(done.commands["watch"], checkpoint=str(run), game="Pong")):
        line = complaint(capsys, changed(command, planner="beam"))
        assert "without a world model" in line and "planner=greedy" in line
    with pytest.raises(UserError, match="planner=greedy"):
        agent.load(run, planner=agent.PlannerConfig())
    assert agent.load(run).planner.horizon == 0


def test_the_film_plays_and_the_report_stands_alone(done: Pipeline) -> None:
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(done["film.mp4"]))
    assert frames == 6
    assert film_size(done["film.mp4"]) == (960, 540)
    html = (done["report"] / "report.html").read_text()
    for words in ("fine-tuned", "scratch", "greedy", "beam", "Breakout", "data:video/mp4"):
        assert words in html
    assert (done["report"] / "report.md").stat().st_size > 500


def test_the_same_commands_again_redo_nothing(done: Pipeline) -> None:
    before = done.files()
    for name in ("tokenize", "pretrain", "finetune", "scratch"):
        assert done(name) == 0
    assert done.files() == before
    scores = (done["scores.json"]).read_text()
    assert done("greedy") == 0 and done("beam") == 0
    assert (done["scores.json"]).read_text() == scores


def test_a_finished_run_may_be_moved(done: Pipeline, tmp_path: Path) -> None:
    shutil.copytree(done["tokenize"], tmp_path / "moved")
    before = (tmp_path / "moved" / "metrics.jsonl").read_text()
    assert main(changed(done.commands["tokenize"], run=str(tmp_path / "moved"))) == 0
    assert (tmp_path / "moved" / "metrics.jsonl").read_text() == before


def test_a_run_from_before_an_option_existed_goes_on(
    done: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done["pretrain"], run)
    config = json.loads((run / "config.json").read_text())
    assert config["stage2"]["losses"].pop("cloning") == 0.0
    (run / "config.json").write_text(json.dumps(config))
    command = changed(done.commands["pretrain"], run=str(run))
    assert main(command) == 0
    assert curves(run) == curves(done["pretrain"])
    line = complaint(capsys, [*command, "stage2.losses.cloning=0.5"])
    assert "stage2.losses.cloning" in line and "0.0" in line and "0.5" in line


def test_a_saved_agent_acts_again_the_same(done: Pipeline) -> None:
    with EpisodeFile(done.data / "Pong.h5") as file:
        frames, game = file.frames(np.arange(6)), np.array([file.game.id])
    first, second = agent.load(done["pretrain"]), agent.load(find(done["pretrain"]))
    actions = [int(first.act(frame[None], game)[0]) for frame in frames]
    assert actions == [int(second.act(frame[None], game)[0]) for frame in frames]
    assert first.model.legal_actions[game[0], actions].all()


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one error line of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def changed(command: list[str], **options: str) -> list[str]:
    """The command with some options set anew."""
    kept = [part for part in command if part.partition("=")[0] not in options]
    return [*kept, *(f"{key}={value}" for key, value in options.items())]


def test_mistakes_name_their_cause_and_leave_nothing(
    done: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = done.files()
    commands = done.commands
    new = str(tmp_path / "new")
    cases = [
        (changed(commands["finetune"], run=new, game="Pong"), ["Pong", "never saw"]),
        (changed(commands["finetune"], run=new, like="Tennis"), ["Tennis", "Freeway"]),
        (changed(commands["finetune"], run=new, game="Boxing"), ["Boxing", "jowa collect"]),
        (
            [*commands["tokenize"], f"run={new}", "data.games=[Pong,Boxing]"],
            ["Boxing", str(done.data), "Pong", "jowa collect"],
        ),
        (changed(commands["finetune"], checkpoint=str(done["tokenize"]), run=new), ["no model"]),
        (changed(commands["greedy"], checkpoint=str(done["tokenize"])), ["no model"]),
        ([*commands["pretrain"], "stage2.steps=7"], ["stage2.steps", "6", "7"]),
        (
            changed(commands["pretrain"], run=new, **{"tokenizer.hidden": "32"}),
            ["encoder.0.weight", "(16, 196)", "(32, 196)"],
        ),
        (changed(commands["greedy"], games="[Breakout]"), ["Breakout", "finetune"]),
        (changed(commands["greedy"], **{"planner.horizon": "6"}), ["horizon", "context"]),
        (changed(commands["watch"], game="Boxing"), ["Boxing"]),
        (changed(commands["watch"], out=f"{new}.avi"), ["mp4"]),
        (changed(commands["report"], out=new, compare="[scratch]"), ["first|second"]),
    ]
    for command, words in cases:
        line = complaint(capsys, command)
        for word in words:
            assert word in line, line
    assert list(tmp_path.iterdir()) == []
    assert done.files() == before


def test_a_damaged_episode_file_is_named(
    done: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in ("cut", "flip"):
        root = tmp_path / damage
        root.mkdir()
        for name in ("Pong", "Freeway"):
            shutil.copy(done.data / f"{name}.h5", root)
        content = bytearray((root / "Freeway.h5").read_bytes())
        if damage == "cut":
            del content[len(content) // 2 :]
        else:
            middle = len(content) // 2
            content[middle : middle + 64] = bytes(64)
        (root / "Freeway.h5").write_bytes(content)
        command = [*done.commands["tokenize"], f"data.root={root}", f"run={tmp_path}/run"]
        assert "Freeway.h5" in complaint(capsys, command)
        assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(
    done: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done["pretrain"], run)
    folder = find(run)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    command = changed(done.commands["greedy"], checkpoint=str(run), out=str(tmp_path / "s.json"))
    assert folder.name in complaint(capsys, command)
    assert not (tmp_path / "s.json").exists()
    weights.unlink()
    assert "no model" in complaint(capsys, command)
    resume = changed(done.commands["pretrain"], run=str(run))
    assert folder.name in complaint(capsys, resume)


def test_a_mistake_can_be_mended_in_the_same_run_directory(
    done: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch larger than the data is refused; the mended command may use the same folder."""
    command = changed(done.commands["tokenize"], run=str(tmp_path / "run"))
    too_many = changed(command, **{"training.batch_size": "100000"})
    assert "batch" in complaint(capsys, too_many)
    assert main(command) == 0


def test_a_stage_of_no_steps_is_left_out_and_resumes(done: Pipeline, tmp_path: Path) -> None:
    """stage1.steps=0 trusts the given tokenizer; a stop in stage 2 must not start it anew."""
    command = changed(done.commands["pretrain"], run=str(tmp_path), **{"stage1.steps": "0"})
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
    done: Pipeline, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = changed(done.commands["pretrain"], run=str(run), **{"log.checkpoint": "1000"})
    command = changed(command, **{"stage2.steps": "12"})
    slow = changed(command, **{"log.pictures": "1"})
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
    straight = changed(command, run=str(tmp_path / "straight"))
    assert main(straight) == 0

    def losses(path: Path) -> list[float]:
        return [line["loss/total"] for line in curves(path)]

    assert losses(run) == losses(tmp_path / "straight")


def test_pictures_show_whole_segments(data: list[EpisodeFile]) -> None:
    batch = picture_batch(data)
    assert batch.mask_padding.all()
    assert sorted(batch.games.tolist()) == sorted(file.game.id for file in data)
