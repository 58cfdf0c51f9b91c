"""The learner: what it sees and what is recorded, interruption, and what users get wrong."""

from __future__ import annotations

import errno
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jowa.collecting import learner_ppo
from jowa.collecting.experience import write_episodes
from jowa.collecting.learner import LearnerConfig, record_learner
from jowa.collecting.learner_env import LearnerEnv
from jowa.data.episodes import (
    END_NONE,
    END_TRUNCATED,
    EpisodeFile,
    EpisodeWriter,
)
from jowa.data.store import verify
from jowa.errors import UserError
from jowa.games import get

SMALL: dict[str, Any] = {  # 250 steps are 8 rollouts of 2 * 16, the last of them beyond
    **{"steps": 250, "environments": 2, "rollout": 16, "batch": 16, "epochs": 1},
    **{"learning_rate": 0.01, "width": 2, "save_every": 64, "device": "cpu"},
}
MAX_FRAMES = 400  # 100 steps
SEED = [3, 1, 0]


def record(
    path: Path,
    progress: Callable[[int], None] | None = None,
    transitions: int = 250,
    **changes: Any,
) -> None:
    config = LearnerConfig(**{**SMALL, **changes})
    record_learner(
        get("Breakout"),
        path,
        tier="online",
        config=config,
        transitions=transitions,
        max_frames=MAX_FRAMES,
        seed=SEED,
        progress=progress,
    )


def contents(path: Path) -> tuple[str, dict[str, Any]]:
    """The fingerprint of all arrays, and the facts but for times."""
    verify(path)
    with EpisodeFile(path) as file:
        facts = {
            name: v for name, v in file.facts.items() if not name.startswith(("sec", "steps_"))
        }
        return file.fingerprint, facts


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learner") / "Breakout.h5"
    record(path)
    return path


@pytest.mark.parametrize(("max_frames", "steps"), [(200, 120), (2000, 260)])
def test_what_is_recorded_is_what_the_learner_saw_did_and_got(
    tmp_path: Path, max_frames: int, steps: int
) -> None:
    game, environments = get("Breakout"), 3
    env = LearnerEnv(game, environments, max_frames=max_frames, seed=SEED, life_loss=True)
    rng = np.random.default_rng(0)
    seen = env.reset()
    frames, actions, rewards, dones = [], [], [], []
    for _ in range(steps):
        frames.append(seen[:, -1])
        actions.append(rng.integers(len(game.action_ids), size=environments))
        before = seen
        seen, clipped, done, infos = env.step(actions[-1])
        rewards.append(clipped)
        dones.append(done)
        for e in range(environments):
            if not done[e] or seen[e, :-1].any():  # the same game goes on
                np.testing.assert_array_equal(seen[e, :-1], before[e, 1:])
            if infos[e]:
                assert done[e] and infos[e]["TimeLimit.truncated"]
                last = infos[e]["terminal_observation"]
                np.testing.assert_array_equal(last[:-1], before[e, 1:])
    experience = env.take_log()
    env.close()
    path = tmp_path / "Breakout.h5"
    with EpisodeWriter(path, game, source="a test") as writer:
        write_episodes(
            writer,
            game,
            experience,
            experience.episodes(),
            seed=SEED,
            max_frames=max_frames,
            progress=lambda _: None,
        )
    lost_lives = 0
    with EpisodeFile(path) as file:
        assert file.num_transitions == steps * environments
        for number, episode in enumerate(experience.episodes()):
            rows = np.arange(*file.episode_starts[number : number + 2])
            e, mine = episode.environment, range(episode.start, episode.stop)
            np.testing.assert_array_equal(file.frames(rows), [frames[t][e] for t in mine])
            done = [game.action_ids[actions[t][e]] for t in mine]
            np.testing.assert_array_equal(file.actions[rows], done)
            np.testing.assert_array_equal(file.rewards[rows], [rewards[t][e] for t in mine])
            assert file.ends[rows[-1]] == END_NONE or dones[mine[-1]][e]
            lost_lives += sum(int(dones[t][e]) for t in mine[:-1])
        ends = file.ends[file.episode_starts[1:] - 1]
        if max_frames == 200:
            assert (ends == END_TRUNCATED).sum() == 6
        else:
            assert (ends != END_NONE).sum() > 0 and END_TRUNCATED not in ends
            assert lost_lives > 4  # they end something for the learner, nothing in the data
        assert file.rewards.sum() > 0


