"""`RUN/run.json`: what was run, from what and where, for every start of a run.

With `config.json` beside it, it holds all that is needed to do the run again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.files import write_json
from jowa.learning.checkpoint import git, versions
from jowa.learning.compute import Compute, cpu_info

FILE = "run.json"


def record_start(
    run: Path, step: int, phase: str, seed: int, compute: Compute, files: Sequence[EpisodeFile]
) -> None:
    """Adds this start, at `step` of the run, to those that `run.json` holds."""
    changes = git("--no-optional-locks", "status", "--porcelain")
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "phase": phase,
        "command": list(sys.argv),
        "folder": str(Path.cwd()),
        "versions": versions(),
        "git_dirty": None if changes is None else bool(changes),
        "machine": machine(),
        "device": str(compute.device),
        "dtype": str(compute.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": compute.processes.size,
        "parallel": compute.parallel,
        "seed": seed,
        "data": {file.game.name: file.fingerprint for file in files},
    }
    write_json(run / FILE, {"starts": [*starts(run), start]})


def starts(run: Path) -> list[dict[str, Any]]:
    """The starts of a run so far, oldest first; UserError if their file is damaged."""
    path = run / FILE
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())["starts"]
        if not isinstance(found, list):
            raise ValueError("no list of starts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): move it away, and the same command goes on."
        ) from error
    return found


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, and GPUs."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "cpu": cpu_info("model name") or "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
    }
