"""A slow and plain world to compare the planner with: no cache, a full pass for every token."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from jowa.games import get
from jowa.models.world_action import Output, WorldActionModel

ACTIONS = {"Freeway": 3, "Pong": 6, "Boxing": 18}


@dataclass
class SlowWorld:
    """One environment: `frames` is a list of lists of 36 tokens, `actions` those between."""

    model: WorldActionModel
    game: int

    def forward(self, frames: list[list[int]], actions: list[int]) -> Output:
        padded = [*actions, 0][: len(frames)]
        with torch.no_grad():
            return self.model(
                torch.tensor([frames]), torch.tensor([padded]), torch.tensor([self.game])
            )

    def values(self, frames: list[list[int]], actions: list[int]) -> dict[int, float]:
        """Q of every legal action at the last frame."""
        q = self.model.values(self.forward(frames, actions).q_logits)[0, -1]
        legal = self.model.legal_actions[self.game].nonzero().flatten().tolist()
        return {a: float(q[a]) for a in legal}

    def step(
        self, frames: list[list[int]], actions: list[int], action: int
    ) -> tuple[float, bool, list[int]]:
        """Reward, end and the next frame, token after token."""
        actions, t = [*actions, action], len(frames)
        output = self.forward(frames, actions)
        reward = int(output.reward_logits[0, -1].argmax()) - 1
        end = bool(output.end_logits[0, -1].argmax())
        frame: list[int] = []
        for k in range(36):
            unknown = frame + [0] * (36 - k)
            output = self.forward([*frames, unknown], actions)
            position = 36 * t + k - 1
            frame.append(int(output.observation_logits[0, position].argmax()))
        return float(reward), end, frame

    def search(
        self, frames: list[list[int]], actions: list[int], width: int, horizon: int, gamma: float
    ) -> dict[int, float]:
        """The best path's score for every first action that the last beam still holds."""
        if horizon == 0:
            return self.values(frames, actions)
        beam = [(0.0, 0.0, frames, actions, -1)]
        for depth in range(1, horizon + 1):
            children = []
            for _, gained, seen, taken, first in beam:
                values = self.values(seen, taken)
                for action in sorted(values, key=lambda a: -values[a])[:width]:
                    reward, _, frame = self.step(seen, taken, action)
                    total = gained + gamma ** (depth - 1) * reward
                    now, then = [*seen, frame], [*taken, action]
                    score = total + gamma**depth * max(self.values(now, then).values())
                    children.append((score, total, now, then, action if depth == 1 else first))
            beam = sorted(children, key=lambda child: -child[0])[:width]
        best: dict[int, float] = {}
        for score, *_, first in beam:
            best[first] = max(score, best.get(first, score))
        return best


@pytest.fixture(scope="session")
def slow_world() -> type[SlowWorld]:
    return SlowWorld


@pytest.fixture(scope="session")
def contexts() -> tuple[Tensor, Tensor, Tensor]:
    """Eight frames (3, 8, 36), the actions between (3, 7), and games of 3, 6 and 18 actions."""
    generator = torch.Generator().manual_seed(11)
    frames = torch.randint(0, 24, (3, 8, 36), generator=generator)
    frames[:, 1:, :20] = frames[:, :1, :20]  # much stays as it was, as on a screen
    actions = torch.randint(0, 18, (3, 7), generator=generator)
    for name, count in ACTIONS.items():
        assert len(get(name).actions) == count
    return frames, actions, torch.tensor([get(name).id for name in ACTIONS])
