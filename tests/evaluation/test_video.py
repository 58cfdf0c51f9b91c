"""The film of an episode can be read back and shows what was played."""

from __future__ import annotations

import imageio_ffmpeg
import numpy as np
import pytest

from jowa.errors import UserError
from jowa.evaluation.baselines import ConstantPolicy, RandomPolicy
from jowa.evaluation.video import compose, record
from jowa.games import get

PONG = get("Pong")


def read(path):
    frames = imageio_ffmpeg.read_frames(str(path))
    meta = next(frames)
    width, height = meta["size"]
    pictures = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]
    return meta, pictures


def test_film_has_a_frame_a_step_and_shows_the_screen(tmp_path):
    path = tmp_path / "new" / "film.mp4"
    result = record(RandomPolicy(0), PONG, path, max_steps=20, seed=1)
    assert (result.game, result.steps, result.truncated) == ("Pong", 20, True)
    meta, pictures = read(path)
    assert meta["fps"] == 15 and meta["codec"] == "h264" and "yuv420p" in meta["pix_fmt"]
    assert len(pictures) == 20
    assert pictures[0].shape == (448, 744, 3)
    # Pong's field is brown on the screen and grey in the agent's frame.
    field, seen = pictures[5][200, 160].astype(int), pictures[5][200, 500].astype(int)
    assert field[0] - field[2] > 60
    assert abs(seen[0] - seen[2]) < 12
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_film_plays_the_same_episode_from_the_same_seed(tmp_path):
    runs = [
        record(RandomPolicy(0), PONG, tmp_path / "a.mp4", max_steps=150, seed=s) for s in (1, 1)
    ]
    assert runs[0] == runs[1]


def test_panels_stand_beside(tmp_path):
    path = tmp_path / "film.mp4"
    panel = np.zeros((84, 84, 3), np.uint8)
    panel[..., 1] = 200
    record(ConstantPolicy({PONG.id: 0}), PONG, path, max_steps=3, seed=1, panels=lambda: panel)
    _, pictures = read(path)
    assert pictures[0].shape == (448, 1168, 3)
    assert pictures[0][200, 950, 1] > 150 > 60 > pictures[0][200, 950, 0]


def test_odd_sizes_are_made_even():
    screen, panel = np.zeros((105, 80, 3), np.uint8), np.zeros((33, 33), np.uint8)
    assert all(size % 2 == 0 for size in compose(screen, [panel], "x").shape[:2])


def test_an_interrupted_film_leaves_no_file(tmp_path):
    class Broken(RandomPolicy):
        def act(self, frames, games, active=None):
            if self.calls == 5:
                raise RuntimeError("stop")
            self.calls += 1
            return super().act(frames, games, active)

        calls = 0

    with pytest.raises(RuntimeError, match="stop"):
        record(Broken(0), PONG, tmp_path / "film.mp4", max_steps=50, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(UserError, match="mp4"):
        record(RandomPolicy(0), PONG, tmp_path / "film.gif", max_steps=5, seed=0)
    with pytest.raises(UserError, match="max_steps"):
        record(RandomPolicy(0), PONG, tmp_path / "film.mp4", max_steps=0, seed=0)
