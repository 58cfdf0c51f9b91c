"""Episode files as Minari datasets, one episode in memory at a time."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from jowa.data.episodes import END_TERMINAL, EpisodeFile
from jowa.errors import UserError
from jowa.exchange.minari_sets import END_NAMES, dataset_folder, load_minari
from jowa.games import NUM_ACTIONS


def export_episodes(
    file: EpisodeFile,
    dataset_id: str,
    *,
    full_actions: bool,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Writes all episodes of `file` as the Minari dataset `dataset_id`; returns its folder.

    Actions are indices of the game's minimal set, or with `full_actions` of the 18-action set.
    Rewards are raw where known. `progress` is called with the steps of each episode. What stops it
    removes what was written.

    Raises:
        UserError: without Minari, for a malformed or taken id, or an action outside the set.
    """
    minari = load_minari()
    folder = dataset_folder(dataset_id)
    if folder.exists():
        raise UserError(
            f"there is a Minari dataset {dataset_id} at {folder} already: choose another id or "
            f"delete it with `minari delete {dataset_id}`."
        )
    numbers = _numbers(file, full_actions)
    try:
        with warnings.catch_warnings():  # it warns of every piece of metadata that is not given
            warnings.simplefilter("ignore", UserWarning)
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [],
                observation_space=gymnasium.spaces.Box(0, 255, (84, 84), np.uint8),
                action_space=gymnasium.spaces.Discrete(int((numbers >= 0).sum())),
                algorithm_name=file.source,
                description=_description(file, full_actions),
                jpeg_encoding=False,  # which would change the frames
            )
        dataset.storage.update_metadata({"jowa": _facts(file, full_actions)})
        dataset.storage.update_episodes(_buffers(file, numbers, progress))
        dataset.storage.update_episode_metadata(_episode_metadata(file))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write the Minari dataset {folder}: {error}") from error
        raise
    return folder


def _numbers(file: EpisodeFile, full_actions: bool) -> np.ndarray:
    """(18,) each action's number in the exported set, -1 outside it."""
    if full_actions:
        return np.arange(NUM_ACTIONS)
    numbers = np.full(NUM_ACTIONS, -1)
    numbers[list(file.game.action_ids)] = np.arange(len(file.game.action_ids))
    if (numbers[file.actions] < 0).any():
        raise UserError(
            f"{file.path} has actions outside {file.game.name}'s minimal set: use actions=full."
        )
    return numbers


def _facts(file: EpisodeFile, full_actions: bool) -> dict[str, Any]:
    """What an import needs beside the arrays, as it goes into the dataset's metadata."""
    return {
        "game": file.game.name,
        "action_set": "full" if full_actions else "minimal",
        "rewards": "clipped" if file.raw_rewards is None else "raw",
        "source": file.source,
        "tiers": list(file.tiers),
        "provenance": file.provenance,
        "facts": file.facts,
        "fingerprint": file.fingerprint,
    }


def _description(file: EpisodeFile, full_actions: bool) -> str:
    actions = "the full 18-action set" if full_actions else "the game's minimal action set"
    rewards = "clipped to [-1, 1]" if file.raw_rewards is None else "raw, in points of the game"
    return (
        f"{file.game.name}, played by: {file.source}. Frames are {file.preprocessing}. Actions are "
        f"indices of {actions}. Rewards are {rewards}. The observation after the last step of an "
        f"episode was not recorded: the last frame is repeated in its place. Where only the "
        f"recording stopped, the last step is marked as truncated and the episode's metadata says "
        f"end=none. Written by jowa."
    )


def _buffers(
    file: EpisodeFile, numbers: np.ndarray, progress: Callable[[int], object] | None
) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    rewards = file.rewards if file.raw_rewards is None else file.raw_rewards
    for number in range(file.num_episodes):
        start, stop = (int(row) for row in file.episode_starts[number : number + 2])
        ends = file.ends[start:stop]
        frames = file.frames(np.append(np.arange(start, stop), stop - 1))
        last = np.arange(start, stop) == stop - 1
        yield EpisodeBuffer(
            observations=frames,
            actions=numbers[file.actions[start:stop]],
            rewards=rewards[start:stop],
            terminations=ends == END_TERMINAL,
            truncations=last & (ends != END_TERMINAL),
        )
        if progress is not None:
            progress(stop - start)


def _episode_metadata(file: EpisodeFile) -> Iterator[dict[str, Any]]:
    for number in range(file.num_episodes):
        yield {
            "tier": file.tiers[file.episode_tiers[number]],
            "full": bool(file.episode_full[number]),
            "end": END_NAMES[int(file.ends[file.episode_starts[number + 1] - 1])],
        }
