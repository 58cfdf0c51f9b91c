"""The games as stable-baselines3 wants to see them, with a log of what is played."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from jowa.collecting.experience import Experience, derived_seed, end_codes, unrepeatable
from jowa.envs import FRAME_SIZE, AtariVector
from jowa.games import Game

_STACK = 4  # frames that the learner sees at once


class LearnerEnv(VecEnv):
    """`environments` copies of a game under the protocol, each episode at a seed of its own.

    What the learner sees is not what is logged: observations are the last 4 frames (4, 84, 84),
    black before the first; rewards are clipped to [-1, 1]; with `life_loss` a lost life counts as
    an end of its episode, though the game goes on. The log holds raw rewards and true ends.
    """

    render_mode = None

    def __init__(
        self,
        game: Game,
        environments: int,
        *,
        max_frames: int,
        seed: Sequence[int],
        life_loss: bool,
    ) -> None:
        self._game, self._seed, self._life_loss = game, tuple(seed), life_loss
        self._atari = AtariVector(game, environments, max_frames=max_frames)
        self._action_ids = np.array(game.action_ids)
        self._stack = np.zeros((environments, _STACK, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
        self._log: list[tuple[NDArray[Any], ...]] = []
        self._numbers = np.zeros(environments, dtype=np.int64)  # of the episodes being played
        super().__init__(
            environments,
            spaces.Box(0, 255, self._stack.shape[1:], np.uint8),
            spaces.Discrete(len(game.action_ids)),
        )
        self._start(np.ones(environments, dtype=bool))

    def reset(self) -> NDArray[np.uint8]:
        """What is seen now, (E, 4, 84, 84): nothing starts anew, so that training can go on."""
        return self._stack.copy()

    def step_async(self, actions: NDArray[np.integer]) -> None:
        """Notes the actions (E,), positions in the game's minimal set."""
        self._actions = self._action_ids[actions]

    def step_wait(self) -> VecEnvStepReturn:
        """Plays them; returns observations, clipped rewards, ends for the learner and infos."""
        lives = self._atari.lives
        frames, rewards, terminated, truncated = self._atari.step(self._actions)
        self._see(frames)
        self._log.append((self._actions, rewards, end_codes(terminated, truncated)))
        over = terminated | truncated
        dones = over | (self._atari.lives < lives) if self._life_loss else over
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for cut in np.flatnonzero(truncated):
            last = self._stack[cut].copy()
            infos[cut] = {"terminal_observation": last, "TimeLimit.truncated": True}
        self._numbers += over
        self._start(over)
        return self._stack.copy(), np.clip(rewards, -1, 1), dones, infos

    def take_log(self) -> Experience:
        """What was played since this was last called; at least one step."""
        actions, rewards, ends = (np.stack(part) for part in zip(*self._log, strict=True))
        self._log.clear()
        return Experience(actions.astype(np.uint8), rewards.astype(np.float32), ends)

    def resume(self, experience: Experience) -> None:
        """Goes to where `experience` stops: plays the episodes that it leaves unfinished again.

        Raises:
            UserError: where the emulator does not repeat what it did.
        """
        ended = experience.ends != 0
        total = len(ended)
        self._numbers = ended.sum(axis=0)
        last_end = total - 1 - np.argmax(ended[::-1], axis=0)
        starts = np.where(self._numbers > 0, last_end + 1, 0)
        for step in range(int(starts.min()), total + 1):
            self._start(starts == step)
            if step == total:
                break
            # Environments whose episode has not begun yet play something that is thrown away.
            playing = starts <= step
            frames, rewards, terminated, truncated = self._atari.step(experience.actions[step])
            self._see(frames)
            differs = (rewards != experience.raw_rewards[step]) | terminated | truncated
            if (differs & playing).any():
                raise unrepeatable(self._game)

    def _start(self, which: NDArray[np.bool_]) -> None:
        """Starts the next episode in some environments; only they see the frame as new."""
        seeds = [
            derived_seed(*self._seed, int(e), int(self._numbers[e])) for e in which.nonzero()[0]
        ]
        frames = self._atari.reset_where(which, np.array(seeds, dtype=np.int64))
        self._stack[which] = 0
        self._stack[which, -1] = frames[which]

    def _see(self, frames: NDArray[np.uint8]) -> None:
        self._stack[:, :-1] = self._stack[:, 1:]
        self._stack[:, -1] = frames

    def close(self) -> None:
        """Frees the emulators."""
        self._atari.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of this object, once for each environment asked for."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not offered."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Not offered."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No environment has a wrapper."""
        chosen: Iterable[int] = self._get_indices(indices)
        return [False for _ in chosen]