def test_the_file_holds_the_whole_experience_and_says_how_it_came_about(
    uninterrupted: Path,
) -> None:
    assert [file.name for file in uninterrupted.parent.iterdir()] == ["Breakout.h5"]
    with EpisodeFile(uninterrupted) as file:
        assert file.tiers == ("online",) and file.num_transitions == 256
        assert (file.ends[file.episode_starts[1:] - 1] == END_NONE).sum() == 2
        assert file.episode_full.all()
        facts = file.facts
        assert file.provenance["seed"] == SEED and file.provenance["learner"]["width"] == 2
        returns = np.add.reduceat(file.raw_rewards, file.episode_starts[:-1])
        finished = file.ends[file.episode_starts[1:] - 1] != END_NONE
    assert facts["steps"] == 256 and facts["settings"]["learning_rate"] == 0.01
    assert set(facts["versions"]) == {"ale-py", "stable-baselines3", "torch"}
    rows = [row for row in facts["curve"] if row["episodes"]]
    mean = np.average(
        [row["mean_return"] for row in rows], weights=[row["episodes"] for row in rows]
    )
    assert mean == pytest.approx(returns[finished].mean())
    assert sum(row["kept_transitions"] for row in facts["curve"]) == 256


def test_progress_rises_to_the_transitions(tmp_path: Path) -> None:
    calls: list[int] = []
    record(tmp_path / "Breakout.h5", calls.append, transitions=110)
    assert calls == sorted(calls) and calls[0] < 10 and calls[-1] == 110
    with EpisodeFile(tmp_path / "Breakout.h5") as file:
        assert 110 <= file.num_transitions < 210


def test_nothing_is_left_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stable-baselines3 would make a folder for its own log there."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    record(tmp_path / "data.h5")
    assert not list(scratch.iterdir())


def test_expert_data_is_the_end_of_the_learning(tmp_path: Path) -> None:
    path = tmp_path / "Breakout.h5"
    record(path, transitions=40, last=0.25)
    with EpisodeFile(path) as file:
        assert file.num_transitions >= 40
        kept = [row["kept_transitions"] for row in file.facts["curve"]]
    assert sum(kept[15:]) == sum(kept) > 0


class _Stop(Exception):
    pass


def stop_at(number: int) -> Callable[[int], None]:
    """A progress function that raises at its `number`-th call."""
    calls = iter(range(1, 10_000))

    def progress(_: int) -> None:
        if next(calls) == number:
            raise _Stop

    return progress


def test_every_update_changes_all_weights_at_a_falling_rate(tmp_path: Path) -> None:
    path = tmp_path / "Breakout.h5"
    states = []
    for stop in (40, 40):  # 80 steps: one slice further each time
        with pytest.raises(_Stop):
            record(path, stop_at(stop))
        states.append(torch.load(tmp_path / "Breakout.learner" / "state.pt", weights_only=True))
    first, second = states
    assert (first["steps"], second["steps"]) == (64, 128)
    weights = [name for name in first["policy"] if not name.endswith("background")]
    assert len(weights) >= 10
    assert all((first["policy"][name] != second["policy"][name]).any() for name in weights)
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in states]
    assert rates == pytest.approx([0.01 * (1 - 64 / 250), 0.01 * (1 - 128 / 250)])


