"""An agent as one file: what `jowa export-weights` writes, and what comes with jowa.

A safetensors file of tokenizer and model in float16; integers stay as they are. Its metadata
hold, as JSON, what the checkpoint's state.json says and sha256 sums of everything. The target Q
head is not stored: whoever goes on training starts with a copy of the Q head.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from jowa.errors import UserError
from jowa.files import write_atomically

SUFFIX = ".safetensors"
STEMS = ("model", "tokenizer")
_METADATA = "jowa"  # one key, because safetensors keeps no order among several
_Q_HEAD, _TARGET = "q_head.", "target_q_head."
Tensors = dict[str, Tensor]


def encode(state: dict[str, Any], tensors: dict[str, Tensors]) -> bytes:
    """The file's content, which is the same whenever it is made of the same checkpoint.

    UserError naming a tensor that float16 cannot hold.
    """
    halved = {stem: _halved(tensors[stem]) for stem in STEMS}
    state = {
        "exported_from": {stem: state["sha256"][stem] for stem in STEMS},
        **_without_folders(state),
        "sha256": {stem: _sum(halved[stem]) for stem in STEMS},
    }
    metadata = json.dumps({"state": state, "sha256": _sum_of_state(state)}, sort_keys=True)
    named = {f"{stem}.{name}": t for stem in STEMS for name, t in halved[stem].items()}
    return save(named, {_METADATA: metadata})


def write(path: Path, content: bytes) -> bool:
    """Writes a file of that content, whole or not at all; false if it was there already.

    UserError if something else is there, or it cannot be written.
    """
    try:
        if not path.exists():
            write_atomically(path, content)
            return True
        if path.read_bytes() == content:
            return False
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): give another out=...") from error
    raise UserError(f"{path} is there and holds something else: give another out=...")


def read_state(path: Path) -> dict[str, Any]:
    """What state.json said of sizes, games, position and configuration, and the sums.

    ValueError, or what safetensors raises, if the file is damaged or another one.
    """
    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {})[_METADATA])
    state: dict[str, Any] = metadata["state"]
    if metadata["sha256"] != _sum_of_state(state):
        raise ValueError("its metadata are not as they were written")
    return state


def read_tensors(path: Path, state: dict[str, Any]) -> dict[str, Tensors]:
    """Tokenizer and model in float32; ValueError if they are not what `state` has the sums of."""
    stored: dict[str, Tensors] = {stem: {} for stem in STEMS}
    for key, tensor in load_file(path).items():
        stem, _, name = key.partition(".")
        stored[stem][name] = tensor
    for stem in STEMS:
        if _sum(stored[stem]) != state["sha256"][stem]:
            raise ValueError(f"its {stem} is not as it was written")
    whole = {stem: {n: _float32(t) for n, t in stored[stem].items()} for stem in STEMS}
    heads = {n: t.clone() for n, t in whole["model"].items() if n.startswith(_Q_HEAD)}
    whole["model"] |= {_TARGET + name.removeprefix(_Q_HEAD): t for name, t in heads.items()}
    return whole


def _halved(tensors: Tensors) -> Tensors:
    halved = {}
    for name, tensor in tensors.items():
        if name.startswith(_TARGET):
            continue
        halved[name] = tensor.half() if tensor.is_floating_point() else tensor
        if bad := tensor[~halved[name].isfinite()].tolist():
            raise UserError(
                f"{name} holds {bad[0]:g}, but float16 holds only finite numbers up to "
                f"{torch.finfo(torch.float16).max:,.0f}: export another checkpoint."
            )
    return halved


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _sum(tensors: Tensors) -> str:
    """sha256 (hex) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sum_of_state(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _without_folders(value: Any) -> Any:
    """JSON data with absolute paths cut to their last part: where things lay on one machine is of
    no use on another."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
