"""The published algorithm's numbers at a tiny size, reproduced (fixtures/CONFORMANCE.md)."""

from __future__ import annotations

import json
from pathlib import Path

import conformance
import pytest
import torch
import yaml
from conformance import CASES, Fixtures, PlanRow, Row

from jowa.cli import composed
from jowa.games import GAMES
from jowa.models.conv_tokenizer import ConvTokenizer
from jowa.models.world_action import WorldActionModel

ROOT = Path(__file__).parents[1]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16]
# Relative errors allowed: activations (of the largest element, in units of the root mean square),
# losses, gradient norms. Those measured are in eval/results/conformance_*.json.
BOUNDS = {
    torch.float32: {"forward": 2e-5, "loss": 1e-5, "gradient": 1e-5},
    torch.bfloat16: {"forward": 0.1, "loss": 5e-3, "gradient": 1e-2},
}


@pytest.fixture(params=[(device, dtype) for device in DEVICES for dtype in DTYPES], ids=str)
def fixtures(request: pytest.FixtureRequest) -> Fixtures:
    return Fixtures(*request.param)


def check(rows: list[Row], fixtures: Fixtures) -> None:
    bounds = BOUNDS[fixtures.dtype]
    for row in rows:
        kind = "gradient" if row.name.startswith("gradient") else "loss"
        bound = bounds["forward" if row.part == "forward" else kind]
        assert row.error <= bound, f"{row} is beyond {bound}"


def test_forward_of_every_head(fixtures: Fixtures) -> None:
    rows = list(conformance.forward(fixtures))
    assert len(rows) == 6
    check(rows, fixtures)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(fixtures: Fixtures, case: str) -> None:
    rows = list(conformance.losses(fixtures, case))
    assert len(rows) >= 6
    check(rows, fixtures)


def test_tokenizer_and_its_losses(fixtures: Fixtures) -> None:
    """Tokens and frames are computed in float32 whatever the ambient precision."""
    rows = {row.name: row.error for row in conformance.tokenizer(fixtures)}
    exact = fixtures.device.type == "cpu"
    # cuDNN's convolutions may differ in the last bits, and a near tie of codes with them.
    assert rows["tokens that differ"] <= (0.0 if exact else 0.01)
    assert rows["reconstruction"] <= (2e-5 if exact else 1e-2)
    ambient = exact and fixtures.dtype == torch.float32
    assert rows["z"] <= (2e-5 if ambient else 0.1)
    assert rows["reconstruction_loss"] <= (1e-5 if ambient else 0.02)
    assert rows["commitment_loss"] <= (1e-5 if ambient else 0.02)


@pytest.mark.parametrize("decode", ["auto", "static"])
def test_plans(fixtures: Fixtures, decode: str) -> None:
    rows: list[PlanRow] = conformance.plans(fixtures, decode)
    assert len(rows) == 40
    if fixtures.dtype == torch.float32:
        assert all(row.score_error <= 1e-3 for row in rows)
        assert all(row.same_action for row in rows if row.margin >= 1e-3)
    else:
        # These weights are random: their imagined tokens are near ties, which rounding decides.
        assert sum(row.same_action for row in rows) >= 25


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("jowa_40m", 19_109_681), ("jowa_70m", 53_349_681), ("jowa_150m", 127_778_185)],
)
def test_published_sizes(size: str, parameters: int) -> None:
    """The configurations build exactly the published models (target head included)."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(
        composed("pretrain", ["experiment=published", f"model={size}", "run=x"])
    )
    with torch.device("meta"):
        model = WorldActionModel(config.model)
        tokenizer = ConvTokenizer(config.tokenizer)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in tokenizer.parameters()) == 4_047_489
    assert model.config.vocabulary == tokenizer.vocabulary == 2048


def test_published_planner_settings_are_those_published() -> None:
    published = json.loads((ROOT / "eval/published/episodes.json").read_text())["models"]
    ours = yaml.safe_load((ROOT / "configs/planner/published.yaml").read_text())["per_game"]
    for size, games in published.items():
        for game, facts in games.items():
            assert game in GAMES
            (context,) = facts["context_frames"]
            assert ours[size.lower()][game] == [context, facts["beam_width"], facts["horizon"]]
    assert {size.lower(): set(games) for size, games in published.items()} == {
        size: set(games) for size, games in ours.items()
    }
