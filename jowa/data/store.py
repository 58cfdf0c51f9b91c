"""A folder of episode files, one a game."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jowa import games
from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError


def store_paths(root: str | os.PathLike[str], names: Sequence[str] = ()) -> list[Path]:
    """`root/<Game>.h5` of every named game, in that order, or without names of all that is there.

    Raises:
        UserError: where one is missing, or there is nothing at all.
    """
    folder = Path(root)
    present = sorted(folder.glob("*.h5"))
    paths = [folder / f"{games.get(name).name}.h5" for name in names] or present
    missing = [path.stem for path in paths if not path.is_file()]
    if missing:
        there = ", ".join(path.stem for path in present) or "nothing"
        raise UserError(
            f"no episodes of {', '.join(missing)} in {folder} (there: {there}): make them with "
            f"`jowa collect games=[{','.join(missing)}]` or name the right folder."
        )
    if not paths:
        raise UserError(
            f"there are no episode files in {folder}: name the folder that holds <Game>.h5 as "
            f"root=..., or make some with `jowa collect`."
        )
    return paths


def open_store(root: str | os.PathLike[str], names: Sequence[str]) -> list[EpisodeFile]:
    """Open `root/<Game>.h5` of every named game, in that order; UserError where one is missing."""
    paths = store_paths(root, names) if names else []
    files: list[EpisodeFile] = []
    try:
        files.extend(EpisodeFile(path) for path in paths)
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


def strange_actions(file: EpisodeFile) -> str:
    """A sentence if an episode file has actions outside its game's minimal set, else nothing."""
    share = float(1.0 - np.isin(file.actions, file.game.action_ids).mean())
    if not share:
        return ""
    minimal = ", ".join(map(str, file.game.action_ids))
    return (
        f"{share:.0%} of the actions in {file.path} are outside the minimal set of "
        f"{file.game.name} ({minimal}), which an agent never plays: if they are positions in that "
        f"set, write numbers of the 18-action set instead."
    )


def verify(path: str | os.PathLike[str]) -> None:
    """Check every array and attribute of an episode file against its hash.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    with EpisodeFile(path) as file:
        file.check_frames()
