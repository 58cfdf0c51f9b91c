"""Optimiser and learning rate (JOWA paper, appendix)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jowa.errors import UserError
from jowa.learning.sharding import full


@dataclass
class OptimizerConfig:
    """AdamW; weight decay falls on the model's matrices only, not on embeddings, norms, biases or
    the tokenizer. `gradient_norm` clips the gradients of model and tokenizer each by themselves.

    `decay` is "none" (constant rate, as published) or "cosine" (to a tenth at the last step);
    `warmup` steps rise linearly from 0; `tokenizer_learning_rate` is the tokenizer's own.
    """

    learning_rate: float = 1e-4
    tokenizer_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    warmup: int = 0
    decay: str = "none"


def check_optimizer(name: str, config: OptimizerConfig) -> None:
    """Raises UserError for settings of phase `name` with which nothing is learned."""
    if config.decay not in ("none", "cosine"):
        raise UserError(f"{name}.optimizer.decay is {config.decay!r}: use none or cosine.")
    for key in ("learning_rate", "tokenizer_learning_rate", "weight_decay", "warmup"):
        if not (value := getattr(config, key)) >= 0:
            raise UserError(f"{name}.optimizer.{key} is {value}: use 0 or more.")
    if not config.gradient_norm > 0:
        raise UserError(
            f"{name}.optimizer.gradient_norm is {config.gradient_norm}: gradients are clipped to "
            f"this norm, use more than 0."
        )


def build_optimizer(objective: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over everything that needs a gradient; groups carry their `base_lr`."""
    groups: dict[str, list[Tensor]] = {"tokenizer": [], "matrices": [], "model": []}
    for prefix, module in objective.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if prefix.startswith("tokenizer"):
                groups["tokenizer"].append(parameter)
                continue
            matrix = name == "weight" and not isinstance(module, nn.Embedding)
            matrix = matrix and "norm" not in prefix and "ln" not in prefix.split(".")[-1]
            groups["matrices" if matrix else "model"].append(parameter)
    tokenizer_rate, rate = config.tokenizer_learning_rate, config.learning_rate
    settings = {
        "tokenizer": {"base_lr": tokenizer_rate, "weight_decay": 0.0, "owner": "tokenizer"},
        "matrices": {"base_lr": rate, "weight_decay": config.weight_decay, "owner": "model"},
        "model": {"base_lr": rate, "weight_decay": 0.0, "owner": "model"},
    }
    filled = [{"params": groups[kind], **settings[kind]} for kind in groups if groups[kind]]
    optimizer = torch.optim.AdamW(filled, lr=config.learning_rate, fused=True)
    for group in optimizer.param_groups:
        device = group["params"][0].device
        if device.type == "cuda":  # where a CUDA graph of the step will read it
            group["lr"] = torch.tensor(config.learning_rate, device=device)
            group["capturable"] = True
    return optimizer


def clip_gradients(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> dict[str, Tensor]:
    """Clips model and tokenizer to `gradient_norm` each; returns their norms before, by owner."""
    owned: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        owned.setdefault(group["owner"], []).extend(group["params"])
    return {
        owner: full(torch.nn.utils.clip_grad_norm_(parameters, config.gradient_norm))
        for owner, parameters in owned.items()
    }


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int
) -> None:
    """Sets each group's rate for step 0 <= step < steps."""
    factor = rate_factor(config.warmup, config.decay, step, steps)
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rate_factor(warmup: int, decay: str, step: int, steps: int) -> float:
    """Share of the base rate at this step, in (0, 1]."""
    if step < warmup:
        return (step + 1) / warmup
    if decay == "none":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))
