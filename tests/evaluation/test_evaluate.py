"""Evaluations repeat exactly after kills, in several processes, in jobs; and say what they are."""

from __future__ import annotations

import base64
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

import pytest

from jowa.agent import Agent
from jowa.cli import main
from jowa.evaluation import evaluate, journal

CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]
PLAY = ["episodes=3", "envs_per_game=2", "max_frames=240", "epsilon=0.02", "planner.horizon=1"]
TIMES = ("seconds", "seconds_per_1000_decisions")
RunMaker = Callable[..., Path]


def command(run: Path, out: Path, *more: str) -> list[str]:
    paths = [f"checkpoint={run}", f"out={out}"]
    return ["evaluate", *paths, *PLAY, "baselines=false", *CPU, *more]


def content(out: Path) -> dict[str, Any]:
    """The scores file without its times and its own name."""
    stored: dict[str, Any] = json.loads(out.read_text())
    for evaluation in stored["evaluations"]:
        assert all(evaluation["settings"].pop(name) >= 0 for name in TIMES)
        del evaluation["provenance"]["config"]["out"]
    return stored


def journals(out: Path) -> list[Path]:
    """Those of an evaluation that is not finished, the one begun first in front."""
    found = out.with_name(f"{out.name}.journal").glob("*.jsonl")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def choices(out: Path) -> dict[str, bytes]:
    """All choices of the agent, by journal."""
    found = {}
    for path in journals(out):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = b"".join(base64.b64decode(x["chosen"]) for x in lines if "chosen" in x)
    return found


def keep_journals(patch: pytest.MonkeyPatch) -> None:
    """With a line for every step, and not deleted in the end."""
    patch.setattr(journal, "WRITE_EVERY", 0.0)
    patch.setattr(evaluate, "discard", lambda *_: None)


@pytest.fixture(scope="module")
def run(make_run: RunMaker) -> Path:
    return make_run(seed=1)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """An evaluation that nothing stopped."""
    out = tmp_path_factory.mktemp("straight") / "scores.json"
    with pytest.MonkeyPatch.context() as patch:
        keep_journals(patch)
        assert main(command(run, out)) == 0
    games = content(out)["evaluations"][0]["games"].values()
    assert all(len(set(game["scores"])) > 1 for game in games), "or equal scores would say nothing"
    return out


