"""Starting from another run's checkpoint, and what a run directory refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jowa.cli import main
from jowa.learning.checkpoint import FORMAT, complete, find, load
from jowa.learning.trainer import Phase, Trainer

TINY = [
    *["tokenizer.hidden=16", "tokenizer.code_width=4", "tokenizer.vocabulary=32"],
    *["tokenizer.patches_per_frame=3", "model.vocabulary=32", "model.codebook_width=4"],
    *["model.reader_width=8", "model.q_width=16", "model.transformer.layers=1"],
    *["model.transformer.width=16", "stage1.batch_size=4", "stage2.batch_size=4"],
    *["stage1.steps=4", "stage2.steps=6", "stage2.target_update_every=2"],
    *["log.scalars=1", "log.details=2", "log.pictures=100", "log.checkpoint=2"],
    *["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"],
]
Weights = dict[str, dict[str, torch.Tensor]]


def command(run: Path, data: Path, *more: str, games: str = "Pong,Freeway") -> list[str]:
    """Later options replace earlier ones of the same key."""
    options = [f"run={run}", f"data.root={data}", f"data.games=[{games}]", *TINY, *more]
    by_key = {option.partition("=")[0]: option for option in options}
    return ["pretrain", *by_key.values()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """Data of its own, beside which tokens are written."""
    root = tmp_path_factory.mktemp("start_from") / "data"
    shutil.copytree(data_root, root, ignore=shutil.ignore_patterns("tokens"))
    return root


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of both stages."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert main(command(run, data)) == 0
    return run


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Weights]:
    """The weights with which each phase of no zero steps begins, by its name, as they come."""
    seen: dict[str, Weights] = {}
    train = Trainer.train

    def spy(self: Trainer, phase: Phase) -> None:
        if phase.steps:
            assert self.model is not None
            parts = {"model": self.model, "tokenizer": self.tokenizer}
            seen[phase.name] = {
                stem: {name: tensor.clone() for name, tensor in part.state_dict().items()}
                for stem, part in parts.items()
            }
        train(self, phase)

    monkeypatch.setattr(Trainer, "train", spy)
    return seen


def losses(run: Path, phase: str) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss/total"] for line in lines if line["phase"] == phase]


def assert_equal(ours: Weights, theirs: Weights) -> None:
    for stem in ("model", "tokenizer"):
        assert ours[stem].keys() == theirs[stem].keys()
        for name, tensor in ours[stem].items():
            assert torch.equal(tensor, theirs[stem][name]), name


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one error line of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "jowa: error" in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_the_end_of_stage1_stays_and_stage2_from_it_is_that_of_the_straight_run(
    straight: Path, data: Path, tmp_path: Path, first_weights: dict[str, Weights]
) -> None:
    """Bit for bit: weights, order of the data, dropout."""
    end = complete(straight)[0]
    assert end.name == "step_00000004" and len(complete(straight)) == 3
    run = tmp_path / "run"
    assert main(command(run, data, "stage1.steps=0", f"start_from={end}")) == 0
    assert_equal(first_weights["stage2"], load(end).tensors)
    codes = load(end).tensors["tokenizer"]["codes"]
    assert torch.equal(first_weights["stage2"]["model"]["codebook"], codes)
    assert losses(run, "stage2") == losses(straight, "stage2")
    assert_equal(load(find(run)).tensors, load(find(straight)).tensors)


def test_stage2_with_another_loss_starts_from_a_finished_run(
    straight: Path, data: Path, tmp_path: Path, first_weights: dict[str, Weights]
) -> None:
    """With another loss, and from a run directory, whose newest checkpoint it is."""
    run = tmp_path / "run"
    other = ["stage1.steps=0", "stage2.losses.cql_weight=0.5", "seed=7"]
    assert main(command(run, data, *other, f"start_from={straight}")) == 0
    assert list(first_weights) == ["stage2"]
    assert_equal(first_weights["stage2"], load(find(straight)).tensors)
    trained = load(find(run)).tensors["model"]["transformer.blocks.0.mlp.0.weight"]
    before = first_weights["stage2"]["model"]["transformer.blocks.0.mlp.0.weight"]
    assert not torch.equal(trained, before)


def test_both_stages_may_go_on_from_a_run(
    straight: Path, data: Path, tmp_path: Path, first_weights: dict[str, Weights]
) -> None:
    assert main(command(tmp_path / "run", data, f"start_from={straight}")) == 0
    assert list(first_weights) == ["stage1", "stage2"]
    assert_equal(first_weights["stage1"], load(find(straight)).tensors)


def test_what_it_started_from_is_remembered_and_needed_only_once(
    straight: Path, data: Path, tmp_path: Path
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(straight, source)
    arguments = command(run, data, "stage1.steps=0", f"start_from={source}")
    assert main(arguments) == 0
    expected: dict[str, Any] = {
        "checkpoint": str(find(source)),
        "step": 10,
        "sha256": {
            stem: load(find(source), ()).state["sha256"][stem] for stem in ("model", "tokenizer")
        },
    }
    assert load(find(run)).state["started_from"] == expected
    before = losses(run, "stage2")
    shutil.rmtree(source)
    shutil.rmtree(find(run))  # as if killed after the checkpoint before
    assert load(find(run)).step == 4
    assert main(arguments) == 0
    assert losses(run, "stage2") == before
    assert load(find(run)).state["started_from"] == expected
    assert load(find(straight)).state["started_from"] is None


@pytest.mark.parametrize("key", ["start_from", "tokenizer_from"])
def test_games_that_the_start_never_saw_bring_their_background(
    straight: Path, data: Path, tmp_path: Path, key: str
) -> None:
    one = tmp_path / "one"
    assert main(command(one, data, "stage2.steps=0", games="Pong")) == 0
    run = tmp_path / "two"
    assert main(command(run, data, f"{key}={one}")) == 0
    there, now, fresh = (
        load(find(path)).tensors["tokenizer"]["background"] for path in (one, run, straight)
    )
    added = (there != now).flatten(1).any(1).nonzero().flatten().tolist()
    assert len(added) == 1 and not there[added].any()
    assert torch.equal(now, fresh)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["start_from={there}", "tokenizer_from={there}"], ["tokenizer_from", "start_from"]),
        (["start_from=nowhere"], ["no complete checkpoint", "nowhere"]),
        (
            ["start_from={there}", "model.q_width=24"],
            ["the model of", "q_head.linear1.weight", "(1, 16, 16)", "(1, 24, 16)"],
        ),
        (["start_from={there}", "tokenizer.hidden=8"], ["the tokenizer of", "encoder.0.weight"]),
        (["start_from={tokenizer}"], ["holds no model", "jowa pretrain"]),
        (["start_from={newer}"], ["format 99", "update jowa"]),
        (["seed=-1"], ["seed is -1"]),
        (["compute.threads=-1"], ["compute.threads is -1"]),
        (["model.transformer.heads=0"], ["model.transformer.heads is 0"]),
        (["stage1.steps=0", "stage2.steps=0"], ["stage1.steps", "stage2.steps"]),
        (["stage1.steps=-1"], ["stage1.steps is -1"]),
        (["stage2.losses.tokenizer=1"], ["stage2.losses.tokenizer is 1", "jowa tokenize"]),
        (["stage2.losses.n_step=0"], ["stage2.losses.n_step is 0"]),
        (["stage2.losses.gamma=99"], ["stage2.losses.gamma is 99"]),
        (["stage2.losses.q=-1"], ["stage2.losses.q is -1"]),
        (["stage2.losses.cql_temperature=0"], ["stage2.losses.cql_temperature is 0"]),
        (["stage1.optimizer.learning_rate=-1"], ["stage1.optimizer.learning_rate is -1"]),
        (["stage2.optimizer.decay=linear"], ["stage2.optimizer.decay", "cosine"]),
        (["stage2.optimizer.gradient_norm=0"], ["stage2.optimizer.gradient_norm is 0"]),
        (["stage2.balance=game"], ["stage2.balance", "'game'", "uniform"]),
        (["stage2.reward_fraction=2"], ["stage2.reward_fraction", "not 2"]),
        (["log.keep=0"], ["log.keep is 0"]),
        (["log.keep_best=-1"], ["log.keep_best is -1"]),
        (["log.scalars=0"], ["log.scalars is 0"]),
        (["log.checkpoint=0"], ["log.checkpoint is 0"]),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    straight: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: list[str],
) -> None:
    tokenizer, newer = tmp_path / "tokenizer", tmp_path / "newer"
    for copy in (tokenizer, newer):
        shutil.copytree(find(straight), copy)
    (tokenizer / "model.safetensors").unlink()
    mark_newer(newer)
    paths = {"there": straight, "tokenizer": tokenizer, "newer": newer}
    options = [option.format(**paths) for option in more]
    line = complaint(capsys, command(tmp_path / "run", data, *options))
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def mark_newer(checkpoint: Path) -> None:
    """Makes a checkpoint look like one of a later jowa."""
    state = checkpoint / "state.json"
    state.write_text(state.read_text().replace(f'"format": {FORMAT}', '"format": 99'))


def test_going_on_refuses_what_it_cannot_read_or_is_another_run(
    straight: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    config = run / "config.json"
    content = config.read_text()

    def refused(*more: str) -> str:
        return complaint(capsys, command(run, data, *more))

    line = refused("stage2.losses.cql_weight=9", "seed=3", "log.keep=5")
    assert "seed (0 there, 3 now)" in line and "cql_weight (3.0 there, 9.0 now)" in line
    assert "log.keep" not in line
    for damage in ("", "[1]", content[:100]):
        config.write_text(damage)
        assert "config.json is damaged" in refused()
    config.write_text(content)
    mark_newer(find(run))
    assert "update jowa" in refused()


def test_a_metric_that_no_step_logs_is_refused_before_anything_is_learned(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    bad = command(run, data, "log.keep_best=1", "log.best_metric=loss")
    line = complaint(capsys, bad)
    assert "'loss', which stage1 does not log" in line and "loss/total" in line
    assert complete(run) == []
    assert main(command(run, data, "log.keep_best=1")) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["stage2.batch_size=100000"], ["segments for a batch of 100000"]),
        (["data.share=0.001"], ["share=0.001", "Pong"]),
    ],
)
def test_what_the_data_does_not_allow_in_stage2_is_said_before_stage1_is_trained(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: list[str],
) -> None:
    run = tmp_path / "run"
    line = complaint(capsys, command(run, data, *more))
    assert all(word in line for word in words), line
    assert complete(run) == []


def test_a_stage_that_is_left_out_asks_nothing_of_the_data(data: Path, tmp_path: Path) -> None:
    more = ["stage1.batch_size=100000", "stage1.steps=0", "stage2.steps=2"]
    assert main(command(tmp_path / "run", data, *more)) == 0


def test_only_what_is_measured_on_held_out_episodes_tells_the_best_checkpoints(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gradient's norm is not; the share of rewards that are found is, though in a batch without
    rewards it says nothing."""
    hold_out = ["data.hold_out=2", "log.validation=2", "log.keep_best=1"]
    bad = "log.best_metric=validation/gradient_norm/model"
    line = complaint(capsys, command(tmp_path / "run", data, *hold_out, bad))
    assert "validation/accuracy/nonzero_rewards" in line
    assert "validation/gradient_norm" not in line.partition("use one of")[2]
    good = "log.best_metric=accuracy/nonzero_rewards"
    assert main(command(tmp_path / "run", data, *hold_out, good)) == 0


def test_a_run_directory_that_cannot_be_is_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"run={run}" in complaint(capsys, command(run, data))
