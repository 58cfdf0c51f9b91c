"""Training stable-baselines3's PPO in slices, after each of which a killed run can go on.

A slice boundary lies between two rollouts. There the weights and the optimiser's state are saved,
the random generators are seeded anew, and the environments follow from the log of what was
played; so a run that was interrupted learns and plays the same as one that was not.
"""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn

from jowa.collecting.experience import Experience, concatenate, derived_seed
from jowa.collecting.learner_env import LearnerEnv
from jowa.errors import UserError
from jowa.files import write_atomically
from jowa.games import Game

if TYPE_CHECKING:
    from jowa.collecting.learner import LearnerConfig

# Besides what LearnerConfig sets: those of Schulman et al., "Proximal Policy Optimization
# Algorithms" (2017), for Atari; the learning rate falls to 0 likewise.
SETTINGS: dict[str, Any] = {
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.1,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
}
_SLICES = 1_000_000  # numbers no environment has, so that no two seeds are derived alike
_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


class _Network(BaseFeaturesExtractor):
    """The usual Atari network (Mnih et al., 2015) at any width; theirs is 32.

    It sees how frames differ from `background`, uint8 (84, 84). What moves is so small a part of a
    screen that without this the policy hardly depends on it for a long time.
    """

    background: Tensor

    def __init__(
        self, observation_space: spaces.Box, width: int, background: NDArray[np.uint8]
    ) -> None:
        super().__init__(observation_space, features_dim=16 * width)
        self.register_buffer("background", torch.from_numpy(background).float() / 255)
        self.layers = nn.Sequential(
            *(nn.Conv2d(observation_space.shape[0], width, 8, 4), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 4, 2), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, 1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(2 * width * 7 * 7, 16 * width), nn.ReLU()),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """(B, 4, 84, 84) in [0, 1] to (B, 16 * width)."""
        differences = observations - self.background
        return self.layers(differences.contiguous(memory_format=torch.channels_last))


