"""Cloning one game's play by a pixel network, and how well that goes on held-out episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.data.episodes import EpisodeFile
from jowa.data.store import strange_actions
from jowa.errors import UserError
from jowa.games import NUM_ACTIONS
from jowa.models.pixel_clone import PixelClone, stacked

_HELD_OUT = 10  # every tenth episode, or the last of fewer
_MEAN_FRAMES = 1000  # for the mean image
_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Play:
    """N transitions of one game's episodes.

    Attributes:
        frames: (N, 84, 84) uint8.
        actions: (N,) int64, positions in the game's minimal set.
        first_rows: (N,) int64, the row of each transition's episode start.
        held_out: (N,) bool, true in episodes that are not learned from.
    """

    frames: Tensor
    actions: Tensor
    first_rows: Tensor
    held_out: Tensor

    def changes(self) -> Tensor:
        """(N,) bool, where the action differs from the one before, and at every start."""
        same = self.actions[1:] == self.actions[:-1]
        started = self.first_rows == torch.arange(len(self.actions))
        return started | torch.cat([torch.ones(1, dtype=torch.bool), ~same])


@dataclass(frozen=True)
class Prediction:
    """How well the actions of held-out episodes are predicted; shares of 1, nats.

    The `prior` predicts every action by how often it is taken in the episodes learned from.
    """

    accuracy: float
    prior_accuracy: float
    change_accuracy: float
    prior_change_accuracy: float
    cross_entropy: float
    prior_cross_entropy: float


def read_play(file: EpisodeFile, tiers: Sequence[str], transitions: int, seed: int) -> Play:
    """Whole episodes of some tiers, drawn by chance up to about `transitions`.

    Raises UserError for tiers that the file does not have, or fewer than two episodes.
    """
    unknown = [tier for tier in tiers if tier not in file.tiers]
    if unknown:
        raise UserError(f"{file.path} has no tier {unknown[0]!r}: it has {', '.join(file.tiers)}.")
    wanted = [file.tiers.index(tier) for tier in tiers]
    episodes = np.flatnonzero(np.isin(file.episode_tiers, wanted))
    episodes = np.random.default_rng(seed).permutation(episodes)
    lengths = np.diff(file.episode_starts)[episodes]
    episodes = np.sort(episodes[: np.searchsorted(np.cumsum(lengths), transitions) + 1])
    if len(episodes) < 2:
        raise UserError(
            f"{file.path} has {len(episodes)} episode of {', '.join(tiers)} within {transitions} "
            "transitions: a probe needs 2, one of them held out; raise transitions."
        )
    starts, stops = file.episode_starts[episodes], file.episode_starts[episodes + 1]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
    lengths = stops - starts
    first_rows = np.repeat(np.cumsum(lengths) - lengths, lengths)
    held_out = np.repeat(
        np.arange(len(episodes)) % _HELD_OUT == min(_HELD_OUT, len(episodes)) - 1, lengths
    )
    position = np.full(NUM_ACTIONS, -1)
    position[list(file.game.action_ids)] = np.arange(len(file.game.action_ids))
    actions = position[file.actions[rows]]
    if (actions < 0).any():
        raise UserError(strange_actions(file))
    return Play(
        torch.from_numpy(file.frames(rows)),
        torch.from_numpy(actions),
        torch.from_numpy(first_rows),
        torch.from_numpy(held_out),
    )


def train_clone(
    play: Play,
    num_actions: int,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    progress: Callable[[], object] | None = None,
) -> PixelClone:
    """A clone of the episodes that are not held out, in evaluation mode.

    `progress` is called after every step.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(~play.held_out.numpy())
    some = torch.from_numpy(rng.choice(rows, _MEAN_FRAMES))
    clone = PixelClone(play.frames[some].float().mean(0), num_actions).to(device)
    optimizer = torch.optim.AdamW(clone.parameters(), learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(steps):
        batch = torch.from_numpy(rng.choice(rows, batch_size))
        logits = clone(play.frames[stacked(batch, play.first_rows[batch])].to(device))
        loss = F.cross_entropy(logits, play.actions[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress()
    return clone.eval()


@torch.no_grad()
def predict(clone: PixelClone, play: Play, num_actions: int, device: torch.device) -> Prediction:
    """How well a clone predicts the held-out episodes."""
    rows = torch.from_numpy(np.flatnonzero(play.held_out.numpy()))
    logits = torch.cat(
        [
            clone(play.frames[stacked(part, play.first_rows[part])].to(device)).cpu()
            for part in rows.split(_EVALUATION_BATCH)
        ]
    )
    actions, changes = play.actions[rows], play.changes()[rows]
    counts = torch.bincount(play.actions[~play.held_out], minlength=num_actions) + 1.0
    prior = (counts / counts.sum()).log().expand(len(rows), -1)

    def accuracy(scores: Tensor, where: Tensor) -> float:
        return float((scores.argmax(1) == actions)[where].float().mean())

    everywhere = torch.ones_like(changes)
    return Prediction(
        accuracy(logits, everywhere),
        accuracy(prior, everywhere),
        accuracy(logits, changes),
        accuracy(prior, changes),
        float(F.cross_entropy(logits, actions)),
        float(F.nll_loss(prior, actions)),
    )
