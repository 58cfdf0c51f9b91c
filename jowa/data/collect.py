"""Collects episodes of games into the episode store, several games at once.

Half of good data is variety: next to full games, each tier records short episodes whose starts
are spread over the game by stretches of unrecorded play, part teacher, part random.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import queue
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jowa.data.behaviours import (
    Behaviour,
    NoisyBehaviour,
    RandomBehaviour,
    ScriptedBehaviour,
    Tier,
    behaviour_of,
)
from jowa.data.episodes import (
    END_NONE,
    END_TERMINAL,
    END_TRUNCATED,
    EpisodeFile,
    EpisodeWriter,
)
from jowa.data.teachers import TEACHERS, teacher
from jowa.envs import FRAME_SIZE, MAX_SEED, AtariEnv
from jowa.errors import UserError
from jowa.games import Game, get

Progress = Callable[[str, int, int], None]

_RECIPE_VERSION = 4
_SOURCE = "random play and scripted teachers"
_PRELUDE_STEPS = 120  # longest unrecorded stretch before a short episode
_REPORT_EVERY = 500  # transitions between two calls of the progress function


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """All that decides what the data of a game will be."""

    transitions: int
    tiers: tuple[Tier, ...]
    short_episode_steps: int
    short_share: float
    max_frames: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("transitions", "short_episode_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; use 1 or more.")
        if not 0.0 <= self.short_share <= 1.0:
            raise UserError(f"short_share is {self.short_share}; use a number from 0 to 1.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed is {self.seed}; use a whole number from 0 to {MAX_SEED}.")
        total = sum(tier.share for tier in self.tiers)
        if abs(total - 1.0) > 1e-6:
            raise UserError(f"the shares of the tiers add up to {total:g}; make it 1.")
        if len({tier.name for tier in self.tiers}) < len(self.tiers):
            raise UserError("two tiers have the same name; give each its own.")

    def provenance(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["recipe_version"] = _RECIPE_VERSION
        values["ale_py"] = importlib.metadata.version("ale-py")
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def collect_game(
    game: Game,
    path: str | os.PathLike[str],
    *,
    transitions: int,
    tiers: Sequence[Tier],
    short_episode_steps: int,
    short_share: float,
    max_frames: int,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Plays one game and writes about `transitions` transitions to `path`.

    Full games are always finished (or played to `max_frames` emulator frames), so the last one of
    a tier may exceed its share. A stopped run leaves no file.

    Args:
        tiers: qualities of play; their shares add up to 1.
        short_episode_steps: longest recording of a short episode, in steps.
        short_share: part of each tier's transitions that goes to short episodes.
        progress: called with (game name, transitions so far, transitions in all).

    Returns:
        The statistics of `EpisodeFile.statistics`.
    """
    recipe = _Recipe(transitions, tuple(tiers), short_episode_steps, short_share, max_frames, seed)
    names = [tier.name for tier in recipe.tiers]
    with EpisodeWriter(
        path, game, source=_SOURCE, tiers=names, provenance=recipe.provenance()
    ) as writer:
        for index in range(len(recipe.tiers)):
            _TierRecorder(game, recipe, index, writer, progress).record()
        if progress:
            progress(game.name, recipe.transitions, recipe.transitions)
    with EpisodeFile(path) as written:
        return written.statistics()


