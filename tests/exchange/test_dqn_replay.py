"""Reading DQN Replay files: every quirk of the format, and values that cannot be of a game."""

from __future__ import annotations

import dataclasses
import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import replay_files
from replay_files import FRAME, ReplayLog, save

from jowa.data.episodes import END_TERMINAL, END_TRUNCATED
from jowa.errors import UserError
from jowa.exchange.dqn_replay import Episode, Lap, Layout, file_name, read_episodes, read_lap
from jowa.games import get

ROWS = 60
GAME = get("Breakout")  # actions 0 to 3
LAYOUT = Layout(ROWS, time_limit=40)


def frame(value: int) -> np.ndarray:
    return np.full(FRAME, value, dtype=np.uint8)


def episode(
    length: int, value: int = 1, action: int = 1
) -> list[tuple[np.ndarray, int, float, bool]]:
    return [(frame(value), action, 0.0, step == length - 1) for step in range(length)]


def log_of(folder: Path, *episodes: Any, rows: int = ROWS, first: int = 0) -> Path:
    """Files of a run that plays `episodes` and then stops in its partial lap."""
    log = ReplayLog(folder, rows, first=first)
    for steps in episodes:
        for step in steps:
            log.add(*step)
    log.finish()
    return log.folder


def read(folder: Path, number: int = 0, layout: Layout = LAYOUT) -> list[Episode]:
    return taken(read_lap(folder, number, GAME, layout))


def taken(lap: Lap, rows: Any = slice(None), progress: Any = lambda _: None) -> list[Episode]:
    """Episodes of a lap, with frames of their own."""
    return [
        dataclasses.replace(one, observations=one.observations.copy())
        for one in read_episodes(lap, lap.episodes[rows], progress)
    ]


def lengths(episodes: list[Episode]) -> list[int]:
    return [len(episode.actions) for episode in episodes]


@pytest.mark.parametrize("stack", [1, 2, 4, 6])
def test_padding_of_any_number_of_rows_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: int
) -> None:
    monkeypatch.setattr(replay_files, "STACK", stack)
    folder = log_of(tmp_path, episode(10), episode(12, action=0))
    found = read(folder)
    assert lengths(found) == [10, 12]
    assert [one.padding for one in found] == [stack - 1] * 2
    for one in found:
        assert (one.observations == 1).all() and one.zero_frames == 0


def test_zero_frames_that_are_no_padding_are_kept(tmp_path: Path) -> None:
    """Told by the action, the reward, the terminal, or because play has begun."""
    begun = episode(8)
    begun[4] = (frame(0), 0, 0.0, False)
    moved = episode(8)
    moved[0] = (frame(0), 2, 0.0, False)
    paid = episode(8)
    paid[0] = (frame(0), 0, 1.0, False)
    over = [(frame(0), 0, 0.0, True)]
    found = read(log_of(tmp_path, begun, moved, paid, over))
    assert lengths(found) == [8, 8, 8, 1]
    assert [one.padding for one in found] == [3] * 4
    assert [one.zero_frames for one in found] == [1] * 4
    assert found[2].rewards[0] == 1.0


def test_an_episode_as_long_as_the_time_limit_was_cut_by_it(tmp_path: Path) -> None:
    layout = Layout(200, time_limit=40)
    folder = log_of(tmp_path, episode(39), episode(40), episode(41), rows=200)
    assert [one.end for one in read(folder, layout=layout)] == [
        END_TERMINAL, END_TRUNCATED, END_TERMINAL
    ]  # fmt: skip


def test_each_lap_is_an_island(tmp_path: Path) -> None:
    # Rows with padding: 0-17, 18-35, then one over the lap's end, up to row 11 of the next.
    folder = log_of(tmp_path, *[episode(15, value) for value in range(1, 7)])
    first, second = (read_lap(folder, number, GAME, LAYOUT) for number in (0, 1))
    assert first.episodes.tolist() == [[0, 18], [18, 36], [36, 54]]
    assert (first.counts["head_rows"], first.counts["tail_rows"]) == (0, 5)
    assert (first.counts["unwritten_rows"], first.counts["stale_rows"]) == (1, 0)
    # The run's last file: its first episode began in the lap before.
    assert second.episodes.tolist() == [[12, 30], [30, 48]]
    assert (second.counts["head_rows"], second.counts["tail_rows"]) == (12, 0)
    assert (second.counts["unwritten_rows"], second.counts["stale_rows"]) == (0, 12)
    assert [int(one.observations[0, 0, 0]) for one in read(folder, 1)] == [5, 6]


def test_rows_that_were_not_written_in_the_lap_are_never_used(tmp_path: Path) -> None:
    """They hold whole episodes, actions of no game and terminals."""
    folder = log_of(tmp_path, *[episode(15, value) for value in range(1, 6)])
    assert read_lap(folder, 1, GAME, LAYOUT).episodes.tolist() == [[12, 30]]
    path = folder / file_name("action", 1)
    with gzip.open(path) as file:
        actions = np.load(file)
    actions[30:] = -7
    save(path, actions)
    assert len(read(folder, 1)) == 1
    actions[29] = -7
    save(path, actions)
    with pytest.raises(UserError, match=r"action_ckpt\.1\.gz holds action -7, but Breakout"):
        read(folder, 1)


