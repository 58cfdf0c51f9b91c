"""How closely this implementation reproduces the published algorithm's numbers.

Every head, loss, gradient norm, plan and the tokenizer on the fixtures of tests/fixtures, as a
table of errors: `python scripts/bench/conformance.py [--device cuda] [--dtype bfloat16]`. The
tests assert bounds on the same rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

import jowa
from jowa.data.segments import Batch
from jowa.games import GAMES
from jowa.learning.loss_config import LossConfig
from jowa.learning.objective import Objective
from jowa.models.conv_tokenizer import ConvTokenizer
from jowa.models.released import released_names
from jowa.models.world_action import WorldActionModel
from jowa.planning.decode import Decoder

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
CASES = {
    "world_model_only": LossConfig(world_model=1.0),
    "c51_cql": LossConfig(world_model=0.1, q=1.0),
    "c51_none": LossConfig(world_model=0.1, q=1.0, penalty="none"),
    "c51_cql_detached_backbone": LossConfig(world_model=0.1, q=1.0, detach_q=True),
    "mse_cql": LossConfig(world_model=0.1, q=1.0),
}
# In the squared-error case the published code weighs the ensemble's members by the penalty's
# weight instead of averaging them; this is the penalty as the paper defines it.
PENALTY_BY_THE_PAPER = 0.28950533
SLIPPED = "mse_cql"


class Row(NamedTuple):
    """One number compared: `error` is relative for activations, losses and gradients."""

    part: str
    name: str
    error: float


class Fixtures:
    """The published numbers, and our networks with the published weights."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.expected: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())
        self.tensors = load_file(FIXTURES / "tensors.safetensors", device=device)
        heads = self.expected["transformer"]["num_heads"]
        paths = FIXTURES / "JOWA_tiny.pt", FIXTURES / "tokenizer.pt"
        tokenizer, model = jowa.load_released(*paths, num_heads=heads)
        assert isinstance(tokenizer, ConvTokenizer)
        self.tokenizer, self.model = tokenizer.to(device), model.to(device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def squared_error_model(self) -> WorldActionModel:
        """The same backbone with Q heads that give expected returns."""
        sizes = dataclasses.replace(self.model.config, distributional=False)
        model = WorldActionModel(sizes).to(self.device)
        state = self.model.state_dict()
        for name in state:
            if name.startswith(("q_head", "target_q_head")):
                (released,) = released_names(name.removeprefix("target_"))
                state[name] = self.tensors[f"mse.{released}"]
        model.load_state_dict(state)
        return model.eval()

    def loss_batch(self) -> Batch:
        names = ("observations", "actions", "rewards", "ends", "mask_padding", "envs")
        observations, actions, rewards, ends, mask, games = (
            self.tensors[f"loss.{name}"] for name in names
        )
        nowhere = torch.zeros_like(mask)
        keys = torch.arange(len(mask), device=self.device)
        return Batch(observations, actions, rewards, ends.bool(), mask, games, nowhere, keys)


def forward(fixtures: Fixtures) -> Iterator[Row]:
    """The largest error of each head, in units of the head's root mean square."""
    inputs = [fixtures.tensors[f"fwd.{name}"] for name in ("obs_tokens", "actions", "tasks")]
    with torch.no_grad(), fixtures.autocast():
        output = fixtures.model(*inputs)
        hidden = fixtures.model.activations(*inputs).flatten(1, 2)
    yield Row("forward", "hidden", distance(hidden, fixtures.tensors["fwd.hidden"]))
    for field, name in (
        ("observation_logits", "logits_observations"),
        ("reward_logits", "logits_rewards"),
        ("end_logits", "logits_ends"),
        ("q_logits", "logits_q"),
        ("target_q_logits", "logits_q_target"),
    ):
        error = distance(getattr(output, field), fixtures.tensors[f"fwd.{name}"])
        yield Row("forward", field, error)


def tokenizer(fixtures: Fixtures) -> Iterator[Row]:
    """Share of tokens that differ, and the errors of activations and losses."""
    images, net = fixtures.tensors["tok.images"], fixtures.tokenizer
    batch, games = images[:, 0].unsqueeze(1), torch.zeros(len(images), dtype=torch.long)
    keys = torch.arange(len(images), device=fixtures.device)
    with torch.no_grad(), fixtures.autocast():
        tokens, z = net.encode(images), net.embed(images)
        decoded = net.decode(fixtures.tensors["tok.tokens"])
        mask = torch.ones(batch.shape[:2], dtype=torch.bool, device=fixtures.device)
        _, terms, _ = net.eval().loss(batch, games.to(fixtures.device), mask, keys)
    differ = (tokens != fixtures.tensors["tok.tokens"]).float().mean()
    yield Row("tokenizer", "tokens that differ", float(differ))
    yield Row("tokenizer", "z", distance(z, fixtures.tensors["tok.z"]))
    reconstruction = fixtures.tensors["tok.reconstruction"]
    yield Row("tokenizer", "reconstruction", distance(decoded, reconstruction))
    expected = fixtures.expected["tokenizer_loss"]
    loss = float(terms["tokenizer/reconstruction"])
    yield Row("tokenizer", "reconstruction_loss", relative(loss, expected["reconstruction_loss"]))
    # The published number is the codebook's term and the commitment together; they are equal.
    loss = 2.0 * float(terms["tokenizer/commitment"])
    yield Row("tokenizer", "commitment_loss", relative(loss, expected["commitment_loss"]))


def losses(fixtures: Fixtures, case: str) -> Iterator[Row]:
    """Every term, the sum and the gradient norms of one case."""
    model = fixtures.squared_error_model() if case == SLIPPED else fixtures.model
    model.zero_grad()
    objective = Objective(fixtures.tokenizer, model, CASES[case])
    with fixtures.autocast():
        total, metrics, _ = objective(fixtures.loss_batch())
    total.backward()
    weight, expected = CASES[case].world_model, fixtures.expected["losses"][case]
    published = dict(expected["losses"])
    if case == SLIPPED:
        published["loss_cql_penalty"] = PENALTY_BY_THE_PAPER
    ours = {
        "loss_obs": weight * metrics["world_model/observation"],
        "loss_rewards": weight * metrics["world_model/reward"],
        "loss_ends": weight * metrics["world_model/end"],
        "loss_td_error": metrics.get("q/td"),
        "loss_cql_penalty": metrics.get("q/cql"),
    }
    assert {name for name, value in ours.items() if value is not None} == set(published)
    for name, value in published.items():
        yield Row(case, name, relative(float(ours[name]), value))
    yield Row(case, "sum", relative(float(total.detach()), sum(published.values())))
    if case == SLIPPED:
        return  # its gradients hold the slip too
    for name, value in expected["grad_norm"].items():
        yield Row(case, f"gradient of {name}", relative(gradient_norm(model, name), value))
    norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    yield Row(case, "gradient of all", relative(float(norms.norm()), expected["grad_norm_all"]))


def gradient_norm(model: WorldActionModel, released: str) -> float:
    """The gradient's norm of a released tensor, which may be a slice of one of ours."""
    for name, parameter in model.named_parameters():
        parts = released_names(name)
        if released in parts:
            assert parameter.grad is not None
            return float(parameter.grad.chunk(len(parts))[parts.index(released)].norm())
    raise AssertionError(f"{released} is none of the model's parameters")


class PlanRow(NamedTuple):
    """One plan: how far its score is off, whether it chose the published action, how close the
    published decision was."""

    score_error: float
    same_action: bool
    margin: float


def plans(fixtures: Fixtures, decode: str = "auto") -> list[PlanRow]:
    rows, decoder = [], Decoder(decode)
    for number, case in enumerate(fixtures.expected["plans"]):
        flat = fixtures.tensors[f"plan.{number:02d}.tokens"].flatten()
        blocks = torch.nn.functional.pad(flat, (0, 1)).view(1, -1, 37)
        game = case["game"] if isinstance(case["game"], int) else GAMES[case["game"]].id
        with fixtures.autocast():
            chosen = jowa.plan(
                fixtures.model,
                blocks[..., :36],
                blocks[:, :-1, 36],
                torch.tensor([game], device=fixtures.device),
                case["beam_width"],
                case["horizon"],
                fixtures.expected["training"]["gamma"],
                decoder=decoder,
            )
        margin = case["decision_margin"]
        rows.append(
            PlanRow(
                abs(float(chosen.scores[0]) - case["score"]),
                int(chosen.actions[0]) == case["action"],
                float("inf") if margin is None else margin,
            )
        )
    return rows


def distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the root mean square of what is expected."""
    assert actual.shape == expected.shape
    difference = (actual.float() - expected).abs().max()
    return float(difference / expected.square().mean().sqrt())


def relative(actual: float, expected: float) -> float:
    return abs(actual - expected) / abs(expected)


def agreement(fixtures: Fixtures) -> list[Row]:
    """All rows but the plans."""
    rows = [*forward(fixtures), *tokenizer(fixtures)]
    for case in CASES:
        rows += losses(fixtures, case)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="also write the rows here as JSON")
    options = parser.parse_args()
    fixtures = Fixtures(options.device, getattr(torch, options.dtype))
    rows, planned = agreement(fixtures), plans(fixtures)
    for row in rows:
        print(f"{row.part:<26} {row.name:<58} {row.error:.1e}")
    clear = [row for row in planned if row.margin >= 1e-3]
    worst = max(row.score_error for row in planned)
    same, same_clear = (sum(row.same_action for row in part) for part in (planned, clear))
    print(f"{'plans':<26} {'largest error of a score':<58} {worst:.1e}")
    print(f"plans: {same} of {len(planned)} actions as published", end="")
    print(f", {same_clear} of the {len(clear)} whose margin is 0.001 or more")
    if options.out:
        data = {
            "command": " ".join(["python", *sys.argv]),
            "device": options.device,
            "dtype": options.dtype,
            "torch": torch.__version__,
            "errors": [row._asdict() for row in rows],
            "plans": {"same": same, "of": len(planned), "largest_score_error": worst},
        }
        options.out.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
