"""Static searches by shape: made when first asked for, kept as long as they are of use."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jowa.models.world_action import WorldActionModel
from jowa.planning.paths import Level, Path, Rules
from jowa.planning.static import Search
from jowa.planning.static_state import Shape, Work, size_for

KEPT = 4  # searches at most: their graphs and buffers take gigabytes for big models


class Question(NamedTuple):
    """What is asked: contexts (B, T, 36), the actions between (B, T - 1), how many of the T frames
    are real (B,), None for all, and games (B,); and how to search."""

    obs_tokens: Tensor
    actions: Tensor
    lengths: Tensor | None
    games: Tensor
    horizon: int
    rules: Rules
    pessimistic: bool


class Answer(NamedTuple):
    """The best path, and whether all games have legal actions, without which it means nothing; Q
    (B, 18) at the root and all levels, in places that the next search uses again."""

    path: Path
    playable: bool
    q: Tensor
    levels: list[Level]

    def considered(self) -> tuple[Tensor, list[Level]]:
        """Copies of Q and levels."""
        levels = [Level(*(copied(x, len(self.q)) for x in level)) for level in self.levels]
        return self.q.clone(), levels


class Searches:
    """Runs searches of the shapes asked for lately by buffers and graphs that are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], tuple[tuple[int, ...], Search]] = OrderedDict()

    @property
    def kept(self) -> list[Search]:
        """The latest last."""
        return [search for _, search in self._kept.values()]

    def of(self, model: WorldActionModel, asked: Question) -> Search:
        """The search for a question, whose graphs read the model's weights where they are now."""
        device = model.support.device
        dtype, precision = model.position_embedding.weight.dtype, "autocast"
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        else:
            precision = torch.get_float32_matmul_precision()
        # Environments finish one by one: the numbers of them share a few sizes.
        B, T = size_for(len(asked.games)), asked.obs_tokens.shape[1]
        shape = Shape(B, T, asked.horizon, asked.rules, asked.pessimistic, dtype, precision)
        key = weakref.ref(model), shape
        tensors = chain(model.parameters(), model.buffers())
        weights = tuple(tensor.data_ptr() for tensor in tensors)
        kept = self._kept.pop(key, None)
        search = kept[1] if kept and kept[0] == weights else Search(model, shape)
        self._kept[key] = weights, search
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return search

    def run(self, model: WorldActionModel, asked: Question, work: Work) -> Answer:
        """Answers a question, and counts the work."""
        search, B = self.of(model, asked), len(asked.games)
        device = model.support.device.type
        search.ask(asked.obs_tokens, asked.actions, asked.games, asked.lengths)
        # What autocast keeps of converted weights would outlive the graphs' memory.
        with torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ):
            playable = search.decide(model, work)
        assert search.path is not None and search.root is not None
        path = Path(*(copied(x, B) for x in search.path))
        return Answer(path, playable, search.root.q[:B], search.levels)


def copied(x: Tensor | int, count: int) -> Any:
    return x[:count].clone() if isinstance(x, Tensor) else x