def test_a_lap_that_padding_stepped_over_shifts_the_numbers_but_not_the_time(
    tmp_path: Path,
) -> None:
    # The second episode ends at row 57, so its successor's padding passes the row of logging.
    folder = log_of(tmp_path, episode(30), episode(22), *[episode(15)] * 4)
    first = read_lap(folder, 0, GAME, LAYOUT)
    assert first.lap == 1
    assert first.counts["head_rows"] > 0, "it is not the start of the run"
    assert (tmp_path / "replay_logs" / "add_count_ckpt.1.gz").exists()


def test_a_late_start_is_no_start_of_the_run(tmp_path: Path) -> None:
    folder = log_of(tmp_path, *[episode(15)] * 4, first=7)
    lap = read_lap(folder, 7, GAME, LAYOUT)
    assert lap.lap == 7 and lap.episodes.tolist() == [[18, 36], [36, 54]]


def test_headers_that_python_2_wrote_are_read(tmp_path: Path) -> None:
    folder = log_of(tmp_path, episode(15))
    path = folder / file_name("terminal", 0)
    content = gzip.decompress(path.read_bytes())
    assert b"(60,), }    " in content
    path.write_bytes(gzip.compress(content.replace(b"(60,), }    ", b"(60L,), }   ", 1)))
    assert lengths(read(folder)) == [15]


def test_some_episodes_of_a_file_are_the_same_as_all_of_them(tmp_path: Path) -> None:
    folder = log_of(tmp_path, *[episode(n, n) for n in (5, 9, 6, 12)])
    lap = read_lap(folder, 0, GAME, LAYOUT)
    passed: list[int] = []
    some = taken(lap, [1, 3], passed.append)
    assert lengths(some) == [9, 12] and sum(passed) == ROWS
    assert [int(one.observations[0, 0, 0]) for one in some] == [9, 12]
    assert lap.steps().tolist() == [5, 9, 6, 12]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (41, r"add_count_ckpt\.3\.gz puts the end of this lap at row 41.*invalid_range_ckpt\.3"),
        (-1, r"add_count_ckpt\.3\.gz holds \[-1\]"),
        (60 * 2 + 59, r"add_count_ckpt\.3\.gz counts 179 rows, fewer than 3 laps"),
        ([3, 4], r"add_count_ckpt\.3\.gz holds \[3, 4\]"),
        ("word", r"add_count_ckpt\.3\.gz is damaged \(it holds <U4"),
    ],
)
def test_a_count_that_contradicts_the_rest_is_refused(
    tmp_path: Path, count: Any, words: str
) -> None:
    folder = log_of(tmp_path, *[episode(15)] * 4, first=3)
    save(folder / file_name("add_count", 3), np.array(count))
    with pytest.raises(UserError, match=words):
        read_lap(folder, 3, GAME, LAYOUT)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("action", np.full(ROWS, 4, np.int32), "holds action 4, but Breakout has actions 0 to 3"),
        ("reward", np.full(ROWS, 2, np.float32), r"rewards that are not in \[-1, 1\]"),
        ("reward", np.full(ROWS, np.nan, np.float32), r"rewards that are not in \[-1, 1\]"),
        ("terminal", np.full(ROWS, 3, np.uint8), "holds 3, not only 0 and 1"),
        ("terminal", np.zeros(ROWS, np.uint8), "no end of an episode in 59 rows"),
    ],
)
def test_values_that_the_game_cannot_have_are_refused(
    tmp_path: Path, name: str, values: np.ndarray, words: str
) -> None:
    folder = log_of(tmp_path, *[episode(15)] * 4)
    save(folder / file_name(name, 0), values)
    with pytest.raises(UserError, match=words) as error:
        read_lap(folder, 0, GAME, LAYOUT)
    assert file_name(name, 0) in str(error.value)


def test_a_file_of_a_game_with_fewer_actions_is_told(tmp_path: Path) -> None:
    """In real files every action is played at random thousands of times."""
    rows = 50_000
    rng = np.random.default_rng(0)
    folder = tmp_path
    arrays = {
        "action": rng.integers(0, 4, rows).astype(np.int32),
        "reward": np.zeros(rows, np.float32),
        "terminal": (np.arange(rows) % 100 == 99).astype(np.uint8),
        "add_count": np.array(rows - 1),
        "invalid_range": (np.arange(5) + rows - 2) % rows,
    }
    for name, array in arrays.items():
        save(folder / file_name(name, 0), array, level=1)
    assert len(read_lap(folder, 0, GAME, Layout(rows)).episodes) == 499
    with pytest.raises(UserError, match=r"action_ckpt\.0\.gz never holds action 4 of Pong's 6"):
        read_lap(folder, 0, get("Pong"), Layout(rows))


def test_memory_holds_one_episode_and_never_the_file(tmp_path: Path) -> None:
    rows = 10_000  # 70 MB of frames
    store = ReplayLog(tmp_path, rows, level=1)
    while not store.log_count:
        for step in episode(97):
            store.add(*step)
    tracemalloc.start()
    lap = read_lap(store.folder, 0, GAME, Layout(rows))
    number = sum(1 for _ in read_episodes(lap, lap.episodes, lambda _: None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == len(lap.episodes) > 90
    assert peak < 10e6
