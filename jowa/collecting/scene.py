"""What a behaviour is shown when it must act."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jowa.envs import AtariEnv


@dataclasses.dataclass(frozen=True)
class Scene:
    """One game at the moment of a decision.

    `frame` is the current one, uint8 (84, 84); `executed` is the action that was really sent after
    the decision before, None at the start of an episode.
    """

    env: AtariEnv
    frame: NDArray[np.uint8]
    executed: int | None


class Behaviour(Protocol):
    """Chooses actions for one or several games of one kind that are played in lockstep."""

    def act(self, scenes: Mapping[int, Scene]) -> dict[int, int]:
        """An action in the 18-action set for every scene; a game keeps its number throughout."""
