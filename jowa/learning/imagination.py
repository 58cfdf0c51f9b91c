"""Imagined data: what the planner would do from real contexts, as segments for the Q losses.

S segments of L steps: C frames of context, then H imagined ones, then padding. Only the steps from
the newest context frame on are marked as imagined, so that world model and tokenizer learn from
the others alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.data.segments import Batch, Sampler, SegmentDataset
from jowa.errors import UserError
from jowa.learning.compute import Compute
from jowa.learning.distributed import Processes
from jowa.learning.losses import target_rows
from jowa.learning.objective import Metrics, Objective
from jowa.models.tokenizer import to_bytes
from jowa.planning.beam import imagine
from jowa.planning.decode import Decoder
from jowa.planning.evaluation_mode import evaluating
from jowa.planning.paths import Path

# Added to a run's seed: the other streams of segments beside its own.
REST, _CONTEXTS = 0x72657374, 0x636F6E74


@dataclass
class ImaginationConfig:
    """Segments on which the beam planner has dreamt on from real contexts (JOWA paper, fine-tuning
    with imagined data), a part `share` of each batch; 0 trains on real data only.

    horizon imagined frames follow context real ones (0: as many as the segment holds). From step
    `start` of the phase on, every `every` steps, each process makes `segments` of them with the
    weights as they are, and keeps the newest `buffer` to draw from.
    """

    share: float = 0.0
    horizon: int = 2
    beam_width: int = 2
    context: int = 0
    buffer: int = 1024
    every: int = 100
    segments: int = 64
    start: int = 0

    def frames(self, length: int) -> int:
        """How many frames of context a segment of `length` frames has."""
        return self.context or length - self.horizon

    def imagined(self, batch_size: int) -> int:
        """How many segments of a batch are imagined."""
        return batch_size - round(batch_size * (1.0 - self.share))


def check_imagination(
    name: str, config: ImaginationConfig, length: int, batch_size: int, q: float
) -> None:
    """Raises UserError unless phase `name` can imagine data so; `q` weighs its Q losses."""
    if not 0.0 <= config.share < 1.0:
        raise UserError(
            f"{name}.imagination.share is {config.share}: use 0 (none) or more, and less than 1, "
            f"as world model and tokenizer learn from real segments only."
        )
    if config.share == 0.0:
        return
    if q == 0.0:
        raise UserError(
            f"{name}.imagination.share is {config.share}, but only Q losses learn from imagined "
            f"data and {name}.losses.q is 0: set the share to 0 or train Q."
        )
    least = {"horizon": 1, "beam_width": 1, "context": 0, "every": 1, "segments": 1, "start": 0}
    for key, bound in least.items():
        if (value := getattr(config, key)) < bound:
            raise UserError(f"{name}.imagination.{key} is {value}; use {bound} or more.")
    context = config.frames(length)
    if context < 1 or context + config.horizon > length:
        raise UserError(
            f"{name}.imagination has {max(context, 0)} frames of context and a horizon of "
            f"{config.horizon}: use at least 1 frame of context, and no more than "
            f"{name}.length={length} frames together."
        )
    if config.buffer < config.segments:
        raise UserError(
            f"{name}.imagination.buffer is {config.buffer}, too small for the "
            f"{config.segments} segments made at once: raise it or lower imagination.segments."
        )
    if not 0 < config.imagined(batch_size) < batch_size:
        raise UserError(
            f"{name}.imagination.share {config.share} of a batch of {batch_size} leaves no whole "
            f"segment for one of the two parts: change it or raise {name}.batch_size."
        )


class Imagination:
    """The buffer of one process, and where the part of its batches that may be imagined is from.

    `rest` draws that part's real segments for as long as nothing is imagined. Which contexts are
    dreamt on, and what is drawn, follows from seed, step and rank alone.
    """

    def __init__(
        self,
        config: ImaginationConfig,
        dataset: SegmentDataset,
        rest: Sampler,
        seed: int,
        processes: Processes,
    ) -> None:
        self.config, self.dataset, self._rest = config, dataset, rest
        self._seed, self._rank = seed, processes.rank
        self.roots = _Roots(dataset, config.frames(dataset.length))
        total = config.segments * processes.size
        if self.roots.num_segments < total:
            raise UserError(
                f"only {self.roots.num_segments} segments of the data have "
                f"{self.roots.context} steps to imagine from, and {total} are to be made at once: "
                f"lower imagination.segments or imagination.context."
            )
        self._sampler = Sampler(
            self.roots,
            total,
            seed=seed + _CONTEXTS,
            rank=processes.rank,
            world_size=processes.size,
        )
        self.buffer: Batch | None = None

    def due(self, step: int) -> bool:
        """Whether segments are to be made before this step of the phase."""
        since = step - self.config.start
        return since >= 0 and since % self.config.every == 0

    def refresh(self, step: int, objective: Objective, compute: Compute) -> None:
        """Imagines segments with the weights as they are; the oldest of too many fall out."""
        turn = (step - self.config.start) // self.config.every
        contexts = self.roots.contexts(*self._sampler.at(turn))
        made = dream_on(objective, contexts, self.config, self.dataset.length, compute)
        kept = [made] if self.buffer is None else [self.buffer, made]
        self.buffer = Batch.cat(kept).select(slice(-self.config.buffer, None))

    def batch(self, step: int) -> Batch:
        """The rest of this process's batch at a step: imagined, as soon as anything is."""
        numbers, keys = self._rest.at(step)
        if self.buffer is None:
            return self.dataset.batch(numbers, keys)
        rng = np.random.default_rng([self._seed + REST, step, self._rank])
        drawn = rng.integers(len(self.buffer.games), size=len(numbers))
        segments = self.buffer.select(torch.from_numpy(drawn))
        segments.keys.copy_(torch.from_numpy(keys))
        return segments

    def metrics(self, device: torch.device) -> Metrics:
        """How much the buffer holds, its mean reward an imagined step, its share of ends; always
        all of them, as they are averaged over processes."""
        size, reward, ends = torch.tensor(0.0), torch.tensor(torch.nan), torch.tensor(torch.nan)
        if self.buffer is not None:
            buffer = self.buffer
            steps = buffer.imagined & target_rows(buffer.ends, buffer.mask_padding)
            size = torch.tensor(float(len(buffer.games)))
            reward = buffer.rewards[steps].mean()
            ends = (buffer.ends & steps).any(1).float().mean()
        return {
            "imagination/segments": size.to(device),
            "imagination/reward": reward.to(device),
            "imagination/ends": ends.to(device),
        }

    def state(self) -> dict[str, Tensor]:
        """The buffer, for a checkpoint that also holds those of other processes."""
        if self.buffer is None:
            return {}
        return {f"{self._prefix}{name}": tensor for name, tensor in vars(self.buffer).items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes this process's buffer back, if it had one, from all tensors of a checkpoint."""
        start = self._prefix
        own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        self.buffer = Batch(**own) if own else None

    @property
    def _prefix(self) -> str:
        return f"imagination/{self._rank}/"


class _Roots:
    """The segments of a dataset that hold a context, numbered for a `Sampler`.

    Only the last step of a segment can be an end, so a context is without one: the end on its
    newest frame, if any, is of the action that was taken there and is imagined anew.
    """

    def __init__(self, dataset: SegmentDataset, context: int) -> None:
        self.dataset, self.context = dataset, context
        self._numbers = np.flatnonzero(dataset.segment_steps >= context)
        self.segment_game = dataset.segment_game[self._numbers]
        self.segment_has_reward = dataset.segment_has_reward[self._numbers]
        self.fingerprint = dataset.fingerprint

    @property
    def num_segments(self) -> int:
        return len(self._numbers)

    def contexts(self, indices: np.ndarray, keys: np.ndarray) -> Batch:
        """C real steps of each of the segments `indices` (S,), from where keys (S,) say."""
        numbers = self._numbers[indices]
        start = keys % (self.dataset.segment_steps[numbers] - self.context + 1)
        if self.dataset.pad == "left":
            start += self.dataset.length - self.dataset.segment_steps[numbers]
        batch = self.dataset.batch(numbers, keys).to("cpu")
        rows = torch.arange(len(numbers)).unsqueeze(1)
        steps = torch.from_numpy(start).unsqueeze(1) + torch.arange(self.context)
        cut = {n: t[rows, steps] if t.ndim > 1 else t for n, t in vars(batch).items()}
        return Batch(**cut)


def dream_on(
    objective: Objective,
    contexts: Batch,
    config: ImaginationConfig,
    length: int,
    compute: Compute,
) -> Batch:
    """Segments (S, L) on the CPU in which the beam planner acts from the newest frames of contexts
    (S, C) on; frames where the contexts are frames, else tokens."""
    assert objective.model is not None
    real = contexts.to(compute.device)
    # A head that was trained with rewarded steps counted several times says too often that there is
    # a reward: then what is expected, with that taken out, instead of what is likeliest.
    weighted = objective.config.reward_weight != 1
    with evaluating(objective):
        with compute.autocast():
            path = imagine(
                objective.model,
                objective.tokens(real),
                real.actions[:, :-1],
                real.games,
                config.beam_width,
                config.horizon,
                objective.config.gamma,
                reward_weight=objective.config.reward_weight if weighted else None,
                # Which decode is fastest differs from run to run, and with it how sums are rounded.
                decoder=Decoder(timed=False),
            )
        frames = path.frames
        if contexts.observations.ndim == 4:
            with torch.inference_mode():
                games = real.games.repeat_interleave(config.horizon)
                decoded = objective.tokenizer.decode(frames.flatten(0, 1), games)
                frames = to_bytes(decoded).unflatten(0, (-1, config.horizon))
    return joined(contexts, path, frames, length)


def joined(contexts: Batch, path: Path, frames: Tensor, length: int) -> Batch:
    """Contexts (S, C), the planner's path, and its frames (S, H, ...), as segments (S, L).

    The last imagined frame has its greedy action and nothing after it. What lies beyond an
    imagined end is padding, as are steps C + H to L - 1.
    """
    before = contexts.mask_padding[:, :-1]
    # Step i of the path takes place unless one before it has ended.
    going = F.pad(path.ends.cpu().cumsum(1) == 0, (1, 0), value=True)
    mask = torch.cat([before, going], dim=1)

    def padded(x: Tensor) -> Tensor:
        """(S, L, ...) of (S, C + H, ...), zero (False) where nothing takes place."""
        here = mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
        shape = (len(x), length, *x.shape[2:])
        out = torch.zeros(shape, dtype=x.dtype)
        out[:, : x.shape[1]] = torch.where(here, x, torch.zeros((), dtype=x.dtype))
        return out

    rewards, ends = (F.pad(x.cpu(), (0, 1)) for x in (path.rewards, path.ends))
    return Batch(
        observations=padded(torch.cat([contexts.observations, frames.cpu()], 1)),
        actions=padded(torch.cat([contexts.actions[:, :-1], path.actions.cpu()], 1)),
        rewards=padded(torch.cat([contexts.rewards[:, :-1], rewards], 1)),
        ends=padded(torch.cat([contexts.ends[:, :-1], ends], 1)),
        mask_padding=padded(mask),
        games=contexts.games,
        imagined=padded(torch.cat([torch.zeros_like(before), going], 1)),
        keys=contexts.keys,
    )
