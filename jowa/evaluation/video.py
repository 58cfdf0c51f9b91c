"""Film of one episode: plays it, and writes a picture of every step as an mp4."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from jowa.envs import MAX_FRAMES, STICKY, AtariEnv
from jowa.errors import UserError
from jowa.evaluation.rollout import EpisodeResult, Policy, check, emulator_seed, episode_generator
from jowa.evaluation.scores import PROTOCOL_EPSILON
from jowa.games import Game

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Moment:
    """What is about to be done in an episode.

    screen    in colour, as people see it, uint8 (H, W, 3)
    frame     as the agent gets it, uint8 (84, 84)
    step      agent steps done before
    score     raw score so far
    action    what the policy chose, in the 18-action set
    executed  what is sent: another one where exploration replaced it
    """

    screen: Picture
    frame: Picture
    step: int
    score: float
    action: int
    executed: int


def record(
    policy: Policy,
    game: Game,
    path: str | Path,
    draw: Callable[[Moment], Picture],
    *,
    max_steps: int,
    seed: int,
    fps: int = 15,
    epsilon: float = PROTOCOL_EPSILON,
    sticky: float = STICKY,
) -> EpisodeResult:
    """Play one episode (at most `max_steps` agent steps) and write it as an mp4 to `path`.

    15 frames a second is the game's own speed: one film frame an agent step, which `draw` makes
    after every choice as RGB uint8 (H, W, 3), always of the same even size. An interrupted film
    leaves no file.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"the film {path} must be named *.mp4.")
    if max_steps < 1:
        raise UserError(f"max_steps is {max_steps}: give at least 1.")
    check(seed, MAX_FRAMES, epsilon)
    if path.is_dir():
        raise UserError(f"the film {path} would take the place of a folder: give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}.mp4")
    env = AtariEnv(game, max_frames=MAX_FRAMES, sticky=sticky)
    film = _Film(temporary, fps)
    try:
        result = _play(policy, game, env, film, draw, max_steps, seed, epsilon)
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
    draw: Callable[[Moment], Picture],
    max_steps: int,
    seed: int,
    epsilon: float,
) -> EpisodeResult:
    rng = episode_generator(seed, game, slot=0, episode=0)
    games, active = np.array([game.id]), np.array([True])
    frame = env.reset(emulator_seed(rng))
    policy.reset(active)
    score, terminated, step = 0.0, False, 0
    while step < max_steps:
        action = executed = int(policy.act(frame[None], games, active)[0])
        if rng.random() < epsilon:
            executed = int(rng.choice(game.action_ids))
        policy.executed(np.array([executed]))
        film.add(draw(Moment(env.rgb(), frame, step, score, action, executed)))
        frame, reward, terminated, truncated = env.step(executed)
        score, step = score + reward, step + 1
        if terminated or truncated:
            break
    return EpisodeResult(game.name, 0, 0, score, step, not terminated)


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
