"""Two processes watch a batch of which each has a share; torchrun runs it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from jowa.learning.compute import Compute
from jowa.learning.distributed import ALONE, Processes, join
from jowa.learning.objective import StepLoss
from jowa.learning.optim import OptimizerConfig, build_optimizer
from jowa.learning.step import Step

STEPS, WRONG = 150, 140
BEST_Q = 30.0


class Line(nn.Module):
    """Learns from rows of what the gradient is, a part of the loss without one, and Q's best."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.model: Any = SimpleNamespace(
            config=SimpleNamespace(value_min=BEST_Q, value_max=BEST_Q)
        )
        self.config = SimpleNamespace(tokenizer=0.0)

    def counts(self, batch: Tensor) -> Tensor:
        return torch.tensor([float(len(batch))])

    def forward(self, batch: Tensor, counts: Tensor, detailed: bool) -> StepLoss:
        sloped, flat, best_q = (batch / counts).sum(0)
        loss = (self.weight * sloped).sum() + flat
        return StepLoss(loss, {"q/best": best_q}, None)


def batch_of(step: int) -> Tensor:
    """Four rows, the first two of process 0."""
    rows = torch.tensor([1.0, 0.0, 0.0]).repeat(4, 1)
    if step == 110:  # many times as much in one process, a little more than before in all
        rows[:2, 1] = 3.0
    # Little in one process, a spike of the whole batch; the first comes too early to be counted.
    if step in (20, 120, 121):
        rows[2:, 1] = 9.0
    if step == 50:
        rows[:, 2] = torch.tensor([1.9, 1.9, 0.0, 0.0]) * BEST_Q
    if step in (60, 130):
        rows[:, 2] = torch.tensor([0.0, 0.0, 2.1, 2.1]) * BEST_Q
    if step >= WRONG:  # and not its gradient
        rows[3, 1] = torch.inf
    return rows


def step_of(processes: Processes) -> Step:
    config = OptimizerConfig(learning_rate=1e-5, weight_decay=0.0)
    compute = Compute(torch.device("cpu"), torch.float32, processes)
    objective: Any = Line()
    optimizer = build_optimizer(objective, config)
    return Step(objective, optimizer, config, compute, STEPS, 0, compile=False)


def main() -> None:
    torch.set_num_threads(1)
    processes = join(torch.device("cpu"))
    together, alone = step_of(processes), step_of(ALONE)
    for number in range(STEPS):
        batch = batch_of(number)
        ours = together(batch.chunk(2)[processes.rank], number, False)
        whole = alone(batch, number, False)
        for name in ("guard/loss_spikes", "guard/q_diverging"):
            assert torch.equal(ours[name], whole[name]), (number, processes.rank, name)
        torch.testing.assert_close(together.guard.average, alone.guard.average, equal_nan=True)
        if number == WRONG - 1:
            before = together.objective.weight.clone()
            assert together.guard.spikes == 2 and together.guard.diverging == 2
    assert together.guard.bad_step == alone.guard.bad_step == WRONG
    assert torch.equal(together.objective.weight, before)


if __name__ == "__main__":
    main()
