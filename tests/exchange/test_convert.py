"""`jowa convert dqn_replay`: what was played arrives, what is wrong is told, nothing is lost."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from replay_files import save

from jowa.cli import composed, main
from jowa.data.episodes import EpisodeFile
from jowa.data.store import verify
from jowa.exchange.dqn_replay import file_name
from jowa.exchange.replay_sampling import Sampling
from jowa.games import get

from .conftest import LAP_ROWS, Replay, end_of


def converted(replay: Replay, root: Path, **options: object) -> EpisodeFile:
    assert main(replay.options(root, **options)) == 0
    assert [path.name for path in root.iterdir()] == ["Breakout.h5"]
    verify(root / "Breakout.h5")
    return EpisodeFile(root / "Breakout.h5")


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    *bars, line = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in bar for bar in bars)
    return line.removeprefix("jowa: error: ")


def test_every_frame_and_action_of_whole_episodes_arrives(replay: Replay, tmp_path: Path) -> None:
    expected = replay.expected()
    first, second = (run.files for run in replay.runs.values())
    assert (sorted(first), sorted(second)) == ([0, 1, 2], [20, 21]), "no lap was stepped over"
    ids = get("Breakout").action_ids
    with converted(replay, tmp_path) as file:
        assert file.num_episodes == len(expected) > 10
        np.testing.assert_array_equal(
            np.diff(file.episode_starts), [len(steps) for steps in expected]
        )
        for number, steps in enumerate(expected):
            start, stop = file.episode_starts[number : number + 2]
            np.testing.assert_array_equal(
                file.frames(np.arange(start, stop)), np.stack([step[0] for step in steps])
            )
            assert file.actions[start:stop].tolist() == [ids[step[1]] for step in steps]
            assert file.rewards[start:stop].tolist() == [step[2] for step in steps]
            assert file.ends[stop - 1] == end_of(steps)
        assert file.raw_rewards is None and file.episode_full.all()
        assert len(set(file.ends[file.episode_starts[1:] - 1])) == 2, "both kinds of ends"
        assert file.rewards.sum() > 0
        # Run 1 is of laps 0 to 2, run 2 of laps 20 and 21 of 50.
        late = sum(map(len, replay.runs[2].whole().values()))
        assert file.tiers == ("early", "middle", "late")
        assert np.bincount(file.episode_tiers, minlength=3).tolist() == [
            len(expected) - late, late, 0
        ]  # fmt: skip


def test_all_rows_are_accounted_for(replay: Replay, tmp_path: Path) -> None:
    with converted(replay, tmp_path) as file:
        facts = file.facts
        lost = sum(facts[f"{why}_rows"] for why in ("head", "tail", "unwritten", "stale"))
        assert facts["rows"] == 5 * LAP_ROWS
        assert lost + facts["padding_rows"] + file.num_transitions == facts["rows"]
        assert facts["whole_episodes"] == file.num_episodes
        assert facts["episodes_by_padding"] == {"3": file.num_episodes}
        partial = sum(run.files[lap][1] for run, lap in ((replay.runs[1], 2), (replay.runs[2], 21)))
        assert (facts["unwritten_rows"], facts["stale_rows"]) == (3, 2 * LAP_ROWS - partial)
        assert facts["truncated_episodes"] == (file.ends == 2).sum() > 0
        assert [(row["run"], row["checkpoint"]) for row in facts["files"]] == [
            (1, 0), (1, 1), (1, 2), (2, 20), (2, 21)
        ]  # fmt: skip
        assert sum(row["transitions"] for row in facts["files"]) == file.num_transitions
        name = file_name("observation", 21)
        size = (replay.runs[2].log.folder / name).stat().st_size
        assert facts["files"][-1]["observation_bytes"] == size
        assert file.provenance["emulator"] == "atari-py 0.2.5 or older"
        assert file.provenance["runs"] == [1, 2]


def test_sampling_takes_whole_episodes_of_all_checkpoints_by_the_seed(
    replay: Replay, tmp_path: Path
) -> None:
    everything = {steps[0][0].tobytes() + bytes([len(steps)]) for steps in replay.expected()}
    longest = max(map(len, replay.expected()))
    seen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        with converted(replay, tmp_path / name, transitions=500, seed=seed) as file:
            assert 500 <= file.num_transitions < 500 + longest
            lengths = np.diff(file.episode_starts)
            first = file.frames(file.episode_starts[:-1])
            firsts = {frame.tobytes() + bytes([n]) for frame, n in zip(first, lengths, strict=True)}
            assert firsts <= everything
            assert len({row["checkpoint"] for row in file.facts["files"]}) >= 3
            seen.append(file.fingerprint)
    assert seen[0] == seen[1] != seen[2]


def test_runs_are_drawn_and_the_last_checkpoints_taken(replay: Replay, tmp_path: Path) -> None:
    with converted(replay, tmp_path / "last", last_checkpoints=1) as file:
        taken = [(row["run"], row["checkpoint"]) for row in file.facts["files"]]
    assert taken == [(1, 2), (2, 21)]
    with converted(replay, tmp_path / "named", runs="[1]", checkpoints="[1]") as file:
        assert [(row["run"], row["checkpoint"]) for row in file.facts["files"]] == [(1, 1)]
    sampling = Sampling(transitions=0, draw_runs=2)
    games = list(map(get, ("Pong", "Assault", "Phoenix", "Zaxxon", "Berzerk", "Carnival")))
    drawn = [sampling.runs_of(game) for game in games]
    assert all(len(set(runs)) == 2 and set(runs) <= {1, 2, 3, 4, 5} for runs in drawn)
    assert len(set(map(tuple, drawn))) > 2, "not the same for all games"
    assert drawn == [sampling.runs_of(game) for game in games]


def test_present_data_is_kept_refused_or_replaced(
    copied: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    with converted(copied, root) as file:
        fingerprint, path = file.fingerprint, file.path
    changed = path.stat().st_mtime_ns
    (root / ".parts" / "Breakout").mkdir(parents=True)  # as a kill before the last step leaves
    spare = Replay(tmp_path / "nowhere", {})  # what is there needs no source
    with converted(spare, root) as file:
        assert path.stat().st_mtime_ns == changed
    line = complaint(capsys, copied.options(root, seed=5))
    assert "Breakout.h5 was made with other settings" in line and "overwrite=true" in line
    with converted(copied, root, runs="[1]", overwrite=True) as file:
        assert file.fingerprint != fingerprint
        assert file.provenance["runs"] == [1]


def damaged(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def cut(content: bytearray) -> None:
    del content[len(content) * 2 // 3 :]


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 4


def flip_checksum(content: bytearray) -> None:
    content[-7] ^= 1


def other_content(path: Path) -> None:
    """Whole and well-formed, but its rows are fewer than its header says."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5000]))


