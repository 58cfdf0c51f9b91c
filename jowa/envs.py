"""Atari games under the evaluation protocol: one game at a time, or many in step.

Frame skip 4 with the maximum of the last two frames, 84x84 grey, sticky actions, no no-op or fire
reset, an episode is a full game. `AtariVector` is fast; `AtariEnv` gives the same frames and also
the RAM and the colour screen; `Simulator` looks ahead from a state of an `AtariEnv`. Actions are
indices in the 18-action set everywhere.
"""

from __future__ import annotations

import warnings

import ale_py
import cv2
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from jowa.errors import UserError
from jowa.games import NUM_ACTIONS, Game

FRAME_SKIP = 4
FRAME_SIZE = 84
MAX_FRAMES = 108_000
STICKY = 0.25
MAX_SEED = 2**31 - 1  # ALE holds its seed in 32 bits and takes a negative one for "none given"

Frame = NDArray[np.uint8]
Flags = NDArray[np.bool_]


class AtariEnv:
    """One game with access to its RAM and colour screen.

    `max_frames` is the cap on an episode in emulator frames (4 a step); `sticky` is the
    probability, at every emulator frame, that the previous action is repeated.
    """

    def __init__(self, game: Game, *, max_frames: int = MAX_FRAMES, sticky: float = STICKY) -> None:
        _check_settings(max_frames, sticky)
        self.game = game
        self.max_frames = max_frames
        self._rom = _rom_path(game)
        self._ale = _quiet_ale()
        self._ale.setFloat("repeat_action_probability", sticky)
        self._loaded = False
        self._frames_played = 0
        self._over = True
        self._buffers = np.zeros((2, 210, 160), dtype=np.uint8)

    def reset(self, seed: int | None = None) -> Frame:
        """Starts a new game and returns its first frame, uint8 (84, 84).

        A seed (0 to 2^31 - 1) makes all that follows reproducible. Without one the random stream
        goes on from where it is, which is 30 times faster: the ROM needs no reloading.
        """
        if seed is not None or not self._loaded:
            self._ale.setInt("random_seed", _check_seed(0 if seed is None else seed))
            # ALE reads settings only here.
            self._ale.loadROM(self._rom)
            self._loaded = True
            height, width = self._ale.getScreenDims()
            self._buffers = np.zeros((2, height, width), dtype=np.uint8)
        self._ale.reset_game()
        self._frames_played = 0
        self._over = False
        self._ale.getScreenGrayscale(self._buffers[0])
        self._buffers[1] = 0
        return self._observation()

    def step(self, action: int) -> tuple[Frame, float, bool, bool]:
        """Plays 4 emulator frames; returns frame (84, 84), raw reward, terminated, truncated."""
        assert not self._over, "step() needs a reset() first: the episode has ended"
        ale_action = ale_py.Action(_check_action(self.game, action))
        reward = 0.0
        for frame in range(FRAME_SKIP):
            reward += self._ale.act(ale_action)
            self._frames_played += 1
            if frame >= FRAME_SKIP - 2:
                self._ale.getScreenGrayscale(self._buffers[frame - (FRAME_SKIP - 2)])
            if self._ale.game_over() or self._frames_played >= self.max_frames:
                break
        terminated = bool(self._ale.game_over())
        truncated = not terminated and self._frames_played >= self.max_frames
        self._over = terminated or truncated
        return self._observation(), reward, terminated, truncated

    def ram(self) -> NDArray[np.uint8]:
        """The 128 bytes of RAM as they are now."""
        return np.asarray(self._ale.getRAM(), dtype=np.uint8)

    def rgb(self) -> NDArray[np.uint8]:
        """The screen in colour as it is now, uint8 (210, 160, 3); some games have 250 rows."""
        return np.asarray(self._ale.getScreenRGB(), dtype=np.uint8)

    def state(self) -> ale_py.ALEState:
        """The emulator's state but for its random stream: what `Simulator.restore` takes."""
        # With include_rng=True, a search from here would foresee which actions will stick.
        return self._ale.cloneState(include_rng=False)

    def close(self) -> None:
        """Ends the episode; the environment can be reset again."""
        self._over = True

    def _observation(self) -> Frame:
        pooled = self._buffers.max(axis=0)
        resized = cv2.resize(pooled, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, dtype=np.uint8)


