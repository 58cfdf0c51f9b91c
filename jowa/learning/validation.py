"""How well a phase does on episodes that it never learns from."""

from __future__ import annotations

import math

import torch

from jowa.data.sampler import Sampler
from jowa.data.segments import SegmentDataset
from jowa.errors import UserError
from jowa.learning.compute import Compute
from jowa.learning.objective import Metrics, Objective
from jowa.learning.sharding import release

SEED = 0x76616C  # apart from those of training


def check_hold_out(hold_out: int, share: float = 1.0) -> None:
    """Raises UserError for a share of episodes that cannot be held out, or learned from."""
    if hold_out == 1 or hold_out < 0:
        raise UserError(
            f"hold_out is {hold_out}: give 2 or more, such as 20 for one episode in 20, or 0 to "
            f"learn from all."
        )
    if not 0.0 < share <= 1.0:
        raise UserError(
            f"data.share is {share}: it is the part of the episodes to learn from, use more than 0 "
            f"and at most 1."
        )


def averages(metrics: Metrics, compute: Compute) -> dict[str, float]:
    """Metrics as numbers, over all processes; a share of nothing, as of rewards in a batch without
    any, is left out."""
    one = torch.ones((), device=compute.device)
    rows = [v.float() if v.ndim else torch.stack([v.float(), one]) for v in metrics.values()]
    parts = compute.processes.average(torch.stack(rows))
    values = (parts[:, 0] / parts[:, 1]).tolist()
    return {k: v for k, v in zip(metrics, values, strict=True) if math.isfinite(v)}


class Validation:
    """Losses and accuracies on the first `batches` of held-out segments that a sampler draws, the
    same ones every time; every process takes its share of each batch.
    """

    def __init__(
        self, dataset: SegmentDataset, sampler: Sampler, batches: int, compute: Compute
    ) -> None:
        self.dataset, self.sampler, self.batches = dataset, sampler, batches
        self.compute = compute

    def __call__(self, objective: Objective) -> dict[str, float]:
        """Metrics by name, `validation/...`; the objective is left as it was."""
        training = objective.training
        objective.eval()
        cuda = [self.compute.device] if self.compute.device.type == "cuda" else []
        # What is drawn by chance is the same every time, and training goes on as if without.
        with torch.no_grad(), torch.random.fork_rng(cuda):
            torch.manual_seed(SEED)
            values = self._measure(objective)
        release(objective)
        objective.train(training)
        return values

    def _measure(self, objective: Objective) -> dict[str, float]:
        totals: Metrics = {}
        drawn = (self.sampler.at(number) for number in range(self.batches))
        batches = [self.dataset.batch(*chosen) for chosen in drawn]
        counted = [objective.counts(batch.to(self.compute.device)) for batch in batches]
        # Means over all batches: each is given the mean of what they hold.
        counts = self.compute.processes.average(torch.stack(counted).mean(0))
        for batch in batches:
            with self.compute.autocast():
                _, metrics, _ = objective(batch.to(self.compute.device), counts, detailed=True)
            for name, value in metrics.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value / self.batches
        values = averages(totals, self.compute)
        return {f"validation/{name}": value for name, value in values.items()}
