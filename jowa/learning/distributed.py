"""Data parallelism: what the processes of one job say to each other.

Each process holds a share of every batch. Under `torchrun` the gradients are averaged by PyTorch's
DistributedDataParallel (or, if each is to hold a part of the model only, by `sharding`) while the
backward pass goes on; what is here makes that average the gradient of the whole batch, and keeps
the processes together in everything else.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jowa.errors import UserError
from jowa.models.tokenizer import CodeStatistics

T = TypeVar("T")

# A process that dies is noticed at once, by its closed connections or its launcher; one that only
# keeps the others waiting may be encoding its share of the data or writing a large checkpoint.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process's place in the job; alone, `rank` 0 of `size` 1, nothing is sent."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def average(self, x: Tensor) -> Tensor:
        """The mean of a tensor over the processes, on all of them."""
        if self.size > 1:
            x = x.clone()
            dist.all_reduce(x)
            x /= self.size
        return x

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process; the same answer in all."""
        if self.size == 1:
            return flag
        return bool(self.average(torch.tensor(float(flag), device=device)) > 0)

    def merge(self, statistics: CodeStatistics) -> CodeStatistics:
        """The codebook statistics of all processes' shares together."""
        if self.size == 1:
            return statistics
        columns = []
        for tensor in statistics:
            parts = [torch.empty_like(tensor) for _ in range(self.size)]
            dist.all_gather(parts, tensor.contiguous())
            columns.append(parts)
        return CodeStatistics.merge([CodeStatistics(*row) for row in zip(*columns, strict=True)])

    def gather(self, value: T) -> list[T]:
        """A CPU tensor, or several, of each process, in order of rank."""
        parts: list[Any] = [None] * self.size
        if self.size == 1:
            return [value]
        dist.all_gather_object(parts, value)
        return parts

    def in_turn(self, work: Callable[[], T]) -> T:
        """Does `work` first in process 0 and then, its files being there, in the others."""
        if self.first:
            result = work()
            self.wait()
            return result
        self.wait()
        return work()

    def explain(self, error: RuntimeError) -> None:
        """Raises UserError if the error means that another process has gone."""
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if self.size > 1 and lost:
            raise UserError(
                f"process {self.rank} lost the others of its job ({str(error).splitlines()[0]}): "
                f"see what they said; the same command goes on from what is kept."
            ) from error

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Processes()


def join(device: torch.device, patience: timedelta = PATIENCE) -> Processes:
    """Joins the job that `torchrun` started, if it did: NCCL between GPUs, else gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=patience)
        except (RuntimeError, ValueError, dist.DistError) as error:
            raise UserError(
                f"this process could not join the others of its job ({error}): start it by "
                f"`torchrun --nproc_per_node=N -m jowa ...`, with an address that all hosts reach."
            ) from error
        atexit.register(dist.destroy_process_group)  # where an exception ends the process
    return Processes(dist.get_rank(), dist.get_world_size())


def leave(code: int) -> NoReturn:
    """Ends this process of a job whose work is done or has failed.

    At the interpreter's end threads that PyTorch runs for the job are sometimes destroyed while
    they run, which aborts the process, even after its group was. So that end is not waited for.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def local_rank() -> int:
    """Which GPU of its host is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def wrap(objective: nn.Module, processes: Processes) -> nn.Module:
    """The module to call for the loss, so that its backward pass averages the gradients.

    Calling the objective itself instead would leave every process with its own.
    """
    if processes.size == 1:
        return objective
    # Codebooks and backgrounds change in the same way everywhere and need no copying.
    return DistributedDataParallel(
        objective, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
