"""The fine-tuning data that the JOWA authors publish, as episode files.

It is a zip of HDF5 files. In each there is a group for every episode, named 0, 1, ..., with
`observations` (T, 84, 84) uint8, `actions` (T,) in the game's minimal set, `rewards` (T,) and
`terminals` (T,); CSV files of windows beside them are not needed. There are three qualities: expert
(from the last 20% of the replay data), suboptimal (all of it), highly suboptimal (the first 20%).
How the files are named is not documented, so the game and the quality are looked for in each part
of a file's path, innermost first, whatever the case and punctuation.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers filters that the files may use)
import numpy as np

from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeWriter
from jowa.envs import FRAME_SKIP, MAX_FRAMES
from jowa.errors import UserError
from jowa.files import temporary_path
from jowa.games import GAMES, Game, get

QUALITIES = ("expert", "suboptimal", "highly_suboptimal")
_SUFFIXES = (".h5", ".hdf5")
_DATASETS = ("observations", "actions", "rewards", "terminals")
_CAP_STEPS = MAX_FRAMES // FRAME_SKIP
# What h5py and zipfile raise over damaged files.
_HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)
_ZIP_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


@dataclass(frozen=True)
class PublishedFile:
    """One HDF5 file of the published data.

    Attributes:
        source: the zip or folder.
        member: path inside it.
        size: bytes, uncompressed.
    """

    source: Path
    member: str
    size: int

    def __str__(self) -> str:
        return f"{self.member} in {self.source}"

    def named(self, names: Sequence[str]) -> str | None:
        """Which of `names` stands in the path; None without one or where a part has two.

        The innermost part that has any decides. Of names within each other, such as suboptimal in
        highly_suboptimal, the longest counts.
        """
        folded = {_fold(name): name for name in names}
        for part in reversed(PurePosixPath(self.source.name, self.member).parts):
            inside = [name for name in folded if name in _fold(part)]
            longest = [n for n in inside if not any(n in other and n != other for other in inside)]
            if longest:
                return folded[longest[0]] if len(longest) == 1 else None
        return None

    @contextlib.contextmanager
    def on_disk(self, scratch: Path) -> Iterator[Path]:
        """The file as an ordinary one: a member of a zip is unpacked to `scratch` meanwhile."""
        if self.source.is_dir():
            yield self.source / self.member
            return
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(scratch / PurePosixPath(self.member).name)
        try:
            try:
                with (
                    zipfile.ZipFile(self.source) as archive,
                    archive.open(self.member) as packed,
                    temporary.open("wb") as out,
                ):
                    shutil.copyfileobj(packed, out, 1 << 20)
            except _ZIP_ERRORS as error:
                raise UserError(f"cannot unpack {self} to {scratch}: {error}") from error
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _fold(text: str) -> str:
    """Lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def find_games(
    source: str | Path, quality: str, names: Sequence[str], scratch: Path
) -> dict[Game, PublishedFile]:
    """The file of each game at a quality; `names` empty takes all games that are there.

    A file whose path names no quality counts where no other of the game names the one asked for.

    Raises:
        UserError: for an unknown quality, a game that is not there, or several files that may be
            meant.
    """
    if quality not in QUALITIES:
        raise UserError(f"quality={quality}: use one of {', '.join(QUALITIES)}.")
    wanted = [get(name) for name in names]
    files = _list(Path(source))
    by_game: dict[Game, list[PublishedFile]] = {}
    for file in files:
        name = file.named(list(GAMES))
        if name is not None and file.named(QUALITIES) in (quality, None):
            by_game.setdefault(GAMES[name], []).append(file)
    missing = [game.name for game in wanted if game not in by_game]
    if missing or not by_game:
        raise UserError(
            f"{source} has no {quality} HDF5 file of {', '.join(missing) or 'any game'} by the "
            f"names in it; there are: {_listed(files)}."
        )
    chosen = wanted or sorted(by_game, key=lambda game: game.id)
    return {game: _the_one(game, by_game[game], quality, scratch) for game in chosen}


def _list(source: Path) -> list[PublishedFile]:
    """All HDF5 files by their names' endings, in order."""
    if not source.exists():
        raise UserError(f"there is no {source}: source=... is the published zip or its folder.")
    if source.is_dir():
        sizes = {
            path.relative_to(source).as_posix(): path.stat().st_size
            for path in source.rglob("*")
            if path.is_file()
        }
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                sizes = {part.filename: part.file_size for part in archive.infolist()}
        except _ZIP_ERRORS as error:
            raise UserError(
                f"{source} is no zip, or one that was cut short ({error}): download it again."
            ) from error
    return [
        PublishedFile(source, member, size)
        for member, size in sorted(sizes.items())
        if member.lower().endswith(_SUFFIXES) and not member.startswith("__MACOSX/")
    ]


def _listed(files: Sequence[PublishedFile]) -> str:
    shown = [file.member for file in files[:20]]
    more = f" and {len(files) - len(shown)} more" if len(files) > len(shown) else ""
    return (", ".join(shown) or "no HDF5 files at all") + more


def _the_one(
    game: Game, files: Sequence[PublishedFile], quality: str, scratch: Path
) -> PublishedFile:
    """The file that is meant: of several those that name the quality and hold episodes."""
    files = [file for file in files if file.named(QUALITIES) == quality] or files
    if len(files) > 1:
        files = [file for file in files if _holds_episodes(file, scratch)] or files
    if len(files) > 1:
        raise UserError(
            f"several files may be {quality} play of {game.name}: {_listed(files)}; unpack the one "
            f"you mean to a folder of its own and give that as source=..."
        )
    return files[0]


