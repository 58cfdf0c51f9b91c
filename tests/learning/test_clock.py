"""Rates of training, by a clock that goes as it is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jowa.data.segments import Batch
from jowa.learning import clock
from jowa.learning.clock import Clock


def test_rates_are_of_the_whole_job_and_leave_pauses_out(
    make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def taking(seconds: float, value: object) -> Callable[[], object]:
        def work() -> object:
            now[0] += seconds
            return value

        return work

    batch = make_batch([8, 4])  # of each of three processes: padding is computed as well
    watch = Clock(5, processes=3)
    assert watch.time_data(taking(1.0, batch)) is batch  # type: ignore[arg-type]
    watch.pause(taking(50.0, {}))  # type: ignore[arg-type]
    now[0] += 3.0
    elapsed, rates = watch.read(13, batch)
    assert elapsed == pytest.approx(4.0)
    assert rates["speed/steps_per_second"] == pytest.approx(2.0)
    assert rates["speed/tokens_per_second"] == pytest.approx(2.0 * 3 * 2 * 8 * 37)
    assert rates["speed/data_share"] == pytest.approx(0.25)
    now[0] += 2.0
    assert watch.read(15, batch)[1]["speed/steps_per_second"] == pytest.approx(1.0)
