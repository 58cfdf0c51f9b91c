"""One training step's loss, for every phase: `loss, metrics = objective(batch)`.

Phases differ only in their weights: the tokenizer alone; tokenizer and world model (stage 1);
world model and Q on tokens of the frozen tokenizer (stage 2); everything (fine-tuning).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jowa.data.segments import Batch
from jowa.learning.accuracy import agreement, world_model_accuracy
from jowa.learning.loss_config import LossConfig
from jowa.learning.losses import (
    cloning_loss,
    cql_penalty,
    masked_mean,
    n_step_targets,
    next_token_targets,
    squared_td_loss,
    step_losses,
    target_rows,
    td_loss,
)
from jowa.learning.token_loss import token_loss
from jowa.models.outputs import Output
from jowa.models.tokenizer import CodeStatistics, Tokenizer
from jowa.models.world_action import FRAME_TOKENS, WorldActionModel

# Each a mean over the whole batch's counts, (), or a share, (2,).
Metrics = dict[str, Tensor]


class Counts(NamedTuple):
    """How many elements each mean of the losses is taken over."""

    items: Tensor  # of the tokenizer's loss
    tokens: Tensor  # next-token targets of the world model's segments
    model_steps: Tensor  # their real steps, which train rewards and ends
    real_steps: Tensor  # of all segments, which are cloned
    steps: Tensor  # real and imagined steps
    rows: Tensor  # steps with a TD target
    data_steps: Tensor  # steps whose action's value the penalty raises


class StepLoss(NamedTuple):
    """What one training step computes from a batch."""

    loss: Tensor
    metrics: Metrics
    statistics: CodeStatistics | None  # for `Tokenizer.learn`, after the step


class Objective(nn.Module):
    """Tokenizer, model and the weighted losses of one phase."""

    def __init__(
        self, tokenizer: Tokenizer, model: WorldActionModel | None, config: LossConfig
    ) -> None:
        super().__init__()
        self.tokenizer, self.model, self.config = tokenizer, model, config
        assert model is not None or not config.trains_model

    def freeze_unused(self) -> None:
        """Leaves trainable only what this phase's losses reach.

        Data parallelism waits for every trainable parameter's gradient, and an optimiser keeps
        state for each.
        """
        self.tokenizer.requires_grad_(self.config.tokenizer > 0)
        if self.model is not None:
            world = bool(self.config.world_model)
            q = self.config.trains_q_head
            through = q and not (self.config.detach_q or self.model.has_reader)
            self.model.requires_grad_(world or through)
            self.model.freeze_heads(world=world, q=q)

    def counts(self, batch: Batch) -> Tensor:
        """How much the batch holds of what its losses' means are taken over, as `Counts`, stacked.

        Averaged over processes that each hold a share of a batch and given to `forward`, it makes
        the mean of their gradients the gradient of the whole batch.
        """
        mask, real = batch.mask_padding, batch.real
        rows = self._world_rows(batch)
        modelled = real if rows is None else real[rows]
        counts = Counts(
            items=self.tokenizer.count(real),
            tokens=modelled.sum() * FRAME_TOKENS - modelled[:, 0].sum(),
            model_steps=modelled.sum(),
            real_steps=real.sum(),
            steps=mask.sum(),
            rows=target_rows(batch.ends, mask).sum(),
            data_steps=self._in_data(batch).sum(),
        )
        return torch.stack(counts).float()

    def _world_rows(self, batch: Batch) -> Tensor | None:
        """The segments that the world model learns from, None for all: of every `world_one_in` in
        a row that with the least key, whichever process holds them. Validation takes all."""
        if self.config.world_one_in == 1 or not self.training:
            return None
        keys = batch.keys.view(-1, self.config.world_one_in)
        first = torch.arange(0, keys.numel(), self.config.world_one_in, device=keys.device)
        return first + keys.argmin(1)

    def forward(
        self, batch: Batch, counts: Tensor | None = None, detailed: bool = False
    ) -> StepLoss:
        """The loss, its terms and the codebook's statistics; `detailed` adds accuracies, which
        cost some time."""
        by_name = Counts(*(self.counts(batch) if counts is None else counts).unbind())
        total = torch.zeros((), device=batch.actions.device)
        metrics: Metrics = {}
        statistics = None
        if self.config.tokenizer:
            loss, metrics, statistics = self.tokenizer.loss(
                batch.observations, batch.games, batch.real, batch.keys, by_name.items
            )
            total = total + self.config.tokenizer * loss
        if self.model is not None and self.config.trains_model:
            loss, model_metrics = self._model_losses(self.model, batch, by_name, detailed)
            total = total + loss
            metrics |= model_metrics
        return StepLoss(total, metrics | {"loss/total": total.detach()}, statistics)

    def _model_losses(
        self, model: WorldActionModel, batch: Batch, counts: Counts, detailed: bool
    ) -> tuple[Tensor, Metrics]:
        tokens, rows = self.tokens(batch), self._world_rows(batch)
        output = model(
            tokens,
            batch.actions,
            batch.games,
            world=self.config.world_model > 0,
            q=self.config.trains_q_head,
            token_logits=False,
            detach_q=self.config.detach_q,
            world_rows=rows,
        )
        total = torch.zeros((), device=tokens.device)
        metrics: Metrics = {}
        if self.config.world_model:
            seen = (tokens, batch) if rows is None else (tokens[rows], batch.select(rows))
            loss, part = self._world_model(model, output, *seen, counts, detailed)
            total, metrics = total + self.config.world_model * loss, metrics | part
        if self.config.q:
            loss, part = self._q(model, output, batch, counts, detailed)
            total, metrics = total + self.config.q * loss, metrics | part
        if self.config.cloning:
            loss, part = self._cloning(model, output, batch, counts, detailed)
            total, metrics = total + self.config.cloning * loss, metrics | part
        return total, metrics

    @torch.no_grad()
    def tokens(self, batch: Batch) -> Tensor:
        """(B, L, 36): the batch's tokens, or its frames encoded by the tokenizer as it is."""
        if batch.observations.ndim == 3:
            return batch.observations
        B, L = batch.actions.shape
        frames = batch.observations.flatten(0, 1).unsqueeze(1)
        return self.tokenizer.encode(frames, batch.games.repeat_interleave(L)).view(B, L, -1)

    def _world_model(
        self,
        model: WorldActionModel,
        output: Output,
        tokens: Tensor,
        batch: Batch,
        counts: Counts,
        detailed: bool,
    ) -> tuple[Tensor, Metrics]:
        assert output.predicting is not None
        assert output.reward_logits is not None and output.end_logits is not None
        targets = next_token_targets(tokens, batch.real).flatten()
        hidden, last = model.observation_head[:-1](output.predicting), model.observation_head[-1]
        assert isinstance(last, nn.Linear)
        gates = hints = None
        if output.hints is not None:
            gates, hints = model.copy_gate(output.predicting).flatten(), output.hints.flatten()
        summed = token_loss(hidden.flatten(0, 1), last, targets, gates, hints)
        observation = summed / counts.tokens.clamp(min=1.0)
        reward, end = step_losses(
            output.reward_logits,
            output.end_logits,
            batch.rewards,
            batch.ends,
            batch.real,
            self.config.reward_weight,
            counts.model_steps,
        )
        metrics = {
            "world_model/observation": observation.detach(),
            "world_model/reward": reward.detach(),
            "world_model/end": end.detach(),
        }
        if detailed:
            with torch.no_grad():
                predicted = model.predict_tokens(output.predicting, output.hints).argmax(-1)
            metrics |= world_model_accuracy(predicted, output.reward_logits, tokens, batch)
        return observation + self.config.reward * reward + end, metrics

    def _q(
        self,
        model: WorldActionModel,
        output: Output,
        batch: Batch,
        counts: Counts,
        detailed: bool,
    ) -> tuple[Tensor, Metrics]:
        assert output.q_logits is not None and output.target_q_logits is not None
        members = self._member_weights(output.q_logits) if self.config.rem else None
        legal = model.legal_actions[batch.games]
        targets = n_step_targets(
            batch.rewards, batch.ends, batch.mask_padding, self.config.gamma, self.config.n_step
        )
        if model.config.distributional:
            probs = model.probabilities(output.q_logits, members)
            target_probs = model.probabilities(output.target_q_logits, members)
            td = td_loss(
                probs, target_probs, batch.actions, targets, legal, model.support, counts.rows
            )
            values = (probs * model.support).sum(-1)
        else:
            values = model.values(output.q_logits, members)
            target_values = model.values(output.target_q_logits, members)
            td = squared_td_loss(values, target_values, batch.actions, targets, legal, counts.rows)
        penalty, metrics = self._penalty(values, batch, counts)
        best = values.detach().amax(-1)
        metrics["q/best"] = masked_mean(best, batch.mask_padding, counts.steps)
        if detailed:
            metrics |= agreement(values, legal, batch)
        return td + penalty, {"q/td": td.detach(), **metrics}

    def _cloning(
        self,
        model: WorldActionModel,
        output: Output,
        batch: Batch,
        counts: Counts,
        detailed: bool,
    ) -> tuple[Tensor, Metrics]:
        assert output.q_logits is not None
        values, legal = model.values(output.q_logits), model.legal_actions[batch.games]
        temperature, count = self.config.cql_temperature, counts.real_steps
        loss = cloning_loss(values, batch.actions, legal, batch.real, temperature, count)
        metrics = agreement(values, legal, batch) if detailed else {}
        return loss, {"cloning/cross_entropy": loss.detach(), **metrics}

    def _in_data(self, batch: Batch) -> Tensor:
        """(B, L) bool: steps whose action's value the penalty raises."""
        combo = self.config.penalty == "combo"
        return batch.real if combo else batch.mask_padding

    def _penalty(self, values: Tensor, batch: Batch, counts: Counts) -> tuple[Tensor, Metrics]:
        """The weighted penalty on values (B, L, A) of actions that were not taken."""
        if self.config.penalty == "none":
            return values.new_zeros(()), {}
        everywhere, in_data = cql_penalty(
            values,
            batch.actions,
            batch.mask_padding,
            self._in_data(batch),
            self.config.cql_temperature,
            counts.steps,
            counts.data_steps,
        )
        penalty = self.config.cql_weight * (everywhere - in_data)
        return penalty, {
            "q/cql": penalty.detach(),
            "q/soft_maximum": everywhere.detach(),
            "q/data_actions": in_data.detach(),
        }

    def _member_weights(self, q_logits: Tensor) -> Tensor:
        """Random convex weights (Q,) of the ensemble's members (REM, Agarwal et al., 2020)."""
        weights = torch.rand(len(q_logits), device=q_logits.device)
        return weights / weights.sum()
