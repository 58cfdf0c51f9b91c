"""The experience of an online agent from its first random steps to its best play, as data.

This is how DQN Replay was made: everything that one agent did while it learned. The agent is
PPO of stable-baselines3; nothing of it is needed but for making such data.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from jowa.collecting.experience import curve, derived_seed, draw, write_episodes
from jowa.data.episodes import EpisodeWriter
from jowa.errors import UserError
from jowa.games import Game

ALGORITHMS = ("ppo",)
DEVICES = ("auto", "cpu", "cuda")
_SOURCE = "a PPO agent while it learned"
_LIBRARIES = ("ale-py", "stable-baselines3", "torch")
_DRAW = 2_000_000  # no environment and no slice has this number in its seed
# The least and the greatest allowed value of each number.
_LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "environments": (1, 1024),
    "rollout": (2, math.inf),
    "batch": (2, math.inf),
    "epochs": (1, math.inf),
    "learning_rate": (0.0, 1.0),
    "width": (1, 1024),
    "save_every": (1, math.inf),
    "last": (0.001, 1),
}


@dataclass  # not frozen: Hydra could not fill it
class LearnerConfig:
    """How an online agent learns.

    algorithm      ppo
    steps          agent steps of learning, of all environments together; rounded up to whole
                   rollouts
    environments   games played in step
    rollout        steps of each environment between two updates
    batch          steps in a gradient step; divides environments * rollout
    epochs         passes over a rollout
    learning_rate  of Adam at the start; it falls to 0
    width          channels of the first convolution; the usual 32 is half as fast on a CPU
    life_loss      a lost life ends the return that the agent learns from; in the data only the
                   end of the game is an end
    save_every     steps between two saves, from which an interrupted run goes on
    last           part of the learning, counted from its end, that the data are drawn from: 1 is
                   all of it, 0.05 the play of an agent that has learned
    device         where the network learns: auto, cpu, cuda
    """

    algorithm: str = "ppo"
    steps: int = 1_000_000
    environments: int = 8
    rollout: int = 128
    batch: int = 256
    epochs: int = 4
    learning_rate: float = 2.5e-4
    width: int = 16
    life_loss: bool = True
    save_every: int = 16_384
    last: float = 1.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UserError(
                f"the learner's algorithm is {self.algorithm!r}; use {' or '.join(ALGORITHMS)}."
            )
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bounds = (
                    f"{least} or more" if most == math.inf else f"a number in {least} to {most}"
                )
                raise UserError(f"the learner's {name} is {value}; use {bounds}.")
        if self.environments * self.rollout % self.batch:
            raise UserError(
                f"the learner's batch of {self.batch} does not divide environments * rollout = "
                f"{self.environments * self.rollout}; use one that does."
            )
        if self.device not in DEVICES:
            raise UserError(
                f"the learner's device is {self.device!r}; use one of {', '.join(DEVICES)}."
            )


def record_learner(
    game: Game,
    path: Path,
    *,
    tier: str,
    config: LearnerConfig,
    transitions: int,
    max_frames: int,
    seed: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Trains an agent on the game and writes about `transitions` transitions of all it did.

    The data are whole episodes drawn uniformly over the learning, or over the last part of it that
    `config.last` names, in its order, exploration included; all of it where `transitions` is no
    less than `config.steps`. Only those that the end of the learning cuts stop in the middle. For a
    seed the data are the same whether the run was interrupted or not, on one kind of machine. The
    global random generators are seeded.

    While it learns, its state is in a folder beside `path` named like it but ending in
    `.learner`, from which the same call goes on; it is removed when the file is complete.

    Args:
        tier: name of the file's only tier.
        max_frames: cap on an episode, in emulator frames (4 a step).
        seed: of everything; numbers of 0 or more.
        progress: called with the part of `transitions` that the work so far amounts to.

    Raises:
        UserError: without stable-baselines3 or the device, with a folder of other settings, on a
            full disk.
    """
    _check_machine(config)
    from jowa.collecting.learner_ppo import SETTINGS, learn  # needs stable-baselines3

    settings = dataclasses.asdict(config)
    device = settings.pop("device")  # where it runs is no part of what is made
    identity = {
        **{"game": game.name, "max_frames": max_frames, "seed": list(seed)},
        **{"ale-py": version("ale-py")},
        **settings,
    }
    total = config.steps + min(transitions, config.steps)

    def report(done: int) -> None:
        if progress:
            progress(min(transitions, transitions * done // total))

    folder = path.with_suffix(".learner")
    experience, seconds = learn(
        game,
        folder,
        config,
        max_frames=max_frames,
        seed=seed,
        identity=identity,
        progress=report,
    )
    wanted = transitions if transitions < config.steps else experience.num_steps
    kept = draw(experience, wanted, derived_seed(*seed, _DRAW), config.last)
    provenance = {
        **{"behaviour": "learner", "learner": settings, "transitions": transitions},
        **{"max_frames": max_frames, "seed": list(seed)},
        **{"versions": {name: version(name) for name in _LIBRARIES}},
    }
    with EpisodeWriter(path, game, source=_SOURCE, tiers=[tier], provenance=provenance) as writer:
        write_episodes(
            writer,
            game,
            experience,
            kept,
            seed=seed,
            max_frames=max_frames,
            progress=lambda written: report(config.steps + written),
        )
        writer.facts.update(
            steps=experience.num_steps,
            seconds=round(seconds, 1),
            steps_per_second=round(experience.num_steps / seconds, 1),
            device=_device_name(device),
            settings={**settings, **SETTINGS},
            versions={name: version(name) for name in _LIBRARIES},
            curve=curve(experience, kept),
        )
    shutil.rmtree(folder)


def _check_machine(config: LearnerConfig) -> None:
    if importlib.util.find_spec("stable_baselines3") is None:
        raise UserError(
            "learning online needs stable-baselines3, which is not installed: "
            'pip install "jowa[learner]".'
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "the learner's device is cuda, but there is no usable GPU here; use cpu or auto."
        )


def _device_name(device: str) -> str:
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else "cpu"
