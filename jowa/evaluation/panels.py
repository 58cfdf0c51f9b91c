"""One picture of a film: the game's screen, and beside it what the agent saw, valued and imagined.

All sizes are in pixels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jowa.agent import Explanation
from jowa.evaluation.video import Moment, Picture
from jowa.games import FULL_ACTION_SET, Game
from jowa.planning.trace import Future

HEIGHT, MARGIN, TOP = 540, 12, 64
SCREEN = (320, 420)  # twice a screen of 210 rows
FRAME = 168  # twice the agent's frame
FUTURES, SCORE = (392, 278), 96
BARS, BAR = 200, 25
MOST_FUTURES = 4

BACKGROUND, EMPTY = (20, 23, 27), (34, 38, 44)
BRIGHT, MUTED = (232, 235, 239), (148, 156, 166)
ACCENT, ACCENT_BAR, PLAIN_BAR = (255, 184, 77), (150, 92, 16), (45, 74, 110)
GOOD, BAD = (74, 158, 92), (205, 82, 72)
Colour = tuple[int, int, int]
Point = tuple[int, int]


class Page:
    """Lays out a film's pictures, always alike; `settings` says in words how the agent decides,
    and `planned` whether there are imagined futures to show."""

    def __init__(self, game: Game, settings: str, planned: bool) -> None:
        self.game, self.settings, self.planned = game, settings, planned
        middle = FUTURES[0] if planned else FRAME
        self.left = MARGIN + SCREEN[0] + MARGIN  # of what stands beside the screen
        self.bars_left = self.left + middle + MARGIN
        self.width = self.bars_left + BARS + MARGIN
        self.low, self.high = math.inf, -math.inf  # of all Q so far, so that bars compare

    def draw(self, moment: Moment, seen: Picture, explanation: Explanation) -> Picture:
        """RGB uint8 (540, width, 3), both even: `seen` (84, 84) is what the tokens keep of the
        moment's frame, `explanation` that of its action."""
        canvas = _Canvas(self.width)
        canvas.text((MARGIN, 10), self.game.name, 20)
        canvas.text((self.width - MARGIN, 15), self.settings, 14, MUTED, anchor="ra")
        self._screen(canvas, moment)
        self._frames(canvas, moment.frame, seen)
        self._bars(canvas, explanation)
        if self.planned:
            self._futures(canvas, explanation)
        return np.asarray(canvas.image, dtype=np.uint8)

    def _screen(self, canvas: _Canvas, moment: Moment) -> None:
        """The screen with score, step and what is played below it."""
        rows, columns = moment.screen.shape[:2]
        scale = min(SCREEN[0] / columns, SCREEN[1] / rows)
        size = round(columns * scale), round(rows * scale)
        at = MARGIN + (SCREEN[0] - size[0]) // 2, 44 + (SCREEN[1] - size[1]) // 2
        canvas.picture(at, moment.screen, size)
        canvas.text((MARGIN, 474), f"score {moment.score:g}", 20)
        canvas.text((MARGIN + SCREEN[0], 479), f"step {moment.step}", 14, MUTED, anchor="ra")
        chosen, played = (FULL_ACTION_SET[a] for a in (moment.action, moment.executed))
        if played == chosen:
            canvas.text((MARGIN, 506), f"plays {played}", 16, ACCENT)
        else:
            canvas.text((MARGIN, 506), f"plays {played} at random, not {chosen}", 16, BAD)

    def _frames(self, canvas: _Canvas, frame: Picture, seen: Picture) -> None:
        """The agent's frame and its reconstruction, side by side over futures, else stacked."""
        step = (FUTURES[0] - FRAME, 0) if self.planned else (0, FRAME + 34)
        for i, (title, picture) in enumerate(
            (("what the agent gets", frame), ("what its 36 tokens keep", seen))
        ):
            x, y = self.left + i * step[0], TOP + i * step[1]
            canvas.text((x, y - 18), title, 13, MUTED)
            canvas.picture((x, y), picture, (FRAME, FRAME))

    def _bars(self, canvas: _Canvas, explanation: Explanation) -> None:
        """Q of every legal action; the bar is full at the highest Q of the film so far."""
        q = {a: float(explanation.q[a]) for a in self.game.action_ids}
        self.low, self.high = min(self.low, *q.values()), max(self.high, *q.values())
        span = max(self.high - self.low, 1e-6)
        x, y = self.bars_left, TOP
        canvas.text((x, y - 18), "Q by action", 13, MUTED)
        for action, value in q.items():
            chosen = action == explanation.action
            box = x, y, x + BARS - 1, y + BAR - 3
            canvas.pen.rectangle(box, EMPTY)
            full = 1 + round((BARS - 2) * (value - self.low) / span)
            canvas.pen.rectangle((x, y, x + full, box[3]), ACCENT_BAR if chosen else PLAIN_BAR)
            if chosen:
                canvas.pen.rectangle(box, outline=ACCENT)
            canvas.text((x + 6, y + 11), FULL_ACTION_SET[action], 12, anchor="lm")
            canvas.text((x + BARS - 6, y + 11), f"{value:.2f}", 12, anchor="rm")
            y += BAR

    def _futures(self, canvas: _Canvas, explanation: Explanation) -> None:
        """The best few of what the planner imagined, the one that decided first."""
        top = TOP + FRAME + 26
        canvas.text((self.left, top - 18), "imagined futures, best first", 13, MUTED)
        shown = list(zip(explanation.futures, explanation.frames, strict=True))[:MOST_FUTURES]
        if not shown:
            return
        columns, size = grid(len(shown), max(len(frames) for _, frames in shown))
        width, height = FUTURES[0] // columns, FUTURES[1] // -(-len(shown) // columns)
        for i, (future, frames) in enumerate(shown):
            row, column = divmod(i, columns)
            at = self.left + column * width, top + row * height
            _future(canvas, at, i + 1, future, frames, size, beside=columns == 1)


