"""Searches of static shapes: every stage is one graph, and however a level is settled in passes of
fixed sizes, its decisions are those of drafted decoding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.models.world_action import WorldActionModel
from jowa.planning import searches, static
from jowa.planning.beam import imagine, plan
from jowa.planning.decode import Decoder
from jowa.planning.paths import Rules
from jowa.planning.static import Search
from jowa.planning.static_state import Shape, Work, size_for
from jowa.planning.trace import Trace

ALL = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}
Contexts = tuple[Tensor, Tensor, Tensor]
Maker = Callable[..., WorldActionModel]


@pytest.fixture
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes as a big search has them, in a small one."""
    monkeypatch.setattr(static, "LEAST_ROWS", 1)
    monkeypatch.setattr(static, "LEADERS_FROM", 2)


def assert_same(actual: Any, expected: Any) -> None:
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, ALL])
@pytest.mark.parametrize(("width", "horizon"), [(1, 0), (1, 1), (3, 3), (4, 2), (40, 1)])
@pytest.mark.usefixtures("small_passes")
def test_paths_and_futures_are_those_of_drafted_decoding(
    make_model: Maker, contexts: Contexts, width: int, horizon: int, options: dict[str, Any]
) -> None:
    """Twice, with other contexts in between, as all is done in the same places."""
    frames, actions, games = contexts
    model = make_model(seed=width, scale=8.0, **options).double()
    decoder, rows = Decoder("static"), torch.tensor([2, 0, 1])
    lengths = torch.tensor([3, 1, 2])
    for order in (rows, rows.flip(0), rows):
        args = (model, frames[order, -3:], actions[order, -2:], games[order], width, horizon, 0.9)
        traces = Trace(), Trace()
        found, expected = (
            imagine(*args, lengths=lengths, stop_at_end=True, trace=trace, decoder=d)
            for d, trace in zip((decoder, Decoder("drafted")), traces, strict=True)
        )
        assert_same(found, expected)
        assert_same([traces[0].q], [traces[1].q])
        for b in range(3):
            for future, same in zip(traces[0].futures(b), traces[1].futures(b), strict=True):
                assert_same(future[:4], same[:4])


@pytest.mark.usefixtures("small_passes")
def test_what_was_found_does_not_change_with_the_next_search(
    make_model: Maker, contexts: Contexts
) -> None:
    frames, actions, games = contexts
    model, decoder, trace = make_model(seed=1, scale=8.0), Decoder("static"), Trace()
    one, other = ((model, frames[:, i : i + 2], actions[:, i : i + 1], games, 3, 2) for i in (0, 4))
    found = imagine(*one, decoder=decoder, trace=trace)
    before = [x.clone() for x in found], trace.futures(0)
    imagine(*other, decoder=decoder)
    assert_same(found, before[0])
    for future, same in zip(trace.futures(0), before[1], strict=True):
        assert_same(future[:4], same[:4])


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, ALL])
@pytest.mark.usefixtures("small_passes")
def test_every_stage_is_one_graph(
    make_model: Maker, contexts: Contexts, options: dict[str, Any]
) -> None:
    """Nothing in it waits for the device or depends on what is computed."""
    frames, actions, games = contexts
    model = make_model(seed=1, scale=8.0, **options)
    rules = Rules(beam_width=3, gamma=0.9, stop_at_end=True)
    search = Search(model, Shape(4, 3, 2, rules, True, torch.float32, "highest"))
    search.ask(frames[:, -3:], actions[:, -2:], games, None)
    search.decide(model, Work())
    path = [x.clone() for x in search.path or ()]
    stages: list[Callable[[], None]] = [partial(search.start, model)]
    for depth in (1, 2):
        stages += [partial(search.refine, model, depth, room) for room in (2, len(games))]
    stages += [partial(search.close, model, depth) for depth in (1, 2)]
    for stage in stages:
        torch.compiler.reset()
        torch.compile(stage, fullgraph=True, backend="eager")()
    search.decide(model, Work())
    assert_same(search.path, path)


def test_few_unsettled_rows_take_small_passes(make_model: Maker, contexts: Contexts) -> None:
    frames, actions, games = contexts
    model = make_model(seed=1, scale=8.0, **ALL)
    args = (model, frames[:, :2], actions[:, :1], games, 4, 2)
    decoder = Decoder("static")
    plan(*args, decoder=decoder)
    least = decoder.work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "LEAST_ROWS", 1)
        decoder = Decoder("static")
        plan(*args, decoder=decoder)
    assert decoder.work.frames == least.frames
    assert decoder.work.tokens < least.tokens


def test_sizes_are_few_and_near() -> None:
    sizes = {count: size_for(count) for count in range(1, 100)}
    assert set(sizes.values()) == {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128}
    assert all(count <= size < 1.5 * count + 1 for count, size in sizes.items())
    assert size_for(3, least=16) == 16


def test_searches_of_other_shapes_and_models_are_forgotten(
    make_model: Maker, contexts: Contexts
) -> None:
    frames, actions, games = contexts
    decoder, model = Decoder("static"), make_model(seed=1)
    for length in (1, 2, 3, 4, 5, 5):
        plan(model, frames[:, :length], actions[:, : length - 1], games, 2, 1, decoder=decoder)
    assert len(decoder.searches.kept) == searches.KEPT
    other = make_model(seed=2, scale=8.0)
    args = (frames[:, :5], actions[:, :4], games, 2, 1)
    assert_same(plan(other, *args, decoder=decoder), plan(other, *args, decoder=Decoder("drafted")))


def test_a_game_without_a_legal_action_is_refused(make_model: Maker, contexts: Contexts) -> None:
    frames, actions, games = contexts
    model = make_model()
    model.legal_actions[games[1]] = False
    for horizon in (0, 1):
        with pytest.raises(UserError, match="Pong has no legal action"):
            plan(model, frames[:, :1], actions[:, :0], games, 2, horizon, decoder=Decoder("static"))
