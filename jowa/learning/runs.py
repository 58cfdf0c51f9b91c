"""`jowa runs`: what the run directories below a folder hold, read without loading any weights."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning import record, retention
from jowa.learning.config import RunsConfig
from jowa.learning.run import read_config
from jowa.learning.trainer import Position

_GOING_ON_SECONDS = 60.0
_LOG_TAIL_BYTES = 1 << 16  # far more than a line of the log
_COLUMNS = (
    "run",
    "kind",
    "games",
    "state",
    "phase",
    "step",
    "loss",
    "time",
    "best",
    "last",
    "from",
    "size",
)
# By a key that only this command's configuration has: its name, its phases and their settings.
_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "stage1": ("pretrain", {"stage1": "stage1", "stage2": "stage2"}),
    "from_scratch": ("finetune", {"finetune": "training"}),
    "training": ("tokenize", {"tokenizer": "training"}),
    "num_heads": ("import-weights", {}),
}


@dataclass(frozen=True)
class RunState:
    """How far a run is; `state` is finished, going on or stopped, `loss` and `best` may be None."""

    kind: str
    games: list[str]
    state: str
    phase: str
    step: int
    steps: int
    loss: float | None
    seconds: float
    best: int | None  # the step of its best checkpoint in this phase, and of its newest
    last: int | None
    started_from: str | None  # which weights, in short


def list_runs(config: RunsConfig) -> None:
    """Prints a table of the runs below `config.root`."""
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the one that holds your runs as root=...")
    found = find_runs(root)
    if not found:
        print(f"no runs below {root}: `jowa pretrain run={root}/NAME ...` starts one.")
        return
    rows: list[tuple[str, ...]] = [_COLUMNS]
    damaged: list[str] = []
    for run in found:
        name = str(run.relative_to(root)) if run != root else str(root)
        try:
            rows.append((name, *cells(read_run(run)), f"{size(run) / 2**20:,.1f} MiB"))
        except UserError as error:
            damaged.append(f"{name}  damaged: {error}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows if len(rows) > 1 else []:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
    for line in damaged:
        print(line)


def find_runs(root: Path) -> list[Path]:
    """The run directories at and below `root`, by name; none is looked for inside another."""
    found = []
    for folder, inner, files in os.walk(root):
        if "config.json" in files or "checkpoints" in inner or record.FILE in files:
            found.append(Path(folder))
            inner.clear()
    return sorted(found)


def read_run(run: Path) -> RunState:
    """How far a run is; UserError, saying why, if its directory is damaged."""
    try:
        record.starts(run)
        state = _newest_state(run)
        stored = (run / "config.json").exists()
        config = state["config"] if state and not stored else read_config(run)
        line = _last_line(run / "metrics.jsonl")
        return _summary(run, config, state, line)
    except OSError as error:
        raise UserError(f"{error.filename or run} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run} does not hold what a run writes ({error!r}).") from error


def _summary(
    run: Path, config: dict[str, Any], state: dict[str, Any], line: dict[str, Any]
) -> RunState:
    key = next((key for key in _KINDS if key in config), None)
    if key is None:
        raise ValueError("a configuration of no command that trains")
    kind, phases = _KINDS[key]
    steps = {phase: int(config[settings]["steps"]) for phase, settings in phases.items()}
    position = state["position"] if state and phases else vars(Position())
    # The log is ahead of the newest checkpoint, unless it was deleted.
    newest = line if line.get("step", -1) >= position["step"] else position
    finished = all(phase in position["done"] for phase in steps if steps[phase])
    games = [config["game"]] if "game" in config else config.get("data", config)["games"]
    complete = checkpoints.complete(run)
    best = retention.best(complete)
    return RunState(
        kind=kind,
        games=games or state["games"],
        state="finished" if finished else "going on" if _is_going_on(run) else "stopped",
        phase=newest["phase"],
        step=newest["step"],
        steps=sum(steps.values()),
        loss=line.get("loss/total"),
        seconds=newest["seconds"],
        best=_step(best),
        last=_step(complete[-1] if complete else None),
        started_from=_origin(state.get("started_from")),
    )


def _newest_state(run: Path) -> dict[str, Any]:
    """state.json of the newest checkpoint, whose files are there and whole; nothing without one."""
    folder = checkpoints.newest(run)
    if folder is None:
        return {}
    try:
        state = checkpoints.load(folder, stems=()).state
        for stem in state["sha256"]:
            # Compares the sizes it names with the file's; the sums would take reading it all.
            with safe_open(folder / f"{stem}.safetensors", framework="numpy"):
                pass
    except (UserError, OSError, SafetensorError) as error:
        if not (folder / "COMPLETE").exists() and checkpoints.newest(run) not in (None, folder):
            return _newest_state(run)  # pruned meanwhile, by a run that goes on
        if isinstance(error, UserError):
            raise
        raise UserError(f"the checkpoint {folder} is damaged ({error}).") from error
    return state


def _last_line(log: Path) -> dict[str, Any]:
    """The log's last whole line; nothing without one. A kill may leave half a line after it."""
    if not log.exists():
        return {}
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    try:
        line = json.loads(lines[-1]) if lines else {}
        if lines and not {"step", "phase", "seconds"} <= line.keys():
            raise ValueError("its last line names no step")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{log} is damaged ({error}).") from error
    return line


def _is_going_on(run: Path) -> bool:
    """Whether the run wrote to its log, or started, within the last minute."""
    files = [run / "metrics.jsonl", run / record.FILE]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    return time.time() - newest < _GOING_ON_SECONDS


def _step(checkpoint: Path | None) -> int | None:
    return None if checkpoint is None else int(checkpoint.name.removeprefix("step_"))


def _origin(started_from: dict[str, Any] | None) -> str | None:
    """Such as `nano 1a2b3c4d` or `pretrain/step_00000500 1a2b3c4d`."""
    if started_from is None:
        return None
    *runs, last = Path(started_from["checkpoint"]).parts
    name = "/".join([*runs[-2:-1], last]) if runs[-1:] == ["checkpoints"] else last
    return f"{name} {next(iter(started_from['sha256'].values()))[:8]}"


def cells(run: RunState) -> tuple[str, ...]:
    """A table's cells of a run, between its name and its size."""

    def shown(value: object) -> str:
        return "-" if value is None or value == "" else str(value)

    more = f" +{len(run.games) - 2}" if len(run.games) > 2 else ""
    return (
        run.kind,
        ",".join(run.games[:2]) + more,
        run.state,
        shown(run.phase),
        f"{run.step}/{run.steps}",
        "-" if run.loss is None else f"{run.loss:.4g}",
        str(timedelta(seconds=round(run.seconds))),
        shown(run.best),
        shown(run.last),
        shown(run.started_from),
    )


def size(run: Path) -> int:
    """Bytes of all files of a run."""
    total = 0
    for folder, _, files in os.walk(run):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # pruned meanwhile
                continue
    return total
