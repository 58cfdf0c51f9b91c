"""Where the time of training goes."""

from __future__ import annotations

import time
from collections.abc import Callable

from jowa.data.segments import Batch
from jowa.models.world_action import BLOCK_TOKENS


class Clock:
    """Wall time between logged steps, and how much of it went to reading data, in one of
    `processes` that each take their share of a batch."""

    def __init__(self, step: int, processes: int = 1) -> None:
        self._start, self._step, self._data = time.perf_counter(), step, 0.0
        self._processes = processes

    def time_data(self, read: Callable[[], Batch]) -> Batch:
        start = time.perf_counter()
        batch = read()
        self._data += time.perf_counter() - start
        return batch

    def pause(self, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Does what is not to be counted as time of training."""
        start = time.perf_counter()
        values = work()
        self._start += time.perf_counter() - start
        return values

    def read(self, step: int, batch: Batch) -> tuple[float, dict[str, float]]:
        """Seconds since the last reading, and the rates in them; starts anew."""
        elapsed, steps, data = time.perf_counter() - self._start, step - self._step, self._data
        tokens = batch.actions.numel() * BLOCK_TOKENS * self._processes
        self._start, self._step, self._data = time.perf_counter(), step, 0.0
        return elapsed, {
            "speed/steps_per_second": steps / elapsed,
            "speed/tokens_per_second": steps * tokens / elapsed,
            "speed/data_share": data / elapsed,
        }
