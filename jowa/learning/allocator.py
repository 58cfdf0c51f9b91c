"""What the C library does with memory that is freed, which decides how fast a CPU trains."""

from __future__ import annotations

import ctypes
import functools

# Of <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_STRIDE = 64 * 2**20  # bytes by which the heap grows at least


@functools.cache
def keep_freed_memory() -> None:
    """Lets this process keep what it frees, for what it allocates next.

    By default the GNU C library gives every block of more than 32 MiB back at once, and the
    system fills the next one with zeros, page by page, while a step waits: a third of a step of
    jowa_150m. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_TOP_PAD, _STRIDE)
