"""What the planner's bench plans with: models of a size, and contexts, real or made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from jowa.agent import Agent
from jowa.cli import composed
from jowa.data.episodes import EpisodeFile
from jowa.learning.losses import IGNORE, next_token_targets
from jowa.models.world_action import WorldActionConfig, WorldActionModel

CONTEXT = 4
Context = tuple[Tensor, Tensor, Tensor]
Contexts = Callable[[int, int], Context]  # of a number and a seed


def real_contexts(agent: Agent, files: list[EpisodeFile]) -> Contexts:
    """Real frames' tokens (count, CONTEXT, 36), games in turn, actions and games."""

    def draw(count: int, seed: int) -> Context:
        rng = np.random.default_rng(seed)
        tokens, actions, games = [], [], []
        for i in range(count):
            file = files[i % len(files)]
            steps = rng.integers(0, file.num_transitions - CONTEXT) + np.arange(CONTEXT)
            game = torch.tensor([file.game.id], device=agent.device)
            frames = torch.from_numpy(file.frames(steps)).unsqueeze(1).to(agent.device)
            with torch.inference_mode():
                tokens.append(agent.tokenizer.encode(frames, game.repeat(CONTEXT)))
            taken = torch.from_numpy(file.actions[steps[:-1]].astype(np.int64))
            actions.append(taken.to(agent.device))
            games.append(game)
        return torch.stack(tokens).clone(), torch.stack(actions), torch.cat(games)

    return draw


def made_up_contexts(vocabulary: int, device: torch.device) -> Contexts:
    """The like of no data: five games' backgrounds, three things that move on, some noise."""
    backgrounds = torch.randint(0, vocabulary, (5, 36), generator=torch.Generator().manual_seed(0))

    def draw(count: int, seed: int) -> Context:
        generator = torch.Generator().manual_seed(seed)
        games = torch.arange(count) % 5
        frames = backgrounds[games].unsqueeze(1).repeat(1, CONTEXT, 1)
        for thing in range(3):
            start = torch.randint(0, 36, (count, 1), generator=generator)
            place = (start + (thing - 1) * torch.arange(CONTEXT)) % 36
            frames.scatter_(2, place.unsqueeze(-1), 7 + thing)
        noisy = torch.rand(frames.shape, generator=generator) < 0.02
        noise = torch.randint(0, vocabulary, frames.shape, generator=generator)
        actions = torch.randint(0, 18, (count, CONTEXT - 1), generator=generator)
        frames = torch.where(noisy, noise, frames)
        return frames.to(device), actions.to(device), games.to(device)

    return draw


def of_size(size: str, agent: Agent, contexts: Contexts, steps: int) -> WorldActionModel:
    """A model of a published size whose world model is trained for `steps` batches. It copies the
    previous frame by a gate as the checkpoint does, so that it imagines frames like a model that
    was trained for long."""
    torch.manual_seed(0)
    ours = agent.model.config
    settings = composed("pretrain", ["experiment=published", f"model={size}", "run=x"])
    published: WorldActionConfig = OmegaConf.to_object(settings).model
    config = replace(
        published,
        transformer=replace(published.transformer, dropout=0.0),
        vocabulary=max(ours.vocabulary, published.vocabulary),
        copy_previous=True,
    )
    model = WorldActionModel(config).to(agent.device)
    rate = 1e-3 if config.transformer.layers <= 4 else 3e-4
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    rows = 32 if agent.device.type == "cuda" else 8
    for step in range(steps):
        tokens, actions, games = contexts(rows, 1000 + step)
        with torch.autocast(agent.device.type, torch.bfloat16):
            logits = model(tokens, F.pad(actions, (0, 1)), games, q=False).observation_logits
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        targets = next_token_targets(tokens, real).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"{size}, step {step}: cross-entropy {float(loss.detach()):.2f}", flush=True)
    return model.eval()