def more_content(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"more"))


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "truncated": ("observation", lambda path: damaged(path, cut), "is damaged"),
    "flipped": ("observation", lambda path: damaged(path, flip), "is damaged"),
    "checksum": ("observation", lambda path: damaged(path, flip_checksum), "is damaged"),
    "fewer rows": ("observation", other_content, "ends before its last row"),
    "more rows": ("observation", more_content, "goes on behind its last row"),
    "no gzip": ("observation", lambda path: path.write_bytes(b"<html>"), "is damaged"),
    "empty": ("observation", lambda path: path.write_bytes(b""), "is damaged"),
    "no array": ("observation", lambda path: path.write_bytes(gzip.compress(b"?")), "is damaged"),
    "a folder": ("terminal", lambda path: (path.unlink(), path.mkdir()), "cannot read"),
    "shape": (
        "observation",
        lambda path: save(path, np.zeros((LAP_ROWS, 84, 80), np.uint8)),
        "holds uint8 (700, 84, 80), but such files of the dataset hold uint8 (700, 84, 84)",
    ),
    "type": ("action", lambda path: save(path, np.zeros(LAP_ROWS, np.int64)), "holds int64 (700,)"),
    "no header": (
        "action",
        lambda path: path.write_bytes(gzip.compress(b"\x93NUMPY\x01\x00\x04\x00({[\n")),
        "is damaged",
    ),
    "objects": (
        "action",
        lambda path: path.write_bytes(
            gzip.compress(b"\x93NUMPY\x01\x00\x3a\x00{'descr': '|O', 'fortran_order': False, "
                          b"'shape': (700,), }\n")
        ),
        "holds object (700,)",
    ),
    "cut reward": ("reward", lambda path: damaged(path, cut), "is damaged"),
    "no reward": ("reward", Path.unlink, "there is no"),
    "no frames": ("observation", Path.unlink, "there is no"),
    "no count": ("add_count", Path.unlink, "there is no"),
    "no range": ("invalid_range", Path.unlink, "there is no"),
    "count": ("add_count", lambda path: save(path, np.array(2 * LAP_ROWS + 7)), "row 7"),
    "foreign action": (
        "action",
        lambda path: save(path, np.full(LAP_ROWS, 17, np.int32)),
        "holds action 17, but Breakout has actions 0 to 3",
    ),
    "no end": (
        "terminal", lambda path: save(path, np.zeros(LAP_ROWS, np.uint8)), "no end of an episode"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_named_in_one_sentence_and_spoils_nothing(
    copied: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name, spoil, words = DAMAGE[what]
    root = tmp_path / "root"
    with converted(copied, root, runs="[2]"):
        before = (root / "Breakout.h5").read_bytes()
    path = copied.source / "Breakout" / "1" / "replay_logs" / file_name(name, 1)
    whole = path.read_bytes()
    spoil(path)
    line = complaint(capsys, copied.options(root, runs="[1]", overwrite=True))
    assert str(path) in line and words in line
    assert (root / "Breakout.h5").read_bytes() == before
    verify(root / "Breakout.h5")
    assert not list(root.rglob("*.tmp-*"))
    for part in root.glob(".parts/Breakout/*"):
        verify(part)
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)
    converted(copied, root, runs="[1]", overwrite=True).close()


def test_files_without_a_whole_episode_are_told(
    copied: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied.source / "Breakout" / "1" / "replay_logs"
    for number in range(3):
        save(folder / file_name("terminal", number), np.zeros(LAP_ROWS, np.uint8))
    options = copied.options(tmp_path / "root", runs="[1]", time_limit=800)
    line = complaint(capsys, options)
    assert f"{copied.source / 'Breakout'} has no whole episode" in line and "runs 1" in line


def test_a_run_that_is_not_there_is_told(
    replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(capsys, replay.options(tmp_path, runs="[1,4]"))
    assert "run 4 of Breakout (runs there: 1, 2)" in line and "download=true" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("joining", [False, True])
def test_a_full_disk_is_told_and_spoils_nothing(
    replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str], joining: bool
) -> None:
    """Full while the first part is written, or only when all are joined."""
    root = tmp_path / "root"
    with converted(replay, tmp_path / "other") as other:
        limit = other.path.stat().st_size * 4 // 5 if joining else 4_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # larger files now fail
    try:
        line = complaint(capsys, replay.options(root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    parts = sorted(root.glob(".parts/Breakout/*"))
    assert len(parts) == (5 if joining else 0)
    failed = "Breakout.h5" if joining else ".parts/Breakout/run1-checkpoint00.h5"
    assert f"cannot write {root / failed}" in line
    assert not list(root.glob("*.h5*"))
    for part in parts:
        verify(part)
    with converted(replay, root) as file:
        assert file.fingerprint == other.fingerprint


def test_parts_of_the_same_settings_are_used_again_and_others_are_not(
    copied: Replay, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    last = copied.source / "Breakout" / "2" / "replay_logs" / file_name("observation", 21)
    damaged(last, cut)
    complaint(capsys, copied.options(root))
    parts = sorted((root / ".parts" / "Breakout").iterdir())
    assert len(parts) == 4
    damaged(parts[0], flip)  # in the frames, which opening the file does not read
    EpisodeFile(parts[0]).close()
    times = [part.stat().st_mtime_ns for part in parts]
    complaint(capsys, copied.options(root))
    again = [part.stat().st_mtime_ns for part in parts]
    assert again[0] != times[0] and again[1:] == times[1:]
    complaint(capsys, copied.options(root, seed=1))
    assert not set(again) & {part.stat().st_mtime_ns for part in parts}
    shutil.copy(replay.runs[2].log.folder / last.name, last)
    with (
        converted(copied, root, seed=1) as file,
        converted(replay, tmp_path / "other", seed=1) as other,
    ):
        assert (file.fingerprint, file.facts) == (other.fingerprint, other.facts)


def test_killed_with_its_workers_it_goes_on_and_they_change_nothing(
    replay: Replay, tmp_path: Path
) -> None:
    """The real command in processes of its own."""
    root = tmp_path / "root"
    command = [sys.executable, "-m", "jowa", *replay.options(root, workers=2)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(root.rglob("*.h5")):
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.05)
    with (
        converted(replay, root, workers=2) as file,
        converted(replay, tmp_path / "other", workers=1) as other,
    ):
        assert (file.fingerprint, file.facts) == (other.fingerprint, other.facts)
        assert file.provenance == other.provenance


@pytest.mark.parametrize(
    ("experiment", "games", "transitions", "last"),
    [("dqn_replay", 15, 10_000_000, 0), ("dqn_replay_expert", 5, 5_000, 5)],
)
def test_the_papers_recipes(experiment: str, games: int, transitions: int, last: int) -> None:
    config = composed("convert dqn_replay", [f"experiment={experiment}"])
    assert len({get(name).id for name in config.games}) == games
    assert (config.transitions, config.last_checkpoints) == (transitions, last)
    assert (config.draw_runs, list(config.runs), config.lap_rows) == (2, [], 1_000_000)
    assert config.time_limit == 27_000
