"""Jobs for several processes, or for this one."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
from collections.abc import Callable, Collection
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from jowa.data.pool import begin_worker, explained

_POLL_SECONDS = 0.2


class Crew:
    """Runs jobs in `workers` processes, which end with this one however it ends; a single worker
    is this process itself.

    Jobs count what they have done in the counters 0 to `counters` - 1; `report` is called in this
    process with the number of a counter and its count whenever that has changed.
    """

    def __init__(self, workers: int, counters: int, report: Callable[[int, int], None]) -> None:
        self.workers = workers
        self._report = report
        self._reported = [0] * counters
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._counts = context.Array("q", counters)
            self._strangers = set(multiprocessing.active_children())
            self._pool = concurrent.futures.ProcessPoolExecutor(
                workers, mp_context=context, initializer=_begin, initargs=(self._counts,)
            )

    def counter(self, number: int) -> Callable[[int], None]:
        """A function to give to a job: it adds to a counter."""
        return functools.partial(self._count if self._pool is None else _count, number)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Starts a job, a function of a module; a crew of one has done it when this returns."""
        if self._pool is not None:
            with explained():
                return self._pool.submit(function, *arguments)
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done

    def wait(self, running: Collection[Future[Any]]) -> set[Future[Any]]:
        """Those jobs that have finished, after a short while at most; raises what one raised."""
        done, _ = concurrent.futures.wait(
            running, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
        )
        if self._pool is not None:
            for number, count in enumerate(self._counts.get_obj()):
                self._count(number, count - self._reported[number])
        with explained():
            for future in done:
                future.result()
        return done

    def _count(self, number: int, steps: int) -> None:
        if steps:
            self._reported[number] += steps
            self._report(number, self._reported[number])

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:  # a job may take long; what it would still make can be made again
            for child in set(multiprocessing.active_children()) - self._strangers:
                child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


_counts: Any = None  # the counters, in a worker process


def _begin(counts: Any) -> None:
    """Prepares a worker process."""
    global _counts
    _counts = counts
    begin_worker()


def _count(number: int, steps: int) -> None:
    with _counts.get_lock():
        _counts[number] += steps
