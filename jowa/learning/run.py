"""A run directory and the parts every training command is set up from."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jowa.data.episodes import EpisodeFile
from jowa.data.store import open_store, strange_actions
from jowa.errors import UserError
from jowa.files import write_json
from jowa.learning.checkpoint import newest
from jowa.learning.released_files import read_released
from jowa.models.conv_tokenizer import ConvTokenizer
from jowa.models.lpips import LPIPS
from jowa.models.tokenizer import Tokenizer

# May differ between the first and a later start of the same run: they do not change its result.
_FREE_KEYS = (
    *("run", "log.", "compute.", "compile", "replay", "perceptual"),
    *("data.cache_gib", "data.tokens", "data.workers", "data.prefetch"),
    *("cache_gib", "workers", "prefetch"),  # of `jowa finetune`
)
_BACKGROUND_FRAMES = 512


def open_run(path: str, config: Any) -> Path:
    """Makes the run directory, or goes on in one of the same configuration.

    UserError naming the keys that differ if the directory holds a checkpoint of a run of another
    configuration, or one that no run wrote; without one there is nothing to go on from, and the run
    starts anew. An option that did not exist when the run started counts as having been left as it
    usually is.
    """
    run, resolved = Path(path), dataclasses.asdict(config)
    stored = run / "config.json"
    if newest(run) is not None:
        if not stored.exists():
            raise UserError(
                f"{run} holds a checkpoint, such as imported weights, but no run that could go on "
                f"(no config.json): give another run=..."
            )
        usual = dataclasses.asdict(type(config)())
        before, now = flatten(usual) | flatten(read_config(run)), flatten(resolved)
        changed = [
            key
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(_FREE_KEYS)
        ]
        if changed:
            shown = ", ".join(f"{k} ({before.get(k)} there, {now.get(k)} now)" for k in changed[:5])
            raise UserError(
                f"{run} holds a run of another configuration: {shown}; give another run=... "
                f"or delete that folder."
            )
        return run
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(stored, resolved)
    except OSError as error:
        raise UserError(f"run={run} cannot be made or written: {error}.") from error
    return run


def read_config(run: Path) -> dict[str, Any]:
    """The configuration that a run was started with; UserError if it is damaged."""
    path = run / "config.json"
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): its checkpoints' state.json hold a copy, as `config`."
        ) from error
    return config


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def open_data(root: str, games: list[str], cache_gib: float) -> list[EpisodeFile]:
    """The games' episode files, held in memory if they all fit into `cache_gib`.

    UserError where no game is named; a remark of actions that their game does not know.
    """
    if not games:
        raise UserError("no game is named to learn from: give data.games=[Pong,Breakout], say.")
    files = open_store(root, games)
    for file in files:
        if (remark := strange_actions(file)) and os.environ.get("RANK", "0") == "0":
            print(remark, flush=True)
    if sum(file.raw_bytes for file in files) <= cache_gib * 2**30:
        for file in files:
            file.cache()
    return files


def set_perceptual(tokenizer: Tokenizer, path: str | None) -> None:
    """Gives the tokenizer's loss the perceptual net in `path`: a file of LPIPS weights, or a
    released tokenizer, which holds them. UserError where one is needed and not given, or given
    and not used."""
    weight = tokenizer.config.perceptual_weight if isinstance(tokenizer, ConvTokenizer) else 0.0
    if path is None:
        if weight > 0:
            raise UserError(
                f"tokenizer.perceptual_weight is {weight}, which needs the weights of LPIPS: give "
                f"perceptual=FILE (a released tokenizer.pt holds them), or set it to 0."
            )
        return
    if weight == 0:
        raise UserError(
            "perceptual=... is given, but this tokenizer's loss has no perceptual term: use "
            "tokenizer=published tokenizer.perceptual_weight=1, or leave perceptual out."
        )
    assert isinstance(tokenizer, ConvTokenizer)  # others have no such weight
    names = {name.rpartition("lpips.")[2]: t for name, t in read_released(path).items()}
    tokenizer.set_perceptual(LPIPS.from_state(names))


def set_backgrounds(tokenizer: Tokenizer, files: list[EpisodeFile]) -> None:
    """Gives the tokenizer each game's median frame, if it is one that wants it."""
    if tokenizer.needs_background:
        for file in files:
            count = min(_BACKGROUND_FRAMES, file.num_transitions)
            rows = np.linspace(0, file.num_transitions - 1, count).astype(np.int64)
            median = np.median(file.frames(rows), axis=0).astype(np.uint8)
            tokenizer.set_background(file.game.id, torch.from_numpy(median))
