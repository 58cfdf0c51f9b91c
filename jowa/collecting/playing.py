"""Plays a unit of work: full games, or short episodes whose starts are spread over the game by
stretches of unrecorded play, part teacher, part random."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jowa.collecting.behaviours import (
    Noise,
    RandomBehaviour,
    ScriptedBehaviour,
    Tier,
    behaviour_of,
)
from jowa.collecting.recipe import Recipe, Unit
from jowa.collecting.scene import Behaviour, Scene
from jowa.collecting.teachers import TEACHERS
from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeWriter
from jowa.envs import MAX_SEED, AtariEnv
from jowa.games import Game

_PRELUDE_STEPS = 120  # longest unrecorded stretch before a short episode
_REPORT_EVERY = 50  # transitions between two calls of the progress function
_LANES = 8  # games an agent plays at once, most: deciding for many takes a network little more
_LANE_STEPS = 1000  # fewest transitions for which a lane pays

Frame = NDArray[np.uint8]
Advance = Callable[[int], None]
Decisions = Generator[Scene, int, Frame | None]


@dataclasses.dataclass(frozen=True)
class _Episode:
    frames: list[Frame]
    actions: list[int]
    rewards: list[float]
    end: int


def play_unit(unit: Unit, recipe: Recipe, path: Path, device: str, advance: Advance) -> None:
    """Plays a unit and writes its part file; `advance` is told of transitions as they come."""
    tier = recipe.tiers[unit.tier]
    if unit.kind == "whole":
        _record_learner(unit, recipe, path, advance)
        return
    started = time.perf_counter()
    lanes = _lanes(unit, recipe, advance)
    rng, *_ = _generators(unit, recipe, 0)
    behaviour = behaviour_of(tier, unit.game, rng, len(lanes), device)
    _play(lanes, behaviour)
    provenance = {"recipe": recipe.provenance(), "unit": [tier.name, unit.kind, unit.piece]}
    with EpisodeWriter(
        path, unit.game, source=recipe.source, tiers=[tier.name], provenance=provenance
    ) as writer:
        # Lane by lane: in the order in which they ended, short games would come first.
        for episode in (episode for lane in lanes for episode in lane.episodes):
            writer.add(
                np.stack(episode.frames),
                np.array(episode.actions, dtype=np.uint8),
                np.array(episode.rewards, dtype=np.float32),
                episode.end,
                full=unit.kind == "full",
            )
        writer.facts["steps"] = sum(lane.steps for lane in lanes)
        writer.facts["seconds"] = time.perf_counter() - started


def _record_learner(unit: Unit, recipe: Recipe, path: Path, advance: Advance) -> None:
    from jowa.collecting.learner import LearnerConfig, record_learner

    tier, told = recipe.tiers[unit.tier], 0

    def progress(done: int) -> None:
        nonlocal told
        advance(done - told)
        told = done

    record_learner(
        unit.game,
        path,
        tier=tier.name,
        config=tier.learner or LearnerConfig(),
        transitions=unit.target,
        max_frames=recipe.max_frames,
        seed=recipe.entropy(unit),
        progress=progress,
    )


def _generators(unit: Unit, recipe: Recipe, lanes: int) -> list[np.random.Generator]:
    """One generator for the behaviour and one for each lane."""
    seeds = np.random.SeedSequence(recipe.entropy(unit)).spawn(1 + lanes)
    return [np.random.default_rng(seed) for seed in seeds]


def _lanes(unit: Unit, recipe: Recipe, advance: Advance) -> list[_Lane]:
    """The games of a unit that are played at once; the recipe alone decides how many."""
    alone = recipe.tiers[unit.tier].behaviour != "agent"
    number = 1 if alone else min(_LANES, max(1, unit.target // _LANE_STEPS))
    return [
        _Lane(unit, recipe, unit.target // number + (lane < unit.target % number), rng, advance)
        for lane, rng in enumerate(_generators(unit, recipe, number)[1:])
    ]


def _play(lanes: Sequence[_Lane], behaviour: Behaviour) -> None:
    """Plays all lanes in lockstep: those that wait for an action get theirs in one call."""
    plays = [lane.play() for lane in lanes]
    waiting = {row: next(play) for row, play in enumerate(plays)}
    while waiting:
        for row, action in behaviour.act(waiting).items():
            try:
                waiting[row] = plays[row].send(action)
            except StopIteration:
                del waiting[row]


class _Lane:
    """One emulator and the episodes recorded on it."""

    def __init__(
        self, unit: Unit, recipe: Recipe, target: int, rng: np.random.Generator, advance: Advance
    ) -> None:
        self.episodes: list[_Episode] = []
        self.steps = 0  # played, unrecorded ones included
        self._unit, self._recipe, self._target = unit, recipe, target
        self._tier = recipe.tiers[unit.tier]
        self._rng, self._advance = rng, advance
        self._recorded = 0
        self._env = AtariEnv(unit.game, max_frames=recipe.max_frames)
        self._env_seed: int | None = int(rng.integers(MAX_SEED, endpoint=True))

    def play(self) -> Decisions:
        """Plays until the target is reached; yields where the behaviour has to decide."""
        while self._unit.kind == "full" and self._recorded < self._target:
            yield from self._record(self._reset(), None)
        frame = None
        while self._recorded < self._target:
            frame = self._prelude(self._reset() if frame is None else frame)
            if frame is not None:
                left = self._target - self._recorded
                frame = yield from self._record(frame, min(self._recipe.short_episode_steps, left))
        self._advance(self._recorded % _REPORT_EVERY)
        self._env.close()
        return None

    def _reset(self) -> Frame:
        # Only the first reset is seeded: it starts the stream that all later ones continue.
        seed, self._env_seed = self._env_seed, None
        return self._env.reset(seed)

    def _record(self, frame: Frame, longest: int | None) -> Decisions:
        """Records up to `longest` steps from `frame`, which is the current one; returns the frame
        to go on from, None if the game has ended."""
        episode = _Episode([], [], [], END_NONE)
        noise = Noise(self._unit.game, self._tier, self._rng)
        end, executed = END_NONE, None
        while end == END_NONE and (longest is None or len(episode.frames) < longest):
            executed = noise((yield Scene(self._env, frame, executed)))
            episode.frames.append(frame)
            episode.actions.append(executed)
            frame, reward, terminated, truncated = self._step(executed)
            episode.rewards.append(reward)
            end = END_TERMINAL if terminated else END_TRUNCATED if truncated else END_NONE
            self._recorded += 1
            if self._recorded % _REPORT_EVERY == 0:
                self._advance(_REPORT_EVERY)
        self.episodes.append(dataclasses.replace(episode, end=end))
        return frame if end == END_NONE else None

    def _prelude(self, frame: Frame) -> Frame | None:
        """Plays on unrecorded; returns the frame reached, None if the game ended on the way."""
        mix = Tier("prelude", "random", 1.0, epsilon=float(self._rng.random()))
        noise = Noise(self._unit.game, mix, self._rng)
        guide, executed = _guide(self._unit.game, self._rng), None
        for _ in range(int(self._rng.integers(_PRELUDE_STEPS + 1))):
            executed = noise(guide.act({0: Scene(self._env, frame, executed)})[0])
            frame, _, terminated, truncated = self._step(executed)
            if terminated or truncated:
                return None
        return frame

    def _step(self, action: int) -> tuple[Frame, float, bool, bool]:
        self.steps += 1
        return self._env.step(action)


def _guide(game: Game, rng: np.random.Generator) -> Behaviour:
    """Who leads to the starts of short episodes."""
    return ScriptedBehaviour(game) if game.name in TEACHERS else RandomBehaviour(game, rng)
