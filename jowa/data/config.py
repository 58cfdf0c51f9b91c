"""The typed configuration of the commands that make or look at data."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class TierConfig:
    """One quality of play in collected data; see `jowa.data.behaviours.Tier`."""

    name: str = MISSING
    behaviour: str = MISSING
    share: float = MISSING
    epsilon: float = 0.0
    burst_probability: float = 0.0
    burst_steps: int = 8


@dataclass
class CollectConfig:
    """Plays games and writes what happened to `root`, one file a game.

    games              names, as `jowa games` lists them
    root               folder of the data
    transitions        steps to record for each game, about
    tiers              qualities of play: name, behaviour (random, scripted), share, epsilon,
                       burst_probability, burst_steps; shares add up to 1
    short_share        part of the transitions in short episodes from varied starts
    short_episode_steps  their longest length, in steps
    max_frames         cap on full episodes, in emulator frames (4 a step)
    workers            games played at once; 0 is one a core
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
    workers: int = 0
    overwrite: bool = False


@dataclass
class GamesConfig:
    """Lists the 60 games: id, number of actions, random, human and DQN scores, teacher."""
