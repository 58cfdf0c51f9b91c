"""Play full episodes of many games at once under the evaluation protocol.

Every environment slot plays a number of episodes fixed beforehand: were the first N finished
episodes taken instead, short (and so mostly bad) ones would be over-represented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jowa.envs import FRAME_SKIP, MAX_SEED, AtariVector
from jowa.errors import UserError
from jowa.evaluation.scores import PROTOCOL_EPSILON, PROTOCOL_STICKY, GameScores
from jowa.games import LEGAL_ACTIONS, Game


@dataclass(frozen=True)
class Seat:
    """An environment slot of a game, and how many episodes it plays one after another."""

    game: Game
    slot: int
    episodes: int


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode: raw (unclipped) score, agent steps, and whether the cap ended it."""

    game: str
    slot: int
    episode: int
    score: float
    steps: int
    truncated: bool


# Told after every step: the episodes finished so far, in the order in which they ended.
Progress = Callable[[Sequence[EpisodeResult]], None]


class Policy(Protocol):
    """Chooses actions for E environment slots at once; rows keep their place during a play."""

    def reset(self, which: NDArray[np.bool_]) -> None:
        """Forget the history of the slots that are true in `which` (E,): new episodes start."""

    def act(
        self,
        frames: NDArray[np.uint8],
        games: NDArray[np.int64],
        active: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Actions (E,) in the 18-action set for frames (E, 84, 84) of games (E,).

        Rows that are false in `active` (E,) have finished; their actions are ignored.
        """

    def executed(self, actions: NDArray[np.int64]) -> None:
        """Told the actions (E,) really sent after each `act`: exploration may replace some."""


class VectorEnv(Protocol):
    """What `play` needs of a game's environments; `jowa.envs.AtariVector` has it."""

    def reset(self, seeds: NDArray[np.int64]) -> NDArray[np.uint8]: ...

    def reset_where(self, which: NDArray[np.bool_], seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """`seeds` has one entry for every true one of `which`; frames of all come back."""

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]: ...

    def close(self) -> None: ...


def episode_generator(seed: int, game: Game, slot: int, episode: int) -> np.random.Generator:
    """The generator of one episode; its first draw seeds the emulator, the rest exploration.

    It depends on nothing else, so a game's results are the same whatever is played beside it.
    """
    return np.random.default_rng(np.random.SeedSequence((seed, game.id, slot, episode)))


def emulator_seed(rng: np.random.Generator) -> int:
    """Draw a seed of the emulator, 0 to 2^31 - 1."""
    return int(rng.integers(MAX_SEED, endpoint=True))


def seats(games: Sequence[Game], episodes: int, envs_per_game: int) -> list[Seat]:
    """The slots of every game, which share its `episodes` in fixed numbers.

    Raises UserError for numbers below 1, and for games that are missing or named twice.
    """
    if not games:
        raise UserError("there is no game to play: name at least one.")
    if len({game.id for game in games}) < len(games):
        raise UserError("a game is named twice: name every game to play once.")
    for name, value in (("episodes", episodes), ("envs_per_game", envs_per_game)):
        if value < 1:
            raise UserError(f"{name} is {value}: give at least 1.")
    slots = min(envs_per_game, episodes)
    share, extra = divmod(episodes, slots)
    return [Seat(game, i, share + (i < extra)) for game in games for i in range(slots)]


def check(seed: int, max_frames: int, epsilon: float) -> None:
    """Raises UserError for settings that cannot be played."""
    if not FRAME_SKIP <= max_frames < 2**31:
        raise UserError(
            f"max_frames is {max_frames}: give {FRAME_SKIP}, one step, or more, below 2**31."
        )
    if seed < 0:
        raise UserError(f"seed is {seed}: give 0 or more.")
    if not 0 <= epsilon <= 1:
        raise UserError(f"epsilon is {epsilon}: it is a probability, give 0 to 1.")


def play(
    policy: Policy, games: Sequence[Game], *, episodes: int, envs_per_game: int, **protocol: Any
) -> list[EpisodeResult]:
    """Play `episodes` episodes of every game in `envs_per_game` slots each, all at once; see
    `play_seats`."""
    return play_seats(policy, seats(games, episodes, envs_per_game), **protocol)


def play_seats(
    policy: Policy,
    seats: Sequence[Seat],
    *,
    seed: int,
    max_frames: int,
    epsilon: float = PROTOCOL_EPSILON,
    sticky: float = PROTOCOL_STICKY,
    progress: Progress | None = None,
    make_vector: Callable[..., VectorEnv] = AtariVector,
) -> list[EpisodeResult]:
    """Play the episodes of all seats, those of a game in a row; results in order of game, slot and
    episode.

    With probability `epsilon` a step takes a uniformly random legal action. Episodes stop after
    `max_frames` emulator frames (4 a step). Raises UserError for settings that cannot be played.
    """
    check(seed, max_frames, epsilon)
    vectors: list[VectorEnv] = []
    try:
        for game, slots in groupby(seats, lambda seat: seat.game):
            envs = len(list(slots))
            vectors.append(make_vector(game, envs, max_frames=max_frames, sticky=sticky))
        return _Stage(seats, vectors, seed, epsilon).run(policy, progress)
    finally:
        for vector in vectors:
            vector.close()


@dataclass
class _Slot:
    """One environment's running episode."""

    seat: Seat
    episode: int = 0
    score: float = 0.0
    steps: int = 0
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    @property
    def done(self) -> bool:
        return self.episode >= self.seat.episodes

    def start(self, seed: int) -> int:
        """Begin the next episode; returns the emulator's seed."""
        self.score, self.steps = 0.0, 0
        self.rng = episode_generator(seed, self.seat.game, self.seat.slot, self.episode)
        return emulator_seed(self.rng)

    def finish(self, truncated: bool) -> EpisodeResult:
        game, slot = self.seat.game.name, self.seat.slot
        result = EpisodeResult(game, slot, self.episode, self.score, self.steps, truncated)
        self.episode += 1
        return result


class _Stage:
    """All seats in one flat row; `rows` are those of each game's environments."""

    def __init__(
        self, seats: Sequence[Seat], vectors: Sequence[VectorEnv], seed: int, epsilon: float
    ) -> None:
        self.vectors, self.seed, self.epsilon = vectors, seed, epsilon
        self.slots = [_Slot(seat) for seat in seats]
        self.rows: list[slice] = []
        for _, group in groupby(seats, lambda seat: seat.game):
            start = self.rows[-1].stop if self.rows else 0
            self.rows.append(slice(start, start + len(list(group))))
        self.game_ids = np.array([slot.seat.game.id for slot in self.slots], dtype=np.int64)
        self.active = np.ones(len(self.slots), dtype=bool)
        self.frames = np.zeros((len(self.slots), 84, 84), dtype=np.uint8)
        self.results: list[EpisodeResult] = []

    def run(self, policy: Policy, progress: Progress | None) -> list[EpisodeResult]:
        policy.reset(np.ones(len(self.slots), dtype=bool))
        seeds = np.array([slot.start(self.seed) for slot in self.slots], dtype=np.int64)
        for vector, rows in zip(self.vectors, self.rows, strict=True):
            self.frames[rows] = vector.reset(seeds[rows])
        while self.active.any():
            actions = self._explore(policy.act(self.frames, self.game_ids, self.active))
            policy.executed(actions)
            ended = self._step(actions)
            if ended.any():
                self._restart(ended, policy)
            if progress is not None:
                progress(self.results)
        names = list(dict.fromkeys(slot.seat.game.name for slot in self.slots))
        return sorted(self.results, key=lambda r: (names.index(r.game), r.slot, r.episode))

    def _explore(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """The actions to send: no-op in finished slots, random with probability epsilon."""
        actions = np.where(self.active, np.asarray(chosen, dtype=np.int64), 0)
        assert LEGAL_ACTIONS[self.game_ids, actions].all(), "the policy chose an illegal action"
        if self.epsilon > 0:
            for row in np.flatnonzero(self.active):
                slot = self.slots[row]
                if slot.rng.random() < self.epsilon:
                    actions[row] = slot.rng.choice(slot.seat.game.action_ids)
        return actions

    def _step(self, actions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Step every game that still has an active slot; true where an episode ended.

        Games take turns: each runs its own slots in parallel threads.
        """
        ended = np.zeros(len(self.slots), dtype=bool)
        for vector, rows in zip(self.vectors, self.rows, strict=True):
            if not self.active[rows].any():
                continue
            self.frames[rows], rewards, terminated, truncated = vector.step(actions[rows])
            for i in np.flatnonzero(self.active[rows]):
                slot = self.slots[rows.start + i]
                slot.score += float(rewards[i])
                slot.steps += 1
                if terminated[i] or truncated[i]:
                    ended[rows.start + i] = True
                    self.results.append(slot.finish(bool(truncated[i] and not terminated[i])))
        return ended

    def _restart(self, ended: NDArray[np.bool_], policy: Policy) -> None:
        """Start the next episode of the slots that have one left; the others become inactive."""
        again = ended & np.array([not slot.done for slot in self.slots])
        self.active &= ~ended | again
        if not again.any():
            return
        for vector, rows in zip(self.vectors, self.rows, strict=True):
            if not again[rows].any():
                continue
            starting = [
                slot for slot, new in zip(self.slots[rows], again[rows], strict=True) if new
            ]
            seeds = np.array([slot.start(self.seed) for slot in starting], dtype=np.int64)
            self.frames[rows] = vector.reset_where(again[rows], seeds)
        policy.reset(again)


def by_game(results: Sequence[EpisodeResult]) -> dict[str, GameScores]:
    """Episode results grouped for an Evaluation, games in order of appearance."""
    grouped: dict[str, Any] = {}
    for result in results:
        scores = grouped.setdefault(result.game, GameScores(result.game, []))
        scores.scores.append(result.score)
        scores.steps.append(result.steps)
        scores.truncated.append(result.truncated)
    return grouped
