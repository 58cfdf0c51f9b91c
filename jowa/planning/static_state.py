"""What a search in fixed shapes keeps between its stages, always at the same places.

B environments, M nodes of a level each, R = B·M rows, D width, A actions; see `static`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from jowa.planning.paths import Beam, Level, Rules

State = TypeVar("State", bound=tuple[Any, ...])


class Shape(NamedTuple):
    """What a search's buffers and graphs are made for."""

    environments: int
    frames: int
    horizon: int
    rules: Rules
    pessimistic: bool
    dtype: torch.dtype  # of keys and values
    precision: str


def size_for(count: int, least: int = 1) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12 ... that is neither less than `count` nor `least`."""
    sizes = (2**k * factor // 2 for k in itertools.count(1) for factor in (2, 3))
    return 1 if count <= 1 >= least else next(s for s in sizes if s >= max(count, least))


class Root(NamedTuple):
    """The newest real frames (B, 36), the position (B,) of their actions, and Q (B, A)."""

    frame: Tensor
    position: Tensor
    q: Tensor


class Nodes(NamedTuple):
    """The R rows of a level. Frames so far `tokens` (R, 37), behind a V for the action, after
    `previous` (R, 36); `base` (R, 37, D) embeds what else is known of them; positions before
    `start` (R,) are settled, all 37 at the end. `ancestors` (depth - 1, R) are the blocks that they
    descend from at each level before; `actions` and `real` (B, M) as of `paths.expand`."""

    tokens: Tensor
    previous: Tensor
    base: Tensor
    start: Tensor
    ancestors: Tensor
    actions: Tensor
    real: Tensor


@dataclass
class Depth:
    """A level's rows: which of all levels' blocks is the first of theirs, activations (R, D) at
    their actions and at their last tokens, and, once they are there, the nodes, which of them are
    kept and that beam."""

    first: int
    action_hidden: Tensor
    hidden: Tensor
    nodes: Nodes | None = None
    level: Level | None = None
    beam: Beam | None = None


@dataclass
class Work:
    """What was done: rows decoded, passes, and tokens computed in them."""

    frames: int = 0
    passes: int = 0
    tokens: int = 0

    def passed(self, tokens: int, passes: int = 1) -> None:
        self.tokens += tokens
        self.passes += passes


def keep(kept: State | None, new: State) -> State:
    """`new`, written over what was `kept` before, so that graphs find it where it was."""
    if kept is None:
        return type(new)(*(x.clone() if isinstance(x, Tensor) else x for x in new))
    for place, tensor in zip(kept, new, strict=True):
        if isinstance(place, Tensor):
            place.copy_(tensor)
    return kept
