"""Dreams over the cache are those of plain decoding, whichever way the tokens are found."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.models.world_action import WorldActionModel
from jowa.planning.decode import TRIALS, Decoder
from jowa.planning.dream import Dream, gumbel

ALL = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"task_embedding": False, "copy_previous": True},
    {"codebook_width": 4},
    ALL,
]
Contexts = tuple[Tensor, Tensor, Tensor]
Maker = Callable[..., WorldActionModel]


@pytest.mark.parametrize("mode", ["plain", "drafted"])
@pytest.mark.parametrize("options", OPTIONS)
@torch.inference_mode()
def test_steps_equal_decoding_without_a_cache(
    make_model: Maker,
    make_node: Any,
    slow_world: Any,
    contexts: Contexts,
    options: dict[str, Any],
    mode: str,
) -> None:
    """Contexts of 4, 1 and 2 frames in one dream; rewards, ends, frames and Q after each step."""
    model = make_model(seed=1, scale=8.0, **options).double()
    frames, actions, games = contexts
    frames, actions, lengths = frames[:, :4], actions[:, :3], [4, 1, 2]
    world = slow_world(model, stop_at_end=True)
    nodes = [
        make_node(int(games[b]), frames[b, 4 - n :], actions[b, 4 - n :])
        for b, n in enumerate(lengths)
    ]
    dream = Dream.start(
        model, frames, actions, games, 2, torch.tensor(lengths), decoder=Decoder(mode)
    )
    for chosen in ([1, 3, 9], [0, 11, 2]):
        for q, node in zip(dream.q_values(), nodes, strict=True):
            (expected,) = world.values([node])
            assert {a for a in range(18) if q[a].isfinite()} == set(expected)
            for action, value in expected.items():
                assert float(q[action]) == pytest.approx(value, abs=1e-4)
        rewards, ends = dream.step(torch.tensor(chosen))
        nodes = [world.step([n], [a], 1.0, 0)[0] for n, a in zip(nodes, chosen, strict=True)]
        for b, node in enumerate(nodes):
            assert torch.equal(dream.frame[b], node.frames[-1])
            assert (float(rewards[b]), bool(ends[b])) == (node.gained, node.ended)
        nodes = [make_node(n.game, n.frames, n.actions) for n in nodes]


@torch.inference_mode()
def test_branches_dream_on_separately_and_siblings_draft_for_each_other(
    make_model: Maker, contexts: Contexts
) -> None:
    model = make_model(scale=8.0, **ALL).double()
    frames, actions, games = contexts
    start = Dream.start(model, frames[:, :3], actions[:, :2], games, 2, decoder=Decoder("drafted"))
    rows = torch.arange(3).repeat_interleave(2)
    chosen = torch.tensor([4, 1, 7, 0, 2, 3])
    together = start.branch(rows, siblings=2)
    together.step(chosen)
    for i, row in enumerate(rows):
        one = slice(int(row), int(row) + 1)
        alone = Dream.start(model, frames[one, :3], actions[one, :2], games[one], 1)
        alone.step(chosen[i : i + 1])
        assert torch.equal(together.frame[i], alone.frame[0])
        torch.testing.assert_close(together.hidden[i], alone.hidden[0], rtol=1e-6, atol=1e-6)
    # The dream branched from can still be gone on from.
    before = start.branch(torch.arange(3))
    before.step(torch.zeros(3, dtype=torch.long))
    start.step(torch.zeros(3, dtype=torch.long))
    assert torch.equal(before.frame, start.frame)


@torch.inference_mode()
def test_a_dream_as_long_as_the_sequence(make_model: Maker, contexts: Contexts) -> None:
    model = make_model(scale=8.0, **ALL)
    frames, actions, games = contexts
    dream = Dream.start(model, frames[:, :1], actions[:, :0], games, 7)
    for _ in range(7):
        dream.step(torch.ones(3, dtype=torch.long))
    assert dream.position.tolist() == [8 * 37 - 1] * 3
    with pytest.raises(AssertionError):
        Dream.start(model, frames[:, :4], actions[:, :3], games, 5)


@torch.inference_mode()
def test_sampled_frames_follow_the_generator_in_either_decode(
    make_model: Maker, contexts: Contexts
) -> None:
    model = make_model(scale=6.0, **ALL).double()
    frames, actions, games = contexts
    seen = {}
    for seed in (0, 1):
        for mode in ("plain", "drafted"):
            args = (model, frames[:, :2], actions[:, :1], games, 1)
            dream = Dream.start(*args, decoder=Decoder(mode))
            rewards, ends = dream.step(torch.tensor([1, 2, 3]), torch.Generator().manual_seed(seed))
            seen[seed, mode] = torch.cat([dream.frame, rewards[:, None], ends[:, None]], 1)
        assert torch.equal(seen[seed, "plain"], seen[seed, "drafted"])
    assert not torch.equal(seen[0, "plain"], seen[1, "plain"])


def test_gumbel_noise_samples_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    noise = gumbel((40_000, 4), torch.Generator().manual_seed(0))
    shares = (logits + noise).argmax(-1).bincount(minlength=4) / 40_000
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.01, rtol=0)


@torch.inference_mode()
def test_a_right_draft_takes_one_pass_and_settled_tokens_are_not_computed_again(
    make_model: Maker, contexts: Contexts
) -> None:
    model = make_model(scale=1.0, **ALL)
    frames, actions, games = contexts
    with torch.no_grad():
        model.copy_gate.weight.zero_()
        model.copy_gate.bias.fill_(100.0)  # whatever stood there stays
    decoder = Decoder("drafted")
    dream = Dream.start(model, frames[:, :2], actions[:, :1], games, 1, decoder=decoder)
    dream.step(torch.zeros(3, dtype=torch.long))
    assert torch.equal(dream.frame, frames[:, 1])
    assert (decoder.work.passes, decoder.work.tokens, decoder.work.frames) == (1, 3 * 37, 3)
    with torch.no_grad():
        model.copy_gate.bias.fill_(0.0)
    decoder = Decoder("drafted")
    dream = Dream.start(model, frames[:, :2], actions[:, :1], games, 1, decoder=decoder)
    dream.step(torch.zeros(3, dtype=torch.long))
    assert 1 < decoder.work.passes <= 37
    assert decoder.work.tokens < decoder.work.passes * 3 * 37


@torch.inference_mode()
def test_auto_times_both_decodes_and_then_keeps_to_one(
    make_model: Maker, contexts: Contexts
) -> None:
    model = make_model(scale=1.0, **ALL)
    frames, actions, games = contexts
    decoder = Decoder("auto")
    passes = []
    for _ in range(TRIALS + 3):
        before = decoder.work.passes
        dream = Dream.start(model, frames[:, :2], actions[:, :1], games, 1, decoder=decoder)
        dream.step(torch.zeros(3, dtype=torch.long))
        passes.append(decoder.work.passes - before)
    both = passes[0]
    assert both > 37 and passes[: TRIALS + 1] == [both] * (TRIALS + 1)
    assert passes[TRIALS + 1] in (37, both - 37)


def test_a_decoder_notices_new_weights(make_model: Maker, contexts: Contexts) -> None:
    model, other = make_model(seed=1, scale=4.0, **ALL), make_model(seed=2, scale=4.0, **ALL)
    frames, actions, games = contexts
    decoder = Decoder("drafted")
    for change in (lambda: None, lambda: model.load_state_dict(other.state_dict())):
        change()
        with torch.inference_mode():
            used = Dream.start(model, frames[:, 1:], actions[:, 1:], games, 1, decoder=decoder)
            fresh = Dream.start(model, frames[:, 1:], actions[:, 1:], games, 1)
        assert used.tables is decoder.tables(model)
        assert torch.equal(used.hidden, fresh.hidden)


def test_a_model_keeps_its_decoder_and_does_not_live_on_in_it(
    make_model: Maker, contexts: Contexts
) -> None:
    frames, actions, games = contexts
    model = make_model(**ALL)
    first = Dream.start(model, frames[:, :1], actions[:, :0], games, 0)
    assert Dream.start(model, frames[:, :1], actions[:, :0], games, 0).decoder is first.decoder
    gone = weakref.ref(model)
    del model, first
    gc.collect()
    assert gone() is None


def test_an_unknown_decode_is_refused() -> None:
    with pytest.raises(UserError, match="drafted"):
        Decoder("fast")
