"""The integrity of a whole episode store: every array, frame and file of tokens."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jowa.data.episodes import EpisodeFile
from jowa.data.tokens import StoredTokens, stored_tokens
from jowa.errors import UserError

_POLL_SECONDS = 0.2
_TEMPORARY = re.compile(r"\.tmp-.+-\d+-\d+$")  # names of jowa.files.temporary_path

_frames_read: Any = None  # in a worker: the counter that all of them share


@dataclass(frozen=True)
class Checked:
    """What came of checking one episode file and the tokens that belong to it.

    Attributes:
        path: the episode file.
        problems: a sentence for each damaged file; none where all is well.
        frame_bytes: uncompressed size of its frames, 0 where it could not even be opened.
    """

    path: Path
    problems: tuple[str, ...]
    frame_bytes: int


def check_store(
    root: str | Path,
    paths: Sequence[Path],
    workers: int,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Checked]:
    """Checks the episode files `paths` of the store `root`, `workers` at once, as they finish.

    `progress` is called in this process with the number of frames read since the last call.
    """
    tokens = stored_tokens(Path(root) / "tokens")
    jobs = [(path, [part for part in tokens if part.game == path.stem]) for path in paths]
    if workers == 1 or len(jobs) < 2:
        for path, own in jobs:
            yield check_file(path, own, progress)
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)), context, _share_counter, (counter,)
    ) as pool:
        pending = {pool.submit(_check_in_worker, *job) for job in jobs}
        try:
            yield from _as_they_finish(pending, counter, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _as_they_finish(
    pending: set[Future[Checked]], counter: Any, progress: Callable[[int], object] | None
) -> Iterator[Checked]:
    seen = 0
    while pending:
        done, pending = concurrent.futures.wait(pending, timeout=_POLL_SECONDS)
        if progress is not None:
            seen, before = counter.value, seen
            progress(seen - before)
        for future in done:
            yield future.result()


def _share_counter(counter: Any) -> None:
    global _frames_read
    _frames_read = counter


def _check_in_worker(path: Path, tokens: Sequence[StoredTokens]) -> Checked:
    def advance(frames: int) -> None:
        with _frames_read.get_lock():
            _frames_read.value += frames

    return check_file(path, tokens, advance)


def check_file(
    path: Path,
    tokens: Sequence[StoredTokens] = (),
    progress: Callable[[int], object] | None = None,
) -> Checked:
    """Checks one episode file, and of its `tokens` those made of these very episodes."""
    problems: list[str] = []
    frame_bytes = 0
    try:
        with EpisodeFile(path) as file:
            frame_bytes = file.raw_bytes
            if file.game.name != path.stem:
                problems.append(f"{path} holds {file.game.name}: give it the name of that game.")
            problems += [
                f"{part.path} is damaged (its size or header is wrong): it is made anew when these "
                f"tokens are next needed."
                for part in tokens
                if file.fingerprint.startswith(part.episodes)
                and not part.whole(file.num_transitions)
            ]
            file.check_frames(progress)
    except UserError as error:
        problems.append(str(error))
    return Checked(path, tuple(problems), frame_bytes)


def count_frames(paths: Sequence[Path]) -> int:
    """Frames of all files that can be opened."""
    total = 0
    for path in paths:
        with contextlib.suppress(UserError), EpisodeFile(path) as file:
            total += file.num_transitions
    return total


def leftovers(root: str | Path) -> list[Path]:
    """What interrupted writers left in a store: temporary files and unfinished parts."""
    return sorted(
        path
        for path in Path(root).rglob("*")
        if (_TEMPORARY.search(path.name) and path.is_file()) or path.name.endswith(".parts")
    )
