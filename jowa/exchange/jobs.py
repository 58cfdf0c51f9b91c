"""Jobs of several steps, worked off by several processes.

A job is a generator that yields lists of independent tasks and is sent their results, so that it
reads from top to bottom though its tasks run elsewhere, next to those of other jobs.
"""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jowa.data.pool import begin_worker, explained

T = TypeVar("T")
Task = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of a module, and its arguments
Job = Generator[list[Task], list[Any] | None, T]
Look = Callable[[dict[str, int]], None]

_SECONDS_BETWEEN_LOOKS = 0.2


def run_jobs(
    jobs: Sequence[Job[T]], workers: int, counters: Sequence[str], look: Look
) -> Iterator[tuple[int, T]]:
    """Runs jobs, earlier ones first where there is a choice; yields (position, what it returned).

    With one worker everything runs in this process. Tasks `advance` the named counters, and `look`
    is called with their totals, often. An exception in a task ends all work and is raised here;
    when this process is killed, its workers end too.
    """
    if workers > 1:
        with explained():
            yield from _run_in_pool(jobs, workers, counters, look)
        return
    totals = dict.fromkeys(counters, 0)

    def advance_here(name: str, amount: int) -> None:
        totals[name] += amount
        look(totals)

    _advance_with(advance_here)
    for position, job in enumerate(jobs):
        yield position, _run_here(job)


def _run_here(job: Job[T]) -> T:
    results: list[Any] | None = None
    try:
        while True:
            results = [function(*arguments) for function, arguments in job.send(results)]
    except StopIteration as end:
        result: T = end.value
        return result


def advance(name: str, amount: int) -> None:
    """What a task calls to say that it got on; ends the task if it is no longer wanted."""
    assert _advance is not None, "only tasks of `run_jobs` have counters"
    _advance(name, amount)


_advance: Callable[[str, int], None] | None = None  # of the jobs that this process works for


def _advance_with(function: Callable[[str, int], None]) -> None:
    global _advance
    _advance = function


class _Shared:
    """Counters that processes advance, and whether their work is still wanted."""

    def __init__(self, names: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._values = {name: context.Value("q", 0) for name in names}
        self._unwanted = context.Event()

    def advance(self, name: str, amount: int) -> None:
        if self._unwanted.is_set():
            raise _UnwantedError
        value = self._values[name]
        with value.get_lock():
            value.value += amount

    def totals(self) -> dict[str, int]:
        return {name: value.value for name, value in self._values.items()}

    def end(self) -> None:
        self._unwanted.set()


class _UnwantedError(Exception):
    """Ends a task after another one has failed."""


@dataclass
class _Going:
    """A job in the pool: the tasks of its present step that wait, and the results that came."""

    position: int
    job: Job[Any]
    waiting: collections.deque[tuple[int, Task]] = field(default_factory=collections.deque)
    results: list[Any] | None = None
    missing: int = 0

    def go_on(self) -> None:
        """Takes the next tasks once all results are there; StopIteration when it is through."""
        while self.missing == 0:
            tasks = self.job.send(self.results)
            self.waiting.extend(enumerate(tasks))
            self.results = [None] * len(tasks)
            self.missing = len(tasks)

    def take(self, number: int, result: Any) -> None:
        assert self.results is not None
        self.results[number] = result
        self.missing -= 1


def _run_in_pool(
    jobs: Sequence[Job[T]], workers: int, counters: Sequence[str], look: Look
) -> Iterator[tuple[int, T]]:
    shared = _Shared(counters)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (shared,)
    )
    unfinished = [_Going(position, job) for position, job in enumerate(jobs)]
    running: dict[concurrent.futures.Future[Any], tuple[_Going, int]] = {}
    try:
        while unfinished:
            for going in list(unfinished):
                try:
                    going.go_on()
                except StopIteration as end:
                    unfinished.remove(going)
                    yield going.position, end.value
                while going.waiting and len(running) < workers:
                    number, (function, arguments) = going.waiting.popleft()
                    running[pool.submit(function, *arguments)] = going, number
            done, _ = concurrent.futures.wait(
                running, _SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                going, number = running.pop(future)
                going.take(number, future.result())
            look(shared.totals())
    finally:
        shared.end()
        pool.shutdown(cancel_futures=True)


def _start_worker(shared: _Shared) -> None:
    begin_worker()
    _advance_with(shared.advance)
