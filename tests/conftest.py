"""Small real data, small random models and batches that many tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jowa.cli import main
from jowa.collecting.behaviours import Tier
from jowa.collecting.collect import collect
from jowa.data.episodes import EpisodeFile
from jowa.data.segments import Batch
from jowa.data.store import open_store
from jowa.games import get
from jowa.models.patch_tokenizer import PatchTokenizer, PatchTokenizerConfig
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import WorldActionConfig, WorldActionModel

VOCABULARY = 24
CODE_WIDTH = 4
ModelMaker = Callable[..., WorldActionModel]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """In every test: commands that ran in the one before may have taken all cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred real transitions of Pong, Freeway and Breakout (which tests hold out)."""
    root = tmp_path_factory.mktemp("data")
    collect(
        ["Pong", "Freeway", "Breakout"],
        root,
        transitions=300,
        tiers=[Tier("good", "scripted", 1.0, epsilon=0.1)],
        short_episode_steps=30,
        short_share=0.5,
        max_frames=400,
        seed=0,
        workers=1,
    )
    return root


@pytest.fixture(scope="session")
def data(data_root: Path) -> list[EpisodeFile]:
    """Pong and Freeway, frames in memory."""
    files = open_store(data_root, ["Pong", "Freeway"])
    for file in files:
        file.cache()
    return files


@pytest.fixture(scope="session")
def make_model() -> ModelMaker:
    """Random models in evaluation mode; `scale` sharpens what they predict."""

    def make(
        seed: int = 0, scale: float = 1.0, dropout: float = 0.1, **options: Any
    ) -> WorldActionModel:
        torch.manual_seed(seed)
        width, attention = options.pop("width", 16), options.pop("attention", "sdpa")
        sizes = TransformerConfig(
            layers=2, heads=2, width=width, dropout=dropout, attention=attention
        )
        options = {"vocabulary": VOCABULARY, "q_width": 16, "q_members": 2, "atoms": 11} | options
        model = WorldActionModel(WorldActionConfig(sizes, **options))
        for name in ("codebook", "pictures"):
            if hasattr(model, name):
                getattr(model, name).normal_()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # The reader starts at full scale, the rest at a fiftieth of it; so that what it
                # reads decides anything beside sharp opinions, only its last map grows.
                if name == "reader.out.weight":
                    parameter.mul_(3.0 * scale)
                elif not any(word in name for word in ("norm", "ln", "reader")):
                    parameter.mul_(scale)
        return model.eval()

    return make


@pytest.fixture
def make_tokenizer(data: list[EpisodeFile]) -> Callable[..., PatchTokenizer]:
    """Untrained tokenizers that know the backgrounds of the data's games."""

    def make(seed: int = 0, **options: Any) -> PatchTokenizer:
        torch.manual_seed(seed)
        sizes = {"vocabulary": VOCABULARY, "code_width": CODE_WIDTH, "hidden": 16}
        tokenizer = PatchTokenizer(PatchTokenizerConfig(**{**sizes, **options}))
        for file in data:
            frames = file.frames(np.arange(0, file.num_transitions, 3))
            median = np.median(frames, axis=0).astype(np.uint8)
            tokenizer.set_background(file.game.id, torch.from_numpy(median))
        return tokenizer

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Random token segments; row b holds `real[b]` real steps and then padding."""

    def make(real: list[int], length: int = 8, seed: int = 0) -> Batch:
        torch.manual_seed(seed)
        B, L = len(real), length
        mask = torch.arange(L) < torch.tensor(real).unsqueeze(1)
        last = torch.arange(L) == torch.tensor(real).unsqueeze(1) - 1
        ids = [get("Pong").id, get("Freeway").id]
        return Batch(
            observations=torch.randint(0, VOCABULARY, (B, L, 36)) * mask.unsqueeze(-1),
            actions=torch.randint(0, 18, (B, L)) * mask,
            rewards=torch.randint(-1, 2, (B, L)).float() * mask,
            ends=last & (torch.arange(B) % 2 == 0).unsqueeze(1),
            mask_padding=mask,
            games=torch.tensor([ids[b % 2] for b in range(B)]),
            imagined=torch.zeros(B, L, dtype=torch.bool),
            keys=torch.arange(B),
        )

    return make


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """The one line on stderr of a command that must fail with exit code 2."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("jowa: error: ") and "Traceback" not in lines[0]
        return lines[0]

    return run
