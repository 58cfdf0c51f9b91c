"""One update of the weights, with the guard that stops a run before bad numbers spoil it.

Nothing here waits for the device: on a GPU the next step is prepared while this one computes, or
the whole update is one CUDA graph (`jowa.learning.replay`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jowa.data.segments import Batch
from jowa.learning.compute import Compute
from jowa.learning.distributed import wrap
from jowa.learning.objective import Metrics, Objective, StepLoss
from jowa.learning.optim import OptimizerConfig, clip_gradients, set_learning_rate
from jowa.learning.replay import Replay
from jowa.learning.sharding import average_whole_gradients
from jowa.models.world_action import WorldActionConfig

_SPIKE = 3.0  # a loss this many times its moving average is counted as a spike
_SPIKE_DECAY = 0.99
_NEVER = -1
# The compiler would make one kernel of both directions in which a LayerNorm's backward pass adds
# up; on an H200 that takes a quarter of a step of 150m, six times what its reads and writes would.
_COMPILER: dict[str, str | int | bool | Callable[..., object]] = {
    "triton.mix_order_reduction": False
}


@dataclass
class Guard:
    """Watches losses and gradients on their device; given those of the whole batch, it says the
    same in every process.

    From the first step whose loss or gradient is not finite on, no update is done: `bad_step` is
    its number (-1: none yet), to be read when the host next waits for the device anyway.
    """

    bad_step: Tensor
    average: Tensor  # moving average of the loss
    seen: Tensor  # steps in it
    spikes: Tensor  # losses far above their average so far
    diverging: Tensor  # steps so far whose mean best Q was at the support's upper end or beyond

    @classmethod
    def on(cls, device: torch.device) -> Guard:
        zeros = [torch.zeros((), device=device) for _ in range(4)]
        return cls(torch.full((), _NEVER, device=device), *zeros)

    @torch.no_grad()
    def watch(self, step: Tensor, loss: Tensor, norms: dict[str, Tensor]) -> Tensor:
        """1.0 if this update must not be done, else 0.0; `step` () is its number."""
        finite = torch.stack([loss, *norms.values()]).isfinite().all()
        first = (self.bad_step == _NEVER) & ~finite
        self.bad_step.copy_(torch.where(first, step, self.bad_step))
        return (self.bad_step != _NEVER).float()

    @torch.no_grad()
    def count(self, loss: Tensor, best_q: Tensor | None, top: float) -> None:
        """Counts spikes of the loss and a diverging Q, whose mean best value is above `top`."""
        # The average means something only once it holds many steps.
        self.spikes += (loss > _SPIKE * self.average) & (self.seen >= 100)
        decay = (self.seen / (self.seen + 1.0)).clamp(max=_SPIKE_DECAY)
        self.average.copy_(torch.lerp(loss, self.average, decay))
        self.seen += 1.0
        if best_q is not None:
            self.diverging += best_q > top

    def metrics(self) -> Metrics:
        return {"guard/loss_spikes": self.spikes, "guard/q_diverging": self.diverging}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to count on."""
        return {f"guard/{name}": value for name, value in vars(self).items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, value in vars(self).items():
            value.copy_(tensors[f"guard/{name}"])


def upper_end(config: WorldActionConfig) -> float:
    """Where the top twentieth of Q's support begins. A distribution's mean cannot leave it, and
    where the mean of all best values lies so high, Q has run against its end."""
    return config.value_max - 0.05 * (config.value_max - config.value_min)


class Step:
    """Does the updates of one phase: `metrics = step(batch, number)`.

    With `replay` the update becomes one CUDA graph, and what a step returns holds until the next.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.AdamW,
        config: OptimizerConfig,
        compute: Compute,
        steps: int,
        target_update_every: int,
        compile: bool,
        replay: bool = False,
    ) -> None:
        self.objective, self.optimizer, self.config = objective, optimizer, config
        self.compute, self.steps, self.target_update_every = compute, steps, target_update_every
        self.guard = Guard.on(compute.device)
        self._number = torch.zeros((), dtype=torch.long, device=compute.device)
        # What is sharded averages its gradients by itself.
        wrapped = objective if compute.shards else wrap(objective, compute.processes)
        self._forward: Callable[..., StepLoss] = (
            torch.compile(wrapped, options=_COMPILER) if compile else wrapped
        )
        self._replay = Replay(self._update, compute.device) if replay else None
        self._changed = [*objective.parameters(), *objective.buffers()]

    def __call__(self, batch: Batch, number: int, detailed: bool) -> Metrics:
        """Update `number` (from 0) of the phase on this process's share of a batch."""
        set_learning_rate(self.optimizer, self.config, number, self.steps)
        self._number.fill_(number)
        # Few steps are detailed: no graph is made of those.
        if self._replay is None or detailed:
            metrics = self._update(batch, detailed)
        else:
            metrics = self._replay(batch)
        # Fused optimisers and replays change weights behind autograd's back; what is computed from
        # them and kept, such as a decoder's tables, goes by their versions.
        torch.autograd.graph.increment_version(self._changed)
        model = self.objective.model
        due = self.target_update_every and (number + 1) % self.target_update_every == 0
        if model is not None and due:
            model.update_target()
        return metrics

    def _update(self, batch: Batch, detailed: bool = False) -> Metrics:
        """All that an update does on the device."""
        counts = self.compute.processes.average(self.objective.counts(batch))
        with self.compute.autocast():
            loss, metrics, statistics = self._forward(batch, counts, detailed=detailed)
        loss.backward()
        if self.compute.shards:
            average_whole_gradients(self.objective, self.compute.processes)
        norms = clip_gradients(self.optimizer, self.config)
        total, best_q = self._of_whole_batch(loss, metrics)
        # A fused optimiser leaves everything as it is where this is 1, without asking the host.
        bad = self.guard.watch(self._number, total, norms)
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if statistics is not None and self.objective.tokenizer.training:
            self.objective.tokenizer.learn(self.compute.processes.merge(statistics))
        model = self.objective.model
        if model is not None and self.objective.config.tokenizer:
            model.set_codes(self.objective.tokenizer)
        self.guard.count(total, best_q, math.inf if model is None else upper_end(model.config))
        norms = {f"gradient_norm/{owner}": norm for owner, norm in norms.items()}
        return metrics | norms | self.guard.metrics()

    def _of_whole_batch(self, loss: Tensor, metrics: Metrics) -> tuple[Tensor, Tensor | None]:
        """The loss and Q's mean best value, if it is trained, of all processes' shares."""
        values = [loss.detach().float()]
        if (best_q := metrics.get("q/best")) is not None:
            values.append(best_q.float())
        # Both in one message; a loss that is not finite in one process is finite in none.
        total, *rest = self.compute.processes.average(torch.stack(values)).unbind()
        return total, rest[0] if rest else None