def _holds_episodes(file: PublishedFile, scratch: Path) -> bool:
    with (
        file.on_disk(scratch) as path,
        contextlib.suppress(*_HDF5_ERRORS),
        h5py.File(path, "r", locking=False) as opened,
    ):
        return any(
            isinstance(group, h5py.Group) and all(name in group for name in _DATASETS)
            for group in opened.values()
        )
    return False


def provenance(file: PublishedFile, quality: str) -> dict[str, Any]:
    """What says how an episode file was made, as far as it decides about the content."""
    return {
        "published_finetune": quality,
        "source": file.source.name,
        "member": file.member,
        "size": file.size,
    }


def convert_game(
    file: PublishedFile,
    game: Game,
    quality: str,
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes all episodes of one published file to the episode file `path`.

    Rewards that all lie within [-1, 1] are taken as clipped, so that no scores are known.
    `progress` is called with the steps written so far and in all.

    Raises:
        UserError: naming the file and the group that is damaged; `path` is as it was then.
    """
    with file.on_disk(path.parent) as unpacked, _opened(file, unpacked) as opened:
        groups = _groups(file, opened)
        rewards = [_read(file, group, "rewards") for group in groups]
        clipped = all(bool((np.abs(part) <= 1).all()) for part in rewards)
        total = sum(len(part) for part in rewards)
        with EpisodeWriter(
            path,
            game,
            source=f"fine-tuning data of the JOWA authors, {quality}",
            tiers=(quality,),
            provenance=provenance(file, quality),
        ) as writer:
            for group, values in zip(groups, rewards, strict=True):
                frames, actions, end = _episode(file, group, game, len(values))
                writer.add(
                    frames,
                    actions,
                    None if clipped else values,
                    end,
                    rewards=values if clipped else None,
                )
                if progress is not None:
                    progress(writer.num_transitions, total)
            writer.facts["rewards"] = "clipped" if clipped else "raw"


@contextlib.contextmanager
def _opened(file: PublishedFile, path: Path) -> Iterator[h5py.File]:
    try:
        opened = h5py.File(path, "r", locking=False)
    except _HDF5_ERRORS as error:
        raise UserError(
            f"{file} is no HDF5 file, or one that was cut short: download it again."
        ) from error
    with opened:
        yield opened


def _groups(file: PublishedFile, opened: h5py.File) -> list[Any]:
    """The groups of the episodes, in order."""
    try:
        names = sorted(opened, key=lambda name: (len(name), name))
        groups = [opened[name] for name in names]
    except _HDF5_ERRORS as error:
        raise UserError(f"{file} is damaged ({error}): download it again.") from error
    if not names or names != [str(number) for number in range(len(names))]:
        shown = ", ".join(names[:5]) or "nothing"
        raise UserError(f"{file} has not the groups 0, 1, ... of episodes, but: {shown}, ...")
    return groups


def _damaged(file: PublishedFile, group: Any, what: str) -> UserError:
    number = group.name.strip("/")
    return UserError(f"{file}, group {number}: {what}; it is damaged or not of the published form.")


def _read(file: PublishedFile, group: Any, name: str) -> np.ndarray:
    """A dataset of numbers of a group; that of rewards as (T,) finite float32."""
    try:
        if name not in group:
            raise _damaged(file, group, f"there is no dataset {name}")
        values: np.ndarray = group[name][()]
        if values.dtype.kind not in "biuf":
            raise _damaged(file, group, f"{name} are {values.dtype}")
        if name == "rewards":
            values = values.astype(np.float32)
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
                raise _damaged(file, group, f"rewards are {values.shape} or not finite")
    except _HDF5_ERRORS as error:
        raise _damaged(file, group, f"{name} cannot be read ({error})") from error
    return values


def _episode(
    file: PublishedFile, group: Any, game: Game, steps: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Frames (T, 84, 84), actions (T,) in the 18-action set, and how the episode ended."""
    frames, actions, terminals = (
        _read(file, group, name) for name in ("observations", "actions", "terminals")
    )
    if frames.shape != (steps, 84, 84) or frames.dtype != np.uint8:
        what = f"observations are {frames.dtype} {frames.shape} for {steps} rewards"
        raise _damaged(file, group, what)
    if actions.shape != (steps,) or actions.dtype.kind not in "iu":
        raise _damaged(file, group, f"actions are {actions.dtype} {actions.shape}")
    if actions.min() < 0 or actions.max() >= len(game.actions):
        what = f"an action is {actions.max()}, but {game.name} has {len(game.actions)}"
        raise _damaged(file, group, what)
    if terminals.shape != (steps,) or not np.isin(terminals, (0, 1)).all():
        raise _damaged(file, group, f"terminals are {terminals.dtype} {terminals.shape}")
    if terminals[:-1].any():
        raise _damaged(file, group, "a terminal stands inside the episode")
    # The replay data, which this is part of, marks games that were cut at the cap as terminal too.
    ended = END_TRUNCATED if steps >= _CAP_STEPS else END_TERMINAL
    return frames, np.array(game.action_ids)[actions], ended if terminals[-1] else END_NONE
