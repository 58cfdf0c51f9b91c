"""Imagined steps: what the world model believes follows a context and an action.

B environments, N rows each, R = B·N rows, T frames of context, K = 36 tokens a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.models.decoding import Cache
from jowa.models.outputs import Tables
from jowa.models.world_action import BLOCK_TOKENS, MAX_FRAMES, WorldActionModel
from jowa.planning.decode import Block, Decoder, decoder_of
from jowa.planning.values import expected_rewards, q_values


@dataclass
class Dream:
    """Rows of real or imagined play whose newest frame has no action yet.

    `frame` (R, 36) is that frame, `before` (R, 36) the one before it (V where there is none),
    `hidden` (R, D) the activation at its last token, from which Q is read unless the model has a
    reader, `position` (R,) that of its action. `siblings` rows in a row follow the same play.
    `cache` and `hidden` are None where nobody needs the sequence: Q has a reader, and nothing is
    to be imagined.
    """

    model: WorldActionModel
    decoder: Decoder
    tables: Tables
    cache: Cache | None
    games: Tensor
    frame: Tensor
    before: Tensor
    hidden: Tensor | None
    position: Tensor
    siblings: int = 1

    @classmethod
    def start(
        cls,
        model: WorldActionModel,
        obs_tokens: Tensor,
        actions: Tensor,
        games: Tensor,
        steps: int,
        lengths: Tensor | None = None,
        decoder: Decoder | None = None,
    ) -> Dream:
        """Reads contexts of T frames (B, T, 36) with the T - 1 actions between them (B, T - 1) in
        one pass; `steps` imagined frames will fit.

        With `lengths` (B,) only the last `lengths[b]` frames of row b are real.
        """
        B, T, _ = obs_tokens.shape
        assert T + steps <= MAX_FRAMES, "checked with the planner's configuration"
        frame, before = obs_tokens[:, -1], model.previous_frames(obs_tokens)[:, -1]
        actions = F.pad(actions, (0, 1))
        if lengths is None:
            lengths = games.new_full((B,), T)
        else:
            before = before.masked_fill((lengths < 2).unsqueeze(1), model.config.vocabulary)
            # Real frames first: positions then count from each row's own start.
            order = (torch.arange(T, device=games.device) - lengths.unsqueeze(1)) % T
            obs_tokens = obs_tokens.gather(1, order.unsqueeze(-1).expand_as(obs_tokens))
            actions = actions.gather(1, order)
        decoder = decoder or decoder_of(model)
        tables = decoder.tables(model)
        position = lengths * BLOCK_TOKENS - 1
        if model.has_reader and not steps:
            return cls(model, decoder, tables, None, games, frame, before, None, position)
        hints = model.hints(obs_tokens) if model.config.copy_previous else None
        x = model.embed(obs_tokens, actions, games, hints, tables)
        cache, hidden = decoder.prefill(model, x[:, :-1], position - 1, steps * BLOCK_TOKENS)
        return cls(model, decoder, tables, cache, games, frame, before, hidden, position)

    def branch(self, rows: Tensor, siblings: int = 1) -> Dream:
        """The dream whose row i goes on from this one's row `rows[i]` of the same environment;
        each is taken `siblings` times in a row."""
        assert self.cache is not None and self.hidden is not None
        return Dream(
            self.model,
            self.decoder,
            self.tables,
            self.cache.branch(rows),
            self.games[rows],
            self.frame[rows],
            self.before[rows],
            self.hidden[rows],
            self.position[rows],
            siblings,
        )

    def q_values(self, pessimistic: bool = False) -> Tensor:
        """Expected returns (R, 18) at the newest frame, as of `values.q_values`."""
        return q_values(
            self.model,
            self.tables,
            self.hidden,
            self.frame,
            self.before,
            self.games,
            pessimistic,
        )

    def step(
        self,
        actions: Tensor,
        generator: torch.Generator | None = None,
        reward_weight: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Takes actions (R,) and imagines the next frame, in place.

        Returns the predicted rewards (R,) in {-1, 0, 1} and ends (R,) as bool. Without a generator
        everything is the most likely; with one it is drawn from what the model predicts. With a
        `reward_weight` rewards are the expected ones instead (`values.expected_rewards`).
        """
        model = self.model
        assert self.cache is not None
        base = model.embed_block(actions, self.frame, self.games, self.position, self.tables)
        shape = (*self.frame.shape, model.config.vocabulary)
        noise = None if generator is None else gumbel(shape, generator)
        frame = self.decoder(
            Block(model, self.tables, self.cache, base, self.frame, self.siblings, noise)
        )
        self.cache.filled += BLOCK_TOKENS
        self.position = self.position + BLOCK_TOKENS
        self.before, self.frame, self.hidden = self.frame, frame.tokens, frame.hidden
        ends = _pick(model.end_head(frame.action_hidden), generator)
        logits = model.reward_head(frame.action_hidden)
        if reward_weight is not None:
            return expected_rewards(logits, reward_weight), ends.bool()
        return _pick(logits, generator).float() - 1, ends.bool()


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise that makes the largest of logits plus noise a sample of their softmax."""
    noise = torch.empty(shape, device=generator.device)
    return noise.exponential_(generator=generator).log_().neg_()


def _pick(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """The likeliest class of (R, classes), or a sample of them."""
    logits = logits.float()
    if generator is not None:
        logits = logits + gumbel(tuple(logits.shape), generator)
    return logits.argmax(-1)
