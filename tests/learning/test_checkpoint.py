"""Checkpoints: complete or not there, whatever interrupts; clear words for every damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import (
    FORMAT,
    Checkpoint,
    complete,
    fill,
    find,
    git,
    load,
    newest,
    save,
    versions,
)


def made(step: int, size: int = 4) -> Checkpoint:
    """Every value in it is its step, so that a mixture of two would show."""
    tensors = {
        stem: {"weight": torch.full((size, size), float(step)), "n": torch.tensor(step)}
        for stem in ("model", "tokenizer", "training")
    }
    return Checkpoint(step, {"position": {"step": step}, "games": ["Pong"]}, tensors)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoint = made(3)
    checkpoint.tensors["model"] = {"a": torch.randn(3, 4).T, "b": torch.arange(5).float()[::2]}
    folder = save(tmp_path, checkpoint, keep=2)
    assert find(tmp_path) == folder == find(folder)
    assert (tmp_path / "checkpoints" / "latest").read_text() == folder.name
    back = load(folder, ("model", "tokenizer", "training"))
    assert back.step == 3 and back.state["games"] == ["Pong"]
    for stem, tensors in checkpoint.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(back.tensors[stem][name], tensor)
    assert "training" not in load(folder).tensors


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 12, 100_000_000):
        save(tmp_path, made(step), keep=2)
    steps = sorted(load(p).step for p in (tmp_path / "checkpoints").glob("step_*"))
    assert steps == [12, 100_000_000]
    assert load(find(tmp_path)).step == 100_000_000


def test_torn_folders_are_passed_over_and_removed(tmp_path: Path) -> None:
    save(tmp_path, made(1), keep=2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step_00000001", folder / "step_00000009")
    (folder / "step_00000009" / "COMPLETE").unlink()
    shutil.copytree(folder / "step_00000001", folder / ".step_00000007.writing")
    assert newest(tmp_path) == folder / "step_00000001"
    save(tmp_path, made(8), keep=2)
    assert load(find(tmp_path)).step == 8
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_00000001", "step_00000008"]


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, made(1), keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path, made(2), keep=1)
    assert load(find(tmp_path)).step == 1
    assert not list((tmp_path / "checkpoints").glob("*2*"))


def test_a_missing_file_is_a_user_error_unless_optional(tmp_path: Path) -> None:
    folder = save(tmp_path, made(4), keep=1)
    (folder / "training.safetensors").unlink()
    assert sorted(load(folder, optional=("training",)).tensors) == ["model", "tokenizer"]
    (folder / "tokenizer.safetensors").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        load(folder)


def test_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "tokenizer.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "header", "list"])
def test_damaged_files_are_a_user_error_naming_the_folder(
    tmp_path: Path, file: str, damage: str
) -> None:
    folder = save(tmp_path, made(4), keep=1)
    path = folder / file
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "list":
        path.write_bytes(b"[]")
    else:
        path.write_bytes(b"\xff" * 9 + content[9:])
    with pytest.raises(UserError, match="step_00000004 is damaged"):
        load(folder)


def test_one_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    folder = save(tmp_path, made(4), keep=1)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"step_00000004 is damaged .*model\.safetensors"):
        load(folder)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, made(4), keep=1)
    state = folder / "state.json"
    state.write_text(state.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    with pytest.raises(UserError, match="update jowa"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"0.weight": torch.zeros(5, 3)}, r"0.weight is \(5, 3\)"),
        ({"0.bias": None}, "0.bias is missing"),
        ({"extra": torch.zeros(2)}, r"extra is \(2,\)"),
    ],
)
def test_other_sizes_are_refused_naming_the_tensor_and_changing_nothing(
    change: dict[str, torch.Tensor | None], named: str
) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {name: torch.randn_like(t) for name, t in before.items()} | change
    with pytest.raises(UserError, match=named):
        fill(module, {k: t for k, t in tensors.items() if t is not None}, "the checkpoint")
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_a_kill_while_pruning_leaves_nothing_that_a_reader_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, made(1), keep=1)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        save(tmp_path, made(2), keep=1)
    assert (tmp_path / "checkpoints" / "step_00000001").exists()
    assert [load(path).step for path in complete(tmp_path)] == [2]


def test_no_git_is_no_trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") is None and versions()["git"] == "unknown"
