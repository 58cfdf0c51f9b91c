"""An agent as one file: the same play, the same bytes, found by name, every damage noticed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import jowa
from jowa.agent import build
from jowa.cli import composed, main
from jowa.collecting.behaviours import Tier
from jowa.collecting.collect import collect
from jowa.data.episodes import EpisodeFile
from jowa.data.segments import SegmentDataset
from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning import weight_file
from jowa.learning.checkpoint import Checkpoint, find, load, save
from jowa.models.tokenizers import build_tokenizer, to_state
from jowa.models.world_action import WorldActionModel

CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]
Complaint = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def exported(done: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a trained agent that knows Pong and Freeway."""
    out = tmp_path_factory.mktemp("exported") / "tiny.safetensors"
    assert main(["export-weights", f"checkpoint={done['pretrain']}", f"out={out}"]) == 0
    return out


@pytest.fixture
def nano(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, str]]:
    """The file as one that comes with jowa, by the name of nano, and its weights' sums."""
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(exported, folder / "nano.safetensors")
    monkeypatch.setattr(checkpoints, "_SHIPPED", folder)
    monkeypatch.chdir(tmp_path)
    return folder / "nano.safetensors", load(exported).state["sha256"]


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half().float() if tensor.is_floating_point() else tensor


def test_what_comes_back_is_the_checkpoint_rounded_to_half_precision(
    done: Any, exported: Path
) -> None:
    original, back = load(find(done["pretrain"])), load(exported)
    models = original.tensors["model"], back.tensors["model"]
    for stem in ("model", "tokenizer"):
        there, here = original.tensors[stem], back.tensors[stem]
        assert there.keys() == here.keys()
        for name, tensor in there.items():
            assert here[name].dtype == tensor.dtype
            if not name.startswith("target_"):
                assert torch.equal(here[name], rounded(tensor)), name
    targets = [name for name in models[0] if name.startswith("target_q_head.")]
    heads = [name.removeprefix("target_") for name in targets]
    assert any(
        not torch.equal(models[0][t], models[0][h]) for t, h in zip(targets, heads, strict=True)
    ), "the test must be able to fail"
    for target, head in zip(targets, heads, strict=True):
        assert torch.equal(models[1][target], models[1][head])
        assert models[1][target].data_ptr() != models[1][head].data_ptr()
    sums = original.state["sha256"]
    assert back.state["exported_from"] == {name: sums[name] for name in ("model", "tokenizer")}
    assert back.step == original.step == back.state["position"]["step"]
    for key in ("games", "model", "tokenizer", "position", "versions"):
        assert back.state[key] == original.state[key]
    assert back.state["config"]["stage2"] == original.state["config"]["stage2"]
    assert load(exported, ("tokenizer",)).tensors.keys() == {"tokenizer"}


