"""Collecting: budgets, tiers, determinism, keeping and refusing files, interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jowa.data.behaviours import Tier
from jowa.data.collect import collect, collect_game
from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeFile
from jowa.errors import UserError
from jowa.games import get

TIERS = (
    Tier("expert", "scripted", 0.5, epsilon=0.02, burst_probability=0.01),
    Tier("random", "random", 0.5),
)
SETTINGS: dict[str, Any] = {
    "transitions": 800,
    "tiers": TIERS,
    "short_episode_steps": 50,
    "short_share": 0.5,
    "max_frames": 600,
    "seed": 3,
}


def fingerprints(root: Path, names: list[str]) -> list[str]:
    result = []
    for name in names:
        with EpisodeFile(root / f"{name}.h5") as file:
            result.append(file.fingerprint)
    return result


def test_workers_do_not_change_the_data_and_progress_reaches_the_caller(tmp_path: Path) -> None:
    games = ["Pong", "Breakout"]
    calls: list[tuple[str, int, int]] = []

    def note(name: str, done: int, total: int) -> None:
        calls.append((name, done, total))

    one = collect(games, tmp_path / "one", **SETTINGS, workers=1)
    two = collect(games, tmp_path / "two", **SETTINGS, workers=2, progress=note)
    assert fingerprints(tmp_path / "one", games) == fingerprints(tmp_path / "two", games)
    assert list(one) == games and one == two
    assert {one[name]["status"] for name in games} == {"collected"}
    assert {("Pong", 800, 800), ("Breakout", 800, 800)} <= set(calls)
    assert all(0 < done <= total for _, done, total in calls)


def test_tiers_get_their_share_of_full_and_short_episodes(tmp_path: Path) -> None:
    path = tmp_path / "Breakout.h5"
    statistics = collect_game(get("Breakout"), path, **SETTINGS)
    assert statistics["transitions"] >= 800
    with EpisodeFile(path) as file:
        lengths = np.diff(file.episode_starts)
        full = file.episode_full == 1
        last = file.ends[file.episode_starts[1:] - 1]
        assert list(file.tiers) == ["expert", "random"]
        for tier in (0, 1):
            mine = file.episode_tiers == tier
            assert lengths[mine & ~full].sum() == 200
            # Finished games only: at least the share, at most one game of 150 steps more.
            assert 200 <= lengths[mine & full].sum() < 200 + 150
        assert (lengths[~full] <= 50).all()
        assert set(last[full]) <= {END_TERMINAL, END_TRUNCATED}
        assert (lengths[full & (last == END_TRUNCATED)] == 150).all()
        assert (last[~full] == END_NONE).sum() > 0
        assert set(file.actions) <= set(get("Breakout").action_ids)
        # Short episodes start at many different points of the game.
        starts = file.frames(file.episode_starts[:-1][~full])
        assert len({frame.tobytes() for frame in starts}) > len(starts) * 0.8


def test_seed_decides_the_data(tmp_path: Path) -> None:
    small = SETTINGS | {"transitions": 300}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        collect(["Pong"], tmp_path / name, **(small | {"seed": seed}))
    a, b, c = (fingerprints(tmp_path / name, ["Pong"]) for name in "abc")
    assert a == b and a != c


def test_present_files_are_kept_refused_or_replaced(tmp_path: Path) -> None:
    small = SETTINGS | {"transitions": 300}
    collect(["Pong"], tmp_path, **small)
    before = (tmp_path / "Pong.h5").stat().st_mtime_ns
    assert collect(["Pong"], tmp_path, **small)["Pong"]["status"] == "kept"
    assert (tmp_path / "Pong.h5").stat().st_mtime_ns == before
    other = small | {"seed": 4}
    with pytest.raises(UserError, match=r"Pong\.h5.*overwrite=true.*another root"):
        collect(["Pong"], tmp_path, **other)
    assert collect(["Pong"], tmp_path, **other, overwrite=True)["Pong"]["status"] == "collected"
    assert collect(["Pong"], tmp_path, **other)["Pong"]["status"] == "kept"


def test_interrupted_run_leaves_no_file(tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(["Pong"], tmp_path, **SETTINGS, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_games_without_teacher_can_be_played_at_random_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Assault has no scripted teacher"):
        collect(["Pong", "Assault"], tmp_path, **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    tiers = (Tier("random", "random", 1.0),)
    small = SETTINGS | {"tiers": tiers, "transitions": 200}
    assert collect(["Assault"], tmp_path, **small)["Assault"]["transitions"] >= 200


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tiers": TIERS[:1]}, "add up to 0.5"),
        ({"tiers": (TIERS[0], TIERS[0])}, "same name"),
        ({"transitions": 0}, "transitions"),
        ({"short_share": 2.0}, "short_share"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        collect(["Pong"], tmp_path, **(SETTINGS | change))
