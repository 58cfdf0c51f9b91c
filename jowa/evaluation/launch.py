"""Who plays the work: this process, the processes of torchrun, or jobs that submitit submits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from jowa.errors import UserError
from jowa.evaluation.batches import Work
from jowa.evaluation.config import LauncherConfig
from jowa.learning.compute import resolve
from jowa.progress import progress_bar

W = TypeVar("W", bound=Work)

# Shares of games are of unequal length; a process that dies is noticed by its launcher.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Part:
    """One job: prepares the whole work from the configuration and plays its share of it."""

    prepare: Callable[[Any], Work]
    config: Any
    rank: int
    size: int

    def __call__(self) -> None:
        compute = resolve(self.config.compute)
        self.prepare(self.config).share(compute, self.rank, self.size)

    def checkpoint(self) -> Any:
        """What goes into the queue when the job's time is over: the rest of its share."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def carry_out(prepare: Callable[[Any], W], config: Any) -> tuple[W, bool]:
    """Plays all that `prepare` makes of a configuration, by jobs if its launcher says so, else here
    or shared with the other processes of torchrun's job; true in the process that goes on to write
    the results."""
    launcher: LauncherConfig = config.launcher
    if launcher.cluster:
        work = prepare(config)
        if not work.kept:
            size = launcher.jobs or len(work.batches)
            parts = [Part(prepare, config, rank, size) for rank in range(size)]
            _run_jobs(launcher, parts, work.journals / "jobs")
        return work, True
    compute = resolve(config.compute, PATIENCE)
    processes = compute.processes
    work = prepare(config)
    work.share(compute, processes.rank, processes.size)
    try:
        processes.wait()
    except RuntimeError as error:
        processes.explain(error)
        raise
    return work, processes.first


def _run_jobs(launcher: LauncherConfig, parts: list[Part], folder: Path) -> None:
    """Submits a job for each part and waits for all; their logs go into `folder`.

    Raises UserError where jobs cannot be submitted or fail; what the others played is kept.
    """
    executor = _executor(launcher, folder)
    with executor.batch():
        jobs = [executor.submit(part) for part in parts]
    print(
        f"{len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}; logs in {folder}", flush=True
    )
    failed = []
    try:
        with progress_bar("jobs", len(jobs), "job") as bar:
            for job in jobs:
                if (error := job.exception()) is not None:
                    failed.append((job, error))
                bar.update(1)
    except KeyboardInterrupt:
        for job in jobs:
            with contextlib.suppress(Exception):  # it may have ended by now
                job.cancel()
        raise
    if failed:
        job, error = failed[0]
        lines = str(error).strip().splitlines()
        reason = next((line for line in reversed(lines) if "Error: " in line), lines[0])
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed, {job.job_id} with {reason!r} (see "
            f"{job.paths.stderr}): the same command goes on where they stopped."
        )


def _executor(launcher: LauncherConfig, folder: Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            f"launcher.cluster={launcher.cluster} needs submitit: install it by "
            f'pip install "jowa[slurm]".'
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=launcher.cluster)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"launcher.cluster={launcher.cluster} does not work here ({error}): "
            f"submit from a login node, or use launcher=local."
        ) from error
    options: dict[str, Any] = {"timeout_min": launcher.minutes, "slurm_job_name": "jowa"}
    for name, value in (
        ("gpus_per_node", launcher.gpus),
        ("cpus_per_task", launcher.cpus),
        ("mem_gb", launcher.memory_gb),
        ("slurm_partition", launcher.partition),
        ("slurm_array_parallelism", launcher.at_once),
        ("slurm_additional_parameters", launcher.options),
    ):
        if value:
            options[name] = value
    executor.update_parameters(**options)
    return executor
