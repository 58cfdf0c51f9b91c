"""What pools of worker processes share: they end with their parent, and say so when one dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

from jowa.errors import UserError


def begin_worker() -> None:
    """Prepares a worker process: Ctrl-C, which reaches all, is left to the parent, and the worker
    ends when the parent does, even where that is killed and cannot say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """UserError where a worker was killed."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for want of memory: the same command goes on "
            "from here, and needs less with a smaller workers=."
        ) from error
