"""The yardstick: beam search as it is usually written, one token a pass over a copied cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.models.outputs import Tables
from jowa.models.transformer import Block
from jowa.models.world_action import BLOCK_TOKENS, FRAME_TOKENS, WorldActionModel
from jowa.planning.paths import Plan, ranked


@dataclass
class PlainCache:
    """Keys and values (R, H, capacity, D/H) a layer, of which `length` tokens are filled."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    @classmethod
    def empty(cls, model: WorldActionModel, rows: int, capacity: int) -> PlainCache:
        sizes = model.config.transformer
        shape = (rows, sizes.heads, capacity, sizes.width // sizes.heads)
        device = model.support.device
        tensors = [torch.empty(shape, device=device) for _ in range(2 * sizes.layers)]
        return cls(tensors[: sizes.layers], tensors[sizes.layers :])

    def select(self, rows: Tensor) -> PlainCache:
        def copy(tensor: Tensor) -> Tensor:
            out = tensor.new_empty(len(rows), *tensor.shape[1:])
            out[:, :, : self.length] = tensor[rows, :, : self.length]
            return out

        return PlainCache([copy(k) for k in self.keys], [copy(v) for v in self.values], self.length)


def forward(model: WorldActionModel, x_BND: Tensor, cache: PlainCache) -> Tensor:
    """Activations of N tokens that follow those in the cache, which they join."""
    B, N, D = x_BND.shape
    H, past = model.config.transformer.heads, cache.length
    end = past + N
    for layer, block in enumerate(model.transformer.blocks):
        assert isinstance(block, Block)
        qkv = block.attention.qkv(block.ln1(x_BND)).view(B, N, 3, H, D // H)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        cache.keys[layer][:, :, past:end] = key
        cache.values[layer][:, :, past:end] = value
        out = F.scaled_dot_product_attention(
            query,
            cache.keys[layer][:, :, :end],
            cache.values[layer][:, :, :end],
            is_causal=past == 0 and N > 1,
        )
        x_BND = x_BND + block.attention.proj(out.transpose(1, 2).reshape(B, N, D))
        x_BND = x_BND + block.mlp(block.ln2(x_BND))
    cache.length = end
    return model.transformer.ln_f(x_BND)


@dataclass
class PlainDream:
    """Rows of play; `frame` (R, 36) is the newest, after `before`, `hidden` (R, D) its last
    activation."""

    model: WorldActionModel
    tables: Tables
    cache: PlainCache
    games: Tensor
    frame: Tensor
    before: Tensor
    hidden: Tensor

    def select(self, rows: Tensor) -> PlainDream:
        cache = self.cache.select(rows)
        kept = (x[rows] for x in (self.games, self.frame, self.before, self.hidden))
        return PlainDream(self.model, self.tables, cache, *kept)

    def q_values(self) -> Tensor:
        read = self.hidden
        if self.tables.pictures is not None:
            read = self.model.reader.read(self.frame, self.before, self.tables.pictures)
        values = self.model.values(self.model.q_head(read.unsqueeze(1)))[:, 0]
        return values.masked_fill(~self.model.legal_actions[self.games], -torch.inf)

    def extend(self, tokens: Tensor, hint: Tensor | None, action: bool) -> Tensor:
        model = self.model
        table = model.action_embedding.weight if action else self.tables.observation
        x = F.embedding(tokens, table) + model.position_embedding.weight[self.cache.length]
        if model.config.task_embedding:
            task = model.task_action_embedding if action else model.task_observation_embedding
            x = x + task(self.games)
        if hint is not None and self.tables.hint is not None:
            x = x + F.embedding(hint, self.tables.hint)
        return x

    def step(self, actions: Tensor) -> Tensor:
        """Imagines the next frame token by token; the predicted rewards (R,)."""
        model, before = self.model, self.frame
        copying = model.config.copy_previous
        hints = F.pad(before, (0, 1), value=model.config.vocabulary)
        x = self.extend(actions, hints[:, 0], action=True)
        hidden = forward(model, x.unsqueeze(1), self.cache)
        rewards = model.reward_head(hidden)[:, 0].argmax(-1) - 1
        tokens: list[Tensor] = []
        for k in range(FRAME_TOKENS):
            logits = model.predict_tokens(hidden[:, 0], hints[:, k] if copying else None)
            tokens.append(logits.argmax(-1))
            x = self.extend(tokens[-1], hints[:, k + 1], action=False)
            hidden = forward(model, x.unsqueeze(1), self.cache)
        self.frame, self.before, self.hidden = torch.stack(tokens, 1), before, hidden[:, -1]
        return rewards.float()


@torch.inference_mode()
def plain_search(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    beam_width: int,
    horizon: int,
    gamma: float = 0.99,
) -> Plan:
    """What `jowa.plan` computes, for rows of equal context length."""
    B, T, _ = obs_tokens.shape
    environments = torch.arange(B, device=games.device).unsqueeze(1)
    cache = PlainCache.empty(model, B, (T + horizon) * BLOCK_TOKENS)
    hints = model.hints(obs_tokens) if model.config.copy_previous else None
    x = model.embed(obs_tokens, F.pad(actions, (0, 1)), games, hints)
    hidden = forward(model, x[:, :-1], cache)[:, -1]
    newest = obs_tokens[:, -1], model.previous_frames(obs_tokens)[:, -1]
    dream = PlainDream(model, model.tables(), cache, games, *newest, hidden)
    q_BNA = dream.q_values().unsqueeze(1)
    scores_BN, first_BN = q_BNA.max(-1)
    returns_BN = torch.zeros_like(scores_BN)
    for depth in range(1, horizon + 1):
        N, width = q_BNA.shape[1], min(beam_width, q_BNA.shape[-1])
        top_q, action_BNW = ranked(q_BNA, width)
        real = (top_q.isfinite() & returns_BN.isfinite().unsqueeze(-1)).flatten(1)
        dream = dream.select(torch.arange(B * N, device=games.device).repeat_interleave(width))
        rewards = dream.step(action_BNW.flatten())
        returns = returns_BN.repeat_interleave(width, dim=1)
        returns = returns + gamma ** (depth - 1) * rewards.view(B, -1)
        q = dream.q_values()
        scores = returns + gamma**depth * q.max(-1).values.view(B, -1)
        scores = scores.masked_fill(~real, -torch.inf)
        first = action_BNW.flatten(1)
        first = first if depth == 1 else first_BN.repeat_interleave(width, dim=1)
        scores_BN, kept = ranked(scores, beam_width)
        first_BN = first.gather(1, kept)
        returns_BN = returns.gather(1, kept).masked_fill(scores_BN.isinf(), -torch.inf)
        if depth < horizon:
            rows = (kept + environments * scores.shape[1]).flatten()
            dream, q_BNA = dream.select(rows), q[rows].view(B, -1, q.shape[-1])
    return Plan(first_BN[:, 0], scores_BN[:, 0])
