"""Optimiser and learning rate (JOWA paper, appendix)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jowa.errors import UserError


@dataclass
class OptimizerConfig:
    """AdamW; weight decay falls on matrices only, not on embeddings, norms and biases.

    `decay` is "none" (constant rate, as published) or "cosine" (to a tenth at the last step);
    `warmup` steps rise linearly from 0; `tokenizer_learning_rate` is the tokenizer's own.
    """

    learning_rate: float = 1e-4
    tokenizer_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    warmup: int = 0
    decay: str = "none"


def build_optimizer(objective: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over everything that needs a gradient; groups carry their `base_lr`."""
    if config.decay not in ("none", "cosine"):
        raise UserError(f"optimizer.decay is {config.decay!r}: use none or cosine.")
    decayed: dict[str, list[Tensor]] = {"tokenizer": [], "model": []}
    plain: dict[str, list[Tensor]] = {"tokenizer": [], "model": []}
    for prefix, module in objective.named_modules():
        owner = "tokenizer" if prefix.startswith("tokenizer") else "model"
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            matrix = name == "weight" and not isinstance(module, nn.Embedding)
            matrix = matrix and "norm" not in prefix and "ln" not in prefix.split(".")[-1]
            (decayed if matrix else plain)[owner].append(parameter)
    rates = {"model": config.learning_rate, "tokenizer": config.tokenizer_learning_rate}
    groups = [
        {"params": params, "weight_decay": decay, "base_lr": rates[owner], "owner": owner}
        for kind, decay in ((decayed, config.weight_decay), (plain, 0.0))
        for owner, params in kind.items()
        if params
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int
) -> None:
    """Sets each group's rate for step 0 <= step < steps."""
    factor = rate_factor(config.warmup, config.decay, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def rate_factor(warmup: int, decay: str, step: int, steps: int) -> float:
    """Share of the base rate at this step, in (0, 1]."""
    if step < warmup:
        return (step + 1) / warmup
    if decay == "none":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))
