"""Episode files joined into one: what parallel or resumable work leaves is made in parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jowa.data.episodes import EpisodeFile, EpisodeWriter
from jowa.games import Game


def join_parts(
    parts: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    game: Game,
    *,
    source: str,
    tiers: Sequence[str],
    provenance: Mapping[str, Any],
    facts: Mapping[str, Any],
    episodes: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write all episodes of `parts`, in their order, to `path`; one episode is in memory at a time.

    Tiers are matched by name: those of every part must be among `tiers`. All parts must know their
    raw rewards or none. `episodes` says how many of each part to take, from its first on, where
    not all are wanted. The parts stay; an interrupted join leaves no file. `progress` is called
    with the number of transitions that were joined.
    """
    with EpisodeWriter(path, game, source=source, tiers=tiers, provenance=provenance) as writer:
        for position, part in enumerate(parts):
            with EpisodeFile(part) as file:
                assert file.game == game, (file.path, game.name)
                for number in range(episodes[position] if episodes else file.num_episodes):
                    _copy(file, number, writer, tiers)
                    progress(int(np.diff(file.episode_starts[number : number + 2])[0]))
        writer.facts.update(facts)


def _copy(file: EpisodeFile, number: int, writer: EpisodeWriter, tiers: Sequence[str]) -> None:
    start, stop = (int(row) for row in file.episode_starts[number : number + 2])
    raw = file.raw_rewards
    writer.add(
        file.frames(np.arange(start, stop)),
        file.actions[start:stop],
        None if raw is None else raw[start:stop],
        int(file.ends[stop - 1]),
        tiers.index(file.tiers[file.episode_tiers[number]]),
        bool(file.episode_full[number]),
        rewards=file.rewards[start:stop] if raw is None else None,
    )
