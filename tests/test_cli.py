"""The command line: what a user gets wrong is one clear sentence and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from jowa import cli
from jowa.cli import VERBS, main
from jowa.games import GAMES


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("jowa: error: ")
    assert "Traceback" not in lines[0]
    return lines[0]


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
        (["watch", "checkpoint=nowhere", "game=Pong"], ["nowhere"]),
        (["report", "out=x", "scores=[nowhere.json]"], ["nowhere.json"]),
        (["report", "out=x", "runs=[nowhere]"], ["nowhere"]),
        (["tokenize", "run=x", "data.games=[Pong]", "data.root=nowhere"], ["nowhere"]),
        (["tokenize", "run=x", "data.games=[Pong]", "compute.device=gpu"], ["gpu", "cuda"]),
        (["tokenize", "run=x", "data.games=[Pong]", "compute.dtype=int8"], ["int8", "float32"]),
        (["pretrain", "run=x", "data.games=[Pong]", "stage2.length=9"], ["stage2.length", "8"]),
        (["pretrain", "run=x", "data.games=[Pong]", "stage1.stride=9"], ["stage1.stride", "9"]),
        (["evaluate", "checkpoint=x", "compile=true"], ["compile"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(capsys, arguments)
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("model.transformer.heads=3", ["128", "3 heads"]),
        ("model.vocabulary=12", ["12", "1024"]),
        ("model.codebook_width=63", ["63", "64"]),
        ("model.codebook_width=0", ["summary_width", "64"]),
        ("model.transformer.attention=flash", ["flash", "sdpa"]),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], option: str, words: list[str]
) -> None:
    command = ["pretrain", "run=x", "data.games=[Pong]", "model.summary_width=8", option]
    line = complaint(capsys, command)
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


def test_ctrl_c_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert main(["games"]) == 130
    assert capsys.readouterr().err == "jowa: stopped\n"
