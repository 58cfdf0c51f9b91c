"""Converting the DQN Replay files of a game: tasks that may run in any process, and their order.

A checkpoint becomes a part, an episode file of its own, that appears whole or not at all; parts
become the game's file. So a conversion that was stopped goes on from its last whole part.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jowa.data.episodes import END_TRUNCATED, EpisodeFile, EpisodeWriter
from jowa.data.parts import join_parts
from jowa.errors import UserError
from jowa.exchange.dqn_replay import Episode, Lap, file_name, read_episodes, read_lap
from jowa.exchange.jobs import Job, advance
from jowa.exchange.replay_sampling import TIERS, Sampling, Scan, choose
from jowa.exchange.replay_source import Source
from jowa.games import Game

COUNTERS = ("bytes", "rows")  # that arrived over the network; that were read or joined

_SOURCE = "DQN Replay dataset: a DQN agent as it learns (Agarwal et al., 2020)"
_SMALL = ("action", "reward", "terminal", "add_count", "invalid_range")


@dataclass(frozen=True)
class Conversion:
    """How a game is converted: from where, to where and what of it."""

    game: Game
    source: Source
    sampling: Sampling
    root: Path
    delete_converted: bool  # observation files, once their part is written

    @property
    def path(self) -> Path:
        """The game's file."""
        return self.root / f"{self.game.name}.h5"

    @property
    def parts(self) -> Path:
        """The folder of its parts."""
        return self.root / ".parts" / self.game.name

    def part(self, scan: Scan) -> Path:
        """Where the part of a checkpoint lies."""
        return self.parts / f"run{scan.run}-checkpoint{scan.number:02d}.h5"

    def provenance(self) -> dict[str, Any]:
        return self.sampling.provenance(self.game)


def conversion_job(conversion: Conversion, plan: Callable[[int], None]) -> Job[dict[str, Any]]:
    """The steps of a game's conversion; `plan` is told how many rows there will be.

    Returns:
        The statistics of the game's file and, as `facts`, what was found on the way.
    """
    game, sampling = conversion.game, conversion.sampling
    results = yield [(_scan_run, (conversion, run)) for run in sampling.runs_of(game)]
    scans: list[Scan] = [scan for run in results or [] for scan in run]
    if not any(len(scan.episodes) for scan in scans):
        runs = ", ".join(map(str, sampling.runs_of(game)))
        folder = conversion.source.folder / game.name
        raise UserError(f"{folder} has no whole episode in what was asked of runs {runs}.")
    taken = zip(scans, choose(scans, game, sampling), strict=True)
    chosen = [(scan, mine) for scan, mine in taken if mine.any()]
    joined = sum(int(scan.steps[mine].sum()) for scan, mine in chosen)
    plan(len(chosen) * sampling.layout.lap_rows + joined)
    yield [(_convert_checkpoint, (conversion, scan, scan.episodes[mine])) for scan, mine in chosen]
    results = yield [(_join, (conversion, scans, [scan for scan, _ in chosen]))]
    assert results is not None
    statistics: dict[str, Any] = results[0]
    return statistics


def _scan_run(conversion: Conversion, run: int) -> list[Scan]:
    """Reads the small files of a run."""
    source, sampling = conversion.source, conversion.sampling
    there = sampling.checkpoints or source.checkpoints(conversion.game, run, _fetched)
    scans = []
    for number in sampling.checkpoints_of(there):
        if source.url is None:  # else it is fetched when it is clear that it is needed
            source.file(conversion.game, run, number, "observation", _fetched)
        scans.append(Scan.of(run, _lap(conversion, run, number)))
    return scans


def _lap(conversion: Conversion, run: int, number: int) -> Lap:
    game, source = conversion.game, conversion.source
    for array in _SMALL:
        source.file(game, run, number, array, _fetched)
    return read_lap(source.run_folder(game, run), number, game, conversion.sampling.layout)


