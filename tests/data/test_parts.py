"""Joining episode files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jowa.data.episodes import (
    END_NONE,
    END_TERMINAL,
    EpisodeFile,
    EpisodeWriter,
)
from jowa.data.parts import join_parts
from jowa.data.store import verify
from jowa.errors import UserError
from jowa.games import get


def _part(path: Path, seed: int, tiers: tuple[str, ...], raw: bool = True) -> None:
    rng = np.random.default_rng(seed)
    with EpisodeWriter(path, get("Pong"), source="a test", tiers=tiers) as writer:
        for number, length in enumerate((3, 40, 1)):
            points = rng.integers(-3, 4, length).astype(np.float32)
            writer.add(
                rng.integers(0, 256, (length, 84, 84), dtype=np.uint8),
                rng.integers(0, 18, length),
                points if raw else None,
                (END_TERMINAL, END_NONE)[number % 2],
                tier=number % len(tiers),
                full=number == 0,
                rewards=None if raw else np.clip(points, -1, 1),
            )


@pytest.mark.parametrize("raw", [True, False])
def test_every_episode_of_every_part_arrives_unchanged_and_in_order(
    tmp_path: Path, raw: bool
) -> None:
    _part(tmp_path / "a.h5", 0, ("low", "high"), raw)
    _part(tmp_path / "b.h5", 1, ("high",), raw)
    joined = tmp_path / "Pong.h5"
    join_parts(
        [tmp_path / "a.h5", tmp_path / "b.h5"],
        joined,
        get("Pong"),
        source="both",
        tiers=("low", "high"),
        provenance={"seed": 7},
        facts={"dropped": 2},
    )
    verify(joined)
    with (
        EpisodeFile(tmp_path / "a.h5") as a,
        EpisodeFile(tmp_path / "b.h5") as b,
        EpisodeFile(joined) as both,
    ):
        rows = np.arange(a.num_transitions)
        np.testing.assert_array_equal(both.frames(rows), a.frames(rows))
        np.testing.assert_array_equal(both.frames(rows + len(rows)), b.frames(rows))
        for name in ("actions", "rewards", "ends", "episode_full"):
            parts = [getattr(a, name), getattr(b, name)]
            np.testing.assert_array_equal(getattr(both, name), np.concatenate(parts))
        assert (both.raw_rewards is not None) == raw
        assert [both.tiers[tier] for tier in both.episode_tiers] == ["low", "high", "low"] + 3 * [
            "high"
        ]
        np.testing.assert_array_equal(np.diff(both.episode_starts), [3, 40, 1, 3, 40, 1])
        assert (both.provenance, both.facts) == ({"seed": 7}, {"dropped": 2})


def test_of_each_part_as_many_episodes_as_asked_for_are_taken(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        _part(tmp_path / f"{name}.h5", seed, ("all",))
    parts = [tmp_path / "a.h5", tmp_path / "b.h5"]
    rest: dict[str, Any] = {"source": "both", "tiers": ("all",), "provenance": {}, "facts": {}}
    join_parts(parts, tmp_path / "Pong.h5", get("Pong"), **rest, episodes=[1, 2])
    with EpisodeFile(parts[1]) as b, EpisodeFile(tmp_path / "Pong.h5") as both:
        np.testing.assert_array_equal(np.diff(both.episode_starts), [3, 3, 40])
        np.testing.assert_array_equal(both.frames(np.arange(3, 46)), b.frames(np.arange(43)))


def test_a_damaged_part_leaves_no_joined_file(tmp_path: Path) -> None:
    _part(tmp_path / "a.h5", 0, ("all",))
    _part(tmp_path / "b.h5", 1, ("all",))
    content = bytearray((tmp_path / "b.h5").read_bytes())
    content[len(content) // 2] ^= 1  # somewhere in the frames
    (tmp_path / "b.h5").write_bytes(content)
    with pytest.raises(UserError, match=r"b\.h5 is damaged"):
        join_parts(
            [tmp_path / "a.h5", tmp_path / "b.h5"],
            tmp_path / "Pong.h5",
            get("Pong"),
            source="both",
            tiers=("all",),
            provenance={},
            facts={},
        )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "b.h5"]
