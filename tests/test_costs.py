"""Costs of big machines: FLOPs as PyTorch counts them, memory, and the arithmetic of hours."""

from __future__ import annotations

import dataclasses
import re

import costs
import pytest
import torch
from bench.training import random_batch
from counting import Step, activation_bytes, count_flops, count_step, encoding_flops
from omegaconf import OmegaConf

from jowa.cli import composed
from jowa.learning.config import PhaseConfig
from jowa.learning.loss_config import LossConfig
from jowa.learning.objective import Objective
from jowa.models.conv_tokenizer import ConvTokenizer, ConvTokenizerConfig
from jowa.models.flops import flops_per_token
from jowa.models.patch_tokenizer import PatchTokenizer, PatchTokenizerConfig
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import WorldActionConfig, WorldActionModel

# Attention by plain products, of which PyTorch counts each one.
SMALL = WorldActionConfig(
    transformer=TransformerConfig(layers=2, heads=2, width=64, dropout=0.0, attention="matmul"),
    **{"vocabulary": 300, "q_width": 96, "q_members": 2},
)


@pytest.mark.parametrize(
    "losses", [LossConfig(world_model=1.0), LossConfig(q=1.0), LossConfig(world_model=0.1, q=1.0)]
)
@pytest.mark.parametrize("length", [2, 8])
def test_flops_of_a_token_are_what_pytorch_counts(losses: LossConfig, length: int) -> None:
    objective = Objective(PatchTokenizer(PatchTokenizerConfig()), WorldActionModel(SMALL), losses)
    objective.freeze_unused()
    batch = random_batch(2, SMALL.vocabulary, length)
    counted = count_flops(lambda: objective.train()(batch).loss.backward())
    tokens = 2 * length * 37
    world, q = losses.world_model > 0, losses.q > 0
    computed = tokens * flops_per_token(SMALL, length, world=world, q=q)
    # Plain products in two halves compute a quarter too much, which the mask hides.
    hidden_quarter = tokens * 6 * (length * 37) * 64
    assert computed + hidden_quarter == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("reader", [0, 32])
def test_a_world_model_of_few_segments_costs_their_share(reader: int) -> None:
    config = dataclasses.replace(SMALL, reader_width=reader)
    tokenizer = PatchTokenizerConfig(vocabulary=SMALL.vocabulary)
    losses = LossConfig(world_model=1.0, q=1.0, world_one_in=4)

    def step(losses: LossConfig) -> Step:
        phase = PhaseConfig(steps=1, batch_size=8, losses=losses)
        return count_step(phase, tokenizer, config, 1, frames=False)

    q, all_of_it = step(LossConfig(q=1.0)), step(dataclasses.replace(losses, world_one_in=1))
    few = step(losses)
    assert few.flops - q.flops == pytest.approx((all_of_it.flops - q.flops) / 4)
    assert q.memory < few.memory < all_of_it.memory
    if reader:  # convolutions instead of 37 tokens a frame through the transformer
        assert q.flops < all_of_it.flops / 3


def test_convolutions_are_counted_and_linear_in_their_number() -> None:
    """One convolution by hand: 9 weights a pixel and pair of channels, and so on."""
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert count_flops(lambda: conv(torch.zeros(2, 3, 7, 7))) == 2 * 2 * 49 * 9 * 3 * 5
    tokenizers = [ConvTokenizer(ConvTokenizerConfig(channels=c, code_width=16)) for c in (4, 8)]
    small, large = (encoding_flops(tokenizer) for tokenizer in tokenizers)
    assert 3 < large / small < 4


def test_memory_is_that_of_what_is_kept_for_the_backward_pass() -> None:
    class Squares(Objective):
        """Keeps its input (B, 2, 36), as float32, and the sigmoid of it."""

        def forward(self, batch, counts=None, detailed=False):  # type: ignore[no-untyped-def]
            x = batch.observations.float().requires_grad_()
            return x.square().sigmoid().sum()

    toy = Squares(PatchTokenizer(PatchTokenizerConfig()), None, LossConfig(tokenizer=1.0))
    assert activation_bytes(toy, 30, 2) == 2 * (2 * 36 * 4)