def test_the_same_checkpoint_gives_the_same_bytes_and_no_folder_of_this_machine(
    done: Any, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = exported.read_bytes()
    moved, again, third = tmp_path / "moved", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    shutil.copytree(find(done["pretrain"]), moved)
    for source, out in ((moved, again), (again, third)):  # a file exports to itself
        assert main(["export-weights", f"checkpoint={source}", f"out={out}"]) == 0
        assert out.read_bytes() == content
    assert str(done.root).encode() not in content
    assert load(again).state["config"]["run"] == "pretrain"
    capsys.readouterr()
    assert main(["export-weights", f"checkpoint={moved}", f"out={again}"]) == 0
    assert "kept: " in capsys.readouterr().out


def test_half_precision_decides_alike(
    tmp_path: Path,
    make_tokenizer: Callable[..., Any],
    make_model: Callable[..., WorldActionModel],
    data: list[EpisodeFile],
) -> None:
    """Greedy decisions of an agent with sharp opinions, wherever rounding leaves no doubt."""
    tokenizer, dataset = make_tokenizer(), SegmentDataset(data)
    seen = dataset.batch(np.arange(0, 80, 5))
    inputs = seen.observations, seen.games, seen.mask_padding, seen.keys
    tokenizer.learn(tokenizer.train().loss(*inputs).statistics)
    model = make_model(scale=5.0, codebook_width=4, copy_previous=True, reader_width=8)
    model.set_codes(tokenizer)
    run, out = tmp_path / "run", tmp_path / "sharp.safetensors"
    save(run, _saved(tokenizer, model), keep=1)
    assert main(["export-weights", f"checkpoint={run}", f"out={out}"]) == 0
    whole, half = jowa.load(run), jowa.load(out)
    games = seen.games.numpy()
    clear = 0
    for t in range(4):
        frames = seen.observations[:, t].numpy()
        actions = whole.act(frames, games), half.act(frames, games)
        for row in range(len(games)):
            one, other = (agent.explain(row).q for agent in (whole, half))
            legal = np.isfinite(one)
            np.testing.assert_allclose(other[legal], one[legal], atol=0.02)
            second, first = np.sort(one[legal])[-2:]
            if first - second > 0.04:
                clear += 1
                assert actions[0][row] == actions[1][row]
        for agent in (whole, half):
            agent.executed(actions[0])
    assert clear > 2 * len(games), "the test must be able to fail"


def _saved(tokenizer: Any, model: WorldActionModel, **change: torch.Tensor) -> Checkpoint:
    state = {
        "tokenizer": to_state(tokenizer.config),
        "model": dataclasses.asdict(model.config),
        "games": ["Pong", "Freeway"],
    }
    tensors = {"model": model.state_dict() | change, "tokenizer": tokenizer.state_dict()}
    return Checkpoint(3, state, tensors)


def test_an_agent_of_the_size_of_nano_takes_two_bytes_a_number() -> None:
    config = OmegaConf.to_object(composed("pretrain", ["run=x", "data.games=[Pong]"]))
    tokenizer, model = build_tokenizer(config.tokenizer), WorldActionModel(config.model)
    saved = _saved(tokenizer, model)
    sums = {"sha256": {"model": "m", "tokenizer": "t"}}
    content = weight_file.encode(saved.state | sums, saved.tensors)
    kept = [
        tensor
        for tensors in saved.tensors.values()
        for name, tensor in tensors.items()
        if not name.startswith("target_q_head.")
    ]
    expected = sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in kept)
    assert expected < len(content) < expected + 20_000
    assert len(content) < 12_000_000


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -70_000.0])
def test_numbers_that_half_precision_cannot_hold_are_refused(
    tmp_path: Path,
    make_tokenizer: Callable[..., Any],
    make_model: Callable[..., WorldActionModel],
    complaint: Complaint,
    number: float,
) -> None:
    model = make_model()
    name = "q_head.linear2.bias"
    bad = model.state_dict()[name].clone()
    bad[0, 3] = number
    save(tmp_path / "run", _saved(make_tokenizer(), model, **{name: bad}), keep=1)
    out = tmp_path / "x.safetensors"
    line = complaint(["export-weights", f"checkpoint={tmp_path}/run", f"out={out}"])
    assert name in line and f"{number:g}" in line and "65,504" in line
    assert not out.exists()


def test_what_is_already_there_is_not_written_over(
    done: Any, exported: Path, tmp_path: Path, complaint: Complaint
) -> None:
    out = tmp_path / "x.safetensors"
    out.write_bytes(exported.read_bytes()[:-1])
    command = ["export-weights", f"checkpoint={done['pretrain']}", f"out={out}"]
    assert "something else" in complaint(command)
    assert out.stat().st_size == exported.stat().st_size - 1
    assert "no model" in complaint([*command, f"checkpoint={done['tokenize']}"])
    (tmp_path / "file").touch()
    assert "cannot be written" in complaint([*command, f"out={tmp_path}/file/x.safetensors"])


