"""How many cores a process takes."""

from __future__ import annotations

import os

import pytest
import torch

from jowa.learning.compute import ComputeConfig, resolve


@pytest.mark.parametrize(
    ("wanted", "on_host", "config", "expected"),
    [
        ("3", None, 0, 3),
        ("3", None, 2, 2),
        ("", None, 0, 8),
        ("0", None, 0, 8),
        ("1", "2", 0, 4),  # torchrun's own choice, not the user's
        ("1", "16", 0, 1),
    ],
)
def test_programs_side_by_side_can_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, wanted: str, on_host: str | None, config: int, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if on_host:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", on_host)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    before = torch.get_num_threads()
    try:
        resolve(ComputeConfig(device="cpu", dtype="float32", threads=config))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