def test_a_run_cut_at_any_byte_goes_on_to_the_same_file(
    tmp_path: Path, run: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_journals(monkeypatch)
    decided: list[int] = []
    act = Agent.act
    monkeypatch.setattr(Agent, "act", lambda *a: decided.append(1) or act(*a))
    first, second = journals(straight)
    lengths = len(first.read_bytes()), len(second.read_bytes())
    costs = []
    # Within the first game, in its last line, within the second, in the last line of all.
    for parts in ((0.31, 0.0), (0.9999, 0.0), (1.0, 0.62), (1.0, 0.9999)):
        out = tmp_path / f"cut-{len(costs)}.json"
        folder = tmp_path / f"{out.name}.journal"
        folder.mkdir()
        for path, part, length in zip((first, second), parts, lengths, strict=True):
            if part:
                (folder / path.name).write_bytes(path.read_bytes()[: int(part * length)])
        decided.clear()
        assert main(command(run, out)) == 0
        costs.append(len(decided))
        assert content(out) == content(straight)
        assert choices(out) == choices(straight)
    assert 120 + 70 < costs[0] < 120 + 100, "each game has 120 steps"
    assert costs[1] == 121 and 20 < costs[2] < 60 and costs[3] == 1, costs


def test_kills_cost_nothing(tmp_path: Path, run: Path, straight: Path) -> None:
    out = tmp_path / "killed.json"
    arguments = command(run, out)
    program = "from jowa.evaluation import journal; journal.WRITE_EVERY = 0.0; import jowa.cli"
    program += f"; jowa.cli.main({arguments})"
    for files, size in ((1, 2500), (2, 4000)):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        start = time.monotonic()
        while len(journals(out)) < files or journals(out)[-1].stat().st_size < size:
            assert process.poll() is None and time.monotonic() - start < 120, "it ended early"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
    assert main(arguments) == 0
    assert content(out) == content(straight)


def test_two_processes_write_what_one_does(tmp_path: Path, run: Path, straight: Path) -> None:
    out = tmp_path / "together.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    job = subprocess.run(
        [*torchrun, "--nproc_per_node=2", "-m", "jowa", *command(run, out)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert job.returncode == 0, job.stderr
    assert content(out) == content(straight)
    assert job.stdout.count("IQM") == 1, "one of them speaks"


def test_jobs_write_what_one_process_does(
    tmp_path: Path, run: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    out = tmp_path / "jobs.json"
    assert main([*command(run, out), "launcher=submitit_local"]) == 0
    assert content(out) == content(straight)
    assert "2 jobs: " in capsys.readouterr().out
    assert not out.with_name("jobs.json.journal").exists()


def test_batches_across_games_play_the_same_episodes(
    tmp_path: Path, run: Path, straight: Path
) -> None:
    """The same seeds and numbers of episodes, whatever is decided together; rounding apart."""
    ours = content(straight)["evaluations"][0]["games"]
    out = tmp_path / "scores.json"
    assert main([*command(run, out), "envs_per_batch=3", "planner.horizon=0"]) == 0
    games = content(out)["evaluations"][0]["games"]
    assert list(games) == list(ours)
    for name, game in games.items():
        assert game["steps"] == ours[name]["steps"] == [60, 60, 60]


def test_outputs_say_what_it_is_and_what_it_replaces(
    tmp_path: Path, run: Path, make_run: RunMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    short = ["episodes=1", "games=[Boxing]", "planner=greedy", "planner.horizon=0"]
    assert main(command(run, out, *short)) == 0
    said = capsys.readouterr().out
    assert "not the full protocol: episodes are cut at 240 frames" in said
    assert "cut all 1 episodes" in said and "s per 1,000 decisions (60 in" in said
    settings = json.loads(out.read_text())["evaluations"][0]["settings"]
    assert settings["is_protocol"] is False and settings["cut_episodes"] == 1
    assert settings["decisions"] == 60
    assert settings["seconds_per_1000_decisions"] == pytest.approx(
        1000 * settings["seconds"] / 60, abs=1.0
    )
    assert main(command(run, out, *short)) == 0
    assert "kept: " in capsys.readouterr().out
    assert main([*command(run, out, *short), "max_frames=80"]) == 0
    assert "replaced: " in (said := capsys.readouterr().out) and "max_frames 240, now 80" in said
    assert main([*command(run, out, *short), "label=other"]) == 0
    assert "other: not comparable with agent, played with max_frames 80" in capsys.readouterr().out
    assert main(command(make_run(seed=2), out, *short, "label=other")) == 0
    assert "held 'other' of other weights" in capsys.readouterr().out
    labels = [e["label"] for e in json.loads(out.read_text())["evaluations"]]
    assert labels == ["agent", "other"]


def test_a_label_that_clashes_is_refused_before_anything_is_played(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, short = tmp_path / "scores.json", ["episodes=1", "envs_per_game=1", "max_frames=80"]
    for label in ("a/0", "a/1"):
        assert main([*command(run, out), *short, f"label={label}"]) == 0
    before = out.read_bytes()
    line = complaint(capsys, [*command(run, out), *short, "label=a"])
    assert "'a' is an evaluation and the name of the seeds a/..." in line
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_another_precision_is_another_evaluation(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, short = tmp_path / "scores.json", ["episodes=1", "envs_per_game=1", "max_frames=80"]
    assert main([*command(run, out), *short]) == 0
    assert "dtype" not in content(out)["evaluations"][0]["settings"]
    capsys.readouterr()
    assert main([*command(run, out), *short, "compute.dtype=bfloat16"]) == 0
    assert "dtype None, now bfloat16" in capsys.readouterr().out
    assert content(out)["evaluations"][0]["settings"]["dtype"] == "bfloat16"


def test_unfinished_play_of_other_settings_is_left_and_named(
    tmp_path: Path, run: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    folder = tmp_path / "scores.json.journal"
    shutil.copytree(straight.with_name("scores.json.journal"), folder)
    assert main([*command(run, out), "max_frames=40"]) == 0
    assert f"{folder} holds play of other settings" in capsys.readouterr().out
    assert len(journals(out)) == 2


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_one_sentence_and_leave_nothing(
    tmp_path: Path, run: Path, make_run: RunMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "scores.json"
    for change, words in (
        ("episodes=0", ["episodes is 0"]),
        ("envs_per_batch=-1", ["envs_per_batch is -1"]),
        ("max_frames=3", ["max_frames is 3"]),
        ("max_frames=10000000000", ["max_frames is 10000000000"]),
        ("games=[Boxing,Boxing]", ["named twice"]),
        ("games=[Pnog]", ["Pnog", "Pong"]),
        ("games=[Pong]", ["never trained on Pong"]),
        ("planner.horizon=6", ["horizon 6", "context 4"]),
        ("seed=1000000000", ["seeds from 1000000000 on are for `jowa tune`"]),
        ("tuned=nowhere.json", ["nowhere.json", "jowa tune"]),
        (f"tuned={run}/checkpoints/latest", ["latest", "jowa tune"]),
        ("launcher=slurm", ["launcher.cluster=slurm does not work here"]),
        ("launcher.cluster=moon", ["launcher.cluster=moon does not work here"]),
        (f"data_root={tmp_path}/none", ["none"]),
    ):
        line = complaint(capsys, [*command(run, out), change])
        assert all(word in line for word in words), line
        assert not out.parent.exists(), change
    (tmp_path / "file").touch()
    line = complaint(capsys, command(run, tmp_path / "file" / "scores.json"))
    assert str(tmp_path / "file") in line
    for stem, absent in (("tokenizer", "no model"), ("model", "no tokenizer")):
        assert absent in complaint(capsys, command(make_run(stem), out))


def test_a_journal_that_another_plays_or_that_does_not_repeat_is_refused(
    tmp_path: Path, run: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    folder = tmp_path / "scores.json.journal"
    shutil.copytree(straight.with_name("scores.json.journal"), folder)
    path = journals(out)[1]
    whole = path.read_bytes()
    header = json.loads(whole.splitlines()[0])
    facts = {name: value for name, value in header.items() if name != "format"}
    with journal.Journal(folder, facts, len(header["seats"])) as held:
        assert held.path == path
        assert "another process is playing" in complaint(capsys, command(run, out))
    assert path.read_bytes() == whole
    lines = whole.splitlines(keepends=True)[:-1]
    ended = next(i for i, line in enumerate(lines) if b'"ended": [["' in line)
    broken = json.loads(lines[ended])
    broken["ended"][0][3] += 1.0  # the score
    lines[ended] = json.dumps(broken).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    assert "does not repeat here" in complaint(capsys, command(run, out))