def learn(
    game: Game,
    folder: Path,
    config: LearnerConfig,
    *,
    max_frames: int,
    seed: Sequence[int],
    identity: Mapping[str, Any],
    progress: Callable[[int], None],
) -> tuple[Experience, float]:
    """Trains a new agent, or goes on with that in `folder`; returns all it did, and the seconds.

    `identity` says what the training depends on; a folder of another is refused. `progress` is
    called with the agent's steps so far.
    """
    games = LearnerEnv(
        game,
        config.environments,
        max_frames=max_frames,
        seed=seed,
        life_loss=config.life_loss,
    )
    with contextlib.closing(games) as env, _one_thread():
        model = _new_model(env, config, derived_seed(*seed, _SLICES))
        slices = _Slices(model, env, folder, config.save_every, seed, identity, progress)
        slices.restore()
        if model.num_timesteps < config.steps:
            left = config.steps - model.num_timesteps
            model.learn(left, callback=slices, reset_num_timesteps=False)
        return concatenate(slices.experience), slices.seconds


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one CPU core: the data must not hang on how many there are, or on what else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _new_model(env: LearnerEnv, config: LearnerConfig, seed: int) -> PPO:
    model = PPO(
        "CnnPolicy",
        env,
        learning_rate=lambda remaining: config.learning_rate * max(remaining, 0.0),
        n_steps=config.rollout,
        batch_size=config.batch,
        n_epochs=config.epochs,
        policy_kwargs={
            "features_extractor_class": _Network,
            "features_extractor_kwargs": {
                "width": config.width,
                "background": env.reset()[0, -1],  # the first frame of a game
            },
            "net_arch": [],  # otherwise two more layers follow, of 64 units each
        },
        seed=seed,
        device=config.device,
        **SETTINGS,
    )
    model.set_logger(Logger(None, []))  # otherwise it makes a folder of its own in /tmp
    # Convolutions on a CPU are half as fast again in this layout.
    model.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class _Slices(BaseCallback):
    """Saves the agent and its log at slice boundaries; brings both back."""

    def __init__(
        self,
        model: PPO,
        env: LearnerEnv,
        folder: Path,
        save_every: int,
        seed: Sequence[int],
        identity: Mapping[str, Any],
        progress: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._ppo, self._env, self._folder = model, env, folder
        self._seed, self._identity, self._progress = tuple(seed), dict(identity), progress
        self._save_every = save_every
        self._saved_steps = 0
        self._since = time.monotonic()
        self.experience: list[Experience] = []
        self.seconds = 0.0

    def _on_step(self) -> bool:
        self._progress(self._ppo.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        if self._ppo.num_timesteps - self._saved_steps >= self._save_every:
            self._save()
            self._reseed()

    def _on_training_end(self) -> None:
        if self._ppo.num_timesteps > self._saved_steps:
            self._save()

    def _reseed(self) -> None:
        seed = derived_seed(*self._seed, _SLICES, len(self.experience))
        set_random_seed(seed, using_cuda=self._ppo.device.type == "cuda")

    def _save(self) -> None:
        played = self._env.take_log()
        self.seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        log = io.BytesIO()
        np.savez_compressed(log, **vars(played))
        state = io.BytesIO()
        torch.save(
            {
                "identity": self._identity,
                "slices": len(self.experience) + 1,
                "steps": self._ppo.num_timesteps,
                "seconds": self.seconds,
                "policy": self._ppo.policy.state_dict(),
                "optimizer": self._ppo.policy.optimizer.state_dict(),
            },
            state,
        )
        try:
            # The state names the slices that count, so it is written after the slice.
            write_atomically(self._log_path(len(self.experience)), log.getvalue())
            write_atomically(self._state_path, state.getvalue())
        except OSError as error:
            raise UserError(
                f"the learner could not be saved in {self._folder} ({error}): make room and run "
                f"the same command again; it goes on from the last save."
            ) from error
        self.experience.append(played)
        self._saved_steps = self._ppo.num_timesteps

    def restore(self) -> None:
        """Goes to the last saved boundary, or to the start where nothing is saved."""
        if self._state_path.exists():
            state = self._read()
            self._ppo.policy.load_state_dict(state["policy"])
            self._ppo.policy.optimizer.load_state_dict(state["optimizer"])
            self._ppo.num_timesteps = self._saved_steps = state["steps"]
            self.seconds = state["seconds"]
            # PPO takes the first step after this for that of an episode, but asks only whether
            # later ones are.
            self._env.resume(concatenate(self.experience))
        self._reseed()
        self._since = time.monotonic()

    def _read(self) -> dict[str, Any]:
        try:
            _check_sums(self._state_path)
            state: dict[str, Any] = torch.load(
                self._state_path, map_location=self._ppo.device, weights_only=True
            )
            if state["identity"] == self._identity:
                for number in range(state["slices"]):
                    _check_sums(self._log_path(number))
                    with np.load(self._log_path(number)) as log:
                        self.experience.append(Experience(**log))
        except _READ_ERRORS as error:
            raise UserError(
                f"the learner in {self._folder} is damaged ({error}): remove that folder to start "
                f"anew."
            ) from error
        differing = [
            f"{name} is {value}, there {state['identity'].get(name)}"
            for name, value in self._identity.items()
            if state["identity"].get(name) != value
        ]
        if differing:
            raise UserError(
                f"{self._folder} holds a learner that was begun otherwise ({'; '.join(differing)})"
                f": go on with its settings, or remove that folder to start anew."
            )
        return state

    @property
    def _state_path(self) -> Path:
        return self._folder / "state.pt"

    def _log_path(self, number: int) -> Path:
        return self._folder / f"slice_{number:06d}.npz"


def _check_sums(path: Path) -> None:
    """Raises an error of reading unless all parts of a zip file, as torch and numpy write them,
    match their checksums."""
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{name} in {path.name} does not match its checksum")