def test_a_flipped_bit_anywhere_is_noticed(exported: Path, tmp_path: Path) -> None:
    content = exported.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, header, 60), *rng.integers(header, len(content), 20)]
    bad = tmp_path / "bad.safetensors"
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        bad.write_bytes(flipped)
        with pytest.raises(UserError, match=r"bad\.safetensors is damaged"):
            load(find(bad))


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "foreign", "text"])
def test_a_damaged_or_foreign_file_is_one_sentence(
    done: Any, exported: Path, nano: tuple[Path, Any], complaint: Complaint, damage: str
) -> None:
    content = exported.read_bytes()
    foreign = (find(done["pretrain"]) / "model.safetensors").read_bytes()
    bad = {
        "cut": content[:-1000],
        "header": content[:5000],
        "empty": b"",
        "foreign": foreign,
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }
    nano[0].write_bytes(bad[damage])
    command = ["evaluate", "checkpoint=nano", "out=s.json"]
    line = complaint(command)
    assert str(nano[0]) in line and "damaged" in line and "install jowa again" in line
    assert "export it again" in complaint([*command, f"checkpoint={_copied(nano[0])}"])


def _copied(file: Path) -> Path:
    return Path(shutil.copy(file, file.parents[1] / "copy.safetensors"))


def test_a_newer_format_is_refused(exported: Path, tmp_path: Path) -> None:
    saved = load(exported)
    newer = tmp_path / "newer.safetensors"
    newer.write_bytes(weight_file.encode(saved.state | {"format": 99}, saved.tensors))
    with pytest.raises(UserError, match=r"format 99.*update jowa"):
        load(newer)


