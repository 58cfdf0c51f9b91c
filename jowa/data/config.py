"""The typed configuration of the commands that make or look at data."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from jowa.agent import PlannerConfig
from jowa.data.learner import LearnerConfig
from jowa.data.search import SearchConfig


@dataclass
class TierConfig:
    """One quality of play in collected data; see `jowa.data.behaviours.Tier`."""

    name: str = MISSING
    behaviour: str = MISSING
    share: float = MISSING
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
                         scripted  the game's teacher
                         agent     a trained agent: checkpoint, planner (greedy if left out)
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


@dataclass
class ConvertDqnReplayConfig:
    """Makes episodes of the DQN Replay dataset: play of DQN agents as they learn, 60 games.

    games              names, as `jowa games` lists them
    source             folder of the dataset's files, <Game>/<run>/replay_logs/ as in its bucket
    root               folder of the data; one file a game
    transitions        to take of each game, about: whole episodes, drawn uniformly; 0 is all
    runs               runs to take them from, 1 to 5; empty draws `draw_runs` of them by the seed
    draw_runs          how many runs to draw
    checkpoints        numbers of the checkpoints to take them from, 0 to 50; empty is all there are
    last_checkpoints   only the last this many of them; 0 is all
    seed               decides what is drawn
    workers            checkpoints converted at once, each in a process of under 1 GiB; 0 is one a
                       core
    overwrite          make the data anew, and replace what is there
    download           fetch missing files to `source`; stopped, it goes on where it was
    url                where from
    retries            more attempts to fetch a file of which nothing arrives
    delete_converted   with download: delete an observation file (99% of the data) once converted
    lap_rows           rows of a file; not 1,000,000 in tests only
    time_limit         steps after which games were cut; not 27,000 in tests only

    The tiers `early`, `middle` and `late` are thirds of the agents' training. Rewards are clipped
    in the dataset already, so that scores are not known. Stopped at any moment, the same command
    goes on. What was found and dropped is printed, and kept in the file's `facts`.
    """

    games: list[str] = MISSING
    source: str = "datasets/data/dqn_replay_files"
    root: str = "datasets/data/dqn_replay"
    transitions: int = 10_000_000
    runs: list[int] = field(default_factory=list)
    draw_runs: int = 2
    checkpoints: list[int] = field(default_factory=list)
    last_checkpoints: int = 0
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    download: bool = False
    url: str = "https://storage.googleapis.com/atari-replay-datasets/dqn"
    retries: int = 8
    delete_converted: bool = False
    lap_rows: int = 1_000_000
    time_limit: int = 27_000
