"""`jowa import-weights`: published weights become a checkpoint like any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from jowa import games
from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import Checkpoint, file_sha256
from jowa.learning.config import ImportWeightsConfig
from jowa.learning.released_files import check_sums, load_released
from jowa.models.conv_tokenizer import ConvTokenizer
from jowa.models.released import PRETRAINED_GAMES
from jowa.models.tokenizers import to_state


def import_weights(config: ImportWeightsConfig) -> Path:
    """Writes the checkpoint, unless it is already there; returns its run directory."""
    run = Path(config.out)
    names = [games.get(name).name for name in config.games or PRETRAINED_GAMES]
    if run.is_file():
        raise UserError(f"{run} is a file: give a folder to write as out=...")
    tokenizer, model = load_released(config.model, config.tokenizer, config.num_heads)
    assert isinstance(tokenizer, ConvTokenizer)
    sources = {
        "model": _source(config.model),
        "tokenizer": _source(config.tokenizer),
        "num_heads": model.config.transformer.heads,
    }
    if (folder := checkpoints.newest(run)) is not None:
        _keep(folder, sources, names)
        return run
    for path in (config.model, config.tokenizer):
        check_sums(Path(path))
    sizes = model.config
    print(
        f"model: {sizes.transformer.layers} layers of width {sizes.transformer.width}, "
        f"{sizes.transformer.heads} heads, {sizes.q_members} Q of width {sizes.q_width}, "
        f"{_count(model):,} parameters\n"
        f"tokenizer: {tokenizer.vocabulary} codes of width {tokenizer.code_width}, "
        f"{_count(tokenizer):,} parameters\n"
        f"games: {', '.join(names)}"
    )
    state: dict[str, Any] = {
        "tokenizer": to_state(tokenizer.config),
        "model": dataclasses.asdict(sizes),
        "games": names,
        "config": dataclasses.asdict(config),
        "versions": checkpoints.versions(),
        "released": sources,
    }
    tensors = {"model": model.state_dict(), "tokenizer": tokenizer.state_dict()}
    print(f"written: {checkpoints.save(run, Checkpoint(0, state, tensors), keep=1)}")
    return run


def _source(path: str) -> dict[str, Any]:
    """What is remembered of a released file."""
    file = Path(path)
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _keep(folder: Path, sources: dict[str, Any], names: list[str]) -> None:
    """Says that these weights are already there; UserError if others are."""

    def identity(released: dict[str, Any], games: list[str]) -> dict[str, Any]:
        return {
            "model": released["model"]["sha256"],
            "tokenizer": released["tokenizer"]["sha256"],
            "num_heads": released["num_heads"],
            "games": games,
        }

    state = checkpoints.load(folder, stems=()).state
    if "released" not in state:
        raise UserError(
            f"{folder} is a checkpoint of a training run: give another folder as out=..."
        )
    there, now = identity(state["released"], state["games"]), identity(sources, names)
    if changed := [key for key in now if there[key] != now[key]]:
        raise UserError(
            f"{folder} was imported with another {' and '.join(changed)}: give another folder as "
            f"out=... or delete that one."
        )
    print(f"kept: {folder} already holds these weights")
