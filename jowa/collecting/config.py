"""The typed configuration of `jowa collect` and `jowa games`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from jowa.collecting.learner import LearnerConfig
from jowa.collecting.search import SearchConfig
from jowa.planning.config import PlannerConfig


@dataclass
class TierConfig:
    """One quality of play in collected data; see `jowa.collecting.behaviours.Tier`."""

    name: str = MISSING
    behaviour: str = MISSING
    share: float = MISSING
    reaction_steps: int = 0
    epsilon: float = 0.0
    burst_probability: float = 0.0
    burst_steps: int = 8
    checkpoint: str | None = None
    planner: PlannerConfig | None = None
    search: SearchConfig | None = None
    learner: LearnerConfig | None = None


@dataclass
class CollectConfig:
    """Plays games and writes what happened to `root`, one file a game.

    Stopped at any moment, the same command goes on from the parts that are finished.

    games              names, as `jowa games` lists them
    root               folder of the data
    transitions        steps to record for each game, about: full games are finished
    tiers              qualities of play: name, behaviour, share, epsilon, burst_probability,
                       burst_steps; shares add up to 1. Behaviours and what else they take:
                         random    every action as likely
                         scripted  the game's teacher; reaction_steps is how late it sees the game
                         agent     a trained agent: checkpoint (a run, a file of
                                   `jowa export-weights`, or the name of one that comes with
                                   jowa), planner (greedy if left out)
                         search    of the emulator, privileged: search.lookahead, .horizon,
                                   .replan, .gamma, .life_penalty
                         learner   the whole experience of an online agent: learner
    short_share        part of the transitions in short episodes from varied starts
    short_episode_steps  their longest length, in steps
    max_frames         cap on full episodes, in emulator frames (4 a step)
    piece              transitions of a unit of work, about; other pieces give other data
    constant_episodes  games of random play and of each constant action to compare with; 0 is none
    device             where agents compute: cpu, cuda or auto
    workers            processes at once, which do not change the data; 0 is one a core
    overwrite          replace data made with other settings
    """

    games: list[str] = MISSING
    root: str = "datasets/data/teachers"
    transitions: int = 50_000
    tiers: list[TierConfig] = field(default_factory=list)
    short_share: float = 0.5
    short_episode_steps: int = 200
    max_frames: int = 108_000
    seed: int = 0
    piece: int = 5_000
    constant_episodes: int = 2
    device: str = "cpu"
    workers: int = 0
    overwrite: bool = False


@dataclass
class GamesConfig:
    """Lists the 60 games: id, number of actions, random, human and DQN scores, teacher."""
