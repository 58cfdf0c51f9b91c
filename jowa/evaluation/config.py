"""The typed configuration of the commands that play and report."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from jowa.agent import PlannerConfig
from jowa.learning.compute import ComputeConfig


@dataclass
class EvaluateConfig:
    """Plays games with a trained agent and adds its scores to a JSON file.

    checkpoint         a run directory or one of its checkpoints
    games              what to play; empty is every game the checkpoint was trained on
    label              name of this evaluation in tables
    out                the scores file; evaluations of other labels in it are kept
    planner            greedy, beam or mcts, with beam_width, horizon, context and more
    episodes           for each game; 16 is the protocol's
    envs_per_game      environments at once for each game
    max_frames         cap on an episode in emulator frames; 108000 is the protocol's
    epsilon            probability of a random action; 0.001 is the protocol's
    baselines          also play randomly and with every constant action
    baseline_episodes  how often each of those; 0 is as often as the agent
    data_root          show the mean score of this data beside the agent's; null does not
    """

    checkpoint: str = MISSING
    games: list[str] = field(default_factory=list)
    label: str = "agent"
    out: str = "scores.json"
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    episodes: int = 16
    envs_per_game: int = 8
    max_frames: int = 108_000
    epsilon: float = 0.001
    seed: int = 1000
    baselines: bool = True
    baseline_episodes: int = 0
    data_root: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass
class WatchConfig:
    """Films one episode of a trained agent: the screen, and beside it the frame that the agent
    gets, what its tokens keep of it, Q by action, and the futures that the planner imagines.

    checkpoint         a run directory or one of its checkpoints
    game               what to play
    out                the film, *.mp4
    planner            greedy, beam or mcts, with beam_width, horizon, context and more
    max_steps          longest length in agent steps (15 a second)
    epsilon            probability of a random action
    """

    checkpoint: str = MISSING
    game: str = MISSING
    out: str = "agent.mp4"
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    max_steps: int = 900
    epsilon: float = 0.001
    seed: int = 2000
    compute: ComputeConfig = field(default_factory=ComputeConfig)


@dataclass
class ReportConfig:
    """Writes report.html and report.md about finished runs.

    out                folder of the report
    title              its heading
    scores             scores files of `jowa evaluate`
    runs               run directories whose curves and pictures to show
    compare            pairs of labels to set against each other, "first|second"
    film               an mp4 of `jowa watch`
    timings            text file of lines `SECONDS STAGE`
    """

    out: str = MISSING
    title: str = "JOWA"
    scores: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=list)
    film: str | None = None
    timings: str | None = None
