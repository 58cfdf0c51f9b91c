"""Film of one episode: the screen a person sees beside the frame that the agent sees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jowa.envs import MAX_FRAMES, STICKY, AtariEnv
from jowa.errors import UserError
from jowa.evaluation.rollout import EpisodeResult, Policy, emulator_seed, episode_generator
from jowa.evaluation.scores import PROTOCOL_EPSILON
from jowa.games import FULL_ACTION_SET, Game

SCREEN_SCALE = 2
CAPTION_HEIGHT = 28
Picture = NDArray[np.uint8]


def record(
    policy: Policy,
    game: Game,
    path: str | Path,
    *,
    max_steps: int,
    seed: int,
    fps: int = 15,
    epsilon: float = PROTOCOL_EPSILON,
    sticky: float = STICKY,
    panels: Callable[[], Picture] | None = None,
) -> EpisodeResult:
    """Play one episode (at most `max_steps` agent steps) and write it as an mp4 to `path`.

    15 frames a second is the game's own speed: one film frame an agent step. `panels` is asked
    after every choice for one more picture, grey (H, W) or RGB (H, W, 3) uint8, such as the
    tokenizer's reconstruction; its shape must not change. An interrupted film leaves no file.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"the film {path} must be named *.mp4.")
    if max_steps < 1:
        raise UserError(f"max_steps is {max_steps}: give at least 1.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}.mp4")
    env = AtariEnv(game, max_frames=MAX_FRAMES, sticky=sticky)
    film = _Film(temporary, fps)
    try:
        result = _play(policy, game, env, film, max_steps, seed, epsilon, panels)
        film.close()
        os.replace(temporary, path)
        return result
    finally:
        film.close()
        env.close()
        temporary.unlink(missing_ok=True)


def _play(
    policy: Policy,
    game: Game,
    env: AtariEnv,
    film: _Film,
    max_steps: int,
    seed: int,
    epsilon: float,
    panels: Callable[[], Picture] | None,
) -> EpisodeResult:
    rng = episode_generator(seed, game, slot=0, episode=0)
    games, active = np.array([game.id]), np.array([True])
    frame = env.reset(emulator_seed(rng))
    policy.reset(active)
    score, terminated, step = 0.0, False, 0
    while step < max_steps:
        action = int(policy.act(frame[None], games, active)[0])
        if rng.random() < epsilon:
            action = int(rng.choice(game.action_ids))
        policy.executed(np.array([action]))
        caption = f"{game.name}   step {step}   score {score:g}   {FULL_ACTION_SET[action]}"
        extra = [] if panels is None else [panels()]
        film.add(compose(env.rgb(), [frame, *extra], caption))
        frame, reward, terminated, truncated = env.step(action)
        score, step = score + reward, step + 1
        if terminated or truncated:
            break
    return EpisodeResult(game.name, 0, 0, score, step, not terminated)


def compose(screen: Picture, panels: list[Picture], caption: str) -> Picture:
    """One film frame, RGB uint8: the screen at twice its size, panels beside it, caption below.

    Height and width are even, as H.264 wants them.
    """
    height = SCREEN_SCALE * screen.shape[0]
    parts = [_enlarge(screen, SCREEN_SCALE)]
    for panel in panels:
        grey = panel.ndim == 2
        rgb = np.repeat(panel[..., None], 3, axis=2) if grey else panel
        enlarged = _enlarge(rgb, max(1, height // rgb.shape[0]))
        canvas = np.zeros((height, enlarged.shape[1] + 4, 3), dtype=np.uint8)
        top = (height - enlarged.shape[0]) // 2
        canvas[top : top + enlarged.shape[0], 4:] = enlarged[:height]
        parts.append(canvas)
    body = np.concatenate(parts, axis=1)
    frame = np.concatenate([body, _caption(caption, body.shape[1])])
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)))


def _enlarge(picture: Picture, scale: int) -> Picture:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _caption(text: str, width: int) -> Picture:
    image = Image.new("RGB", (width, CAPTION_HEIGHT), (20, 23, 27))
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(image).text((8, CAPTION_HEIGHT / 2), text, (230, 233, 237), font, anchor="lm")
    return np.asarray(image, dtype=np.uint8)


class _Film:
    """An mp4 being written (H.264, yuv420p); its size is that of the first frame."""

    def __init__(self, path: Path, fps: int) -> None:
        self.path, self.fps = path, fps
        self._writer: Any = None

    def add(self, frame: Picture) -> None:
        if self._writer is None:
            self._writer = imageio_ffmpeg.write_frames(
                str(self.path),
                (frame.shape[1], frame.shape[0]),
                fps=self.fps,
                quality=None,
                macro_block_size=2,
                output_params=["-crf", "23", "-movflags", "+faststart"],
            )
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
