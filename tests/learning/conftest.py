"""What the tests of training share: phases, imagined data, and all commands run once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jowa.cli import main
from jowa.data.episodes import EpisodeFile
from jowa.data.loader import INLINE, Loading
from jowa.data.segments import Sampler, SegmentDataset
from jowa.learning.compute import Compute
from jowa.learning.config import PhaseConfig
from jowa.learning.distributed import Processes
from jowa.learning.imagination import Imagination, ImaginationConfig
from jowa.learning.loss_config import LossConfig
from jowa.learning.monitor import LogConfig
from jowa.learning.objective import Objective
from jowa.learning.optim import OptimizerConfig
from jowa.learning.trainer import Phase, Trainer

NANO = {"codebook_width": 4, "copy_previous": True, "reader_width": 8, "bell_start": 1.0}
FIRST = LossConfig(tokenizer=1.0, world_model=1.0)
SECOND = LossConfig(tokenizer=0.5, world_model=0.5, q=1.0, n_step=2)
EVERYTHING = LossConfig(tokenizer=1.0, world_model=0.5, q=1.0, n_step=2)
Maker = Callable[..., Any]


@pytest.fixture(scope="session")
def random_tokens(data: list[EpisodeFile]) -> list[np.ndarray]:
    """Tokens (N, 36) of every file of the data; no two frames are alike."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 24, (file.num_transitions, 36)) for file in data]


@pytest.fixture
def make_objective(make_tokenizer: Maker, make_model: Maker, data: list[EpisodeFile]) -> Maker:
    """A tokenizer with a codebook of patches it has seen, and a model with sharp opinions, against
    ends more than for them by `going`."""

    def make(losses: LossConfig = EVERYTHING, going: float = 1.0, patches: int = 6) -> Objective:
        tokenizer, model = make_tokenizer(patches_per_frame=patches), make_model(scale=5.0, **NANO)
        objective = Objective(tokenizer, model, losses)
        seen = SegmentDataset(data).batch(np.arange(0, 80, 5))
        only = LossConfig(tokenizer=1.0)
        with torch.no_grad():
            tokenizer.learn(Objective(tokenizer, None, only).train()(seen).statistics)
            model.end_head[-1].bias[0] += going
        model.set_codes(tokenizer)
        return objective.eval()

    return make


@pytest.fixture
def make_imagination(data: list[EpisodeFile], random_tokens: list[np.ndarray]) -> Maker:
    """Imagination of the data's frames or of random tokens."""

    def make(
        frames: bool = True,
        pad: Any = "right",
        rank: int = 0,
        size: int = 1,
        segments: int = 8,
        batch: int = 4,
        **options: Any,
    ) -> Imagination:
        tokens = None if frames else random_tokens
        dataset = SegmentDataset(data, tokens, pad=pad)
        rest = Sampler(dataset, batch * size, seed=9, rank=rank, world_size=size)
        config = ImaginationConfig(share=0.5, segments=segments, **options)
        return Imagination(config, dataset, rest, 3, Processes(rank, size))

    return make


@pytest.fixture
def phase_config() -> Maker:
    """A phase of seven steps that trains everything, with imagined data as given."""

    def make(**imagination: Any) -> PhaseConfig:
        return PhaseConfig(
            steps=7,
            batch_size=6,
            reward_fraction=0.25,
            target_update_every=2,
            optimizer=OptimizerConfig(3e-3, 3e-3, warmup=3),
            losses=EVERYTHING,
            imagination=ImaginationConfig(**imagination),
        )

    return make


@pytest.fixture
def two_phases(
    data: list[EpisodeFile], make_tokenizer: Callable[..., Any], make_model: Callable[..., Any]
) -> Maker:
    """Trains two phases of seven steps in a run directory, as the commands do."""
    dataset = SegmentDataset(data)

    def run(
        path: Path,
        at_step: Callable[[int], None] = lambda step: None,
        checkpoint: int = 3,
        scalars: int = 1,
        loading: Loading = INLINE,
        second: LossConfig = SECOND,
        **keeping: Any,
    ) -> Trainer:
        tokenizer, model = make_tokenizer(patches_per_frame=6), make_model(**NANO)
        trainer: Trainer

        def pictures() -> dict[str, np.ndarray]:
            at_step(trainer.position.step)
            return {"grey": np.zeros((8, 8), dtype=np.uint8)}

        often = {"scalars": scalars, "details": 2 * scalars, "pictures": 1}
        log = LogConfig(**often, checkpoint=checkpoint, **{"keep": 2, **keeping})
        path.mkdir(exist_ok=True)
        compute = Compute(torch.device("cpu"), torch.float32)
        trainer = Trainer(
            path, tokenizer, model, compute, log, {"games": []}, 1, pictures, loading=loading
        )
        for name, losses in (("first", FIRST), ("second", second)):
            if not trainer.finished(name):
                sampler = Sampler(dataset, 4, seed=0, reward_fraction=0.25)
                optimizer = OptimizerConfig(3e-3, 3e-3, warmup=3, decay="cosine")
                objective = Objective(tokenizer, model, losses)
                trainer.train(Phase(name, 7, objective, dataset, sampler, optimizer, 2))
        return trainer

    return run


