"""Minari datasets as episode files, one episode in memory at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeWriter
from jowa.errors import UserError
from jowa.exchange.minari_sets import END_NAMES, dataset_folder, load_minari
from jowa.games import NUM_ACTIONS, Game

_FRAME_SHAPES = ((84, 84), (84, 84, 1), (1, 84, 84))
# What Minari, gymnasium and h5py raise over damaged or foreign datasets.
_READ_ERRORS = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    AssertionError,
)


def load_dataset(dataset_id: str) -> Any:
    """The `minari.MinariDataset` on this disk; UserError without Minari, or where there is none."""
    minari = load_minari()
    folder = dataset_folder(dataset_id)
    if not (folder / "data").is_dir():
        with warnings.catch_warnings():  # of other datasets, which may be misconfigured
            warnings.simplefilter("ignore", UserWarning)
            there = ", ".join(minari.list_local_datasets()) or "none"
        raise UserError(
            f"there is no Minari dataset {dataset_id} at {folder} (there: {there}): set "
            f"MINARI_DATASETS_PATH, or fetch it with `minari download {dataset_id}`."
        )
    try:
        return minari.load_dataset(dataset_id)
    except _READ_ERRORS as error:
        raise _unreadable(dataset_id, "its metadata", error) from error


def import_episodes(
    dataset: Any,
    game: Game,
    path: str | os.PathLike[str],
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Writes all episodes of a Minari dataset (of `load_dataset`) to the episode file `path`.

    Rewards are taken as raw ones unless the dataset's metadata says that they are clipped.
    `progress` is called with the steps of each episode.

    Returns:
        What was found, as it stands in the file's `facts["minari"]`.

    Raises:
        UserError: where the dataset is damaged or is not grey 84x84 play of the game; no file is
            written then.
    """
    try:
        _check_observations(dataset)
        actions = _action_ids(dataset, game)
        about = _about(dataset, game)
        episodes = list(dataset.storage.get_episode_metadata(dataset.episode_indices))
        jpeg = bool(dataset.storage.jpeg_encoding)
    except _READ_ERRORS as error:
        raise _unreadable(dataset.id, "its metadata", error) from error
    if not episodes:
        raise UserError(f"the Minari dataset {dataset.id} has no episodes.")
    tiers = dict.fromkeys([*about["tiers"], *(_tier(metadata) for metadata in episodes)])
    found = {
        "id": dataset.id,
        "minari_version": dataset.minari_version,
        "action_set": "full" if len(actions) == NUM_ACTIONS else "minimal",
        "jpeg": jpeg,
        "dropped_observations": len(episodes),
    }
    with EpisodeWriter(
        path,
        game,
        source=about["source"],
        tiers=list(tiers),
        provenance={"minari": dataset.id, "exported": about["provenance"]},
    ) as writer:
        for metadata, episode in zip(episodes, _read(dataset, len(actions)), strict=True):
            clipped = about["rewards"] == "clipped"
            writer.add(
                episode.frames,
                actions[episode.actions],
                None if clipped else episode.rewards,
                _end(metadata, episode),
                list(tiers).index(_tier(metadata)),
                bool(metadata.get("full", True)),
                rewards=np.clip(episode.rewards, -1, 1) if clipped else None,
            )
            if progress is not None:
                progress(len(episode.actions))
        writer.facts.update({**about["facts"], "minari": found})
    return found


@dataclass(frozen=True)
class _Episode:
    """T steps: frames (T, 84, 84) uint8, actions in the dataset's own set, rewards float32."""

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool


def _unreadable(dataset_id: str, part: str, error: Exception) -> UserError:
    return UserError(
        f"the Minari dataset {dataset_id} cannot be read: {part} is damaged or of a form that this "
        f"Minari does not know ({type(error).__name__}: {error})."
    )


def _check_observations(dataset: Any) -> None:
    space = dataset.observation_space
    if space.shape not in _FRAME_SHAPES or space.dtype != np.uint8:
        raise UserError(
            f"the observations of {dataset.id} are {space.dtype} {space.shape}; jowa takes single "
            f"grey frames, uint8 of shape (84, 84): record with gymnasium's AtariPreprocessing and "
            f"without frame stacking."
        )


def _action_ids(dataset: Any, game: Game) -> np.ndarray:
    """(n,) index in the 18-action set of each of the dataset's actions."""
    space = dataset.action_space
    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        for known in (game.action_ids, range(NUM_ACTIONS)):
            if space.n == len(known):
                return np.array(known)
    raise UserError(
        f"the actions of {dataset.id} are {space}; {game.name} has Discrete({len(game.actions)}), "
        f"or Discrete({NUM_ACTIONS}) for the full set: is it of another game?"
    )


def _about(dataset: Any, game: Game) -> dict[str, Any]:
    """What an export of ours said of the dataset, or what holds for any other."""
    about = {
        "game": game.name,
        "rewards": "raw",
        "source": f"Minari dataset {dataset.id}",
        "tiers": [],
        "provenance": {},
        "facts": {},
        **dataset.storage.metadata.get("jowa", {}),
    }
    if about["game"] != game.name:
        raise UserError(f"{dataset.id} is play of {about['game']}, not of {game.name}.")
    return about


def _read(dataset: Any, num_actions: int) -> Iterator[_Episode]:
    """Every episode, checked; UserError naming the first one that is damaged."""
    episodes = dataset.iterate_episodes()
    for number in range(dataset.total_episodes):
        try:
            episode = _checked(next(episodes), num_actions)
        except (*_READ_ERRORS, StopIteration) as error:
            raise _unreadable(dataset.id, f"episode {number}", error) from error
        yield episode


def _checked(data: Any, num_actions: int) -> _Episode:
    """An episode in our form; ValueError saying what is wrong with it."""
    frames, actions, rewards = (
        np.asarray(part) for part in (data.observations, data.actions, data.rewards)
    )
    steps = len(actions)
    if steps < 1 or frames.dtype != np.uint8:
        raise ValueError(f"it has {steps} steps and observations of {frames.dtype}")
    if frames.shape not in [(steps + 1, *shape) for shape in _FRAME_SHAPES]:
        raise ValueError(f"observations are {frames.shape} for {steps} steps")
    flags = np.array([data.terminations, data.truncations], dtype=bool)
    if flags.shape != (2, steps) or flags[:, :-1].any():
        raise ValueError("an end stands inside the episode, or the flags differ in length")
    if actions.ndim != 1 or actions.min() < 0 or actions.max() >= num_actions:
        raise ValueError(f"an action is outside 0 to {num_actions - 1}")
    if rewards.shape != (steps,) or not np.isfinite(rewards).all():
        raise ValueError(f"rewards are {rewards.shape} or not finite")
    return _Episode(
        frames[:-1].reshape(steps, 84, 84),
        actions,
        rewards.astype(np.float32),
        terminated=bool(flags[0, -1]),
        truncated=bool(flags[1, -1]),
    )


def _tier(metadata: dict[str, Any]) -> str:
    return str(metadata.get("tier", "all"))


def _end(metadata: dict[str, Any], episode: _Episode) -> int:
    """How the episode ended, as the store marks it; an export of ours said so itself."""
    for end, name in END_NAMES.items():
        if metadata.get("end") == name:
            return end
    return END_TERMINAL if episode.terminated else END_TRUNCATED if episode.truncated else END_NONE
