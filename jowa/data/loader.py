"""Batches made ahead of the step that learns from them, by processes of their own.

HDF5 reads one thing at a time in a process, whatever the number of threads, so frames that lie on
disk are decompressed by worker processes: those of PyTorch's DataLoader, which keeps their order,
notices when one dies, and ends them with their parent. They put observations into memory that is
shared and used again and again, as taking fresh shared memory for each batch takes nearly as long
as decompressing it. The rest of a batch is a few numbers a step, gathered where it lies in memory.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from jowa.data.sampler import Sampler
from jowa.data.segments import Batch, SegmentDataset
from jowa.errors import UserError

_MOST_WORKERS = 4  # unless more are asked for
_PARENTS = (signal.SIGINT, signal.SIGTERM)  # the parent's to heed


@dataclass(frozen=True)
class Loading:
    """How batches are read: by `workers` processes (0: by the training process itself; None: as
    the data needs), each of which is at most `prefetch` batches ahead."""

    workers: int | None = None
    prefetch: int = 2

    def __post_init__(self) -> None:
        """Raises UserError for numbers that make no sense."""
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers is {self.workers}: use 0 or more, or null.")
        if self.prefetch < 1:
            raise UserError(f"prefetch is {self.prefetch}: use 1 or more.")

    def workers_for(self, dataset: SegmentDataset) -> int:
        """As asked for; by default one for each core of this process, at most 4, for data on disk
        and none for data in memory. None ever where the device gathers tokens itself."""
        if dataset.on_device:
            return 0
        if self.workers is not None:
            return self.workers
        on_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = max(1, len(os.sched_getaffinity(0)) // on_host)
        return min(_MOST_WORKERS, cores) if dataset.on_disk else 0


INLINE = Loading(workers=0)


class Loader(Iterator[Batch]):
    """Endless batches of a dataset on `device`, in the sampler's order; a context manager.

    A batch is a pure function of the sampler's step, so it is the same for every `loading`, and
    `sampler.step` counts the batches that were taken, not those that were read ahead.

    Raises:
        UserError: naming the file where one is damaged, or where a worker was killed.
    """

    def __init__(
        self, dataset: SegmentDataset, sampler: Sampler, loading: Loading, device: torch.device
    ) -> None:
        self._dataset, self._sampler, self._device = dataset, sampler, device
        workers = loading.workers_for(dataset)
        self._ahead = _Ahead(dataset, sampler, workers, loading.prefetch) if workers else None

    def __next__(self) -> Batch:
        if self._ahead is None:
            batch = self._dataset.batch(*self._sampler.at(self._sampler.step))
        else:
            batch = self._ahead.next_batch()
        self._sampler.step += 1
        return batch.sent_to(self._device)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ahead is not None:
            self._ahead.close()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise UserError(
                f"a process that reads data was killed ({str(error).splitlines()[0].strip()}): if "
                f"memory is short, lower workers or prefetch; the same command goes on from the "
                f"last checkpoint."
            ) from error


class _Ahead:
    """Worker processes and the shared memory they read into: room for the batches that are read
    ahead and for the one that is being taken."""

    def __init__(
        self, dataset: SegmentDataset, sampler: Sampler, workers: int, prefetch: int
    ) -> None:
        self._dataset, self._sampler = dataset, sampler
        indices, _ = sampler.at(sampler.step)
        one = dataset.observations(indices[:1]).numpy()
        count = workers * prefetch + 1
        # Anonymous memory, which forked processes share: /dev/shm is often small in containers.
        memory = mmap.mmap(-1, count * len(indices) * one.nbytes)
        self._slots = np.frombuffer(memory, one.dtype).reshape(count, len(indices), *one.shape[1:])
        self._free = deque(range(count))
        self._asked: deque[tuple[int, np.ndarray, np.ndarray]] = deque()
        loader = DataLoader(
            _Observations(dataset, self._slots),
            batch_size=None,  # one item is a whole batch already
            sampler=self._requests(),
            num_workers=workers,
            prefetch_factor=prefetch,
            multiprocessing_context="fork",
            worker_init_fn=_leave_signals_to_parent,
            # Else starting them would draw from the random state that training continues.
            generator=torch.Generator(),
        )
        # Workers inherit the blocked signals: none reaches one that does not ignore them yet.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
        try:
            self._done: Any = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _requests(self) -> Iterator[tuple[int, np.ndarray]]:
        """A free slot and the segments to put there, for one batch after another."""
        step = self._sampler.step
        while True:
            slot, (indices, keys) = self._free.popleft(), self._sampler.at(step)
            self._asked.append((slot, indices, keys))
            yield slot, indices
            step += 1

    def next_batch(self) -> Batch:
        error = next(self._done)
        if error is not None:
            raise error
        slot, indices, keys = self._asked.popleft()
        observations = torch.tensor(self._slots[slot])  # a copy: the slot is filled anew
        self._free.append(slot)
        return self._dataset.batch(indices, keys, observations)

    def close(self) -> None:
        """Ends the workers. Waiting for the iterator to be collected instead would leave them
        there for as long as somebody holds an exception that passed through it."""
        self._done._shutdown_workers()


class _Observations(Dataset["UserError | None"]):
    """What a worker runs: reads the observations of a batch into a slot."""

    def __init__(self, segments: SegmentDataset, slots: np.ndarray) -> None:
        self._segments, self._slots = segments, slots
        self._reopened = False

    def __getitem__(self, request: tuple[int, np.ndarray]) -> UserError | None:
        """An error is returned, as raising it here would turn its sentence into a traceback."""
        slot, indices = request
        try:
            if not self._reopened:
                self._segments.reopen()
                self._reopened = True
            self._segments.observations(indices, self._slots[slot])
        except UserError as error:
            return error
        return None


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM often reach all processes of a job, but the training process decides when
    to stop: it still needs batches until then, and ends its workers."""
    for number in _PARENTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS)
