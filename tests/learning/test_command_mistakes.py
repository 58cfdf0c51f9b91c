"""What users get wrong on the way from data to report is named, and nothing is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jowa.cli import main
from jowa.learning.checkpoint import find, load


def test_mistakes_name_their_cause_and_leave_nothing(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str]
) -> None:
    before = done.files()
    commands = done.commands
    new = str(tmp_path / "new")
    cases = [
        (done.changed("finetune", run=new, game="Pong"), ["Pong", "never saw"]),
        (done.changed("finetune", run=new, like="Tennis"), ["Tennis", "Freeway"]),
        (done.changed("finetune", run=new, game="Boxing"), ["Boxing", "jowa collect"]),
        (
            [*commands["tokenize"], f"run={new}", "data.games=[Pong,Boxing]"],
            ["Boxing", str(done.data), "Pong", "jowa collect"],
        ),
        (done.changed("finetune", checkpoint=str(done["tokenize"]), run=new), ["no model"]),
        (done.changed("greedy", checkpoint=str(done["tokenize"])), ["no model"]),
        (done.changed("pretrain", run=new, **{"compute.parallel": "tp"}), ["tp", "ddp", "fsdp"]),
        (done.changed("tokenize", run=new, **{"training.losses.q": "1"}), ["training.losses", "q"]),
        (done.changed("tokenize", run=new, **{"training.steps": "0"}), ["training.steps is 0"]),
        (done.changed("tokenize", run=new, **{"data.games": "[]"}), ["no game", "data.games"]),
        (done.changed("pretrain", run=new, **{"data.games": "[]"}), ["no game", "data.games"]),
        (done.changed("finetune", run=new, like="Pong", from_scratch="true"), ["like", "scratch"]),
        ([*commands["pretrain"], "stage2.steps=7"], ["stage2.steps", "6", "7"]),
        (
            done.changed("pretrain", run=new, **{"tokenizer.hidden": "32"}),
            ["encoder.0.weight", "(16, 196)", "(32, 196)"],
        ),
        (done.changed("greedy", games="[Breakout]"), ["Breakout", "finetune"]),
        (done.changed("greedy", **{"planner.horizon": "6"}), ["horizon", "context"]),
        (done.changed("watch", game="Boxing"), ["Boxing"]),
        (done.changed("watch", out=f"{new}.avi"), ["mp4"]),
        (done.changed("report", out=new, compare="[scratch]"), ["first|second"]),
    ]
    for command, words in cases:
        line = complaint(command)
        for word in words:
            assert word in line, line
    assert list(tmp_path.iterdir()) == []
    assert done.files() == before


def test_a_damaged_episode_file_is_named(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str]
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
        assert "Freeway.h5" in complaint(command)
        assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done["pretrain"], run)
    folder = find(run)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    command = done.changed("greedy", checkpoint=str(run), out=str(tmp_path / "s.json"))
    assert folder.name in complaint(command)
    assert not (tmp_path / "s.json").exists()
    weights.unlink()
    assert "no model" in complaint(command)
    resume = done.changed("pretrain", run=str(run))
    assert folder.name in complaint(resume)


def test_a_mistake_can_be_mended_in_the_same_run_directory(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str]
) -> None:
    """A batch larger than the data is refused; the mended command may use the same folder."""
    command = done.changed("tokenize", run=str(tmp_path / "run"))
    assert "batch" in complaint([*command, "training.batch_size=100000"])
    assert main(command) == 0


def test_imported_weights_are_no_run_to_go_on_from(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str]
) -> None:
    """They are a checkpoint without a run around it, and stay as they are."""
    imported = tmp_path / "imported"
    shutil.copytree(done["pretrain"] / "checkpoints", imported / "checkpoints")
    command = done.changed("finetune", run=str(imported), checkpoint=str(imported))
    assert "no run that could go on" in complaint(command)
    assert [path.name for path in imported.iterdir()] == ["checkpoints"]


def test_holding_out_more_than_there_is_is_refused(
    done: Any, tmp_path: Path, complaint: Callable[[list[str]], str]
) -> None:
    command = done.changed("finetune", run=str(tmp_path / "run"), hold_out="1000")
    assert "hold_out=1000 holds out none" in complaint(command)


def test_fine_tuning_goes_on_without_its_source(done: Any, tmp_path: Path) -> None:
    """The source may be gone or have gone on itself; the run holds all it needs."""
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(done["pretrain"], source)
    options = {"log.checkpoint": "2", "log.keep": "9"}
    command = done.changed("finetune", run=str(run), checkpoint=str(source), **options)
    assert main(command) == 0
    end = load(find(run))
    shutil.rmtree(source)
    shutil.rmtree(find(run))  # as if killed after the checkpoint before
    assert load(find(run)).step < end.step
    assert main(command) == 0
    again = load(find(run))
    assert again.state["games"] == end.state["games"] == ["Pong", "Freeway", "Breakout"]
    assert again.state["started_from"] == end.state["started_from"] is not None
    for stem, tensors in end.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(again.tensors[stem][name], tensor), name