CPU = ["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"]
LOG = ["log.scalars=1", "log.details=2", "log.pictures=4", "log.checkpoint=3"]
TOKENIZER = [
    "tokenizer.vocabulary=64",
    "tokenizer.code_width=8",
    "tokenizer.hidden=16",
    "tokenizer.patches_per_frame=4",
]
MODEL = [
    "model.vocabulary=64",
    "model.codebook_width=8",
    "model.q_width=16",
    "model.transformer.layers=1",
    "model.transformer.width=16",
]
PLAY = ["episodes=1", "envs_per_game=1", "max_frames=40"]
STAGES = ["stage1.steps=4", "stage1.batch_size=4", "stage2.steps=6", "stage2.batch_size=4"]


@dataclass
class Pipeline:
    """Folders of one run of everything, and the commands that made them."""

    root: Path
    data: Path
    commands: dict[str, list[str]]

    def __call__(self, name: str) -> int:
        return main(self.commands[name])

    def __getitem__(self, name: str) -> Path:
        return self.root / name

    def changed(self, name: str, **options: str) -> list[str]:
        """The command with some options set anew."""
        kept = [part for part in self.commands[name] if part.partition("=")[0] not in options]
        return [*kept, *(f"{key}={value}" for key, value in options.items())]

    def files(self) -> dict[Path, int]:
        found = [*self.root.rglob("*"), *self.data.rglob("*")]
        return {p: p.stat().st_mtime_ns for p in found if p.is_file()}


def recipes(root: Path, data: Path) -> dict[str, list[str]]:
    games = ["data.games=[Pong,Freeway]", f"data.root={data}"]
    held_out = ["game=Breakout", f"root={data}", f"checkpoint={root}/pretrain"]
    train = ["training.steps=4", "training.batch_size=4"]
    scores = f"out={root}/scores.json"
    return {
        "tokenize": ["tokenize", f"run={root}/tokenize", *games, *train, *TOKENIZER, *LOG, *CPU],
        "pretrain": [
            *["pretrain", f"run={root}/pretrain", f"tokenizer_from={root}/tokenize"],
            *[*games, *TOKENIZER, *MODEL, *STAGES, *LOG, *CPU],
        ],
        "greedy": [
            *["evaluate", f"checkpoint={root}/pretrain", scores, "label=greedy"],
            *["planner=greedy", f"data_root={data}", *PLAY, *CPU],
        ],
        "beam": [
            *["evaluate", f"checkpoint={root}/pretrain", scores, "label=beam", "games=[Freeway]"],
            *["planner=beam", "baselines=false", *PLAY, *CPU],
        ],
        "finetune": [
            *["finetune", f"run={root}/finetune", "like=Pong", *held_out, *train, *LOG, *CPU]
        ],
        "scratch": [
            *["finetune", f"run={root}/scratch", "from_scratch=true", "seed=5"],
            *[*held_out, *train, *LOG, *CPU],
        ],
        "finetuned": [
            *["evaluate", f"checkpoint={root}/finetune", f"out={root}/held_out.json"],
            *["label=fine-tuned", "games=[Breakout]", "planner=greedy", *PLAY, *CPU],
        ],
        "scratched": [
            *["evaluate", f"checkpoint={root}/scratch", f"out={root}/held_out.json"],
            *["label=scratch", "planner=greedy", *PLAY, *CPU],
        ],
        "watch": [
            *["watch", f"checkpoint={root}/finetune", "game=Breakout", f"out={root}/film.mp4"],
            *["max_steps=6", *CPU],
        ],
        "report": [
            *["report", f"out={root}/report", f"scores=[{root}/scores.json,{root}/held_out.json]"],
            *[f"runs=[{root}/pretrain,{root}/finetune]", f"film={root}/film.mp4"],
            'compare=["scratch|fine-tuned"]',
        ],
    }


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Pipeline:
    """Everything done once, from tokenizer to report; tests leave it as it is."""
    root = tmp_path_factory.mktemp("pipeline")
    # As users give it, the data lies where it was collected and the tokens beside it.
    data = root / "data"
    shutil.copytree(data_root, data, ignore=shutil.ignore_patterns("tokens"))
    pipeline = Pipeline(root, data, recipes(root, data))
    for name in pipeline.commands:
        assert pipeline(name) == 0, name
    return pipeline
