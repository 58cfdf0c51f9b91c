"""A trained agent as a behaviour, for several games at once.

The only part of `jowa.collecting` that looks to its right, where agents are: at call time, not at
import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jowa.collecting.scene import Scene
from jowa.envs import FRAME_SIZE
from jowa.games import Game

if TYPE_CHECKING:
    from jowa.planning.config import PlannerConfig


class AgentBehaviour:
    """An agent that plays one game in `rows` lockstep copies."""

    def __init__(
        self, game: Game, checkpoint: str, planner: PlannerConfig | None, rows: int, device: str
    ) -> None:
        import jowa.agent
        from jowa.evaluation.planners import planners
        from jowa.learning.checkpoint import find, load
        from jowa.learning.compute import ComputeConfig, resolve
        from jowa.planning.config import PlannerConfig

        # One thread, whatever the number of workers: it bears on how sums are rounded.
        compute = resolve(ComputeConfig(device, "float32", threads=1))
        saved = load(find(checkpoint))
        tokenizer, model = jowa.agent.build(saved)
        planner = jowa.agent.fitted(saved, planner or PlannerConfig(beam_width=1, horizon=0))
        ((planner, _),) = planners(planner, model.config, [game])
        # The clock must not choose how frames are decoded, for that bears on rounding too.
        self._agent = jowa.agent.Agent(
            tokenizer.to(compute.device), model.to(compute.device), planner, timed=False
        )
        self._frames = np.zeros((rows, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
        self._games = np.full(rows, game.id, dtype=np.int64)

    def act(self, scenes: Mapping[int, Scene]) -> dict[int, int]:
        """The agent's decisions, in one batch."""
        rows = len(self._games)
        active, starting = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
        executed = np.zeros(rows, dtype=np.int64)
        for row, scene in scenes.items():
            self._frames[row] = scene.frame
            active[row], starting[row] = True, scene.executed is None
            executed[row] = scene.executed or 0
        self._agent.executed(executed)  # rows whose episode has ended get a 0 that none will read
        self._agent.reset(starting)
        actions = self._agent.act(self._frames, self._games, active)
        return {row: int(actions[row]) for row in scenes}


def inspect(checkpoint: str, games: Sequence[Game], device: str) -> tuple[str, dict[str, str]]:
    """What to call a checkpoint, and the sha256 sums of its weights.

    Raises UserError if there is none, it is damaged, never saw one of the games, or `device` is
    missing.
    """
    from jowa.evaluation.evaluate import playable, weights
    from jowa.learning.checkpoint import find, load, named
    from jowa.learning.compute import ComputeConfig, resolve

    resolve(ComputeConfig(device, "float32", threads=1))
    folder = find(checkpoint)
    saved = load(folder)
    playable([game.name for game in games], saved, folder)
    return named(folder), weights(saved)
