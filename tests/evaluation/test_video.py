"""The film of an episode can be read back and shows what was played."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from jowa.errors import UserError
from jowa.evaluation.baselines import ConstantPolicy, RandomPolicy
from jowa.evaluation.video import Moment, Picture, record
from jowa.games import get

PONG = get("Pong")


def screen(moment: Moment) -> Picture:
    return moment.screen


def read(path: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    frames = imageio_ffmpeg.read_frames(str(path))
    meta = next(frames)
    width, height = meta["size"]
    pictures = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]
    return meta, pictures


def test_film_has_a_frame_a_step_and_shows_what_was_drawn(tmp_path: Path) -> None:
    path = tmp_path / "new" / "film.mp4"
    drawn = []

    def draw(moment: Moment) -> Picture:
        drawn.append(moment)
        return moment.screen

    result = record(RandomPolicy(0), PONG, path, draw, max_steps=20, seed=1)
    assert (result.game, result.steps, result.truncated) == ("Pong", 20, True)
    meta, pictures = read(path)
    assert meta["fps"] == 15 and meta["codec"] == "h264" and "yuv420p" in str(meta["pix_fmt"])
    assert len(pictures) == 20 and [moment.step for moment in drawn] == list(range(20))
    for moment, picture in zip(drawn, pictures, strict=True):
        assert np.abs(moment.screen.astype(int) - picture).mean() < 6
        assert moment.frame.shape == (84, 84)
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_film_plays_the_same_episode_from_the_same_seed(tmp_path: Path) -> None:
    paths = (tmp_path / "a.mp4", tmp_path / "b.mp4")
    runs = [record(RandomPolicy(0), PONG, p, screen, max_steps=90, seed=1) for p in paths]
    assert runs[0] == runs[1]


def test_a_moment_tells_what_exploration_replaced(tmp_path: Path) -> None:
    moments = []

    def draw(moment: Moment) -> Picture:
        moments.append(moment)
        return moment.screen

    policy = ConstantPolicy({PONG.id: 3})
    record(policy, PONG, tmp_path / "film.mp4", draw, max_steps=30, seed=1, epsilon=0.5)
    replaced = [moment.executed for moment in moments if moment.executed != moment.action]
    assert {moment.action for moment in moments} == {3}
    assert 5 < len(replaced) < 25 and set(replaced) <= set(PONG.action_ids)


def test_an_interrupted_film_leaves_no_file(tmp_path: Path) -> None:
    def draw(moment: Moment) -> Picture:
        if moment.step == 5:
            raise RuntimeError("stop")
        return moment.screen

    with pytest.raises(RuntimeError, match="stop"):
        record(RandomPolicy(0), PONG, tmp_path / "film.mp4", draw, max_steps=50, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mp4"):
        record(RandomPolicy(0), PONG, tmp_path / "film.gif", screen, max_steps=5, seed=0)
    with pytest.raises(UserError, match="max_steps"):
        record(RandomPolicy(0), PONG, tmp_path / "film.mp4", screen, max_steps=0, seed=0)
    with pytest.raises(UserError, match="seed is -1"):
        record(RandomPolicy(0), PONG, tmp_path / "film.mp4", screen, max_steps=5, seed=-1)
    with pytest.raises(UserError, match="epsilon is 5"):
        record(RandomPolicy(0), PONG, tmp_path / "f.mp4", screen, max_steps=5, seed=0, epsilon=5)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match="folder"):
        record(RandomPolicy(0), PONG, tmp_path / "folder.mp4", screen, max_steps=5, seed=0)
