"""The published algorithm's numbers at a tiny size, reproduced (fixtures/CONFORMANCE.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jowa.data.segments import Batch
from jowa.games import GAMES
from jowa.learning.objective import LossConfig, Objective
from jowa.models.patch_tokenizer import PatchTokenizer, PatchTokenizerConfig
from jowa.models.released import infer_config, translate
from jowa.models.world_action import WorldActionModel
from jowa.planning.beam import plan

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
TENSORS = load_file(FIXTURES / "tensors.safetensors")


@pytest.fixture
def model() -> WorldActionModel:
    state = translate(torch.load(FIXTURES / "JOWA_tiny.pt", weights_only=True))
    model = WorldActionModel(infer_config(state, EXPECTED["transformer"]["num_heads"]))
    model.load_state_dict(state)
    return model.eval()


def close(actual: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(actual, TENSORS[name], rtol=1e-4, atol=1e-5)


def test_forward_of_every_head(model: WorldActionModel) -> None:
    with torch.no_grad():
        output = model(TENSORS["fwd.obs_tokens"], TENSORS["fwd.actions"], TENSORS["fwd.tasks"])
    close(output.hidden, "fwd.hidden")
    close(output.observation_logits, "fwd.logits_observations")
    close(output.reward_logits, "fwd.logits_rewards")
    close(output.end_logits, "fwd.logits_ends")
    close(output.q_logits, "fwd.logits_q")
    close(output.target_q_logits, "fwd.logits_q_target")


def loss_batch() -> Batch:
    return Batch(
        observations=TENSORS["loss.observations"],
        actions=TENSORS["loss.actions"],
        rewards=TENSORS["loss.rewards"],
        ends=TENSORS["loss.ends"].bool(),
        mask_padding=TENSORS["loss.mask_padding"],
        games=TENSORS["loss.envs"],
    )


CASES = {
    "world_model_only": LossConfig(world_model=1.0),
    "c51_cql": LossConfig(world_model=0.1, q=1.0, cql_weight=0.1),
    "c51_none": LossConfig(world_model=0.1, q=1.0, cql_weight=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(model: WorldActionModel, case: str) -> None:
    expected, config = EXPECTED["losses"][case], CASES[case]
    tokenizer = PatchTokenizer(PatchTokenizerConfig(vocabulary=48))
    total, metrics = Objective(tokenizer, model, config)(loss_batch())
    weight = config.world_model
    assert weight * float(metrics["world_model/observation"]) == pytest.approx(
        expected["losses"]["loss_obs"], rel=1e-4
    )
    assert weight * float(metrics["world_model/reward"]) == pytest.approx(
        expected["losses"]["loss_rewards"], rel=1e-4
    )
    assert weight * float(metrics["world_model/end"]) == pytest.approx(
        expected["losses"]["loss_ends"], rel=1e-4
    )
    if config.q:
        assert float(metrics["q/td"]) == pytest.approx(
            expected["losses"]["loss_td_error"], rel=1e-4
        )
        if config.cql_weight:
            assert float(metrics["q/cql"]) == pytest.approx(
                expected["losses"]["loss_cql_penalty"], rel=1e-4
            )
    assert float(total.detach()) == pytest.approx(expected["total"], rel=1e-4)
    total.backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(expected["grad_norm_all"], rel=1e-4)
    if "head_q.head_module.params.0" in expected["grad_norm"]:
        assert float(model.q_head.linear1.weight.grad.norm()) == pytest.approx(
            expected["grad_norm"]["head_q.head_module.params.0"], rel=1e-4
        )
    width = EXPECTED["transformer"]["embed_dim"]
    query = model.transformer.blocks[0].attention.qkv.weight.grad[:width]
    assert float(query.norm()) == pytest.approx(
        expected["grad_norm"]["transformer.blocks.0.attn.query.weight"], rel=1e-4
    )


@pytest.mark.parametrize("number", range(len(EXPECTED["plans"])))
def test_plans(model: WorldActionModel, number: int) -> None:
    case = EXPECTED["plans"][number]
    game = case["game"]
    game_id = game if isinstance(game, int) else GAMES[game].id
    blocks = torch.nn.functional.pad(TENSORS[f"plan.{number:02d}.tokens"].flatten(), (0, 1))
    blocks = blocks.view(1, -1, 37)
    chosen = plan(
        model,
        blocks[..., :36],
        blocks[:, :-1, 36],
        torch.tensor([game_id]),
        case["beam_width"],
        case["horizon"],
        EXPECTED["training"]["gamma"],
    )
    assert float(chosen.scores[0]) == pytest.approx(case["score"], abs=1e-3)
    if case["decision_margin"] is None or case["decision_margin"] >= 1e-3:
        assert int(chosen.actions[0]) == case["action"]
