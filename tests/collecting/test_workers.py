"""The processes that jobs run in."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from jowa.collecting.workers import Crew
from jowa.errors import UserError


def test_a_killed_worker_is_explained() -> None:
    with (
        pytest.raises(UserError, match=r"killed.*smaller workers"),
        Crew(2, 1, lambda number, count: None) as crew,
    ):
        jobs = [crew.submit(os._exit, 9)]
        while not crew.wait(jobs):
            pass
    assert not multiprocessing.active_children()


def test_a_crew_of_one_counts_and_fails_in_this_process() -> None:
    heard: list[tuple[int, int]] = []
    with Crew(1, 2, lambda number, count: heard.append((number, count))) as crew:
        assert crew.submit(os.getpid).result() == os.getpid()
        for steps in (3, 0, 4):
            crew.submit(crew.counter(1), steps)
        with pytest.raises(ZeroDivisionError):
            crew.submit(divmod, 1, 0)
    assert heard == [(1, 3), (1, 7)]
