"""The one training loop, for every phase: `loss, metrics = objective(batch)`."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from jowa.data.loader import INLINE, Loader, Loading
from jowa.data.sampler import Sampler
from jowa.data.segments import Batch, SegmentDataset
from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import Checkpoint
from jowa.learning.clock import Clock
from jowa.learning.compute import Compute
from jowa.learning.imagination import Imagination
from jowa.learning.monitor import LogConfig, Monitor
from jowa.learning.objective import Metrics, Objective
from jowa.learning.optim import OptimizerConfig, build_optimizer
from jowa.learning.record import record_start
from jowa.learning.retention import Score
from jowa.learning.sharding import collect, full, gathered, shard
from jowa.learning.step import Guard, Step
from jowa.learning.validation import Validation, averages
from jowa.models.tokenizer import Tokenizer
from jowa.models.world_action import WorldActionModel
from jowa.progress import progress_bar

TRAINING = "training"  # the checkpoint's file of optimiser and random state
OF_TRAINING = ("gradient_norm/", "guard/", "imagination/")  # metrics that no validation has


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
    imagination: Imagination | None = None  # makes the rest of each batch, if anything does
    validation: Validation | None = None  # on episodes that are held out, if any are


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
    loss through torch.compile, `replay` makes a step one CUDA graph; `loading` says how batches are
    read.
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
        replay: bool = False,
        loading: Loading = INLINE,
    ) -> None:
        self.run, self.compute, self.log, self.facts = run, compute, log, facts
        self.processes = compute.processes
        self.tokenizer, self.model = tokenizer.to(compute.device), model
        self.seed, self.pictures, self.loading = seed, pictures, loading
        self.compile, self.replay = compile, replay
        self.position, self._score = Position(), Score(log.best_metric)
        self._recorded = False
        self._resume: Checkpoint | None = None
        self._stop = False
        if (folder := checkpoints.newest(run)) is not None:
            stems = ("tokenizer",) if model is None else ("model", "tokenizer")
            self._restore(checkpoints.load(folder, stems, optional=(TRAINING,)))
        if model is not None and compute.shards:
            shard(model, compute.processes, compute.device)
        elif model is not None:
            model.to(compute.device)

    def _restore(self, saved: Checkpoint) -> None:
        checkpoints.fill(self.tokenizer, saved.tensors["tokenizer"], "the run's tokenizer")
        if self.model is not None:
            checkpoints.fill(self.model, saved.tensors["model"], "the run's model")
        self.position = Position(**saved.state["position"])
        # What a run started from is found out once; the files may have changed since.
        if "started_from" in saved.state:
            self.facts = self.facts | {"started_from": saved.state["started_from"]}
        self._resume = saved

    def finished(self, phase: str) -> bool:
        """Whether this run has completed that phase."""
        return phase in self.position.done

    def leave_out(self, phase: str) -> None:
        """Counts a phase as completed without training it."""
        if not self.finished(phase):
            self.position.done.append(phase)

    def train(self, phase: Phase) -> None:
        """Runs the phase to its end; raises Stopped after SIGTERM or SIGINT."""
        phase.objective.freeze_unused()
        names: dict[Tensor, str] = {p: name for name, p in phase.objective.named_parameters()}
        step = Step(
            phase.objective,
            build_optimizer(phase.objective, phase.optimizer),
            phase.optimizer,
            self.compute,
            phase.steps,
            phase.target_update_every,
            self.compile,
            self.replay,
        )
        self._begin(phase, step, names)
        self._record(phase)
        previous = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        bar = progress_bar(
            phase.name, phase.steps, "step", self.position.phase_step, self.processes.first
        )
        try:
            with (
                bar,
                Loader(phase.dataset, phase.sampler, self.loading, self.compute.device) as batches,
                Monitor(self.run, self.position.step, self.processes.first) as monitor,
            ):
                self._loop(phase, step, names, batches, monitor, bar)
        except RuntimeError as error:
            self.processes.explain(error)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _begin(self, phase: Phase, step: Step, names: dict[Tensor, str]) -> None:
        """Puts random state, optimiser and sampler where the phase starts or goes on."""
        seed = self.seed * 1_000_003 + len(self.position.done)
        # Processes draw dropout masks of their own.
        torch.manual_seed(seed + (self.processes.rank << 40))
        if self._resume is not None and self.position.phase == phase.name:
            training = self._resume.tensors.get(TRAINING)
            if training is None:
                raise UserError(
                    f"{self.run} cannot go on: its checkpoint of step {self.position.step} holds "
                    f"no state of the optimiser; start a new run=... from it."
                )
            checkpoints.fill_optimizer(step.optimizer, training, names)
            phase.sampler.load_state_dict(self._resume.state["sampler"])
            self._score = Score.going_on(self.log.best_metric, self._resume.state.get("score"))
            step.guard.restore(training)
            if phase.imagination is not None:
                phase.imagination.restore(training)
            # A run that goes on with more processes than it had gives the new ones fresh states.
            if (own := training.get(f"rng/cpu/{self.processes.rank}")) is not None:
                torch.set_rng_state(own)
            if (own := training.get(f"rng/cuda/{self.processes.rank}")) is not None:
                torch.cuda.set_rng_state(own)
        else:
            self.position.phase, self.position.phase_step = phase.name, 0
            self._score = Score(self.log.best_metric)
        self._resume = None

    def _record(self, phase: Phase) -> None:
        """Writes down, once, that this process started to train the run."""
        if self.processes.first and not self._recorded:
            at, files = self.position, phase.dataset.files
            record_start(self.run, at.step, phase.name, self.seed, self.compute, files)
        self._recorded = True

    def _loop(
        self,
        phase: Phase,
        step: Step,
        names: dict[Tensor, str],
        batches: Loader,
        monitor: Monitor,
        bar: tqdm[Any],
    ) -> None:
        at, log, clock = self.position, self.log, Clock(self.position.step, self.processes.size)
        phase.objective.train()
        while at.phase_step < phase.steps:
            if phase.imagination is not None and phase.imagination.due(at.phase_step):
                # What a bad step was given can be read again only from the buffer it had.
                self._check(phase, step.guard)
                with gathered(phase.objective):
                    phase.imagination.refresh(at.phase_step, phase.objective, self.compute)
            batch = clock.time_data(lambda: read(phase, batches))
            detailed = at.phase_step % log.details == 0
            metrics = step(batch, at.phase_step, detailed)
            at.step, at.phase_step = at.step + 1, at.phase_step + 1
            bar.update()
            last = at.phase_step == phase.steps
            if detailed or last or at.phase_step % log.scalars == 0 or self._validates(phase):
                self._check(phase, step.guard)
                if phase.imagination is not None:
                    metrics = metrics | phase.imagination.metrics(self.compute.device)
                values = averages(metrics, self.compute)
                if (validation := phase.validation) is not None and self._validates(phase):
                    values |= clock.pause(functools.partial(validation, phase.objective))
                if detailed:
                    self._check_metric(phase, metrics)
                self._score.add(values)
                rates = {f"rate/{g['owner']}": float(g["lr"]) for g in step.optimizer.param_groups}
                values |= rates
                elapsed, speeds = clock.read(at.step, batch)
                at.seconds += elapsed
                monitor.scalars(at.step, phase.name, at.seconds, values | speeds)
                bar.set_postfix_str(f"{speeds['speed/data_share']:.0%} for data", refresh=False)
            if last or at.phase_step % log.pictures == 0:
                self._draw(phase, monitor)
            if last:
                at.done.append(phase.name)
            stop = self._stops()
            scheduled = last or at.phase_step % log.checkpoint == 0
            if scheduled or stop:
                self._check(phase, step.guard)
                self._save(step, names, phase, scheduled)
                if stop:
                    raise Stopped("a checkpoint is written; the same command goes on from it")

    def _draw(self, phase: Phase, monitor: Monitor) -> None:
        """The first process draws, with weights that all gather."""
        with gathered(phase.objective):
            if self.processes.first:
                for name, image in self.pictures().items():
                    monitor.picture(self.position.step, name, image)

    def _validates(self, phase: Phase) -> bool:
        """Whether this step is the phase's last or one at which held-out episodes are due."""
        at = self.position.phase_step
        return at == phase.steps or at % self.log.validation == 0

    def _stops(self) -> bool:
        """Whether any process was asked to stop; asked together, so that all stop at one step."""
        together = self.processes.size == 1 or self.position.phase_step % self.log.scalars == 0
        return together and self.processes.any(self._stop, self.compute.device)

    def _check_metric(self, phase: Phase, metrics: Metrics) -> None:
        """Raises UserError if the best checkpoints are to be told by what is never logged."""
        metric, known = self.log.best_metric, sorted(metrics)
        if phase.validation is not None:
            known += [f"validation/{name}" for name in known if not name.startswith(OF_TRAINING)]
        if self.log.keep_best and metric not in known:
            raise UserError(
                f"log.best_metric is {metric!r}, which {phase.name} does not log: use one of "
                f"{', '.join(known)}."
            )

    def _check(self, phase: Phase, guard: Guard) -> None:
        """Raises UserError, with the batch saved, if a loss or gradient was not finite."""
        number = int(guard.bad_step)
        if number < 0:
            return
        phase.sampler.step += number - self.position.phase_step
        with Loader(phase.dataset, phase.sampler, INLINE, self.compute.device) as batches:
            batch = read(phase, batches)
        step = self.position.step - self.position.phase_step + number
        path = self.run / f"bad_batch_step_{step:08d}_rank_{self.processes.rank}.safetensors"
        save_file({name: t.contiguous() for name, t in vars(batch).items()}, path)
        phase.objective.zero_grad()
        with self.compute.autocast():
            loss, metrics, _ = phase.objective(batch)
        loss.backward()
        wrong = [name for name, value in metrics.items() if not value.isfinite().all()]
        wrong += [
            f"the gradient of {name}"
            for name, parameter in phase.objective.named_parameters()
            if parameter.grad is not None and not full(parameter.grad).isfinite().all()
        ][:3]
        raise UserError(
            f"step {step} gave numbers that are not finite "
            f"({', '.join(wrong) or 'but not when done again'}); nothing was learned from it, the "
            f"checkpoint before it is untouched, and the batch is in {path}: lower the learning "
            f"rate or use compute.dtype=float32."
        )

    def _save(self, step: Step, names: dict[Tensor, str], phase: Phase, scheduled: bool) -> None:
        random = {"cpu": self.processes.gather(torch.get_rng_state())}
        if self.compute.device.type == "cuda":
            random["cuda"] = self.processes.gather(torch.cuda.get_rng_state())
        buffers: list[dict[str, Tensor]] = []
        if phase.imagination is not None:
            buffers = self.processes.gather(phase.imagination.state())
        training = checkpoints.optimizer_tensors(step.optimizer, names) | step.guard.state()
        for kind, states in random.items():
            training |= {f"rng/{kind}/{rank}": state for rank, state in enumerate(states)}
        for buffer in buffers:
            training |= buffer
        parts = {"tokenizer": self.tokenizer.state_dict(), TRAINING: training}
        if self.model is not None:
            parts["model"] = self.model.state_dict()
        tensors = {stem: collect(part, self.processes) for stem, part in parts.items()}
        if self.processes.first:
            state = {
                **self.facts,
                "position": vars(self.position),
                "score": self._score.state(scheduled),
                "sampler": phase.sampler.state_dict(),
                "versions": checkpoints.versions(),
            }
            saved = Checkpoint(self.position.step, state, tensors)
            checkpoints.save(self.run, saved, self.log.keep, self.log.keep_best)
        if scheduled:
            self._score = Score(self.log.best_metric)
        self.processes.wait()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True


def read(phase: Phase, batches: Loader) -> Batch:
    """This process's share of the phase's next batch, of which `batches` are the real segments."""
    number = phase.sampler.step
    batch = next(batches)
    if phase.imagination is not None:
        imagined = phase.imagination.batch(number)  # not read ahead: it changes as training goes on
        batch = Batch.cat([batch, imagined.sent_to(batch.actions.device)])
    return batch
