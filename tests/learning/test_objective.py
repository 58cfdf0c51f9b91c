"""Objectives of the phases: where gradients reach, what padding may not do, what is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from jowa.data.episodes import EpisodeFile
from jowa.data.segments import Batch, SegmentDataset
from jowa.learning.accuracy import world_model_accuracy
from jowa.learning.loss_config import LossConfig
from jowa.learning.objective import Objective
from jowa.models.patch_tokenizer import PatchTokenizer
from jowa.models.world_action import WorldActionModel

NANO = {"codebook_width": 4, "copy_previous": True, "reader_width": 8, "bell_start": 1.0}
STAGE1 = LossConfig(tokenizer=1.0, world_model=1.0)
STAGE2 = LossConfig(world_model=0.1, q=1.0, n_step=3)
TokenizerMaker = Callable[..., PatchTokenizer]
ModelMaker = Callable[..., WorldActionModel]


def reached(module: nn.Module) -> dict[str, bool]:
    """Whether each parameter got a gradient that is not zero."""
    return {
        name: p.grad is not None and bool(p.grad.abs().sum() > 0)
        for name, p in module.named_parameters()
    }


def frames(data: list[EpisodeFile]) -> Batch:
    dataset = SegmentDataset(data)
    chosen = torch.linspace(0, dataset.num_segments - 1, 4).long()
    return dataset.batch(chosen.numpy())


def test_stage1_trains_tokenizer_and_world_model_but_not_q(
    data: list[EpisodeFile], make_tokenizer: TokenizerMaker, make_model: ModelMaker
) -> None:
    tokenizer, model = make_tokenizer(), make_model(**NANO)
    objective = Objective(tokenizer, model, STAGE1).train()
    batch = frames(data)
    tokenizer.learn(objective(batch).statistics)  # fills the codebook
    objective(batch)[0].backward()
    assert all(reached(tokenizer).values())
    for name, got in reached(model).items():
        assert got == (not name.startswith(("q_head", "target_q_head", "reader"))), name


@pytest.mark.parametrize("options", [NANO, {**NANO, "reader_width": 0}])
def test_stage2_flows_from_q_alone_into_what_it_reads_and_not_into_the_tokenizer(
    make_batch: Callable[..., Batch],
    make_tokenizer: TokenizerMaker,
    make_model: ModelMaker,
    options: dict[str, object],
) -> None:
    tokenizer, model = make_tokenizer(), make_model(**options)
    objective = Objective(tokenizer, model, dataclasses.replace(STAGE2, world_model=0.0))
    before = tokenizer.fingerprint()
    objective.train()(make_batch([8, 8, 3, 8]))[0].backward()
    got = reached(model)
    for name, flowed in got.items():
        world = name.startswith(("observation_head", "reward_head", "end_head", "copy_gate"))
        reads = name.startswith(("q_head", "reader")) if model.has_reader else not world
        assert flowed == (reads and "target" not in name), name
    assert not any(reached(tokenizer).values())
    assert tokenizer.fingerprint() == before


def test_finetuning_reaches_everything(
    data: list[EpisodeFile], make_tokenizer: TokenizerMaker, make_model: ModelMaker
) -> None:
    tokenizer, model = make_tokenizer(), make_model(**NANO)
    config = LossConfig(tokenizer=1.0, world_model=0.5, q=1.0)
    objective = Objective(tokenizer, model, config).train()
    batch = frames(data)
    tokenizer.learn(objective(batch).statistics)
    model.set_codes(tokenizer)
    objective(batch)[0].backward()
    assert all(reached(tokenizer).values())
    assert all(got for name, got in reached(model).items() if "target" not in name)


@pytest.mark.parametrize("options", [{}, NANO])
def test_the_world_model_learns_from_one_segment_in_so_many(
    make_batch: Callable[..., Batch],
    make_tokenizer: TokenizerMaker,
    make_model: ModelMaker,
    options: dict[str, object],
) -> None:
    """Those with the least keys, so that processes together choose what one alone would."""
    model = make_model(dropout=0.0, **options)
    keys = torch.tensor([5, 3, 9, 7, 2, 8, 6, 4])
    batch = dataclasses.replace(make_batch([8, 5, 3, 8, 8, 2, 7, 1]), keys=keys)
    config = LossConfig(world_model=1.0)
    every = Objective(make_tokenizer(), model, config).train()
    few = Objective(make_tokenizer(), model, dataclasses.replace(config, world_one_in=4)).train()
    chosen = batch.select(torch.tensor([1, 4]))
    expected = every(chosen).loss
    torch.testing.assert_close(few(batch).loss, expected)
    halves = [batch.select(slice(0, 4)), batch.select(slice(4, 8))]
    counts = torch.stack([few.counts(half) for half in halves]).mean(0)
    together = torch.stack([few(half, counts).loss for half in halves]).mean()
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(few.eval()(batch).loss, every.eval()(batch).loss)


@pytest.mark.parametrize("options", [{}, NANO])
def test_padding_content_changes_neither_loss_nor_gradients(
    make_batch: Callable[..., Batch],
    make_tokenizer: TokenizerMaker,
    make_model: ModelMaker,
    options: dict[str, object],
) -> None:
    clean = make_batch([8, 5, 1, 2])
    pad = ~clean.mask_padding
    junk = dataclasses.replace(
        clean,
        observations=clean.observations.masked_fill(pad.unsqueeze(-1), 17),
        actions=clean.actions.masked_fill(pad, 11),
        rewards=clean.rewards.masked_fill(pad, 1.0),
        ends=clean.ends | pad,
    )
    results = []
    for batch in (clean, junk):
        model = make_model(scale=3.0, **options)
        objective = Objective(make_tokenizer(), model, STAGE2).eval()
        total, metrics, _ = objective(batch, detailed=True)
        total.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((total.detach(), metrics, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6, equal_nan=True)


def test_terms_add_up_to_the_total(
    make_batch: Callable[..., Batch], make_tokenizer: TokenizerMaker, make_model: ModelMaker
) -> None:
    losses = dataclasses.replace(STAGE2, reward=0.25)
    total, m, _ = Objective(make_tokenizer(), make_model(), losses).eval()(make_batch([8, 4]))
    world = m["world_model/observation"] + 0.25 * m["world_model/reward"] + m["world_model/end"]
    torch.testing.assert_close(total, 0.1 * world + m["q/td"] + m["q/cql"])
    torch.testing.assert_close(m["q/cql"], 0.1 * (m["q/soft_maximum"] - m["q/data_actions"]))


@pytest.mark.parametrize("penalty", ["cql", "none"])
def test_the_best_value_is_watched_with_and_without_a_penalty(
    make_batch: Callable[..., Batch],
    make_tokenizer: TokenizerMaker,
    make_model: ModelMaker,
    penalty: str,
) -> None:
    """It is how a Q that diverges is noticed; the mean is over real steps only."""
    losses = dataclasses.replace(STAGE2, penalty=penalty)
    model, batch = make_model(scale=3.0), make_batch([8, 4])
    metrics = Objective(make_tokenizer(), model, losses).eval()(batch).metrics
    with torch.no_grad():
        output = model(batch.observations, batch.actions, batch.games)
        best = model.values(output.q_logits).amax(-1)[batch.mask_padding].mean()
    torch.testing.assert_close(metrics["q/best"], best)


def test_accuracies_count_next_frames_only_and_no_padding(
    make_batch: Callable[..., Batch],
) -> None:
    """A prophet who knows every token but one, and a parrot who repeats the last frame."""
    batch = make_batch([3, 2], length=3)
    tokens = batch.observations
    tokens[:, 1:, :30] = tokens[:, :1, :30]  # 6 of 36 tokens may change
    prophet = torch.zeros(2, 3 * 36, dtype=torch.long)
    parrot = torch.zeros(2, 3 * 36, dtype=torch.long)
    flat = tokens.flatten(1)
    prophet[:, :-1] = flat[:, 1:]
    parrot[:, 35:-1] = flat[:, :-36]
    wrong = prophet.clone()
    wrong[0, 35] = (wrong[0, 35] + 1) % 24  # predicts token 0 of frame 1
    wrong[:, :35] = 0  # the first frame follows nothing and is not counted
    reward_logits = torch.nn.functional.one_hot(batch.rewards.long() + 1, 3).float()

    def measure(predicted: torch.Tensor) -> dict[str, float]:
        found = world_model_accuracy(predicted, reward_logits, tokens, batch)
        return {name: float(hits / number) for name, (hits, number) in found.items()}

    counted = 36 * (2 + 1)
    assert measure(prophet)["accuracy/tokens"] == 1.0
    assert measure(wrong)["accuracy/tokens"] == pytest.approx(1 - 1 / counted)
    assert measure(wrong)["accuracy/changed_tokens"] == 1.0
    assert measure(parrot)["accuracy/changed_tokens"] == 0.0
    assert 0.83 < measure(parrot)["accuracy/tokens"] < 1.0
    assert measure(prophet)["accuracy/nonzero_rewards"] == 1.0


@pytest.mark.parametrize("options", [{}, NANO])
def test_a_step_on_tokens_compiles_as_one_graph(
    make_batch: Callable[..., Batch],
    make_tokenizer: TokenizerMaker,
    make_model: ModelMaker,
    options: dict[str, object],
) -> None:
    """Nothing in it leaves the graph; what the graph computes is what it computes plainly."""
    batch, results = make_batch([8, 5, 1, 2]), []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = make_model(scale=3.0, **options)
        objective = Objective(make_tokenizer(), model, STAGE2).eval()
        objective.freeze_unused()
        forward = torch.compile(objective, backend="aot_eager", fullgraph=True)
        counts = objective.counts(batch)
        loss, metrics, _ = (forward if compiled else objective)(batch, counts)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), metrics, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
