"""The film's pictures show what the agent saw, valued and imagined, all of it and in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jowa.agent import Explanation
from jowa.evaluation.panels import (
    ACCENT,
    ACCENT_BAR,
    BACKGROUND,
    BAR,
    BARS,
    FUTURES,
    PLAIN_BAR,
    TOP,
    Page,
    grid,
)
from jowa.evaluation.video import Moment, Picture
from jowa.evaluation.watch import in_words
from jowa.games import GAMES, Game, get
from jowa.planning.config import PlannerConfig
from jowa.planning.trace import Future

PONG, BOXING = get("Pong"), get("Boxing")


def moment(game: Game, rows: int = 210, played: int | None = None) -> Moment:
    chosen = game.action_ids[1]
    rng = np.random.default_rng(0)
    screen = rng.integers(0, 255, (rows, 160, 3), dtype=np.uint8)
    frame = rng.integers(0, 255, (84, 84), dtype=np.uint8)
    return Moment(screen, frame, 7, 3.0, chosen, chosen if played is None else played)


def explanation(game: Game, count: int = 0, horizon: int = 2) -> Explanation:
    q = np.full(18, -np.inf, dtype=np.float32)
    q[list(game.action_ids)] = np.linspace(1, 0, len(game.action_ids))
    futures = [
        Future(
            torch.full((horizon,), game.action_ids[-1]),
            torch.zeros(horizon, 36, dtype=torch.long),
            torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0])[:horizon],
            torch.zeros(horizon, dtype=torch.bool),
            1.5 - i,
        )
        for i in range(count)
    ]
    frames = [np.full((horizon, 84, 84), 60 + 25 * i, dtype=np.uint8) for i in range(count)]
    return Explanation(game.action_ids[1], 1.5, q, futures, frames)


def twice(picture: Picture) -> Picture:
    large = picture.repeat(2, axis=0).repeat(2, axis=1)
    return large if picture.ndim == 3 else np.repeat(large[..., None], 3, axis=2)


def test_screen_frame_and_reconstruction_are_shown_pixel_for_pixel() -> None:
    now, seen = moment(PONG), np.full((84, 84), 77, dtype=np.uint8)
    for planned, size in ((True, (540, 960, 3)), (False, (540, 736, 3))):
        page = Page(PONG, "words", planned)
        picture = page.draw(now, seen, explanation(PONG, count=2 * planned))
        assert picture.shape == size
        assert np.array_equal(picture[44:464, 12:332], twice(now.screen))
        frame = picture[TOP : TOP + 168, page.left : page.left + 168]
        assert np.array_equal(frame, twice(now.frame))
        x, y = (page.left + FUTURES[0] - 168, TOP) if planned else (page.left, TOP + 202)
        assert np.array_equal(picture[y : y + 168, x : x + 168], twice(seen))


def test_screens_of_more_rows_keep_their_shape() -> None:
    picture = Page(PONG, "", False).draw(
        moment(PONG, rows=250), np.zeros((84, 84), np.uint8), explanation(PONG)
    )
    inside = picture[44:464, 12:332] != BACKGROUND
    assert inside.any(2).any(0).sum() == 269  # 160 columns, enlarged as are 250 rows to 420


def test_every_legal_action_has_a_bar_by_its_q_and_the_chosen_one_stands_out() -> None:
    page = Page(BOXING, "", False)
    picture = page.draw(moment(BOXING), np.zeros((84, 84), np.uint8), explanation(BOXING))
    bars = picture[:, page.bars_left : page.bars_left + BARS].astype(int)
    lengths = []
    for row in range(18):
        line = bars[TOP + row * BAR + 2]  # above the words
        colour = ACCENT_BAR if row == 1 else PLAIN_BAR
        lengths.append(int((line == colour).all(1).sum()))
    assert lengths[0] == 200 and 0 < lengths[-1] <= 3
    assert lengths == sorted(lengths, reverse=True)
    assert (bars[TOP + 18 * BAR + 2] == BACKGROUND).all()
    # Bars of later pictures compare with those before.
    low = explanation(BOXING)
    low.q[:] -= 1.0
    picture = page.draw(moment(BOXING), np.zeros((84, 84), np.uint8), low)
    assert (picture[TOP + 2, page.bars_left : page.bars_left + BARS] == PLAIN_BAR).all(
        1
    ).sum() < 110


@pytest.mark.parametrize(("count", "horizon"), [(1, 1), (2, 2), (4, 2), (3, 3), (6, 4), (2, 7)])
def test_the_best_futures_are_shown_whole(count: int, horizon: int) -> None:
    page = Page(BOXING, "", True)
    seen = np.zeros((84, 84), np.uint8)
    why = explanation(BOXING, count, horizon)
    picture = page.draw(moment(BOXING), seen, why).astype(int)
    shown = min(count, 4)
    size = grid(shown, horizon)[1]
    assert size >= 30
    area = picture[TOP + 190 :, page.left : page.left + FUTURES[0]]
    for i in range(4):
        grey = (area == 60 + 25 * i).all(2).sum()
        if i >= shown:
            assert grey < 50
        else:  # but for the badges of two rewards
            assert 0.75 * size**2 * horizon < grey <= size**2 * horizon + 50
    # Nothing reaches beyond the panel, and the best is framed.
    gap = picture[TOP + 190 :, page.left + FUTURES[0] : page.bars_left]
    assert (gap == BACKGROUND).all()
    assert (area == ACCENT).all(2).sum() > 3 * size


def test_names_and_words_fit_their_place() -> None:
    """The longest of everything leaves the picture's edges alone."""
    words = in_words(PlannerConfig(search="mcts", simulations=100, horizon=4))
    assert words == "tree search of 100 simulations, 4 frames ahead"
    assert in_words(PlannerConfig(horizon=0)) == "acts greedily by Q"
    game = max(GAMES.values(), key=lambda game: len(game.name))
    now = moment(BOXING, played=BOXING.action_ids[-1])
    for planned in (True, False):
        page = Page(Game(game.name, BOXING.id, BOXING.actions), words, planned)
        picture = page.draw(now, np.zeros((84, 84), np.uint8), explanation(BOXING))
        assert (picture[:, -12:] == BACKGROUND).all()
        assert (picture[500:, 332:344] == BACKGROUND).all()
