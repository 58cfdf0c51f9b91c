"""A checkpoint of random weights that plays Boxing and Alien in lively ways."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jowa.envs import AtariVector
from jowa.games import get
from jowa.learning.checkpoint import Checkpoint, save
from jowa.models.patch_tokenizer import PatchTokenizer, PatchTokenizerConfig
from jowa.models.tokenizers import to_state

GAMES = ("Boxing", "Alien")  # both score early
SIZES = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}


@pytest.fixture(scope="session")
def make_run(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any]
) -> Callable[..., Path]:
    """Saves a run directory of the given tensor files; returns it."""

    def make(*stems: str, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        tokenizer = PatchTokenizer(PatchTokenizerConfig(vocabulary=24, code_width=4, hidden=16))
        for name in GAMES:
            env = AtariVector(get(name), 1)
            tokenizer.set_background(get(name).id, torch.from_numpy(env.reset(np.array([1]))[0]))
            env.close()
        model = make_model(seed=seed, scale=10.0, **SIZES)
        model.set_codes(tokenizer)
        modules = {"model": model, "tokenizer": tokenizer}
        state = {
            "model": dataclasses.asdict(model.config),
            "tokenizer": to_state(tokenizer.config),
            "games": list(GAMES),
        }
        tensors = {stem: modules[stem].state_dict() for stem in stems or modules}
        run = tmp_path_factory.mktemp("run")
        save(run, Checkpoint(1, state, tensors), keep=1)
        return run

    return make


@pytest.fixture
def write_log() -> Callable[..., Path]:
    """Writes a training log of JSON lines."""

    def write(path: Path, entries: list[dict[str, Any]]) -> Path:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return path

    return write
