"""Fetching a file over HTTP: goes on where it stopped, tries again, arrives whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import http.client
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jowa.errors import UserError
from jowa.files import publish

Progress = Callable[[int], None]

_CHUNK = 1 << 20
_LONGEST_DELAY = 60.0
# What a server may say in passing: too slow, too many requests, trouble of its own.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class NotThereError(UserError):
    """The server has no such file."""


@dataclass(frozen=True)
class Patience:
    """How often a file is asked for again when nothing more of it arrives, and after how long.

    `delay` seconds before the first of `retries` more attempts, twice as long before each further
    one, at most a minute, each varied at random; `timeout` seconds of silence end an attempt.
    """

    retries: int = 8
    delay: float = 1.0
    timeout: float = 60.0

    def wait(self, failures: int) -> None:
        """Sleeps before the attempt that follows `failures` failed ones in a row."""
        longest = min(self.delay * 2 ** (failures - 1), _LONGEST_DELAY)
        time.sleep(longest * random.uniform(0.5, 1.0))


class _BrokenError(Exception):
    """An attempt failed in a way that another one may mend."""


def download(url: str, path: Path, what: str, patience: Patience, progress: Progress) -> None:
    """Fetches `url` to `path`; what came of it before an interruption is kept in `path`.part.

    Args:
        url: of http or https.
        what: names the file in messages, such as "action file of checkpoint 3".
        progress: called with the number of bytes that arrived.

    Raises:
        NotThereError: when the server has no such file.
        UserError: when it cannot be fetched or written.
    """
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _attempt(url, part, what, patience.timeout, progress)
            publish(part, path)
            return
        except (_BrokenError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > patience.retries:
                raise UserError(
                    f"cannot fetch {what} from {url} ({error or type(error).__name__}), after "
                    f"{failures} attempts in a row: the same command goes on from here."
                ) from error
            patience.wait(failures)
        except OSError as error:
            raise UserError(f"cannot write {part}: {error}") from error


def _attempt(url: str, part: Path, what: str, timeout: float, progress: Progress) -> None:
    """One request for what `part` still lacks; returns when it is whole."""
    # Without "gzip" the server of the dataset may unpack files on the way, and serves no ranges.
    headers = {"Accept-Encoding": "gzip", "User-Agent": "jowa"}
    if offset := _size(part):
        headers["Range"] = f"bytes={offset}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), None, timeout)
    except urllib.error.HTTPError as error:
        with error:
            _refused(error, part, what, url)
        return
    except urllib.error.URLError as error:
        raise _BrokenError(str(error.reason)) from error
    with answer:
        total = _total(answer, offset)
        with part.open("ab" if answer.status == 206 else "wb") as file:
            _copy(answer, file, progress)
    _check(part, total, answer.headers.get_all("x-goog-hash") or [])


def _refused(error: urllib.error.HTTPError, part: Path, what: str, url: str) -> None:
    """Sorts out an answer that brings no data; returns if there was nothing left to fetch."""
    if error.code in (403, 404, 410):  # 403: some servers do not say what they do not have
        raise NotThereError(f"there is no {what} at {url} ({error.code} {error.reason}).")
    if error.code == 416:  # nothing lies behind what is here: it is whole, or another file
        total = re.search(r"/(\d+)$", error.headers.get("Content-Range", ""))
        _check(part, int(total[1]) if total else -1, error.headers.get_all("x-goog-hash") or [])
        return
    if error.code not in _PASSING:
        raise UserError(f"the server refuses {what} at {url}: {error.code} {error.reason}.")
    raise _BrokenError(f"{error.code} {error.reason}")


def _total(answer: Any, offset: int) -> int | None:
    """Bytes of the whole file, None where the server does not say."""
    if answer.status == 206:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if place is None or int(place[1]) != offset:
            raise _BrokenError("the server sent another part of the file than was asked for")
        return int(place[2])
    length = answer.headers.get("Content-Length")
    return None if length is None else int(length)


def _copy(answer: Any, file: IO[bytes], progress: Progress) -> None:
    while True:
        try:
            chunk = answer.read1(_CHUNK)
        except OSError as error:  # not to be taken for a failure to write
            raise _BrokenError(str(error)) from error
        if not chunk:
            return
        file.write(chunk)
        progress(len(chunk))


def _check(part: Path, total: int | None, hashes: list[str]) -> None:
    """Compares size and MD5 with what the server says; a file that must be wrong is removed."""
    size = _size(part)
    if total is not None and size < total:
        raise _BrokenError(f"the connection ended after {size:,} of {total:,} bytes")
    md5 = re.search(r"md5=([\w+/=]+)", ",".join(hashes))
    wrong = total is not None and size > total
    if md5 and not wrong:
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
        wrong = digest != base64.b64decode(md5[1])
    if wrong:
        part.unlink()
        raise _BrokenError("what arrived is not the server's file")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
