"""The player: keeps the last frames and actions of every environment and plans each decision.

E environments, c context frames.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.games import check_ids
from jowa.learning.checkpoint import Checkpoint, fill, find
from jowa.learning.checkpoint import load as load_checkpoint
from jowa.models.skeleton import Skeleton
from jowa.models.tokenizer import Tokenizer
from jowa.models.tokenizers import build_tokenizer, from_state
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import WorldActionConfig, WorldActionModel
from jowa.planning.beam import Plan, check, plan


@dataclass
class PlannerConfig:
    """How an agent decides; horizon 0 is greedy play by Q.

    `per_game` gives, by model size and game, [context, beam_width, horizon] of its own, and `note`
    says what every output must say of such settings.
    """

    beam_width: int = 2
    horizon: int = 2
    context: int = 4
    gamma: float = 0.99
    note: str = ""
    per_game: dict[str, dict[str, list[int]]] = field(default_factory=dict)


class Agent:
    """Acts in many environments of many games at once with one tokenizer and model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: WorldActionModel,
        planner: PlannerConfig,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check(planner.beam_width, planner.horizon, planner.context)
        check_pair(tokenizer, model)
        self.tokenizer, self.model = tokenizer.eval(), model.eval()
        self.planner, self.dtype = planner, dtype
        self.device = model.support.device
        self._tokens = torch.zeros(0, planner.context, 36, dtype=torch.long, device=self.device)
        self._actions = torch.zeros(0, planner.context, dtype=torch.long, device=self.device)
        self._lengths = np.zeros(0, dtype=np.int64)
        self._acted = np.zeros(0, dtype=np.int64)  # rows of the last `act`

    def reset(self, which: np.ndarray) -> None:
        """Forgets the past of the environments where `which` (E,) is true."""
        if len(which) != len(self._lengths):
            shape = (len(which), self.planner.context)
            self._tokens = torch.zeros(*shape, 36, dtype=torch.long, device=self.device)
            self._actions = torch.zeros(*shape, dtype=torch.long, device=self.device)
            self._lengths = np.zeros(len(which), dtype=np.int64)
        self._lengths[which] = 0

    def act(
        self, frames: np.ndarray, games: np.ndarray, active: np.ndarray | None = None
    ) -> np.ndarray:
        """Actions int64 (E,) in the 18-action set for frames uint8 (E, 84, 84) of games (E,).

        Rows where `active` (E,) is false are left alone and get action 0.
        """
        check_ids(games)
        if len(frames) != len(self._lengths):
            self.reset(np.ones(len(frames), dtype=bool))
        rows = np.flatnonzero(active) if active is not None else np.arange(len(frames))
        chosen = np.zeros(len(frames), dtype=np.int64)
        self._remember(frames[rows], games[rows], rows)
        # Environments early in an episode have shorter contexts; equal lengths go together.
        for length in np.unique(self._lengths[rows]):
            group = rows[self._lengths[rows] == length]
            chosen[group] = self._decide(group, int(length), games[group]).actions.cpu().numpy()
        self._acted = rows
        self.executed(chosen)
        return chosen

    def executed(self, actions: np.ndarray) -> None:
        """Notes the actions (E,) really sent, where they differ from those of `act`; rows that
        were not active keep theirs."""
        index = torch.from_numpy(self._acted).to(self.device)
        self._actions[index, -1] = torch.from_numpy(actions[self._acted]).to(self.device)

    @torch.inference_mode()
    def _remember(self, frames: np.ndarray, games: np.ndarray, rows: np.ndarray) -> None:
        """Appends the new frames' tokens, the oldest falling out."""
        index = torch.from_numpy(rows).to(self.device)
        batch = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).unsqueeze(1)
        tokens = self.tokenizer.encode(batch, torch.from_numpy(games).to(self.device))
        kept = self._tokens[index, 1:]
        self._tokens[index] = torch.cat([kept, tokens.unsqueeze(1)], dim=1)
        self._actions[index] = self._actions[index].roll(-1, dims=1)
        self._lengths[rows] = np.minimum(self._lengths[rows] + 1, self.planner.context)

    def context(self, rows: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """The last `length` frames' tokens (R, length, 36) and the actions between them."""
        index = torch.from_numpy(rows).to(self.device)
        start = self.planner.context - length
        return self._tokens[index, start:], self._actions[index, start:-1]

    @torch.inference_mode()
    def seen(self, row: int, game_id: int) -> np.ndarray:
        """What the tokenizer keeps of the newest frame of an environment, uint8 (84, 84)."""
        game = torch.tensor([game_id], device=self.device)
        frame = self.tokenizer.decode(self._tokens[row : row + 1, -1], game)[0, 0]
        return (frame.clamp(0.0, 1.0) * 255).round().byte().cpu().numpy()

    def _decide(self, rows: np.ndarray, length: int, games: np.ndarray) -> Plan:
        tokens, actions = self.context(rows, length)
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=autocast):
            return plan(
                self.model,
                tokens,
                actions,
                torch.from_numpy(games).to(self.device),
                self.planner.beam_width,
                self.planner.horizon,
                self.planner.gamma,
            )


def check_pair(tokenizer: Tokenizer, model: WorldActionModel) -> None:
    """UserError unless the model knows as many tokens as the tokenizer has codes."""
    if tokenizer.vocabulary != model.config.vocabulary:
        raise UserError(
            f"the tokenizer's codebook has {tokenizer.vocabulary} codes, but the model knows "
            f"{model.config.vocabulary} tokens: they do not belong together."
        )


def build(saved: Checkpoint, fresh: bool = False) -> tuple[Tokenizer, WorldActionModel]:
    """Tokenizer and model of a checkpoint; `fresh` keeps the sizes and draws new weights."""
    sizes = dict(saved.state["model"])
    sizes["transformer"] = TransformerConfig(**sizes["transformer"])
    with nullcontext() if fresh else Skeleton():
        tokenizer = build_tokenizer(from_state(saved.state["tokenizer"]))
        model = WorldActionModel(WorldActionConfig(**sizes))
    if not fresh:
        fill(tokenizer, saved.tensors["tokenizer"], "the checkpoint's tokenizer")
        fill(model, saved.tensors["model"], "the checkpoint's model")
    return tokenizer, model


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    planner: PlannerConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> Agent:
    """The agent of a run directory or checkpoint; greedy unless a planner is given.

    Raises UserError where there is none, or it is damaged.
    """
    tokenizer, model = build(load_checkpoint(find(path)))
    planner = planner or PlannerConfig(beam_width=1, horizon=0)
    return Agent(tokenizer.to(device), model.to(device), planner, dtype)
