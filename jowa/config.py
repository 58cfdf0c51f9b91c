"""The typed configuration of every command. Hydra fills these; an unknown key is an error.

Model, loss, optimiser and planner settings stand beside the code that uses them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from jowa.agent import PlannerConfig
from jowa.learning.compute import ComputeConfig
from jowa.learning.imagination import ImaginationConfig
from jowa.learning.monitor import LogConfig
from jowa.learning.objective import LossConfig
from jowa.learning.optim import OptimizerConfig
from jowa.models.tokenizer import TokenizerConfig
from jowa.models.world_action import WorldActionConfig


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
class PhaseConfig:
    """One phase of training: `steps` batches of `batch_size` segments of `length` frames.

    stride              steps between the starts of segments
    reward_fraction     part of each batch drawn from segments with a reward
    target_update_every  steps between updates of the Q target head
    imagination         part of each batch that the planner imagines, and how; 0 is none
    """

    steps: int = 0
    batch_size: int = 32
    length: int = 8
    stride: int = 4
    reward_fraction: float = 0.0
    target_update_every: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)


@dataclass
class DataConfig:
    """Which episodes to read: `root` and `games`; frames below `cache_gib` in all are held in
    memory, more are read from disk as needed."""

    root: str = "datasets/data/teachers"
    games: list[str] = MISSING
    cache_gib: float = 3.0


@dataclass
class TokenizeConfig:
    """Trains a tokenizer on frames and encodes the data with it.

    run                where checkpoints and logs go; the same command goes on where it stopped
    data               episodes to read
    tokenizer          sizes of the tokenizer
    training           steps, batch, optimiser, losses
    log                steps between log lines, pictures and checkpoints; the last `keep`
                       checkpoints stay, and the `keep_best` with the lowest `best_metric`
    perceptual         file of LPIPS weights, if tokenizer.perceptual_weight is not 0
    compile            run the training step through torch.compile; null does so on a GPU
    """

    run: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    training: PhaseConfig = field(default_factory=PhaseConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    perceptual: str | None = None
    compile: bool | None = None
    seed: int = 0


@dataclass
class PretrainConfig:
    """Trains world model and Q-function on several games, in two stages.

    Stage 1 trains tokenizer and world model on frames; then the tokenizer is frozen, the data is
    encoded, and stage 2 trains world model and Q on tokens.

    run                where checkpoints and logs go; the same command goes on where it stopped
    data               episodes to read
    tokenizer_from     run or checkpoint of `jowa tokenize` to start from; null starts anew
    start_from         run or checkpoint of `jowa pretrain` whose tokenizer and model to start
                       from, such as the end of another run's stage 1; null starts anew
    tokenizer, model   sizes
    stage1, stage2     steps (0 leaves a stage out), batch, optimiser, losses
    log                steps between log lines, pictures and checkpoints; the last `keep`
                       checkpoints stay, and the `keep_best` with the lowest `best_metric`
    perceptual         file of LPIPS weights, if tokenizer.perceptual_weight is not 0
    compile            run the training step through torch.compile; null does so on a GPU
    """

    run: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer_from: str | None = None
    start_from: str | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: WorldActionConfig = field(default_factory=WorldActionConfig)
    stage1: PhaseConfig = field(default_factory=PhaseConfig)
    stage2: PhaseConfig = field(default_factory=PhaseConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    perceptual: str | None = None
    compile: bool | None = None
    seed: int = 0


@dataclass
class FinetuneConfig:
    """Fine-tunes a pretrained agent to a game it never saw, tokenizer and all.

    run                where checkpoints and logs go; the same command goes on where it stopped
    checkpoint         run or checkpoint of `jowa pretrain`
    game               the held-out game; its episodes are in `root`
    like               start from the task embedding of this pretrained game; null keeps its own
    from_scratch       same sizes, data and steps from fresh weights: the fair comparison
    log                steps between log lines, pictures and checkpoints; the last `keep`
                       checkpoints stay, and the `keep_best` with the lowest `best_metric`
    perceptual         file of LPIPS weights, if tokenizer.perceptual_weight is not 0
    compile            run the training step through torch.compile; null does so on a GPU
    """

    run: str = MISSING
    checkpoint: str = MISSING
    game: str = MISSING
    root: str = "datasets/data/teachers"
    cache_gib: float = 3.0
    like: str | None = None
    from_scratch: bool = False
    training: PhaseConfig = field(default_factory=PhaseConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    perceptual: str | None = None
    compile: bool | None = None
    seed: int = 0


@dataclass
class ImportWeightsConfig:
    """Makes a checkpoint of published weights, which the other commands use like any other.

    model              the released model, such as JOWA_150M.pt
    tokenizer          the released tokenizer.pt
    out                the run directory to write
    num_heads          attention heads; null knows those of the published widths, 512 and 768
    games              what the model was pretrained on; empty is the published 15 games
    """

    model: str = MISSING
    tokenizer: str = MISSING
    out: str = MISSING
    num_heads: int | None = None
    games: list[str] = field(default_factory=list)


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
    """Films one episode of a trained agent.

    checkpoint         a run directory or one of its checkpoints
    game               what to play
    out                the film, *.mp4
    max_steps          longest length in agent steps (15 a second)
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


@dataclass
class GamesConfig:
    """Lists the 60 games: id, number of actions, random, human and DQN scores, teacher."""


@dataclass
class RunsConfig:
    """Lists the runs below a folder: what each trains, how far it is, its loss and its size.

    A run is "going on" if it logged something within the last minute.

    root               the folder
    """

    root: str = "runs"
