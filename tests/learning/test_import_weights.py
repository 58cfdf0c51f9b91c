"""Files of released weights: every bad one gets its sentence, good ones play and learn."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jowa
from jowa.agent import Agent
from jowa.cli import main
from jowa.errors import UserError
from jowa.learning.checkpoint import find, load
from jowa.learning.released_files import check_sums, load_released, read_released
from jowa.models.conv_tokenizer import ConvTokenizer, ConvTokenizerConfig
from jowa.models.released import PRETRAINED_GAMES
from jowa.planning.config import PlannerConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL, TOKENIZER = FIXTURES / "JOWA_tiny.pt", FIXTURES / "tokenizer.pt"
CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 511212618\n"
)


def command(
    out: Path, *options: str, model: Path = MODEL, tokenizer: Path = TOKENIZER
) -> list[str]:
    files = [f"model={model}", f"tokenizer={tokenizer}", f"out={out}"]
    return ["import-weights", *files, "num_heads=4", *options]


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one error line of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("imported") / "run"
    assert main(command(run)) == 0
    return run


class Dangerous:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def half(path: Path) -> None:
    path.write_bytes(MODEL.read_bytes()[: MODEL.stat().st_size // 2])


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def saved(content: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (text(POINTER), r"Git LFS pointer \(\d+ bytes\).*511,212,618 bytes.*git lfs pull"),
    "short": (half, "cut short"),
    "empty": (text(""), "is empty"),
    "page": (text("<!DOCTYPE html>\n<html><body>404</body></html>"), "web page"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a file of torch.save"),
    "folder": (Path.mkdir, "is a folder"),
    "archive": (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), "is not a file of"),
    "missing": (lambda path: None, "there is no file"),
    "code": (
        lambda path: torch.save({"a": Dangerous(path.with_name("x"))}, path),
        "Python objects",
    ),
    "nested": (
        saved({"epoch": 3, "model": {"a": torch.zeros(2)}}),
        r"not a flat state dict.*'epoch' is of type int.*epoch, model",
    ),
    "list": (saved([torch.zeros(2)]), "holds a list"),
    "numbers": (saved({1: torch.zeros(2)}), "holds 1, which is no named"),
    "sparse": (saved({"a": torch.zeros(2, 2).to_sparse()}), "holds 'a', which"),
    "meta": (saved({"a": torch.zeros(2, device="meta")}), "holds 'a', which"),
    "other": (saved({"bert.a": torch.zeros(2)}), "another network.*bert.a"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gets_its_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    make, words = BAD_FILES[kind]
    bad = tmp_path / "bad.pt"
    make(bad)
    before = set(tmp_path.iterdir())
    for files in ((bad, TOKENIZER), (MODEL, bad)):
        with pytest.raises(UserError, match=words) as error:
            load_released(*files, num_heads=4)
        assert str(bad) in str(error.value) and "\n" not in str(error.value)
    line = complaint(capsys, command(tmp_path / "run", model=bad))
    assert str(bad) in line
    assert set(tmp_path.iterdir()) == before, "nothing is written, and nothing was executed"


def test_a_flipped_byte_is_found_at_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.pt"
    content = bytearray(MODEL.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    assert read_released(bad).keys() == read_released(MODEL).keys()
    assert "damaged" in complaint(capsys, command(tmp_path / "run", model=bad))
    assert not (tmp_path / "run").exists()
    check_sums(MODEL)


def test_files_that_do_not_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(capsys, command(tmp_path / "run", model=TOKENIZER, tokenizer=MODEL))
    assert "other way round" in line and str(MODEL) in line
    state, other = read_released(TOKENIZER), tmp_path / "other.pt"
    torch.save(state | {"module.embedding.weight": torch.zeros(40, 24)}, other)
    with pytest.raises(UserError, match=r"40 codes.*48 tokens"):
        load_released(MODEL, other, num_heads=4)
    small = ConvTokenizer(ConvTokenizerConfig(vocabulary=40, code_width=8, channels=4))
    _, model = load_released(MODEL, TOKENIZER, num_heads=4)
    with pytest.raises(UserError, match=r"40 codes.*48 tokens"):
        Agent(small, model, PlannerConfig())
    assert list(tmp_path.iterdir()) == [other]


def test_heads_and_games_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    cases = [
        (["num_heads=null"], ["width 64", "num_heads"]),
        (["num_heads=5"], ["num_heads=5", "does not divide", "64"]),
        (["games=[Assault,Zaxon]"], ["Zaxon", "Zaxxon"]),
        ([f"out={MODEL}"], ["is a file"]),
    ]
    for options, words in cases:
        line = complaint(capsys, command(run, *options))
        assert all(word in line for word in words), line
    assert "tokenizer=..." in complaint(capsys, ["import-weights", f"model={MODEL}", f"out={run}"])
    assert not run.exists()


def test_the_checkpoint_is_an_ordinary_one(imported: Path) -> None:
    checkpoint = load(find(imported))
    tokenizer, model = load_released(MODEL, TOKENIZER, num_heads=4)
    for stem, module in (("model", model), ("tokenizer", tokenizer)):
        state = module.state_dict()
        assert checkpoint.tensors[stem].keys() == state.keys()
        assert all(torch.equal(t, state[name]) for name, t in checkpoint.tensors[stem].items())
    assert checkpoint.state["games"] == list(PRETRAINED_GAMES) and len(PRETRAINED_GAMES) == 15
    assert checkpoint.state["released"]["model"]["file"] == "JOWA_tiny.pt"
    agent = jowa.load(imported)
    tokens, games = torch.randint(0, 48, (2, 3, 36)), torch.tensor([0, 59])
    arguments = tokens, torch.zeros(2, 3).long(), games
    with torch.no_grad():
        ours, theirs = agent.model(*arguments).q_logits, model(*arguments).q_logits
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    direct = Agent(tokenizer, model, agent.planner)
    frames = np.random.default_rng(0).integers(0, 256, (4, 1, 84, 84), dtype=np.uint8)
    for frame in frames:
        game = np.array([jowa.games.get("Assault").id])
        assert agent.act(frame, game) == direct.act(frame, game)


def test_the_agent_outlives_its_files(tmp_path: Path) -> None:
    """Weights are mapped to the files, and training writes into memory, never into them."""
    model_file, tokenizer_file = (shutil.copy(f, tmp_path) for f in (MODEL, TOKENIZER))
    _, model = load_released(model_file, tokenizer_file, num_heads=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert Path(model_file).read_bytes() == MODEL.read_bytes()
    Path(model_file).unlink()
    assert float(model.position_embedding.weight.detach().mean()) == 7.0


def test_the_same_command_again_keeps_and_another_is_refused(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(imported, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    moved = shutil.copy(MODEL, tmp_path / "renamed.pt")
    assert main(command(run, model=Path(moved))) == 0
    assert "kept" in capsys.readouterr().out
    assert "num_heads" in complaint(capsys, command(run, "num_heads=2"))
    assert "games" in complaint(capsys, command(run, "games=[Assault]"))
    state = read_released(MODEL)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, moved)
    assert "another model" in complaint(capsys, command(run, model=Path(moved)))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    file = find(run) / "state.json"
    facts = json.loads(file.read_text())
    del facts["released"]
    file.write_text(json.dumps(facts))
    assert "training run" in complaint(capsys, command(run))


def test_an_imported_agent_plays(imported: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    play = ["games=[Assault]", "episodes=1", "envs_per_game=1", "max_frames=400"]
    options = [f"checkpoint={imported}", f"out={out}", "planner=greedy", "baselines=false"]
    assert main(["evaluate", *options, *play, *CPU]) == 0
    (evaluation,) = json.loads(out.read_text())["evaluations"]
    assert evaluation["games"]["Assault"]["steps"] == [100]


def test_an_imported_agent_learns_a_held_out_game(
    imported: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, like, new = tmp_path / "run", jowa.games.get("Phoenix").id, jowa.games.get("Breakout").id
    shutil.copy(data_root / "Breakout.h5", tmp_path)
    train = ["training.steps=2", "training.batch_size=2", "training.length=4"]
    options = [f"run={run}", f"checkpoint={imported}", "game=Breakout", f"root={tmp_path}", *CPU]
    assert main(["finetune", *options, "like=Phoenix", *train]) == 0
    trained, start = load(find(run)), load(find(imported))
    assert trained.state["games"] == [*PRETRAINED_GAMES, "Breakout"]
    for stem, name in (("model", "q_head.linear1.weight"), ("tokenizer", "embedding.weight")):
        assert not torch.equal(trained.tensors[stem][name], start.tensors[stem][name])
    table = "task_observation_embedding.weight"
    row, before = trained.tensors["model"][table][new], start.tensors["model"][table]
    assert (row - before[like]).norm() < 0.1 * (row - before[new]).norm()
    again = [f"run={tmp_path}/again", options[1], "game=Phoenix", *options[3:]]
    assert "never saw" in complaint(capsys, ["finetune", *again])


@pytest.mark.parametrize("game", [-1, 60])
def test_a_game_id_out_of_range_is_refused(imported: Path, game: int) -> None:
    agent = jowa.load(imported)
    with pytest.raises(UserError, match=f"no game of id {game}: ids are 0 to 59"):
        agent.act(np.zeros((1, 84, 84), dtype=np.uint8), np.array([game]))
    with pytest.raises(UserError, match="0 to 59"):
        jowa.games.by_id(game)