def grid(count: int, horizon: int) -> tuple[int, int]:
    """Columns of cells, and the size of the frames in them, that show `count` futures of `horizon`
    frames largest. The score stands beside the frames in one column, above them in two."""

    def size(columns: int) -> int:
        width, height = FUTURES[0] // columns, FUTURES[1] // -(-count // columns)
        width, height = (width - SCORE, height - 22) if columns == 1 else (width - 8, height - 40)
        return min(width // horizon - 4, height)

    best = max((1, 2), key=size)
    return best, size(best)


def _future(
    canvas: _Canvas,
    at: Point,
    rank: int,
    future: Future,
    frames: Picture,
    size: int,
    beside: bool,
) -> None:
    """A path: its score, and each step's action above the frame it leads to, with what it pays."""
    x, y = at
    words = [f"{rank}.  score {future.score:.3f}"]
    if future.visits is not None:
        words.append(f"visits {future.visits}")
    colour = ACCENT if rank == 1 else MUTED
    canvas.text((x, y + 14 if beside else y), ("\n" if beside else "   ").join(words), 13, colour)
    x, y = (x + SCORE, y) if beside else (x, y + 17)
    steps = zip(future.actions, frames, future.rewards, future.ends, strict=True)
    for action, frame, reward, end in steps:
        canvas.text((x, y), canvas.fitting(FULL_ACTION_SET[int(action)], 12, size), 12)
        canvas.picture((x, y + 17), frame, (size, size))
        if rank == 1:
            canvas.pen.rectangle((x - 1, y + 16, x + size, y + 17 + size), outline=ACCENT)
        if reward:
            canvas.badge((x + size - 2, y + 19), f"{reward:+g}", GOOD if reward > 0 else BAD)
        if end:
            canvas.badge((x + size - 2, y + size - 1), "end", BAD)
        x += size + 4


class _Canvas:
    """A picture to write and draw on."""

    def __init__(self, width: int) -> None:
        self.image = Image.new("RGB", (width, HEIGHT), BACKGROUND)
        self.pen = ImageDraw.Draw(self.image)

    def text(
        self, at: Point, words: str, size: int, colour: Colour = BRIGHT, anchor: str = "la"
    ) -> None:
        self.pen.text(at, words, colour, ImageFont.load_default(size), anchor=anchor)

    def fitting(self, words: str, size: int, width: int) -> str:
        """An action's name, or in short, such as DRF for DOWNRIGHTFIRE, where it is too long."""
        if ImageFont.load_default(size).getlength(words) <= width:
            return words
        for word in ("UP", "DOWN", "LEFT", "RIGHT", "FIRE", "NOOP"):
            words = words.replace(word, word[0])
        return words

    def picture(self, at: Point, pixels: Picture, size: tuple[int, int]) -> None:
        """Grey (H, W) or RGB (H, W, 3) uint8; pixels stay sharp where they grow by whole times."""
        whole = size[1] % pixels.shape[0] == 0
        how = Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC
        self.image.paste(Image.fromarray(pixels).resize(size, how).convert("RGB"), at)

    def badge(self, at: Point, words: str, colour: Colour) -> None:
        """White on a patch of colour, its upper right corner there."""
        font = ImageFont.load_default(12)
        width = int(font.getlength(words)) + 8
        self.pen.rectangle((at[0] - width, at[1], at[0], at[1] + 15), colour)
        self.pen.text((at[0] - width // 2, at[1] + 8), words, (255, 255, 255), font, anchor="mm")