def test_memory_and_work_are_shared_by_the_gpus() -> None:
    phase = PhaseConfig(steps=10, batch_size=64, losses=LossConfig(world_model=0.1, q=1.0))
    sizes = PatchTokenizerConfig(vocabulary=SMALL.vocabulary), SMALL
    one, four = (count_step(phase, *sizes, gpus, frames=False) for gpus in (1, 4))
    assert dataclasses.replace(one, memory=0.0) == dataclasses.replace(four, memory=0.0)
    assert one.exact_flops == 0.0 and one.tokens == 64 * 8 * 37
    segment = (one.memory - four.memory) / 48
    model, tokenizer = WorldActionModel(SMALL), PatchTokenizer(sizes[0])
    state = 18 * sum(p.numel() for p in model.parameters())
    state -= 14 * sum(p.numel() for p in model.target_q_head.parameters())
    state += 4 * sum(p.numel() for p in tokenizer.parameters())
    assert one.memory - 64 * segment == state


def test_hours_follow_from_the_arithmetic() -> None:
    machine = costs.Machine(gpus=2, tflops=100.0, utilisation=0.5)  # 1e14 FLOPs a second
    step = Step(segments=16, tokens=1000, flops=6e13, exact_flops=2e13, memory=5e9)
    # Encoding runs at half the rate: 0.6 s and 0.4 s a step.
    assert machine.seconds(step.flops, step.exact_flops) == pytest.approx(1.0)
    cells = costs.row("made-up", 7200, step, machine).split()
    # segments a GPU, MFLOP a token, TFLOP a step, steps and tokens a second, steps, hours, GB
    assert cells[1:] == ["8", "80000.0", "80", "1.0", "1,000", "7,200", "2.00", "5.0"]
    assert costs.row("short", 1, step, costs.Machine(800, 100.0, 0.5)).endswith(" *")


def test_conversion_costs_what_was_measured() -> None:
    config = OmegaConf.to_object(composed("convert dqn_replay", ["experiment=dqn_replay"]))
    for kept, seconds in (
        (993_491, 26.3),
        (100_403, 4.08),
    ):  # of one file, eval/results/convert.json
        config.games, config.transitions = ["Pong"], 100 * kept
        hours = 100 * seconds / 3600
        (line,) = [row for row in costs.recipe_costs("x", config) if "core-hours" in row]
        found = re.search(r"([\d.]+) core-hours, 100,000,000 rows", line)
        assert found and float(found[1]) == pytest.approx(hours, rel=0.1)


def test_a_whole_experiment_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    assert costs.main(["demo", "--tflops", "0.4", "model.q_members=2"]) == 0
    out = capsys.readouterr().out
    assert "4 games, 120,000 transitions" in out and "utilisation of 0.44" in out
    assert "Nothing here was run" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["stage2"][6] == "2,500"
    mflops, tokens = float(rows["stage2"][2]), 32 * 8 * 37
    hours = 2500 * mflops * 1e6 * tokens / (0.4e12 * 0.44) / 3600
    assert float(rows["stage2"][7]) == pytest.approx(hours, abs=0.01)
    assert {"tokenizer", "stage1", "finetune"} <= rows.keys()


def test_mistakes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert costs.main(["nothing", "--tflops", "1"]) == 2
    assert "there is no experiment 'nothing': use one of demo" in capsys.readouterr().err
    assert costs.main(["demo", "--tflops", "1", "model.widht=3"]) == 2
    assert "not an option of `jowa pretrain`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--gpus", "0"], "1 or more"),
        (["--tflops", "0"], "more than 0"),
        (["--utilisation", "45"], "a share"),
    ],
)
def test_machines_that_do_not_exist_are_refused(
    capsys: pytest.CaptureFixture[str], option: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        costs.main(["demo", "--tflops", "1", *option])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said and option[0] in said.splitlines()[-1]
