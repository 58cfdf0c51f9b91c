"""Contact sheets show the frames they say, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jowa.cli import main
from jowa.data.episodes import END_NONE, END_TERMINAL, EpisodeFile, EpisodeWriter
from jowa.data.sheet import contact_sheet
from jowa.errors import UserError
from jowa.games import get

LENGTHS = (60, 3, 40)  # of tiers low, high, low


@pytest.fixture
def file(tmp_path: Path) -> EpisodeFile:
    """Frames of one grey each, twice their row plus 20, so that a picture tells its rows."""
    path, row = tmp_path / "Pong.h5", 0
    with EpisodeWriter(path, get("Pong"), source="a test", tiers=("low", "high", "no")) as writer:
        for number, length in enumerate(LENGTHS):
            greys = 20 + 2 * np.arange(row, row + length, dtype=np.uint8)
            rewards = np.resize([0.0, 3.0, -1.0], length).astype(np.float32)
            writer.add(
                np.broadcast_to(greys[:, None, None], (length, 84, 84)).copy(),
                np.resize([0, 3, 11], length),
                rewards,
                END_TERMINAL if number else END_NONE,
                tier=number % 2,
            )
            row += length
    return EpisodeFile(path)


def _strips(picture: Image.Image) -> list[list[int]]:
    """The rows shown, by strip: runs of a grey, 100 pixels or longer, on each of the lines."""
    strips: list[list[int]] = []
    for line in np.asarray(picture).astype(int):
        grey = np.where((line[:, 0] == line[:, 1]) & (line[:, 1] == line[:, 2]), line[:, 0], -1)
        starts = np.flatnonzero(np.diff(grey, prepend=-2))
        runs = np.diff(np.append(starts, len(grey)))
        values = grey[starts[(runs >= 100) & (runs < 300)]]
        shown = [(int(value) - 20) // 2 for value in values if 20 <= value < 255]
        if shown and (not strips or strips[-1] != shown):
            strips.append(shown)
    return strips


def test_strips_are_consecutive_frames_of_one_episode(file: EpisodeFile) -> None:
    strips = _strips(contact_sheet(file, number=12, length=5, seed=1))
    assert 8 <= len(strips) <= 12  # two that fall together look like one
    bounds = file.episode_starts
    for strip in strips:
        assert strip == list(range(strip[0], strip[0] + len(strip)))
        (episode,) = set(np.searchsorted(bounds, strip, side="right") - 1)
        assert len(strip) == min(5, LENGTHS[episode])
    assert [strip[0] for strip in strips] == sorted(strip[0] for strip in strips)


def test_tier_and_seed_choose(file: EpisodeFile) -> None:
    assert _strips(contact_sheet(file, number=2, length=8, tier="high")) == [[60, 61, 62]]
    one, again, other = (
        np.asarray(contact_sheet(file, number=4, length=4, seed=seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert one.shape == other.shape and (one != other).any()


def test_captions_are_drawn_below_each_frame(file: EpisodeFile) -> None:
    def caption(picture: Image.Image) -> np.ndarray:
        return np.asarray(picture)[-40:, -170:]  # of the last frame of the last strip

    last = caption(contact_sheet(file, number=1, length=3, tier="high"))
    red = (last[..., 0] > 150) & (last[..., 1] < 80)
    assert red.any(), "a lost point and the end of the game are marked"
    assert (last < 60).all(-1).any(), "the action stands there"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tier": "best"}, "low, high"),
        ({"tier": "no"}, "no episode"),
        ({"number": 0}, "number"),
        ({"length": 101}, "length"),
    ],
)
def test_mistakes(file: EpisodeFile, options: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        contact_sheet(file, **{"number": 2, "length": 2, **options})  # type: ignore[arg-type]


def test_the_command_writes_a_picture(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    command = ["data", "sample", f"root={data_root}", "game=Breakout", f"out={out}", "number=2"]
    assert main(command) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 8 * 168
    assert [path.name for path in out.parent.iterdir()] == ["sheet.png"]
