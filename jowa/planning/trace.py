"""What a search considered on its way to a decision, for people to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Future(NamedTuple):
    """A path of h imagined steps in one environment.

    Its actions (h,) in the 18-action set, the frames (h, 36) that they lead to, the predicted
    rewards and ends (h,) on the way, and what the search scored it. `visits` is how often a tree
    search took its first action.
    """

    actions: Tensor
    frames: Tensor
    rewards: Tensor
    ends: Tensor
    score: float
    visits: int | None = None


def _none(row: int) -> list[Future]:
    return []


@dataclass
class Trace:
    """Filled in by the search that is given it, with references to what it computes anyway.

    q        expected returns (B, 18) of the actions at the newest frames, -inf for illegal ones
    futures  `futures(b)` gives what was imagined in environment b, the best first: of a beam search
             the paths that it kept to the end, of a tree search the path it took most often from
             each action tried; nothing of greedy play
    """

    q: Tensor = field(default_factory=lambda: torch.empty(0, 18))
    futures: Callable[[int], list[Future]] = _none
