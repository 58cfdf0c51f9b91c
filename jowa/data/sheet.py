"""Contact sheets: strips of consecutive recorded frames with what was done and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jowa.data.episodes import END_NONE, EpisodeFile
from jowa.data.info import END_NAMES
from jowa.errors import UserError
from jowa.games import FULL_ACTION_SET

_SCALE = 2
_FRAME = 84 * _SCALE
_GAP = 6
_LABEL_WIDTH = 150
_CAPTION_HEIGHT = 40
_HEADER_HEIGHT = 34
_FONT_SIZE = 14
_PAPER, _INK, _MUTED = "#ffffff", "#1b1f24", "#5f6b7a"
_GOOD, _BAD = "#12805c", "#b3261e"


@dataclass(frozen=True)
class _Strip:
    """Rows `start` to `stop` - 1 of a file, all of episode `episode`."""

    episode: int
    start: int
    stop: int


def contact_sheet(
    file: EpisodeFile, *, number: int, length: int, tier: str = "", seed: int = 0
) -> Image.Image:
    """A picture of `number` strips of up to `length` consecutive frames, one below the other.

    Strips begin at random steps, every step of the chosen tier as likely as any other (`tier` ""
    is all); they stand in the order of the file and end with their episode.

    Raises:
        UserError: for a number or length below 1 or above 100, or an unknown or empty tier.
    """
    for name, value in (("number", number), ("length", length)):
        if not 1 <= value <= 100:
            raise UserError(f"{name} is {value}: use 1 to 100.")
    if seed < 0:
        raise UserError(f"seed is {seed}: use 0 or more.")
    strips = _choose(file, number, length, tier, np.random.default_rng(seed))
    width = _LABEL_WIDTH + length * (_FRAME + _GAP)
    height = _HEADER_HEIGHT + len(strips) * (_FRAME + _CAPTION_HEIGHT + _GAP)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    of_tier = f", tier {tier}" if tier else ""
    title = f"{file.game.name}: random strips of {length} steps{of_tier}, seed {seed}"
    large_font = ImageFont.load_default(_FONT_SIZE + 4)
    draw.text((_GAP, _GAP), title, _INK, large_font)
    for row, strip in enumerate(strips):
        top = _HEADER_HEIGHT + row * (_FRAME + _CAPTION_HEIGHT + _GAP)
        tier_name = file.tiers[file.episode_tiers[strip.episode]]
        draw.text((_GAP, top), tier_name, _INK, large_font)
        draw.multiline_text((_GAP, top + 26), _place(file, strip), _MUTED, font, spacing=5)
        frames = file.frames(np.arange(strip.start, strip.stop))
        for column, frame in enumerate(frames):
            corner = (_LABEL_WIDTH + column * (_FRAME + _GAP), top)
            large = Image.fromarray(frame).resize((_FRAME, _FRAME), Image.Resampling.NEAREST)
            sheet.paste(large, corner)
            _caption(draw, font, corner, file, strip.start + column)
    return sheet


def _choose(
    file: EpisodeFile, number: int, length: int, tier: str, rng: np.random.Generator
) -> list[_Strip]:
    if tier and tier not in file.tiers:
        raise UserError(f"{file.path} has no tier {tier!r}; it has {', '.join(file.tiers)}.")
    lengths = np.diff(file.episode_starts)
    tiers = np.repeat(file.episode_tiers, lengths)
    rows = np.flatnonzero(tiers == file.tiers.index(tier)) if tier else np.arange(len(tiers))
    if not len(rows):
        raise UserError(f"no episode of {file.path} is of tier {tier!r}.")
    starts = np.sort(rng.choice(rows, min(number, len(rows)), replace=False))
    episodes = np.searchsorted(file.episode_starts, starts, side="right") - 1
    ends = file.episode_starts[episodes + 1]
    # A start near the end moves back, so that strips are full wherever their episode is.
    starts = np.maximum(np.minimum(starts, ends - length), file.episode_starts[episodes])
    return [
        _Strip(int(episode), int(start), int(min(start + length, end)))
        for episode, start, end in zip(episodes, starts, ends, strict=True)
    ]


def _place(file: EpisodeFile, strip: _Strip) -> str:
    first, stop = (int(row) for row in file.episode_starts[strip.episode : strip.episode + 2])
    start = "from a reset" if file.episode_full[strip.episode] else "from mid-game"
    return f"episode {strip.episode}\nstep {strip.start - first} of {stop - first}\n{start}"


def _caption(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    corner: tuple[int, int],
    file: EpisodeFile,
    row: int,
) -> None:
    """Writes below a frame: action, then reward (if any) and end (if it is the last step)."""
    left, top = corner[0], corner[1] + _FRAME + 2
    draw.text((left, top), FULL_ACTION_SET[file.actions[row]], _INK, font)
    rewards = file.rewards if file.raw_rewards is None else file.raw_rewards
    below = top + _FONT_SIZE + 3
    if rewards[row]:
        draw.text((left, below), f"{rewards[row]:+g}", _GOOD if rewards[row] > 0 else _BAD, font)
    if row + 1 in file.episode_starts:
        end = END_NAMES[int(file.ends[row])]
        colour = _MUTED if file.ends[row] == END_NONE else _BAD
        draw.text((left + _FRAME, below), end, colour, font, anchor="ra")
