"""Rows of gzipped .npy files, streamed, so that arrays larger than the memory can be read.

isal unpacks gzip several times as fast as the standard library, and checks the same checksums.
"""

from __future__ import annotations

import contextlib
import tokenize
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip, igzip_lib
from numpy.lib import format as npy
from numpy.typing import NDArray

from jowa.errors import UserError

# What gzip, then numpy's parser of headers, raise over damaged files.
_DAMAGE: Any = (
    EOFError,
    igzip.BadGzipFile,
    igzip_lib.IsalError,
    ValueError,
    tokenize.TokenError,
)
_BLOCK_ROWS = 1024  # 7 MB where a row is a frame


class NpyRows:
    """The rows of a gzipped .npy file of a known shape and type, passed once and in order.

    Raises:
        UserError: naming the file, where it is damaged or holds something else.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path = path
        self.passed = 0
        self._shape, self._dtype = shape, dtype
        with _told(path):
            self._stream = igzip.open(path, "rb")
        try:
            self._check_header()
        except BaseException:
            self._stream.close()
            raise

    def _check_header(self) -> None:
        with _told(self.path):
            shape, dtype = _header(self._stream)
        if shape != self._shape or dtype != self._dtype:
            raise UserError(
                f"{self.path} holds {dtype} {shape}, but such files of the dataset hold "
                f"{self._dtype} {self._shape}: it is another file."
            )

    def read(self, rows: NDArray[Any], progress: Callable[[int], None] | None = None) -> None:
        """Fills `rows` with the next ones."""
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            self._fill(block.data.cast("B"))
            self.passed += len(block)
            if progress:
                progress(len(block))

    def _fill(self, view: memoryview) -> None:
        filled = 0
        while filled < len(view):
            with _told(self.path):
                count = self._stream.readinto(view[filled:])
                if not count:
                    raise EOFError("it ends before its last row")
            filled += count

    def skip(self, count: int, progress: Callable[[int], None]) -> None:
        """Passes `count` rows."""
        scratch = np.empty((min(count, _BLOCK_ROWS), *self._shape[1:]), dtype=self._dtype)
        for start in range(0, count, _BLOCK_ROWS):
            self.read(scratch[: min(_BLOCK_ROWS, count - start)], progress)

    def check_end(self) -> None:
        """Refuses a file with a wrong checksum, or with more in it than its rows."""
        with _told(self.path):
            if self._stream.read(1):
                raise ValueError("it goes on behind its last row")

    def __enter__(self) -> NpyRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def read_integers(path: Path) -> NDArray[np.int64]:
    """The numbers of a gzipped .npy file that holds few, flat."""
    with _told(path), igzip.open(path, "rb") as stream:
        shape, dtype = _header(stream)
        if dtype.kind not in "iuf" or np.prod(shape) > 100:
            raise ValueError(f"it holds {dtype} {shape}, not a few numbers")
        content = stream.read()
        return np.frombuffer(content, dtype).reshape(shape).astype(np.int64).ravel()


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a header by Python 2 is fine
        shape, fortran, dtype = read(stream)
    if fortran and len(shape) > 1:
        raise ValueError("its array is stored by columns")
    return shape, dtype


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what reading a file can raise into a sentence that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}): delete it and fetch it again.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
