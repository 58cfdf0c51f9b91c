"""Collects episodes of games into the episode store, on all cores, and goes on where it stopped.

The work of a game is cut into units of about `piece` transitions (`jowa.collecting.recipe`). Each
has its own random streams and is written as a part file below `<root>/.parts/<Game>/`, named by the
recipe; when all are there, they are joined to `<root>/<Game>.h5` and removed. So the data depends
neither on the number of workers nor on interruptions, and a finished part is not played again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from jowa.collecting.behaviours import Tier
from jowa.collecting.recipe import Recipe
from jowa.collecting.teachers import teacher
from jowa.collecting.work import GameWork, Job
from jowa.collecting.workers import Crew
from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.games import Game, get

Progress = Callable[[str, int, int], None]


def collect(
    games: Sequence[str],
    root: str | os.PathLike[str],
    *,
    transitions: int,
    tiers: Sequence[Tier],
    short_episode_steps: int,
    short_share: float,
    max_frames: int,
    seed: int,
    piece: int = 5_000,
    constant_episodes: int = 0,
    device: str = "cpu",
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Collects each game into `root/<Game>.h5`, about `transitions` transitions of it.

    Full games are always finished (or played to `max_frames` emulator frames), so those of a tier
    may exceed its share by a part of one game; short episodes do not. The same call
    after an interruption plays only the units that were not finished. A file made with the same
    settings is kept; one made with others raises UserError unless `overwrite`.

    Args:
        tiers: qualities of play; their shares add up to 1.
        short_episode_steps: longest recording of a short episode, in steps.
        short_share: part of each tier's transitions that goes to short episodes.
        piece: transitions of a unit of work, about; other pieces are other data.
        constant_episodes: games of random play and of each constant action to compare with, whose
            means go to the file's `facts`; 0 leaves them out.
        device: where agents compute. Another device may round otherwise, and so play otherwise.
        workers: processes that play at once; on the same data they have no bearing.
        progress: called in this process with (game name, transitions so far, transitions in all).

    Returns:
        For each game `status` ("kept" or "collected"), the statistics of its file and its `facts`.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; use 1 or more.")
    if constant_episodes < 0:
        raise UserError(f"constant_episodes is {constant_episodes}; use 0 or more.")
    chosen = {game.name: game for game in map(get, games)}
    shape = (transitions, tuple(tiers), short_episode_steps, short_share, max_frames, seed, piece)
    recipe = _with_weights(Recipe(*shape), list(chosen.values()), device)
    results: dict[str, dict[str, Any]] = {}
    works: list[GameWork] = []
    for game in chosen.values():
        work = GameWork(game, Path(root), recipe, constant_episodes, device)
        kept = None if overwrite or not work.path.exists() else _kept(work.path, recipe)
        if kept is None:
            works.append(work)
        else:
            shutil.rmtree(work.folder, ignore_errors=True)  # a kill may have spared it
            results[game.name] = {"status": "kept", **kept}
            if progress:
                progress(game.name, transitions, transitions)
    _play(works, workers, progress)
    for work in works:
        with EpisodeFile(work.path) as file:
            results[work.game.name] = {
                "status": "collected",
                **file.statistics(),
                "facts": file.facts,
            }
    with contextlib.suppress(OSError):  # parts of other games may be there
        (Path(root) / ".parts").rmdir()
    return {name: results[name] for name in chosen}


def _with_weights(recipe: Recipe, games: Sequence[Game], device: str) -> Recipe:
    """The recipe with its agents' checkpoints found, so that a run that trains on changes nothing;
    complains before hours of play, not after."""
    tiers, weights = list(recipe.tiers), {}
    for place, tier in enumerate(tiers):
        if tier.behaviour == "scripted":
            for game in games:
                teacher(game)
        if tier.checkpoint is not None:
            from jowa.collecting.agent_play import inspect

            folder, weights[tier.name] = inspect(tier.checkpoint, games, device)
            tiers[place] = dataclasses.replace(tier, checkpoint=folder)
    return dataclasses.replace(recipe, tiers=tuple(tiers), weights=weights)


def _kept(path: Path, recipe: Recipe) -> dict[str, Any]:
    with EpisodeFile(path) as present:
        if present.provenance != recipe.provenance():
            raise UserError(
                f"{path} was made with other settings; pass overwrite=true to replace it or "
                "another root to keep both."
            )
        return {**present.statistics(), "facts": present.facts}


def _play(works: Sequence[GameWork], workers: int, progress: Progress | None) -> None:
    """Does all the work there is to do."""
    done_before = [work.resume() for work in works]

    def report(number: int, steps: int) -> None:
        if progress:
            total = works[number].transitions
            # A finished full game may exceed the plan; a bar may not.
            progress(works[number].game.name, min(done_before[number] + steps, total), total)

    for number in range(len(works)):
        report(number, 0)
    running: dict[Future[None], tuple[int, Job]] = {}
    with Crew(workers, len(works), report) as crew:
        while True:
            for number, work in enumerate(works):
                while len(running) < workers and (job := work.next_job(crew.counter(number))):
                    running[crew.submit(job.function, *job.arguments)] = number, job
            if not running:
                return
            for future in crew.wait(running):
                number, job = running.pop(future)
                works[number].finish(job)
                if job.last:
                    report(number, works[number].transitions)