def _convert_checkpoint(conversion: Conversion, scan: Scan, chosen: NDArray[np.int64]) -> None:
    """Writes the part of a checkpoint, unless it is there."""
    game, sampling = conversion.game, conversion.sampling
    path = conversion.part(scan)
    provenance = conversion.provenance() | {
        "run": scan.run,
        "checkpoint": scan.number,
        "episodes": hashlib.sha256(chosen.tobytes()).hexdigest(),
    }
    if _is_whole(path, provenance):
        advance("rows", sampling.layout.lap_rows)
    else:
        frames = conversion.source.file(game, scan.run, scan.number, "observation", _fetched)
        lap = _lap(conversion, scan.run, scan.number)
        found = _Findings(sampling.layout.time_limit)
        with EpisodeWriter(
            path, game, source=_SOURCE, tiers=[scan.tier], provenance=provenance
        ) as writer:
            for episode in read_episodes(lap, chosen, partial(advance, "rows")):
                found.add(episode)
                writer.add(
                    episode.observations,
                    episode.actions,
                    None,
                    episode.end,
                    rewards=episode.rewards,
                )
            writer.facts.update(found.facts(), observation_bytes=frames.stat().st_size)
    if conversion.delete_converted:
        folder = conversion.source.run_folder(game, scan.run)
        (folder / file_name("observation", scan.number)).unlink(missing_ok=True)


def _fetched(count: int) -> None:
    advance("bytes", count)


def _is_whole(path: Path, provenance: dict[str, Any]) -> bool:
    """Whether a part is there, made with these settings and undamaged."""
    try:
        with EpisodeFile(path) as part:
            if part.provenance != provenance:
                return False
            part.check_frames()
            return True
    except UserError:
        return False


class _Findings:
    """What the frames of a checkpoint's episodes show."""

    def __init__(self, time_limit: int) -> None:
        self._time_limit = time_limit
        self._padding: Counter[int] = Counter()
        self._counts = dict.fromkeys(("zero_frames", "truncated_episodes", "overlong_episodes"), 0)

    def add(self, episode: Episode) -> None:
        self._padding[episode.padding] += 1
        self._counts["zero_frames"] += episode.zero_frames
        self._counts["truncated_episodes"] += episode.end == END_TRUNCATED
        self._counts["overlong_episodes"] += len(episode.actions) > self._time_limit

    def facts(self) -> dict[str, Any]:
        return {
            "padding_rows": sum(rows * episodes for rows, episodes in self._padding.items()),
            "episodes_by_padding": {str(rows): n for rows, n in sorted(self._padding.items())},
            **self._counts,
        }


def _join(conversion: Conversion, scans: Sequence[Scan], kept: Sequence[Scan]) -> dict[str, Any]:
    """Makes the game's file of its parts, then removes those; returns its statistics and facts."""
    facts: dict[str, Any] = {}
    for scan in scans:
        _add(facts, scan.counts)
    files = []
    for scan in kept:
        with EpisodeFile(conversion.part(scan)) as part:
            counts = {name: part.facts[name] for name in part.facts if name != "observation_bytes"}
            _add(facts, counts)
            files.append(
                {
                    "run": scan.run,
                    "checkpoint": scan.number,
                    "lap": scan.lap,
                    "episodes": part.num_episodes,
                    "transitions": part.num_transitions,
                    "observation_bytes": part.facts["observation_bytes"],
                }
            )
    join_parts(
        [conversion.part(scan) for scan in kept],
        conversion.path,
        conversion.game,
        source=_SOURCE,
        tiers=TIERS,
        provenance=conversion.provenance(),
        facts=facts | {"files": files},
        progress=partial(advance, "rows"),
    )
    remove_parts(conversion)
    return describe(conversion.path)


def _add(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds numbers to numbers of the same name, also inside dictionaries."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def remove_parts(conversion: Conversion) -> None:
    """Removes what an unfinished conversion of the game has left, if anything."""
    shutil.rmtree(conversion.parts, ignore_errors=True)
    with contextlib.suppress(OSError):  # parts of other games are in it
        conversion.parts.parent.rmdir()


def describe(path: Path) -> dict[str, Any]:
    """Statistics of a game's file, and its facts."""
    with EpisodeFile(path) as file:
        return {**file.statistics(), "facts": file.facts, "runs": file.provenance["runs"]}
