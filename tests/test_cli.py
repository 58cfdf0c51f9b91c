"""The command line: what a user gets wrong is one clear sentence and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jowa import cli
from jowa.cli import VERBS, main
from jowa.games import GAMES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretian"], ["pretian", "pretrain"]),
        (["pretrain", "run=x", "stage2.stepz=3"], ["stage2.stepz", "stage2.steps"]),
        (["pretrain", "learning_rate=1"], ["learning_rate", "optimizer.learning_rate"]),
        (["pretrain"], ["run=...", "games=..."]),
        (["evaluate"], ["checkpoint=..."]),
        (["pretrain", "run=x", "stage1.steps=many"], ["many"]),
        (["pretrain", "model=huge"], ["huge", "nano"]),
        (["pretrain", "run=x", "objective=magic"], ["magic", "cloning", "no_world_model"]),
        (
            [
                *["pretrain", "run=x", "data.games=[Pong]"],
                *["objective=cloning", "stage1.losses.tokenizer=0"],
            ],
            ["stage1.losses", "weight", "stage1.steps=0"],
        ),
        (
            [
                *["pretrain", "run=x", "data.games=[Pong]"],
                *["objective=no_world_model", "stage2.imagination.share=0.5"],
            ],
            ["stage2.imagination.share", "stage2.losses.world_model"],
        ),
        (["evaluate", "planner=oracle"], ["oracle", "beam", "greedy"]),
        (["pretrain", "experiment=none_such"], ["none_such", "demo"]),
        (["pretrain", "run x"], ["key=value"]),
        (["finetune", "run=x", "checkpoint=nowhere", "game=Pong"], ["nowhere"]),
        (["finetune", "run=x", "checkpoint=nowhere", "game=Ping"], ["Ping", "Pong"]),
        (["collect", "games=[Brekout]", "root=x"], ["Brekout", "Breakout"]),
        (["collect", "games=[Pong]", "root=x", "transitions=0"], ["transitions"]),
        *(
            (["collect", "games=[Pong]", "root=x", option], words)
            for option, words in (
                ("tiers=[{name: a, behaviour: random, share: 0.5}]", ["0.5", "1"]),
                ("tiers=[{name: a, behaviour: rondom, share: 1}]", ["rondom", "search"]),
                ("tiers=[{name: a, behavior: random, share: 1}]", ["behavior", "tiers"]),
                ("tiers=[{behaviour: random, share: 1}]", ["tiers[0].name"]),
                ("tiers=[{name: a, behaviour: agent, share: 1}]", ["'a'", "checkpoint=RUN"]),
                ("tiers=[{name: a, behaviour: agent, share: 1, checkpoint: no_run}]", ["no_run"]),
                (
                    "tiers=[{name: a, behaviour: agent, share: 1, checkpoint: x, planner: {q: 1}}]",
                    ["'q'", "tiers"],
                ),
                (
                    "tiers=[{name: a, behaviour: search, share: 1, search: {lookahead: 1}}]",
                    ["search.lookahead=1", "13"],
                ),
                (
                    "tiers=[{name: a, behaviour: search, share: 1, search: {lookahed: 9}}]",
                    ["lookahed", "tiers"],
                ),
                ("tiers=[{name: a, behaviour: random, share: 1, search: {}}]", ["'a'", "search"]),
                ("constant_episodes=-1", ["constant_episodes"]),
                ("piece=0", ["piece"]),
            )
        ),
        (["evaluate", "checkpoint=nowhere", "out=x.json"], ["nowhere"]),
        (["export-weights", "checkpoint=nowhere", "out=x.safetensors"], ["nowhere"]),
        (["export-weights", "checkpoint=x", "out=x.pt"], ["x.pt", "*.safetensors"]),
        (["watch", "checkpoint=nowhere", "game=Pong"], ["nowhere"]),
        (["report", "out=x", "scores=[nowhere.json]"], ["nowhere.json"]),
        (["report", "out=x", "runs=[nowhere]"], ["nowhere"]),
        (["report", "out=x", "compare=[planned]"], ["planned", "first|second"]),
        (["report", "out=x", "references=[clone]"], ["references", "clone"]),
        (["tokenize", "run=x", "data.games=[Pong]", "data.root=nowhere"], ["nowhere"]),
        (["tokenize", "run=x", "data.games=[Pong]", "compute.device=gpu"], ["gpu", "cuda"]),
        (["tokenize", "run=x", "data.games=[Pong]", "compute.dtype=int8"], ["int8", "float32"]),
        (["pretrain", "run=x", "data.games=[Pong]", "stage2.length=9"], ["stage2.length", "8"]),
        (["pretrain", "run=x", "data.games=[Pong]", "stage1.stride=9"], ["stage1.stride", "9"]),
        (["pretrain", "run=x", "data.games=[Pong]", "data.workers=-1"], ["workers is -1", "null"]),
        (["tokenize", "run=x", "data.games=[Pong]", "data.prefetch=0"], ["prefetch is 0"]),
        (["finetune", "run=x", "checkpoint=x", "game=Pong", "prefetch=0"], ["prefetch is 0"]),
        (["pretrain", "run=x", "data.games=[Pong]", "data.tokens=disk"], ["'disk'", "mapped"]),
        (["evaluate", "checkpoint=x", "compile=true"], ["compile"]),
        (["data"], ["one more word", "data probe"]),
        (["data", "prob"], ["one more word", "data probe"]),
        (["data", "probe", "root=nowhere"], ["no episode files", "nowhere"]),
        (["data", "probe", "root=nowhere", "steps=0"], ["steps"]),
        (["data", "probe", "root=nowhere", "seed=-1"], ["seed is -1"]),
        (["data"], ["data info", "data verify", "data sample"]),
        (["data", "info", "root=nowhere"], ["nowhere", "root=..."]),
        (["data", "info", "root=nowhere", "games=[Ping]"], ["Ping", "Pong"]),
        (["data", "verify", "root=nowhere", "games=[Pong]"], ["Pong", "nowhere"]),
        (["data", "sample", "root=x", "game=Pong", "out=x.jpg"], ["x.jpg", "*.png"]),
        (["data", "sample", "root=nowhere", "game=Pong", "out=x.png"], ["Pong", "nowhere"]),
        (["data", "export", "root=x", "game=Pong", "id=a-v0", "actions=all"], ["all", "minimal"]),
        (["data", "import", "root=x", "game=Ping", "id=a-v0"], ["Ping", "Pong"]),
        (["convert", "published_finetune", "root=x", "source=y"], ["quality=..."]),
        (["convert", "published_finetune", "root=x", "source=y", "quality=good"], ["suboptimal"]),
        (["evaluate", "checkpoint=x", "launcher=moon"], ["moon", "slurm"]),
        (
            ["pretrain", "run=x", "data.games=[Pong]", "stage2.losses.world_one_in=3"],
            ["world_one_in is 3", "batch_size 16", "multiple"],
        ),
        (
            ["pretrain", "run=x", "data.games=[Pong]", "stage2.losses.detach_q=true"],
            ["detach_q", "reader_width=256"],
        ),
        (["evaluate", "checkpoint=x", "label=W=2"], ["key=value", "quotes"]),
        (["evaluate", "--checkpoint", "nano"], ["key=value"]),
        (["tune"], ["checkpoint=..."]),
        (["tune", "checkpoint=nowhere"], ["nowhere"]),
        (["tune", "checkpoint=nowhere", "horizon=2"], ["horizon", "horizons"]),
        (["convert"], ["one more word", "dqn_replay"]),
        (["convert dqn_replay"], ["games=..."]),
        (["convert", "dqn_replay", "games=[Ponk]"], ["Ponk", "Pong"]),
        (["convert", "dqn_replay", "games=[]"], ["games"]),
        (["convert", "dqn_replay", "games=[Pong]", "source=nowhere"], ["nowhere", "download"]),
        (["convert", "dqn_replay", "games=[Pong]", "runs=[6]"], ["runs", "6", "1 to 5"]),
        (["convert", "dqn_replay", "games=[Pong]", "draw_runs=0"], ["draw_runs", "1 to 5"]),
        (["convert", "dqn_replay", "games=[Pong]", "checkpoints=[51]"], ["51", "0 to 50"]),
        (["convert", "dqn_replay", "games=[Pong]", "transitions=-1"], ["transitions", "-1"]),
        (["convert", "dqn_replay", "games=[Pong]", "workers=-1"], ["workers", "-1"]),
        (["convert", "dqn_replay", "games=[Pong]", "url=ftp://x"], ["ftp://x", "https://"]),
        (["convert", "dqn_replay", "games=[Pong]", "delete_converted=true"], ["download=true"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    complaint: Callable[[list[str]], str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(arguments)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["model.transformer.heads=3"], ["128", "3 heads"]),
        (["model.vocabulary=12"], ["12", "1024"]),
        (["model.codebook_width=63"], ["63", "64"]),
        (["model.reader_dropout=1"], ["reader_dropout", "0 or more"]),
        (["model.transformer.attention=flash"], ["flash", "sdpa"]),
        (
            ["tokenizer=published", "model.vocabulary=2048", "model.codebook_width=0"],
            ["reader_width", "tokenizer=nano"],
        ),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(
    complaint: Callable[[list[str]], str], options: list[str], words: list[str]
) -> None:
    command = ["pretrain", "run=x", "data.games=[Pong]", "model.reader_width=8", *options]
    line = complaint(command)
    assert all(word in line for word in words), line


def test_help_names_every_verb_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)
    for verb in VERBS:
        assert main([verb, "-h"]) == 0
        assert f"usage: jowa {verb}" in capsys.readouterr().out
    assert main(["pretrain", "--help", "stage2.steps=77"]) == 0
    text = capsys.readouterr().out
    assert "stage2.steps=77" in text and "run=... (required)" in text
    assert "model.transformer.width=128" in text


def test_no_command_at_all_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: jowa VERB" in capsys.readouterr().out


def test_games_lists_all_sixty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["games"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(f" {name} " in line for line in lines) for name in GAMES)


def test_the_demo_recipe_sets_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    config = cli.composed("pretrain", ["experiment=demo", "run=x", "stage1.batch_size=9"])
    assert len(config.data.games) >= 4 and config.stage1.batch_size == 9
    for verb in ("collect", "tokenize", "pretrain", "evaluate", "finetune", "watch", "report"):
        cli.composed(verb, ["experiment=demo"])


@pytest.mark.parametrize(
    "path",
    sorted(cli.config_folder().glob("experiment/*/*.yaml")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_recipe_fills_the_configuration_of_its_command(path: Path) -> None:
    (verb,) = (verb for verb in VERBS if verb.replace(" ", "-") == path.stem)
    config = cli.composed(verb, [f"experiment={path.parent.name}"])
    assert config != cli.composed(verb, []), "it says something"


@pytest.mark.parametrize("recipe", [[], ["experiment=demo"], ["experiment=published"]])
def test_baselines_change_the_losses_weights_of_any_recipe_and_nothing_else(
    recipe: list[str],
) -> None:
    full = cli.composed("pretrain", [*recipe, "run=x"])
    stage = full.stage2.losses
    assert (stage.world_model, stage.q, stage.cloning) == (0.1, 1.0, 0.0)
    assert full.stage1.losses.world_model == 1.0
    for objective, q, cloning in (("cloning", 0.0, 1.0), ("no_world_model", 1.0, 0.0)):
        config = cli.composed("pretrain", [*recipe, "run=x", f"objective={objective}"])
        losses = config.stage2.losses
        assert (losses.world_model, losses.q, losses.cloning) == (0.0, q, cloning)
        assert config.stage1.losses.world_model == 0.0
        config.stage1.losses, config.stage2.losses = full.stage1.losses, full.stage2.losses
        assert config == full
    both = cli.composed("pretrain", [*recipe, "objective=cloning", "stage2.losses.world_model=0.1"])
    assert both.stage2.losses.world_model == 0.1


def test_ctrl_c_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert main(["games"]) == 130
    assert capsys.readouterr().err == "jowa: stopped\n"


@pytest.mark.parametrize(("words", "code"), [(["games"], 0), (["gamse"], 2)])
def test_a_process_of_a_job_ends_with_its_code_and_all_it_said(words: list[str], code: int) -> None:
    """It does not wait for the interpreter's end, where PyTorch's threads may abort it."""
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "jowa", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("SpaceInvaders" in done.stdout) == (code == 0)
    assert ("did you mean" in done.stderr) == (code == 2)


@pytest.mark.parametrize("arguments", ["games", "-h"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_ends_it_silently(arguments: str, unbuffered: str) -> None:
    """As in `jowa games | head`."""
    piped = f'{sys.executable} -m jowa {arguments} | true; exit "${{PIPESTATUS[0]}}"'
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        ["bash", "-c", piped], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")
