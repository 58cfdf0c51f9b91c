"""The whole experience of an online agent, from its first random steps to its last game."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jowa.errors import UserError
from jowa.games import Game


@dataclass
class LearnerConfig:
    """How the agent learns.

    algorithm  its name
    """

    algorithm: str = "dqn"


def record_learner(
    game: Game,
    path: Path,
    *,
    tier: str,
    config: LearnerConfig,
    transitions: int,
    max_frames: int,
    seed: Sequence[int],
    progress: Callable[[int], None] | None,
) -> None:
    """Writes about `transitions` steps of the agent's experience to `path`, all in one tier;
    `progress` is called with the part of `transitions` that the work so far amounts to."""
    raise UserError(f"tier {tier!r} is a learner, which this jowa does not have.")
