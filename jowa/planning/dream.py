"""Imagined steps: what the world model believes follows a context and an action.

R rows (environments times beams), K = 36 tokens a frame. Token-by-token greedy decoding over a
key-value cache; every row of a dream holds the same number of frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jowa.models.transformer import KVCache
from jowa.models.world_action import (
    BLOCK_TOKENS,
    FRAME_TOKENS,
    MAX_FRAMES,
    Tables,
    WorldActionModel,
)


@dataclass
class Dream:
    """Rows of real or imagined play whose newest frame has no action yet.

    `frame` (R, 36) is that frame and `hidden` (R, D) the activation at its last token, from
    which Q is read.
    """

    model: WorldActionModel
    tables: Tables
    cache: KVCache
    games: Tensor
    frame: Tensor
    hidden: Tensor

    @classmethod
    def start(
        cls, model: WorldActionModel, obs_tokens: Tensor, actions: Tensor, games: Tensor, steps: int
    ) -> Dream:
        """Reads a context of T frames (R, T, 36) with the T - 1 actions between them (R, T - 1)
        in one pass; `steps` imagined frames will fit."""
        R, T, _ = obs_tokens.shape
        assert T + steps <= MAX_FRAMES, "checked with the planner's configuration"
        cache = model.transformer.new_cache(R, (T + steps) * BLOCK_TOKENS - 1)
        no_action = actions.new_zeros(R, 1)
        hints = model.hints(obs_tokens) if model.config.copy_previous else None
        x = model.embed(obs_tokens, torch.cat([actions, no_action], 1), games, hints)
        hidden = model.transformer(x[:, :-1], cache)
        return cls(model, model.tables(), cache, games, obs_tokens[:, -1], hidden[:, -1])

    def select(self, rows: Tensor) -> Dream:
        """The dream whose row i goes on from this one's row `rows[i]`."""
        return Dream(
            self.model,
            self.tables,
            self.cache.select(rows),
            self.games[rows],
            self.frame[rows],
            self.hidden[rows],
        )

    def q_values(self) -> Tensor:
        """Expected returns (R, 18) at the newest frame; illegal actions are -inf."""
        values = self.model.values(self.model.q_head(self.hidden.unsqueeze(1)))[:, 0]
        return values.masked_fill(~self.model.legal_actions[self.games], -torch.inf)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Takes actions (R,) and imagines the next frame, in place.

        Returns the predicted rewards (R,) in {-1, 0, 1} and ends (R,) as bool.
        """
        model, copying = self.model, self.model.config.copy_previous
        before = self.frame
        hint = before[:, :1] if copying else None
        hidden = model.extend(
            self.cache, actions.unsqueeze(1), hint, self.games, self.tables, action=True
        )
        rewards = model.reward_head(hidden)[:, 0].argmax(-1) - 1
        ends = model.end_head(hidden)[:, 0].argmax(-1).bool()
        none = torch.full_like(before[:, :1], model.config.vocabulary)
        hints = torch.cat([before, none], dim=1)
        tokens = []
        for k in range(FRAME_TOKENS):
            token = model.predict_tokens(hidden, hint).argmax(-1)
            tokens.append(token)
            hint = hints[:, k + 1 : k + 2] if copying else None
            summary = None
            if model.config.summary_width and k == FRAME_TOKENS - 1:
                summary = model.summarise(torch.cat(tokens, dim=1), before)
            hidden = model.extend(self.cache, token, hint, self.games, self.tables, summary=summary)
        self.frame, self.hidden = torch.cat(tokens, dim=1), hidden[:, -1]
        return rewards.float(), ends