class _TierRecorder:
    """Plays one tier of one game; its randomness depends on seed, game and tier alone."""

    def __init__(
        self,
        game: Game,
        recipe: _Recipe,
        index: int,
        writer: EpisodeWriter,
        progress: Progress | None,
    ) -> None:
        self._game, self._recipe, self._index = game, recipe, index
        self._writer, self._progress = writer, progress
        self._tier = recipe.tiers[index]
        self._rng = np.random.default_rng([recipe.seed, game.id, index])
        self._env = AtariEnv(game, max_frames=recipe.max_frames)
        self._env_seed: int | None = int(self._rng.integers(MAX_SEED))
        self._behaviour = behaviour_of(self._tier, game, self._rng)

    def record(self) -> None:
        budget = self._tier.share * self._recipe.transitions
        short = round(budget * self._recipe.short_share)
        full = round(budget) - short
        recorded = 0
        while recorded < full:
            recorded += self._record(self._reset(), None, full=True)[0]
        recorded, frame = 0, None
        while recorded < short:
            frame = self._prelude(self._reset() if frame is None else frame)
            if frame is None:
                continue
            longest = min(self._recipe.short_episode_steps, short - recorded)
            steps, frame = self._record(frame, longest, full=False)
            recorded += steps
        self._env.close()

    def _reset(self) -> NDArray[np.uint8]:
        # Only the first reset is seeded: it starts the stream that all later ones continue.
        seed, self._env_seed = self._env_seed, None
        return self._env.reset(seed)

    def _record(
        self, frame: NDArray[np.uint8], longest: int | None, full: bool
    ) -> tuple[int, NDArray[np.uint8] | None]:
        """Records up to `longest` steps from `frame`, which is the current one.

        Returns the number of steps and the frame to go on from, None if the game has ended.
        """
        frames: list[NDArray[np.uint8]] = []
        actions: list[int] = []
        rewards: list[float] = []
        end = END_NONE
        self._behaviour.reset()
        while end == END_NONE and (longest is None or len(frames) < longest):
            action = self._behaviour.act(self._env.ram())
            frames.append(frame)
            actions.append(action)
            frame, reward, terminated, truncated = self._env.step(action)
            rewards.append(reward)
            end = END_TERMINAL if terminated else END_TRUNCATED if truncated else END_NONE
            self._report(len(frames))
        self._writer.add(
            np.stack(frames),
            np.array(actions, dtype=np.uint8),
            np.array(rewards, dtype=np.float32),
            end,
            tier=self._index,
            full=full,
        )
        return len(frames), frame if end == END_NONE else None

    def _prelude(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Plays on unrecorded; returns the frame reached, None if the game ended on the way."""
        behaviour = self._prelude_behaviour()
        for _ in range(int(self._rng.integers(_PRELUDE_STEPS + 1))):
            frame, _, terminated, truncated = self._env.step(behaviour.act(self._env.ram()))
            if terminated or truncated:
                return None
        assert frame.shape == (FRAME_SIZE, FRAME_SIZE)
        return frame

    def _prelude_behaviour(self) -> Behaviour:
        if self._game.name not in TEACHERS:
            return RandomBehaviour(self._game, self._rng)
        mix = Tier("prelude", "scripted", 1.0, epsilon=float(self._rng.random()))
        return NoisyBehaviour(ScriptedBehaviour(self._game), self._game, mix, self._rng)

    def _report(self, steps: int) -> None:
        done = self._writer.num_transitions + steps
        if self._progress and done % _REPORT_EVERY == 0:
            # A finished full game may exceed the plan; a bar may not.
            total = self._recipe.transitions
            self._progress(self._game.name, min(done, total), total)


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
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Collects each game into `root/<Game>.h5`, `workers` games at a time.

    The data does not depend on `workers`. A file made with the same settings is kept; one made
    with others raises UserError unless `overwrite`. `progress` is called in this process.

    Returns:
        For each game the statistics of its file and `status`, "kept" or "collected".
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; use 1 or more.")
    recipe = _Recipe(transitions, tuple(tiers), short_episode_steps, short_share, max_frames, seed)
    chosen = {game.name: game for game in map(get, games)}
    if any(tier.behaviour == "scripted" for tier in recipe.tiers):
        for game in chosen.values():
            teacher(game)  # complains before hours of play, not after
    results: dict[str, dict[str, Any]] = {}
    missing: list[tuple[Game, Path]] = []
    for game in chosen.values():
        path = Path(root) / f"{game.name}.h5"
        kept = None if overwrite or not path.exists() else _kept(path, recipe)
        if kept is None:
            missing.append((game, path))
        else:
            results[game.name] = {"status": "kept", **kept}
    for name, statistics in _collect_missing(missing, recipe, workers, progress):
        results[name] = {"status": "collected", **statistics}
    return {name: results[name] for name in chosen}


def _kept(path: Path, recipe: _Recipe) -> dict[str, Any]:
    with EpisodeFile(path) as present:
        if present.provenance != recipe.provenance():
            raise UserError(
                f"{path} was made with other settings; pass overwrite=true to replace it or "
                "another root to keep both."
            )
        return present.statistics()


def _collect_missing(
    missing: Sequence[tuple[Game, Path]],
    recipe: _Recipe,
    workers: int,
    progress: Progress | None,
) -> Iterable[tuple[str, dict[str, Any]]]:
    if workers == 1 or len(missing) < 2:
        for game, path in missing:
            yield game.name, _collect_one(game, path, recipe, progress)
        return
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        concurrent.futures.ProcessPoolExecutor(
            min(workers, len(missing)), mp_context=context
        ) as pool,
    ):
        reports = manager.Queue()
        futures = {
            pool.submit(_collect_one, game, path, recipe, _QueuedProgress(reports)): game.name
            for game, path in missing
        }
        try:
            pending = set(futures)
            while pending:
                done, pending = concurrent.futures.wait(pending, timeout=0.2)
                _drain(reports, progress)
                for future in done:
                    yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _collect_one(
    game: Game, path: Path, recipe: _Recipe, progress: Progress | None
) -> dict[str, Any]:
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return collect_game(game, path, **fields, progress=progress)


class _QueuedProgress:
    """A progress function that can be sent to another process."""

    def __init__(self, reports: queue.Queue[tuple[str, int, int]]) -> None:
        self._reports = reports

    def __call__(self, name: str, done: int, total: int) -> None:
        self._reports.put((name, done, total))


def _drain(reports: queue.Queue[tuple[str, int, int]], progress: Progress | None) -> None:
    while True:
        try:
            report = reports.get_nowait()
        except queue.Empty:
            return
        if progress:
            progress(*report)
