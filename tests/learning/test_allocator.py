"""Memory that training frees stays with the process: what the system would fill with zeros anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import torch
from jowa.learning.compute import ComputeConfig, resolve

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
resolve(ComputeConfig("cpu", "float32", threads=1))
print(plain, min(faults() for _ in range(4)))  # what is freed may first serve something small
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep their ways")
def test_a_command_on_a_cpu_does_not_fetch_the_same_memory_again() -> None:
    """Each of four blocks is freed before the next: by default all their pages are new."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    plain, kept = map(int, done.stdout.split())
    assert plain > 100  # in pages of 2 MiB they are 128
    assert kept < plain / 10
