"""A player's experience kept as actions: the emulator shows every frame again when it is wanted.

Each episode starts at a seed of its own, and that seed and the actions decide everything else,
sticky actions included. So a log takes a few bits a step where frames would take kilobytes, which
part of it becomes data can be drawn when all of it is known, and any episode can be shown alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeWriter
from jowa.envs import FRAME_SIZE, MAX_SEED, AtariEnv
from jowa.errors import UserError
from jowa.games import Game

STAGES = 20  # equal parts of an experience, of each of which the drawn data holds its share


def derived_seed(*path: int) -> int:
    """A seed for emulators and generators, 0 to 2^31 - 1, that depends on all numbers given."""
    return int(np.random.SeedSequence(path).generate_state(1)[0]) & MAX_SEED


def end_codes(terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """END_TERMINAL, END_TRUNCATED or END_NONE of each environment (E,)."""
    codes = np.where(truncated, END_TRUNCATED, END_NONE)
    return np.where(terminated, END_TERMINAL, codes).astype(np.uint8)


@dataclass(frozen=True)
class Episode:
    """Steps `start` to `stop` of one environment; `number` counts its episodes from 0.

    `end` is END_NONE where the experience stops before the game does.
    """

    environment: int
    number: int
    start: int
    stop: int
    end: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Experience:
    """T steps of E environments that play in step.

    Attributes:
        actions: (T, E) uint8 in the 18-action set.
        raw_rewards: (T, E) float32 in points of the game.
        ends: (T, E) uint8, END_NONE but on the last step of an episode.
    """

    actions: NDArray[np.uint8]
    raw_rewards: NDArray[np.float32]
    ends: NDArray[np.uint8]

    @property
    def num_steps(self) -> int:
        """Steps of all environments together, T * E."""
        return self.actions.size

    def episodes(self) -> list[Episode]:
        """All episodes with at least one step, in the order in which they end."""
        found = []
        for environment in range(self.ends.shape[1]):
            ends = self.ends[:, environment]
            stops = np.flatnonzero(ends != END_NONE) + 1
            if len(ends) > (stops[-1] if len(stops) else 0):
                stops = np.append(stops, len(ends))
            start = 0
            for number, stop in enumerate(stops.tolist()):
                found.append(Episode(environment, number, start, stop, int(ends[stop - 1])))
                start = stop
        return sorted(found, key=lambda episode: (episode.stop, episode.environment))

    def score(self, episode: Episode) -> float:
        """The sum of the episode's raw rewards."""
        rewards = self.raw_rewards[episode.start : episode.stop, episode.environment]
        return float(rewards.sum(dtype=np.float64))

    def stage(self, episode: Episode, first: int = 0) -> int:
        """The stage, 0 to STAGES - 1, in which the episode ends, of the steps from `first` on."""
        return (episode.stop - 1 - first) * STAGES // (len(self.ends) - first)


def concatenate(parts: Sequence[Experience]) -> Experience:
    """The parts one after the other."""
    return Experience(
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.raw_rewards for part in parts]),
        np.concatenate([part.ends for part in parts]),
    )


def draw(experience: Experience, transitions: int, seed: int, last: float = 1.0) -> list[Episode]:
    """Whole episodes of about `transitions` steps, uniform over the experience, in its order.

    Of each stage as large a part is drawn as of the whole, with no regard to what happened in an
    episode. The sum exceeds `transitions` by less than an episode; all that there is is given
    where it is no more than that. With `last` < 1 they are drawn from those that end in that last
    part of the experience.
    """
    first = int(len(experience.ends) * (1.0 - last))
    episodes = [episode for episode in experience.episodes() if episode.stop > first]
    if transitions >= sum(episode.length for episode in episodes):
        return episodes
    stages = [experience.stage(episode, first) for episode in episodes]
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    taken = 0
    for stage in range(STAGES):
        inside = [i for i, number in enumerate(stages) if number == stage]
        # Sums from the start, so that what a stage has too much is made good by the next.
        quota = transitions * (stage + 1) / STAGES
        for i in rng.permutation(inside).tolist():
            if taken >= quota:
                break
            chosen.add(i)
            taken += episodes[i].length
    return [episodes[i] for i in sorted(chosen)]


def curve(experience: Experience, kept: Sequence[Episode]) -> list[dict[str, Any]]:
    """Mean score of the finished games of each stage, and what of the stage was kept, as JSON.

    `from_step` and `to_step` count the steps of all environments. Kept episodes lie in the data
    in this order, so that the counts also say which of them belong to which stage.
    """
    rows = []
    for stage, episodes, mine in zip(
        range(STAGES),
        _by_stage(experience, experience.episodes()),
        _by_stage(experience, kept),
        strict=True,
    ):
        scores = [experience.score(e) for e in episodes if e.end != END_NONE]
        rows.append(
            {
                "from_step": experience.num_steps * stage // STAGES,
                "to_step": experience.num_steps * (stage + 1) // STAGES,
                "episodes": len(scores),
                "mean_return": float(np.mean(scores)) if scores else None,
                "kept_episodes": len(mine),
                "kept_transitions": sum(episode.length for episode in mine),
            }
        )
    return rows


def _by_stage(experience: Experience, episodes: Sequence[Episode]) -> list[list[Episode]]:
    stages: list[list[Episode]] = [[] for _ in range(STAGES)]
    for episode in episodes:
        stages[experience.stage(episode)].append(episode)
    return stages


def write_episodes(
    writer: EpisodeWriter,
    game: Game,
    experience: Experience,
    episodes: Sequence[Episode],
    *,
    seed: Sequence[int],
    max_frames: int,
    progress: Callable[[int], None],
) -> None:
    """Plays the episodes again and writes them with their frames.

    `seed` and `max_frames` are those of the experience; `progress` is called with the number of
    transitions written.

    Raises:
        UserError: where the emulator does not repeat what it did.
    """
    env = AtariEnv(game, max_frames=max_frames)
    for episode in episodes:
        steps = slice(episode.start, episode.stop)
        actions = experience.actions[steps, episode.environment]
        rewards = experience.raw_rewards[steps, episode.environment]
        frames = np.empty((episode.length, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
        frame = env.reset(derived_seed(*seed, episode.environment, episode.number))
        terminated = truncated = False
        for i, action in enumerate(actions.tolist()):
            frames[i] = frame
            frame, reward, terminated, truncated = env.step(action)
            if reward != rewards[i] or ((terminated or truncated) and i + 1 < episode.length):
                raise unrepeatable(game)
        if end_codes(np.array([terminated]), np.array([truncated]))[0] != episode.end:
            raise unrepeatable(game)
        writer.add(frames, actions, rewards, episode.end)
        progress(writer.num_transitions)
    env.close()


def unrepeatable(game: Game) -> UserError:
    """What to say when a replay differs from what was logged."""
    return UserError(
        f"the emulator does not repeat what was played in {game.name}: its version is another than "
        f"at the start; install that one again, or remove the learner's folder to start anew."
    )
