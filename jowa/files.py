"""Files that are there whole or not at all, whatever interrupts their writer."""

from __future__ import annotations

import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any

_temporary_numbers = itertools.count()


def temporary_path(path: Path) -> Path:
    """A fresh name beside `path` to write to; removes what killed writers of this host left."""
    host = socket.gethostname()
    prefix = f"{path.name}.tmp-{host}-"
    for leftover in path.parent.iterdir():
        pid, _, number = leftover.name.removeprefix(prefix).partition("-")
        if leftover.name.startswith(prefix) and pid.isdigit() and number.isdigit():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                leftover.unlink(missing_ok=True)
            except PermissionError:  # it lives and belongs to somebody else
                continue
    return path.with_name(f"{prefix}{os.getpid()}-{next(_temporary_numbers)}")


def publish(temporary: Path, path: Path) -> None:
    """Make a written and closed file durable under its final name, atomically."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a small file under a temporary name, then publish it; makes its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