def test_a_name_is_that_of_an_agent_that_comes_with_jowa_unless_something_lies_there(
    done: Any, nano: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = nano
    shutil.copy(file, file.with_name("small.safetensors"))
    assert list(checkpoints.shipped()) == ["nano", "small"] and find("nano") == file
    agent = jowa.load("nano")
    assert agent.model.config.q_width == 16
    for unknown in ("nono", "nano.safetensors", "weights"):
        with pytest.raises(UserError, match=rf"in {unknown}:.*with jowa \(nano, small\)"):
            jowa.load(unknown)
    Path("nano").mkdir()
    with pytest.raises(UserError, match="in the folder nano, which hides the agent"):
        find("nano")
    shutil.copytree(done["finetune"], "nano", dirs_exist_ok=True)
    assert "Breakout" in load(find("nano")).state["games"]
    monkeypatch.setattr(checkpoints, "_SHIPPED", tmp_path / "absent")
    with pytest.raises(UserError, match=r"with jowa \(none does\)"):
        find("nono")


def test_commands_that_play_take_the_name_and_remember_it(
    done: Any, nano: tuple[Path, dict[str, str]], complaint: Complaint
) -> None:
    _, sums = nano
    play = ["checkpoint=nano", "max_frames=40", "envs_per_game=1", *CPU]
    once = [*play, "games=[Freeway]", "planner=greedy", "episodes=1", "baselines=false"]
    assert main(["evaluate", *once, "out=s.json"]) == 0
    (evaluation,) = json.loads(Path("s.json").read_text())["evaluations"]
    assert evaluation["checkpoint"] == "nano"
    assert evaluation["provenance"]["weights"] == sums
    assert len(evaluation["games"]["Freeway"]["scores"]) == 1
    line = complaint(["evaluate", *once, "games=[Breakout]", "out=s.json"])
    assert "Breakout" in line and "jowa finetune" in line

    tuning = [*play, "games=[Pong]", "episodes=2", "contexts=[2]", "beam_widths=[2]"]
    assert main(["tune", *tuning, "horizons=[0]", "out=t.json"]) == 0
    assert json.loads(Path("t.json").read_text())["weights"] == sums
    film = ["watch", "checkpoint=nano", "game=Pong", "planner=greedy", "max_steps=3"]
    assert main([*film, "out=film.mp4", *CPU]) == 0
    assert Path("film.mp4").stat().st_size > 0

    tiers = [Tier("agent", "agent", 1.0, checkpoint="nano")]
    settings: dict[str, Any] = {"transitions": 40, "short_episode_steps": 10, "short_share": 0.5}
    collect(["Pong"], Path("data"), tiers=tiers, max_frames=80, seed=0, **settings)
    with EpisodeFile(Path("data/Pong.h5")) as data:
        assert data.facts["checkpoints"] == {"agent": "nano"}
        assert data.provenance["tiers"][0]["checkpoint"] == sums


def test_fine_tuning_starts_from_the_file_and_says_so(
    done: Any, nano: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, sums = nano
    changes = {"checkpoint": "nano", "run": "runs/new", "training.steps": "2"}
    still = {"training.optimizer.learning_rate": "0", "training.losses.tokenizer": "0"}
    assert main(done.changed("finetune", **changes, **still, like="null")) == 0
    saved = load(find("runs/new"), optional=("training",))
    assert saved.state["started_from"] == {"checkpoint": "nano", "step": 10, "sha256": sums}
    assert saved.state["games"] == ["Pong", "Freeway", "Breakout"]
    for stem, tensors in load(file).tensors.items():
        for name, tensor in tensors.items():
            assert saved.tensors[stem][name].dtype == tensor.dtype
            # Breakout brings a background, and pictures are taken anew of the tokenizer.
            if name not in ("background", "pictures"):
                assert torch.equal(saved.tensors[stem][name], tensor), name
    assert any(name.startswith("optimizer/") for name in saved.tensors["training"])

    assert main(done.changed("finetune", **changes | {"run": "runs/learning"})) == 0
    learned, start = load(find("runs/learning")).tensors, load(file).tensors
    for stem, name in (("model", "q_head.linear1.weight"), ("tokenizer", "codes")):
        assert not torch.equal(learned[stem][name], start[stem][name])
    assert main(done.changed("scratch", **changes | {"run": "runs/scratch"})) == 0
    assert load(find("runs/scratch")).state["started_from"] is None
    capsys.readouterr()
    assert main(["runs"]) == 0
    assert capsys.readouterr().out.count(f"  nano {sums['model'][:8]}  ") == 2
    assert main(["runs", f"root={done.root}"]) == 0
    original = load(find(done["pretrain"])).state["sha256"]["model"]
    assert f"  pretrain/step_00000010 {original[:8]}  " in capsys.readouterr().out


def test_pretraining_may_start_from_the_name(done: Any, nano: tuple[Path, Any]) -> None:
    file, sums = nano
    shutil.copytree(done.data, "data")  # tokens are written beside it
    steps = {"stage1.steps": "0", "stage2.steps": "2", "data.root": "data"}
    own = done.changed("pretrain", run="own", tokenizer_from="nano", **steps)
    assert main(own) == 0
    saved = load(find("own"))
    tokenizer = load(file).tensors["tokenizer"]
    assert torch.equal(saved.tensors["tokenizer"]["codes"], tokenizer["codes"])
    expected = {"checkpoint": "nano", "step": 10, "sha256": {"tokenizer": sums["tokenizer"]}}
    assert saved.state["started_from"] == expected
    both = done.changed("pretrain", run="both", start_from=str(file), **steps)
    assert main([part for part in both if not part.startswith("tokenizer_from")]) == 0
    assert load(find("both")).state["started_from"]["sha256"] == sums


def test_a_target_head_that_is_built_learns_apart(exported: Path) -> None:
    """Tensors are taken over, not copied: the two heads must not share theirs."""
    _, model = build(load(exported))
    with torch.no_grad():
        model.q_head.linear1.weight.add_(1.0)
    assert not torch.equal(model.q_head.linear1.weight, model.target_q_head.linear1.weight)
