"""What the tests of imagined data share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from jowa.data.episodes import EpisodeFile
from jowa.data.segments import Sampler, SegmentDataset
from jowa.learning.config import PhaseConfig
from jowa.learning.distributed import Processes
from jowa.learning.imagination import Imagination, ImaginationConfig
from jowa.learning.objective import LossConfig, Objective
from jowa.learning.optim import OptimizerConfig

NANO = {"codebook_width": 4, "copy_previous": True, "summary_width": 8, "bell_start": 1.0}
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
        model.set_codebook(tokenizer.codebook)
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