@pytest.mark.parametrize("call", [33, 90, 130])
def test_an_interrupted_run_goes_on_to_the_same_data(
    tmp_path: Path, uninterrupted: Path, call: int
) -> None:
    """Just after the first boundary, within the third slice, while the file is written."""
    path = tmp_path / "Breakout.h5"
    with pytest.raises(_Stop):
        record(path, stop_at(call))
    assert not path.exists()
    record(path)
    assert contents(path) == contents(uninterrupted)


def test_a_save_that_was_cut_after_its_log_goes_on_to_the_same_data(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, path = learner_ppo.write_atomically, tmp_path / "Breakout.h5"
    done: list[Path] = []

    def full_disk(target: Path, content: bytes) -> None:
        done.append(target)
        if len(done) == 4:  # the state of the second slice
            raise OSError(errno.ENOSPC, "No space left on device")
        write(target, content)

    monkeypatch.setattr(learner_ppo, "write_atomically", full_disk)
    with pytest.raises(UserError, match=r"No space left.*run the same command again"):
        record(path)
    assert done[-1].name == "state.pt" and done[-2].name == "slice_000001.npz"
    monkeypatch.undo()
    record(path)
    assert contents(path) == contents(uninterrupted)


def test_a_killed_run_goes_on_to_the_same_data(tmp_path: Path, uninterrupted: Path) -> None:
    path = tmp_path / "Breakout.h5"
    script = (
        "import os, signal, sys, torch; from pathlib import Path\n"
        "from jowa.collecting.learner import *; from jowa.games import get\n"
        "def kill(done):\n"
        "    if done > 80: os.kill(os.getpid(), signal.SIGKILL)  # in the third slice\n"
        "torch.set_num_threads(1)\n"
        "record_learner(get('Breakout'), Path(sys.argv[1]), tier='online', transitions=250,\n"
        f"    config=LearnerConfig(**{SMALL!r}), max_frames={MAX_FRAMES}, seed={SEED},\n"
        "    progress=kill)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "Breakout.learner" / "state.pt").exists()
    record(path)
    assert contents(path) == contents(uninterrupted)


def test_a_folder_of_other_settings_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Breakout.h5"
    with pytest.raises(_Stop):
        record(path, stop_at(40))
    folder = tmp_path / "Breakout.learner"
    with pytest.raises(UserError, match=r"Breakout\.learner.*width is 3, there 2.*remove"):
        record(path, width=3)
    for name in ("state.pt", "slice_000000.npz"):
        content = (folder / name).read_bytes()
        half = len(content) // 2
        altered = bytes(byte ^ 1 for byte in content[half : half + 200])  # more than any padding
        flipped = content[:half] + altered + content[half + 200 :]
        for damage in (content[:half], b"something else", flipped):
            (folder / name).write_bytes(damage)
            with pytest.raises(UserError, match=r"Breakout\.learner is damaged"):
                record(path)
        (folder / name).write_bytes(content)
    with np.load(folder / "slice_000000.npz") as file:
        log = dict(file)
    log["raw_rewards"] = log["raw_rewards"] + 1
    np.savez_compressed(folder / "slice_000000.npz", **log)
    with pytest.raises(UserError, match="does not repeat what was played in Breakout"):
        record(path)


def test_what_is_missing_on_the_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no usable GPU"):
        record(tmp_path / "Breakout.h5", device="cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "jowa\[learner\]"'):
        record(tmp_path / "Breakout.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"algorithm": "dqn"}, "algorithm is 'dqn'; use ppo"),
        ({"steps": 0}, "steps is 0; use 1 or more"),
        ({"environments": 0}, "environments is 0"),
        ({"batch": 24}, "batch of 24 does not divide"),
        ({"learning_rate": 2.0}, "learning_rate is 2.0; use a number in 0.0 to 1.0"),
        ({"last": 0.0}, "last is 0.0; use a number in 0.001 to 1"),
        ({"device": "tpu"}, "'tpu'; use one of auto, cpu, cuda"),
    ],
)
def test_wrong_settings_are_explained(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LearnerConfig(**{**SMALL, **change})
