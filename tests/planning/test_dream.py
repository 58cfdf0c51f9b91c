"""Dreams over the cache are those of plain decoding, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jowa.models.world_action import WorldActionModel
from jowa.planning.dream import Dream

ALL = {"codebook_width": 4, "copy_previous": True, "summary_width": 8}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"attention": "matmul"},
    {"task_embedding": False, "copy_previous": True},
    {"codebook_width": 4},
    ALL,
]
Contexts = tuple[Tensor, Tensor, Tensor]
Maker = Callable[..., WorldActionModel]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("context", [1, 4])
@torch.inference_mode()
def test_steps_equal_decoding_without_a_cache(
    make_model: Maker, slow_world: Any, contexts: Contexts, options: dict[str, Any], context: int
) -> None:
    model = make_model(seed=context, scale=8.0, **options)
    frames, actions, games = contexts
    frames, actions = frames[:2, :context], actions[:2, : context - 1]
    games = games[:2]
    dream = Dream.start(model, frames, actions, games, 2)
    seen, taken = frames.tolist(), actions.tolist()
    for chosen in ([1, 3], [0, 11]):
        q = dream.q_values()
        rewards, ends = dream.step(torch.tensor(chosen))
        for b in range(2):
            world = slow_world(model, int(games[b]))
            for action, value in world.values(seen[b], taken[b]).items():
                assert float(q[b, action]) == pytest.approx(value, abs=1e-3)
            assert int(q[b].isfinite().sum()) == len(world.values(seen[b], taken[b]))
            reward, end, frame = world.step(seen[b], taken[b], chosen[b])
            assert (float(rewards[b]), bool(ends[b])) == (reward, end)
            assert dream.frame[b].tolist() == frame
            seen[b].append(frame)
            taken[b].append(chosen[b])
    assert len({tuple(frame) for frame in seen[0]}) > 1


@torch.inference_mode()
def test_selected_rows_dream_on_separately(make_model: Maker, contexts: Contexts) -> None:
    model = make_model(scale=8.0, **ALL)
    frames, actions, games = contexts
    start = Dream.start(model, frames[:, :3], actions[:, :2], games, 2)
    rows, chosen = torch.tensor([2, 0, 2, 1]), torch.tensor([4, 1, 7, 0])
    together = start.select(rows)
    together.step(chosen)
    for i, row in enumerate(rows):
        one = slice(int(row), int(row) + 1)
        alone = Dream.start(model, frames[one, :3], actions[one, :2], games[one], 1)
        alone.step(chosen[i : i + 1])
        assert torch.equal(together.frame[i], alone.frame[0])
        torch.testing.assert_close(
            together.q_values()[i], alone.q_values()[0], rtol=1e-3, atol=1e-3
        )
    # The dream selected from can still be gone on from.
    before = start.select(torch.arange(3))
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
    assert dream.cache.length == 8 * 37 - 1
    with pytest.raises(AssertionError):
        Dream.start(model, frames[:, :4], actions[:, :3], games, 5)
