"""The one training loop, for every phase: `loss, metrics = objective(batch)`."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from jowa.data.sampler import Sampler
from jowa.data.segments import Batch, SegmentDataset
from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import Checkpoint
from jowa.learning.compute import Compute
from jowa.learning.monitor import Monitor, progress_bar
from jowa.learning.objective import Objective
from jowa.learning.optim import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    set_learning_rate,
)
from jowa.models.tokenizer import Tokenizer
from jowa.models.world_action import BLOCK_TOKENS, WorldActionModel

TRAINING = "training"  # the checkpoint's file of optimiser and random state


@dataclass
class LogConfig:
    """How often, in steps: scalars, accuracies (slower), pictures, checkpoints."""

    scalars: int = 10
    details: int = 50
    pictures: int = 500
    checkpoint: int = 500
    keep: int = 2


@dataclass
class Phase:
    """One stretch of training with its own objective, data and optimiser."""

    name: str
    steps: int
    objective: Objective
    dataset: SegmentDataset
    sampler: Sampler
    optimizer: OptimizerConfig
    target_update_every: int = 0  # steps between hard updates of the target head; 0 is never


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, by SIGTERM or SIGINT, and has written a checkpoint."""


@dataclass
class Position:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    phase: str = ""
    phase_step: int = 0
    done: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Trainer:
    """Trains phases in order, logs, checkpoints, and goes on where an earlier process stopped.

    `facts` is JSON data that every checkpoint's state.json carries (sizes, games, configuration).
    `pictures` returns pictures by name, made from the current weights. `compile` runs forward and
    loss through torch.compile.
    """

    def __init__(
        self,
        run: Path,
        tokenizer: Tokenizer,
        model: WorldActionModel | None,
        compute: Compute,
        log: LogConfig,
        facts: dict[str, Any],
        seed: int,
        pictures: Callable[[], dict[str, np.ndarray]],
        compile: bool = False,
    ) -> None:
        self.run, self.compute, self.log, self.facts = run, compute, log, facts
        self.tokenizer, self.model = tokenizer.to(compute.device), model
        if model is not None:
            model.to(compute.device)
        self.seed, self.pictures, self.compile = seed, pictures, compile
        self.position = Position()
        self._resume: Checkpoint | None = None
        self._stop = False
        if (folder := checkpoints.newest(run)) is not None:
            stems = ("tokenizer",) if model is None else ("model", "tokenizer")
            self._restore(checkpoints.load(folder, stems, optional=(TRAINING,)))

    def _restore(self, saved: Checkpoint) -> None:
        checkpoints.fill(self.tokenizer, saved.tensors["tokenizer"], "the run's tokenizer")
        if self.model is not None:
            checkpoints.fill(self.model, saved.tensors["model"], "the run's model")
        self.position = Position(**saved.state["position"])
        self._resume = saved

    def finished(self, phase: str) -> bool:
        """Whether this run has completed that phase."""
        return phase in self.position.done

    def train(self, phase: Phase) -> None:
        """Runs the phase to its end; raises Stopped after SIGTERM or SIGINT."""
        if phase.steps == 0:
            self.position.done.append(phase.name)
            return
        optimizer = build_optimizer(phase.objective, phase.optimizer)
        names: dict[Tensor, str] = {p: name for name, p in phase.objective.named_parameters()}
        self._begin(phase, optimizer, names)
        previous = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        bar = progress_bar(phase.name, phase.steps, "step", self.position.phase_step)
        try:
            with bar, Monitor(self.run, self.position.step) as monitor:
                self._loop(phase, optimizer, names, monitor, bar.update)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _begin(
        self, phase: Phase, optimizer: torch.optim.Optimizer, names: dict[Tensor, str]
    ) -> None:
        """Puts random state, optimiser and sampler where the phase starts or goes on."""
        if self._resume is not None and self.position.phase == phase.name:
            training = self._resume.tensors.get(TRAINING)
            if training is None:
                raise UserError(
                    f"{self.run} cannot go on: its checkpoint of step {self.position.step} holds "
                    f"no state of the optimiser; start a new run=... from it."
                )
            checkpoints.fill_optimizer(optimizer, training, names)
            phase.sampler.load_state_dict(self._resume.state["sampler"])
            torch.set_rng_state(training["rng/cpu"])
            if self.compute.device.type == "cuda":
                torch.cuda.set_rng_state(training["rng/cuda"])
        else:
            self.position.phase, self.position.phase_step = phase.name, 0
            torch.manual_seed(self.seed * 1_000_003 + len(self.position.done))
        self._resume = None

    def _loop(
        self,
        phase: Phase,
        optimizer: torch.optim.AdamW,
        names: dict[Tensor, str],
        monitor: Monitor,
        advance: Callable[[int], object],
    ) -> None:
        at, log, clock = self.position, self.log, _Clock(self.position.step)
        phase.objective.train()
        forward = torch.compile(phase.objective) if self.compile else phase.objective
        while at.phase_step < phase.steps:
            batch = clock.time_data(lambda: phase.dataset.batch(next(phase.sampler)))
            batch = batch.to(self.compute.device)
            detailed = at.phase_step % log.details == 0
            metrics = self._step(phase, optimizer, forward, batch, detailed)
            advance(1)
            last = at.phase_step == phase.steps
            if detailed or last or at.phase_step % log.scalars == 0:
                # A share of nothing, as of rewards in a batch without any, is left out.
                values = {name: float(value) for name, value in metrics.items()}
                values = {name: value for name, value in values.items() if math.isfinite(value)}
                values |= {f"rate/{g['owner']}": g["lr"] for g in optimizer.param_groups}
                elapsed, speeds = clock.read(at.step, batch)
                at.seconds += elapsed
                monitor.scalars(at.step, phase.name, at.seconds, values | speeds)
            if last or at.phase_step % log.pictures == 0:
                for name, image in self.pictures().items():
                    monitor.picture(at.step, name, image)
            if last:
                at.done.append(phase.name)
            if last or self._stop or at.phase_step % log.checkpoint == 0:
                self._save(optimizer, names, phase.sampler)
                if self._stop:
                    raise Stopped("a checkpoint is written; the same command goes on from it")

    def _step(
        self,
        phase: Phase,
        optimizer: torch.optim.AdamW,
        forward: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        batch: Batch,
        detailed: bool,
    ) -> dict[str, Tensor]:
        """One update, and of the target head when it is due; returns the metrics."""
        at = self.position
        set_learning_rate(optimizer, phase.optimizer, at.phase_step, phase.steps)
        with self.compute.autocast():
            loss, metrics = forward(batch, detailed=detailed)
        loss.backward()
        norms = clip_gradients(optimizer, phase.optimizer)
        if not torch.isfinite(torch.stack(list(norms.values()))).all():
            self._refuse(batch, metrics, norms)
        optimizer.step()
        optimizer.zero_grad()
        at.step, at.phase_step = at.step + 1, at.phase_step + 1
        if phase.target_update_every and at.phase_step % phase.target_update_every == 0:
            assert self.model is not None
            self.model.update_target()
        return metrics | {f"gradient_norm/{owner}": norm for owner, norm in norms.items()}

    def _save(
        self, optimizer: torch.optim.Optimizer, names: dict[Tensor, str], sampler: Sampler
    ) -> None:
        training = checkpoints.optimizer_tensors(optimizer, names)
        training["rng/cpu"] = torch.get_rng_state()
        if self.compute.device.type == "cuda":
            training["rng/cuda"] = torch.cuda.get_rng_state()
        tensors = {"tokenizer": self.tokenizer.state_dict(), TRAINING: training}
        if self.model is not None:
            tensors["model"] = self.model.state_dict()
        state = {
            **self.facts,
            "position": vars(self.position),
            "sampler": sampler.state_dict(),
            "versions": checkpoints.versions(),
        }
        checkpoints.save(self.run, Checkpoint(self.position.step, state, tensors), self.log.keep)

    def _refuse(self, batch: Batch, metrics: dict[str, Tensor], norms: dict[str, Tensor]) -> None:
        """Stops before the optimiser step when loss or gradient is not finite."""
        path = self.run / f"bad_batch_step_{self.position.step:08d}.safetensors"
        save_file({name: t.cpu().contiguous() for name, t in vars(batch).items()}, path)
        wrong = [
            name
            for name, value in metrics.items()
            if not name.startswith("accuracy/") and not torch.isfinite(value).all()
        ]
        shown = " and ".join(f"{float(norm)} ({owner})" for owner, norm in norms.items())
        raise UserError(
            f"the gradient's norm is {shown} at step {self.position.step} (not finite: "
            f"{', '.join(wrong) or 'no loss term'}); the weights are those of the last checkpoint, "
            f"the batch is in {path}: lower the learning rate or use compute.dtype=float32."
        )

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True


class _Clock:
    """Wall time between logged steps, and how much of it went to reading data."""

    def __init__(self, step: int) -> None:
        self._start, self._step, self._data = time.perf_counter(), step, 0.0

    def time_data(self, read: Callable[[], Batch]) -> Batch:
        start = time.perf_counter()
        batch = read()
        self._data += time.perf_counter() - start
        return batch

    def read(self, step: int, batch: Batch) -> tuple[float, dict[str, float]]:
        """Seconds since the last reading, and the rates in them; starts anew."""
        elapsed, steps, data = time.perf_counter() - self._start, step - self._step, self._data
        self._start, self._step, self._data = time.perf_counter(), step, 0.0
        return elapsed, {
            "speed/steps_per_second": steps / elapsed,
            "speed/tokens_per_second": steps * batch.actions.numel() * BLOCK_TOKENS / elapsed,
            "speed/data_share": data / elapsed,
        }
