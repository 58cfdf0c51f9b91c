"""Compiled decoding: what PyTorch's operations compute, and the same bits however it is done."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_search import plain_search
from planning_inputs import made_up_contexts
from torch import Tensor

import jowa
from jowa.errors import UserError
from jowa.models import decoding
from jowa.models.world_action import BLOCK_TOKENS, WorldActionModel
from jowa.planning import decode, native
from jowa.planning.beam import imagine, plan
from jowa.planning.decode import Decoder
from jowa.planning.dream import Dream
from jowa.planning.mcts import tree_search
from jowa.planning.trace import Trace

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="decode=native compiles C++, and there is no g++"
)
ALL = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}
WIDTH = 64  # two heads of 32
Contexts = tuple[Tensor, Tensor, Tensor]
Maker = Callable[..., WorldActionModel]


def assert_same(actual: Any, expected: Any) -> None:
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, ALL])
@pytest.mark.parametrize(("width", "horizon"), [(1, 0), (1, 1), (2, 2), (3, 3), (18, 1)])
def test_paths_and_futures_are_those_of_drafted_decoding(
    make_model: Maker, contexts: Contexts, width: int, horizon: int, options: dict[str, Any]
) -> None:
    frames, actions, games = contexts
    model = make_model(seed=width, scale=4.0, width=WIDTH, **options)
    args = (model, frames[:, -4:], actions[:, -3:], games, width, horizon, 0.9)
    for lengths in (None, torch.tensor([3, 1, 4])):
        traces, decoders = (Trace(), Trace()), (Decoder("native"), Decoder("drafted"))
        found, expected = (
            imagine(*args, lengths=lengths, stop_at_end=True, trace=trace, decoder=d)
            for d, trace in zip(decoders, traces, strict=True)
        )
        assert_same(found, expected)
        assert_same([traces[0].q], [traces[1].q])
        assert decoders[0].work.frames == decoders[1].work.frames
        for b in range(3):
            for future, same in zip(traces[0].futures(b), traces[1].futures(b), strict=True):
                assert_same(future[:4], same[:4])


def test_the_shipped_agent_decides_as_a_plain_search_does() -> None:
    model, decoder = jowa.load("nano").model, Decoder("native")
    contexts = made_up_contexts(model.config.vocabulary, torch.device("cpu"))(8, seed=1)
    for width, horizon in ((2, 2), (4, 1)):
        assert_same(
            plan(model, *contexts, width, horizon, decoder=decoder),
            plain_search(model, *contexts, width, horizon),
        )


@torch.inference_mode()
def test_contexts_are_read_alike(make_model: Maker) -> None:
    model, P = make_model(scale=4.0, width=WIDTH), 3 * BLOCK_TOKENS - 1
    last = torch.tensor([P - 1, 35, 0, 40])
    x = torch.randn(4, P, WIDTH)
    ours, hidden = Decoder("native").prefill(model, x, last, BLOCK_TOKENS)
    theirs, expected = decoding.prefill(model.transformer, x, last, BLOCK_TOKENS)
    assert_same([hidden, ours.prefix_mask], [expected, theirs.prefix_mask])
    for kind in ("prefix_keys", "prefix_values"):
        for one, other in zip(getattr(ours, kind), getattr(theirs, kind), strict=True):
            for row, end in enumerate(last + 1):
                assert_same([one[:, row, :end]], [other[:, row, :end]])


@torch.inference_mode()
def test_the_same_bits_by_any_draft_and_number_of_threads(
    make_model: Maker, contexts: Contexts
) -> None:
    frames, actions, games = contexts
    model = make_model(seed=1, scale=4.0, width=WIDTH, **ALL)
    rows, chosen = torch.arange(3).repeat_interleave(4), torch.arange(12) % 3
    results, tokens, threads = [], set(), torch.get_num_threads()
    for number in (1, 2, 12):
        decoder = Decoder("native")
        torch.set_num_threads(number)
        try:
            dream = Dream.start(
                model, frames[:, :4], actions[:, :3], games, 2, decoder=decoder
            ).branch(rows)
            for _ in range(2):
                dream.step(chosen)
        finally:
            torch.set_num_threads(threads)
        assert dream.cache is not None and dream.hidden is not None
        results.append([dream.frame, dream.hidden, *dream.cache.tail_keys])
        tokens.add(decoder.work.tokens)
    for result in results[1:]:
        for x, y in zip(result, results[0], strict=True):
            assert torch.equal(x, y)
    assert len(tokens) > 1  # rows in turn start from better drafts


def test_a_tree_search_decides_alike(make_model: Maker, contexts: Contexts) -> None:
    """Its rows look back on paths of several lengths."""
    frames, actions, games = contexts
    model = make_model(seed=3, scale=4.0, width=WIDTH, **ALL)
    args = (model, frames[:, :3], actions[:, :2], games, 12, 3)
    found, expected = (tree_search(*args, decoder=Decoder(m)) for m in ("native", "drafted"))
    assert_same(found, expected)


def test_weights_may_change_between_decisions(make_model: Maker, contexts: Contexts) -> None:
    frames, actions, games = contexts
    model, decoder = make_model(seed=1, scale=4.0, width=WIDTH, **ALL), Decoder("native")
    args = (model, frames[:, :3], actions[:, :2], games, 2, 2)
    before = plan(*args, decoder=decoder).scores
    with torch.no_grad():
        for weight in model.transformer.parameters():
            weight.mul_(1.2)
    after = plan(*args, decoder=decoder)
    assert not torch.equal(before, after.scores)
    assert_same(after, plan(*args, decoder=Decoder("drafted")))


@pytest.mark.parametrize("kind", ["float64", "narrow heads", "samples"])
def test_what_it_is_not_for_is_drafted(make_model: Maker, contexts: Contexts, kind: str) -> None:
    frames, actions, games = contexts
    model = make_model(seed=1, scale=4.0, width=16 if kind == "narrow heads" else WIDTH)
    if kind == "float64":
        model.double()
    found, expected = (
        plan(
            model,
            frames[:, :3],
            actions[:, :2],
            games,
            generator=torch.Generator().manual_seed(0) if kind == "samples" else None,
            decoder=Decoder(mode),
        )
        for mode in ("native", "drafted")
    )
    assert_same(found, expected)


@pytest.mark.parametrize("mode", ["auto", "plain", "drafted", "static", "native"])
def test_contexts_of_other_integers_and_too_great_lengths_are_read_as_what_they_are(
    make_model: Maker, contexts: Contexts, mode: str
) -> None:
    """Compiled code reads int64 from memory, whatever lies there."""
    frames, actions, games = contexts
    model = make_model(seed=1, scale=4.0, width=WIDTH, **ALL)
    whole = frames[:, :3], actions[:, :2], games
    expected = plan(model, *whole, 2, 2, decoder=Decoder("plain"))
    small = whole[0].int(), whole[1].short(), games
    for lengths in (None, torch.tensor([3, 5, 99], dtype=torch.int32)):
        found = plan(model, *small, 2, 2, lengths=lengths, decoder=Decoder(mode))
        assert_same(found, expected)


@pytest.mark.parametrize("mode", ["auto", "native"])
@pytest.mark.parametrize("search", [plan, tree_search])
def test_weights_may_change_unbeknown_to_autograd(
    make_model: Maker, contexts: Contexts, monkeypatch: pytest.MonkeyPatch, mode: str, search: Any
) -> None:
    """As a fused optimiser's do, between searches that bring no decoder."""
    monkeypatch.setattr(decode, "_DECODERS", weakref.WeakKeyDictionary())
    frames, actions, games = contexts
    model = make_model(seed=1, scale=4.0, width=WIDTH, **ALL)
    decode._DECODERS[model] = Decoder(mode)
    args = (model, frames[:, :3], actions[:, :2], games, 2, 2)
    before = search(*args).scores
    for weight in model.parameters():
        weight.data.mul_(1.2)
    after = search(*args)
    assert not torch.allclose(before, after.scores)
    assert_same(after, search(*args, decoder=Decoder("plain")))


def test_without_a_temporary_folder_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(UserError, match=r"temporary folder.*TMPDIR"):
        native.library.__wrapped__()


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="there is no g\\+\\+: install it, or leave decode=auto"):
        native.library.__wrapped__()


def test_what_does_not_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_COMPILE", ("g++", "-no-such-option", "-c"))
    with pytest.raises(UserError, match="no-such-option"):
        native.library.__wrapped__()


def test_on_a_gpu_native_is_as_auto() -> None:
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert Decoder("native").static(device) == Decoder("auto").static(device)
