"""The typed configuration of the commands that train, which Hydra fills.

Model, loss and optimiser settings stand beside the code that uses them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from jowa.data.loader import Loading
from jowa.data.tokens import check_place
from jowa.learning.compute import ComputeConfig
from jowa.learning.imagination import ImaginationConfig
from jowa.learning.loss_config import LossConfig
from jowa.learning.monitor import LogConfig
from jowa.learning.optim import OptimizerConfig
from jowa.models.tokenizer import TokenizerConfig
from jowa.models.world_action import WorldActionConfig


@dataclass
class PhaseConfig:
    """One phase of training: `steps` batches of `batch_size` segments of `length` frames.

    stride              steps between the starts of segments
    balance             "games": equal shares of each batch for all games, however much data each
                        has; "uniform": every segment equally often
    reward_fraction     part of each batch drawn from segments with a reward
    target_update_every  steps between updates of the Q target head
    imagination         part of each batch that the planner imagines, and how; 0 is none
    """

    steps: int = 0
    batch_size: int = 32
    length: int = 8
    stride: int = 4
    balance: str = "games"
    reward_fraction: float = 0.0
    target_update_every: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)


@dataclass
class DataConfig:
    """Which episodes to read and how. What is read is the same for every way of reading.

    root                folder of the episode files
    games               names, as `jowa games` lists them
    cache_gib           frames below this size in all are held in memory, more are read from disk
                        as needed; likewise tokens
    tokens              where tokens are held: memory, mapped (read from disk as needed), device
                        (the GPU gathers batches itself), or auto: memory if they are below
                        cache_gib, else mapped
    workers             processes that read batches ahead of the step; 0 reads them in the step's
                        own process, null takes one a core, at most 4, for what is not in memory
    prefetch            batches that each worker is ahead
    hold_out            of every so many episodes of a game the last is never learned from, but
                        measured on as training goes on (validation/... in the log); 0: none
    share               part of the other episodes of each game to learn from, evenly spread
    """

    root: str = "datasets/data/teachers"
    games: list[str] = MISSING
    hold_out: int = 20
    share: float = 1.0
    cache_gib: float = 3.0
    tokens: str = "auto"
    workers: int | None = None
    prefetch: int = 2

    def loading(self) -> Loading:
        """How batches are read; UserError for settings that make no sense."""
        check_place(self.tokens)
        return Loading(self.workers, self.prefetch)


@dataclass
class TokenizeConfig:
    """Trains a tokenizer on frames and encodes the data with it.

    run                where checkpoints and logs go; the same command goes on where it stopped
    data               episodes to read (root, games) and how: in memory if below `cache_gib`, else
                       from disk, `prefetch` batches ahead by each of `workers` processes; `tokens`
                       says where those are held: auto, memory, mapped or device
    tokenizer          sizes of the tokenizer
    training           steps, batch, optimiser, losses
    log                steps between log lines, pictures and checkpoints; the last `keep`
                       checkpoints stay, and the `keep_best` with the lowest `best_metric`
    perceptual         file of LPIPS weights, if tokenizer.perceptual_weight is not 0
    compile            run the training step through torch.compile; null does so on a GPU
    replay             record the step as one CUDA graph and replay it, which a small model needs
                       to keep a GPU busy; null does so where one GPU trains alone
    """

    run: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    training: PhaseConfig = field(default_factory=PhaseConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    perceptual: str | None = None
    compile: bool | None = None
    replay: bool | None = None
    seed: int = 0


@dataclass
class PretrainConfig:
    """Trains world model and Q-function on several games, in two stages.

    Stage 1 trains tokenizer and world model on frames; then the tokenizer is frozen, the data is
    encoded, and stage 2 trains world model and Q on tokens.

    run                where checkpoints and logs go; the same command goes on where it stopped
    data               episodes to read (root, games) and how: in memory if below `cache_gib`, else
                       from disk, `prefetch` batches ahead by each of `workers` processes; `tokens`
                       says where those are held: auto, memory, mapped or device
    tokenizer_from     whose tokenizer to start from: a run or checkpoint of `jowa tokenize` or of
                       others that train one, a file of `jowa export-weights`, or the name
                       of an agent that comes with jowa; null starts anew
    start_from         likewise, but of `jowa pretrain`, whose tokenizer and model to start from,
                       such as the end of another run's stage 1; null starts anew
    tokenizer, model   sizes
    stage1, stage2     steps (0 leaves a stage out), batch, optimiser, losses
    objective          a group that sets the losses' weights: jowa, or the baselines cloning
                       (imitates the data's actions) and no_world_model (Q alone)
    log                steps between log lines, pictures and checkpoints; the last `keep`
                       checkpoints stay, and the `keep_best` with the lowest `best_metric`
    perceptual         file of LPIPS weights, if tokenizer.perceptual_weight is not 0
    compile            run the training step through torch.compile; null does so on a GPU
    replay             record the step as one CUDA graph and replay it, which a small model needs
                       to keep a GPU busy; null does so where one GPU trains alone
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
    replay: bool | None = None
    seed: int = 0


@dataclass
class FinetuneConfig:
    """Fine-tunes a pretrained agent to a game it never saw, tokenizer and all.

    run                where checkpoints and logs go; the same command goes on where it stopped
    checkpoint         run or checkpoint of `jowa pretrain`, or a file of `jowa export-weights`;
                       where nothing lies at that path, an agent of that name that comes with jowa
    game               the held-out game; its episodes are in `root`
    like               start from the task embedding of this pretrained game; null keeps its own
    from_scratch       same sizes, data and steps from fresh weights: the fair comparison
    hold_out           of every so many episodes the last is measured on, not learned from; 0: none
    cache_gib, workers, prefetch  how episodes are read, as those of `data` in `jowa pretrain`
    log                steps between log lines, pictures and checkpoints; the last `keep`
                       checkpoints stay, and the `keep_best` with the lowest `best_metric`
    perceptual         file of LPIPS weights, if tokenizer.perceptual_weight is not 0
    compile            run the training step through torch.compile; null does so on a GPU
    replay             record the step as one CUDA graph and replay it, which a small model needs
                       to keep a GPU busy; null does so where one GPU trains alone
    """

    run: str = MISSING
    checkpoint: str = MISSING
    game: str = MISSING
    root: str = "datasets/data/teachers"
    hold_out: int = 0
    cache_gib: float = 3.0
    workers: int | None = None
    prefetch: int = 2
    like: str | None = None
    from_scratch: bool = False
    training: PhaseConfig = field(default_factory=PhaseConfig)
    log: LogConfig = field(default_factory=LogConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    perceptual: str | None = None
    compile: bool | None = None
    replay: bool | None = None
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
class ExportWeightsConfig:
    """Makes one small file of a checkpoint: tokenizer and model in half precision, with what its
    state.json says. Other commands take the file wherever they take a checkpoint.

    The same checkpoint gives the same file. What only its own run can use is left out: the
    optimiser's state and the Q target head (fine-tuning starts with a copy of the Q head).

    checkpoint         run or checkpoint of `jowa pretrain`, of `jowa finetune` or of
                       `jowa import-weights`
    out                the file, *.safetensors
    """

    checkpoint: str = MISSING
    out: str = MISSING


@dataclass
class RunsConfig:
    """Lists the runs below a folder: what each trains, how far it is, its loss and its size.

    A run is "going on" if it logged something within the last minute. "from" says which weights it
    started from, and how their sha256 sum begins.

    root               the folder
    """

    root: str = "runs"
