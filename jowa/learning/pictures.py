"""Pictures of what the models see: reconstructions, and a dream beside what really happened."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jowa.data.segments import Batch
from jowa.models.tokenizer import Tokenizer, to_bytes
from jowa.models.world_action import WorldActionModel
from jowa.planning.dream import Dream

GAP = 2


@torch.inference_mode()
def reconstructions(tokenizer: Tokenizer, batch: Batch) -> np.ndarray:
    """Real frames (upper of each pair of rows) above their reconstruction: a row a segment."""
    B, L = batch.actions.shape
    games = batch.games.repeat_interleave(L)
    frames = batch.observations.flatten(0, 1).unsqueeze(1)
    decoded = tokenizer.decode(tokenizer.encode(frames, games), games)
    return _interleave(frames.view(B, L, 84, 84), to_bytes(decoded).view(B, L, 84, 84))


@torch.inference_mode()
def dreams(
    tokenizer: Tokenizer, model: WorldActionModel, batch: Batch, context: int = 2
) -> np.ndarray:
    """What really happened above what the model dreams from the first `context` frames when it
    is given the actions really taken; a pair of rows a segment."""
    was_training = model.training
    model.eval()
    B, L = batch.actions.shape
    games = batch.games.repeat_interleave(L)
    frames = batch.observations.flatten(0, 1).unsqueeze(1)
    tokens = tokenizer.encode(frames, games).view(B, L, -1)
    dream = Dream.start(
        model, tokens[:, :context], batch.actions[:, : context - 1], batch.games, L - context
    )
    imagined = [tokens[:, t] for t in range(context)]
    for t in range(context, L):
        dream.step(batch.actions[:, t - 1])
        imagined.append(dream.frame)
    decoded = tokenizer.decode(torch.stack(imagined, 1).flatten(0, 1), games)
    model.train(was_training)
    return _interleave(frames.view(B, L, 84, 84), to_bytes(decoded).view(B, L, 84, 84))


def _interleave(upper: Tensor, lower: Tensor) -> np.ndarray:
    """Two (B, L, 84, 84) stacks as one picture, each row of the one above that of the other."""
    rows = []
    for first, second in zip(upper.cpu().numpy(), lower.cpu().numpy(), strict=True):
        for strip in (first, second):
            padded = np.pad(strip, ((0, 0), (0, GAP), (0, GAP)), constant_values=128)
            rows.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(rows, axis=0)
