"""The typed configuration of the commands that play and report."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from jowa.learning.compute import ComputeConfig
from jowa.planning.config import PlannerConfig


@dataclass
class LauncherConfig:
    """Who plays; see `configs/launcher/`.

    cluster    empty: this process, or those of torchrun; slurm: jobs; local: jobs on this machine
    jobs       how many share the play; 0 is one for each batch, which is a game by default
    at_once    of slurm: how many run at a time; 0 is all
    minutes    of a job; what is left then is queued again
    gpus       that a job sees; jobs on this machine see none with 0
    cpus, memory_gb, partition   of a slurm job; 0 and null leave them to the cluster
    options    of slurm: more of sbatch's, such as {account: lab}
    """

    cluster: str = ""
    jobs: int = 0
    at_once: int = 0
    minutes: int = 240
    gpus: int = 0
    cpus: int = 0
    memory_gb: int = 0
    partition: str | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass
class EvaluateConfig:
    """Plays games with a trained agent and adds its scores to a JSON file.

    Stopped at any moment, the same command goes on where it was. On a CPU with the same number of
    threads the scores repeat exactly, in one process, in several and after a stop.

    checkpoint         a run directory, one of its checkpoints or a file of `jowa export-weights`;
                       where nothing lies at that path, an agent of that name that comes with jowa
    games              what to play; empty is every game the checkpoint was trained on
    label              name of this evaluation in tables; NAME/0, NAME/1, ... are seeds of one agent
    out                the scores file; evaluations of other labels in it are kept
    planner            greedy, beam, cautious or mcts, with beam_width, horizon, context and more
    tuned              a file of `jowa tune`, which then says all of the planner; null: none
    episodes           for each game; 16 is the protocol's
    envs_per_game      environments at once for each game
    envs_per_batch     environments decided together; 0 is one game's own, more keeps a GPU busy
    max_frames         cap on an episode in emulator frames; 108000 is the protocol's
    epsilon            probability of a random action; 0.001 is the protocol's
    baselines          also play randomly and with every constant action
    baseline_episodes  how often each of those; 0 is as often as the agent
    data_root          show the mean score of this data beside the agent's; null does not
    launcher           local, or slurm for jobs of a cluster
    """

    checkpoint: str = MISSING
    games: list[str] = field(default_factory=list)
    label: str = "agent"
    out: str = "scores.json"
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    tuned: str | None = None
    episodes: int = 16
    envs_per_game: int = 8
    envs_per_batch: int = 0
    max_frames: int = 108_000
    epsilon: float = 0.001
    seed: int = 1000
    baselines: bool = True
    baseline_episodes: int = 0
    data_root: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)


@dataclass
class TuneConfig:
    """Chooses the beam search's context, beam width W and horizon H by play.

    Every combination plays every game, on seeds that `jowa evaluate` never uses. Of the settings
    whose mean score is not clearly below the best one's (paired bootstrap over episodes) the
    cheapest is taken, by imagined frames and then by context. `jowa evaluate tuned=FILE` uses it.
    Stopped at any moment, the same command goes on where it was.

    checkpoint         a run directory, one of its checkpoints or a file of `jowa export-weights`;
                       where nothing lies at that path, an agent of that name that comes with jowa
    games              what to play; empty is every game the checkpoint was trained on
    out                where the choice and all scores go
    contexts           past frames that the agent sees
    beam_widths        paths that a search keeps
    horizons           imagined frames ahead; 0 is greedy play
    per_game           choose for each game, by raw score; else one for all, by the mean of
                       human-normalised scores
    confidence         that a setting is worse before the best one is preferred to it; 0 always
                       takes the best mean
    planner            its other options, such as gamma and value
    episodes           for each game and setting
    envs_per_game      environments at once for each game
    envs_per_batch     environments decided together; 0 is one game's own
    max_frames         cap on an episode in emulator frames
    epsilon            probability of a random action
    seed               which of the seeds for tuning
    launcher           local, or slurm for jobs of a cluster
    """

    checkpoint: str = MISSING
    games: list[str] = field(default_factory=list)
    out: str = "tuned.json"
    contexts: list[int] = field(default_factory=lambda: [2, 4])
    beam_widths: list[int] = field(default_factory=lambda: [2, 4])
    horizons: list[int] = field(default_factory=lambda: [0, 1, 2])
    per_game: bool = False
    confidence: float = 0.95
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    episodes: int = 8
    envs_per_game: int = 8
    envs_per_batch: int = 0
    max_frames: int = 20_000
    epsilon: float = 0.001
    seed: int = 0
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)


@dataclass
class WatchConfig:
    """Films one episode of a trained agent: the screen, and beside it the frame that the agent
    gets, what its tokens keep of it, Q by action, and the futures that the planner imagines.

    checkpoint         a run directory, one of its checkpoints or a file of `jowa export-weights`;
                       where nothing lies at that path, an agent of that name that comes with jowa
    game               what to play
    out                the film, *.mp4
    planner            greedy, beam, cautious or mcts, with beam_width, horizon, context and more
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

    Evaluations labelled NAME/0, NAME/1, ... are seeds of one agent and are reported as one, with
    intervals over seeds and episodes.

    out                folder of the report
    title              its heading
    scores             scores files of `jowa evaluate`
    runs               run directories whose curves and pictures to show
    compare            pairs of labels to set against each other, "first|second"
    references         labels to measure the others by, such as a clone's; shown in grey
    film               an mp4 of `jowa watch`
    timings            text file of lines `SECONDS STAGE`
    """

    out: str = MISSING
    title: str = "JOWA"
    scores: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    film: str | None = None
    timings: str | None = None


@dataclass
class ProbeConfig:
    """Measures what play can be learned from data: a small pixel network clones each game alone.

    It prints how well the clone predicts the actions of held-out episodes, and what it scores in
    play beside random play, the best constant action and the data itself. Data whose clone is no
    better than the best constant action will hardly teach anything else to a small network.

    root               folder of the data
    games              what to probe; empty is every game in the folder
    tiers              qualities of play to clone; empty is the one with the highest mean score
    transitions        most that are read of a game, whole episodes by chance
    steps              training steps of `batch_size` transitions
    sample             play actions by their probability instead of the most probable one
    episodes           of the clone and of the baselines, for each game
    baselines          also play randomly and with every constant action
    max_frames         cap on an episode in emulator frames; 108000 is the protocol's
    label, out         the scores file to add the clone's scores to, under this label; null adds
                       them to none
    """

    root: str = "datasets/data/teachers"
    games: list[str] = field(default_factory=list)
    tiers: list[str] = field(default_factory=list)
    transitions: int = 50_000
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 5e-4
    sample: bool = False
    episodes: int = 10
    baselines: bool = True
    max_frames: int = 18_000
    seed: int = 0
    label: str = "pixel clone"
    out: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