class Simulator:
    """A second emulator to look ahead with: it steps as `AtariEnv` does, but no action sticks.

    It has to be an emulator of its own: ALE reads the probability of sticky actions only when it
    loads the ROM.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self._ale = _quiet_ale()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(_rom_path(game))

    @property
    def lives(self) -> int:
        """Lives left; 0 in games without lives."""
        return int(self._ale.lives())

    @property
    def over(self) -> bool:
        """Whether the game has ended."""
        return bool(self._ale.game_over())

    def state(self) -> ale_py.ALEState:
        """The state now, to come back to."""
        return self._ale.cloneState(include_rng=False)

    def restore(self, state: ale_py.ALEState) -> None:
        """Goes on from a state of this or of an `AtariEnv` of the same game."""
        self._ale.restoreState(state)

    def step(self, action: int) -> float:
        """Plays 4 emulator frames, less where the game ends; returns the raw reward."""
        ale_action = ale_py.Action(_check_action(self.game, action))
        reward = 0.0
        for _ in range(FRAME_SKIP):
            reward += self._ale.act(ale_action)
            if self._ale.game_over():
                break
        return reward

    def ram(self) -> NDArray[np.uint8]:
        """The 128 bytes of RAM as they are now."""
        return np.asarray(self._ale.getRAM(), dtype=np.uint8)


class AtariVector:
    """Many copies of one game, stepped in parallel threads.

    A copy whose episode has ended waits for `reset_where`. If it is stepped instead, it starts a
    new game of its own with whatever random state it has: good for slots that no longer count.

    Attributes:
        lives: (E,) int32, how many each has left now; 0 in games without lives.
    """

    def __init__(
        self, game: Game, num_envs: int, *, max_frames: int = MAX_FRAMES, sticky: float = STICKY
    ) -> None:
        _check_settings(max_frames, sticky)
        if num_envs < 1:
            raise UserError(f"num_envs is {num_envs}; use at least 1 environment.")
        _rom_path(game)
        _quiet_ale()
        self.game = game
        self.num_envs = num_envs
        self._envs = AtariVectorEnv(
            game.rom,
            num_envs,
            stack_num=1,
            noop_max=0,
            use_fire_reset=False,
            reward_clipping=False,
            frameskip=FRAME_SKIP,
            repeat_action_probability=sticky,
            max_num_frames_per_episode=max_frames,
        )
        played = tuple(action.value for action in self._envs.ale.get_action_set())
        assert played == game.action_ids, f"ale-py's minimal set of {game.name} differs: {played}"
        self._minimal_index = np.full(NUM_ACTIONS, -1, dtype=np.int64)
        self._minimal_index[list(game.action_ids)] = np.arange(len(game.action_ids))
        self._frames = np.zeros((num_envs, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
        self.lives = np.zeros(num_envs, dtype=np.int32)

    def reset(self, seeds: NDArray[np.integer]) -> Frame:
        """Starts a new game everywhere, one seed each (E,); returns frames uint8 (E, 84, 84)."""
        return self.reset_where(np.ones(self.num_envs, dtype=bool), seeds)

    def reset_where(self, which: Flags, seeds: NDArray[np.integer]) -> Frame:
        """Starts a new game where `which` (E,) is true; returns the frames of all (E, 84, 84).

        `seeds` has one entry for every true entry of `which`, in that order.
        """
        which, seeds = np.asarray(which), np.asarray(seeds)
        assert which.shape == (self.num_envs,) and which.dtype == np.bool_
        assert seeds.shape == (int(which.sum()),), "one seed for each environment that is reset"
        if which.any():
            checked = np.array([_check_seed(int(seed)) for seed in seeds], dtype=np.int64)
            frames, infos = self._envs.reset(seed=checked, options={"reset_mask": which})
            self._frames = np.array(frames[:, 0])
            self.lives = np.array(infos["lives"])
        return self._frames.copy()

    def step(self, actions: NDArray[np.integer]) -> tuple[Frame, NDArray[np.float32], Flags, Flags]:
        """Plays one action (E,) in each; returns frames (E, 84, 84), raw rewards, terminated,
        truncated (E,)."""
        actions = np.asarray(actions)
        assert actions.shape == (self.num_envs,)
        indices = self._minimal_index[actions]
        assert (indices >= 0).all(), f"an action is outside {self.game.name}'s minimal set"
        frames, rewards, terminated, truncated, infos = self._envs.step(indices)
        self._frames = np.array(frames[:, 0])
        self.lives = np.array(infos["lives"])
        ended = np.asarray(terminated, dtype=bool)
        return (
            self._frames.copy(),
            np.asarray(rewards, dtype=np.float32),
            ended,
            np.asarray(truncated, dtype=bool) & ~ended,
        )

    def close(self) -> None:
        """Frees the emulators."""
        self._envs.close()


def _quiet_ale() -> ale_py.ALEInterface:
    """An emulator; from the first one on, ALE writes nothing but errors."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py.ALEInterface()


def _rom_path(game: Game) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = roms.get_rom_path(game.rom)
    if path is None:
        raise UserError(f"ale-py has no ROM for {game.name}; install ale-py 0.12 or later.")
    return str(path)


def _check_settings(max_frames: int, sticky: float) -> None:
    if max_frames < FRAME_SKIP:
        raise UserError(f"max_frames is {max_frames}; use at least {FRAME_SKIP} (one step).")
    if not 0.0 <= sticky < 1.0:
        raise UserError(f"sticky is {sticky}; use a probability from 0 to below 1.")


def _check_seed(seed: int) -> int:
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"the environment seed {seed} is outside 0 to {MAX_SEED}.")
    return seed


def _check_action(game: Game, action: int) -> int:
    assert action in game.action_ids, f"action {action} is outside {game.name}'s minimal set"
    return int(action)
