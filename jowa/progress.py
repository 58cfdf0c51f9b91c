"""The progress bar of every command."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(title: str, total: int, unit: str, done: int = 0, shown: bool = True) -> tqdm[Any]:
    """A bar with rate and time left; a line every 15 seconds where no terminal is attached."""
    return tqdm(
        desc=title,
        total=total,
        initial=done,
        unit=unit,
        disable=not shown,
        delay=0.2,  # a command that is refused at once shows no bar
        mininterval=0.2 if sys.stderr.isatty() else 15.0,
        dynamic_ncols=True,
        smoothing=0.1,
    )
