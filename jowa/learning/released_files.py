"""Reading files of published weights. Nothing in them is ever executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from jowa.agent import check_pair
from jowa.errors import UserError
from jowa.models.released import build_model, build_tokenizer
from jowa.models.tokenizer import Tokenizer
from jowa.models.world_action import WorldActionModel

_LFS_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"  # how a file of torch.save begins
# What torch raises over files that it cannot read.
_READ_ERRORS = (
    *(RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(AssertionError, EOFError, OSError),
)


def load_released(
    model_path: str | Path, tokenizer_path: str | Path, num_heads: int | None = None
) -> tuple[Tokenizer, WorldActionModel]:
    """Tokenizer and model of released files (JOWA paper, section 4), in evaluation mode.

    All sizes are read from the tensors; `num_heads` is needed only for widths other than 512 and
    768. Weights stay mapped to the files until they are first used: do not overwrite a file while
    a process uses it (deleting it does no harm).

    Raises UserError saying what is wrong with a file.
    """
    tokenizer = build_tokenizer(read_released(tokenizer_path), str(tokenizer_path))
    model = build_model(read_released(model_path), str(model_path), num_heads)
    check_pair(tokenizer, model)
    return tokenizer, model


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The flat state dict in a file, memory-mapped; UserError if there is none."""
    path = Path(path)
    _check_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} holds Python objects{f' ({found[1]})' if found else ''} beside tensors, which "
            f"could run code when read: jowa reads plain state dicts only."
        ) from error
    except _READ_ERRORS as error:
        raise UserError(
            f"{path} is not a whole file of torch.save ({str(error).splitlines()[0]}): download "
            f"it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict of tensors.")
    if other := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"{path} is not a flat state dict of tensors: its entry {other[0]!r} is of type "
            f"{type(content[other[0]]).__name__} (entries: {_some(content)}); save the weights in "
            f"it by themselves."
        )
    odd = [
        name
        for name, tensor in content.items()
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_meta
    ]
    if odd:
        raise UserError(f"{path} holds {odd[0]!r}, which is no named, dense tensor of numbers.")
    return {name: tensor.detach() for name, tensor in content.items()}


def check_sums(path: Path) -> None:
    """Reads the whole file of torch.save; UserError if a part is not what its checksum says."""
    with zipfile.ZipFile(path) as archive:
        try:
            broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            broken = str(error)
    if broken is not None:
        raise UserError(f"{path} is damaged (checksum of {broken}): download it again.")


def _check_file(path: Path) -> None:
    """UserError if it can be told without torch that this is no file of torch.save."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a released file (a `.pt` file).")
        with path.open("rb") as file:
            start = file.read(400)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if start.startswith(_LFS_POINTER):
        stands_for = re.search(rb"^size (\d+)", start, re.MULTILINE)
        real = f" of {int(stands_for[1]):,} bytes" if stands_for else ""
        raise UserError(
            f"{path} is a Git LFS pointer ({size} bytes), not the file{real} that it stands for: "
            f"run `git lfs pull` in its repository or download the file itself."
        )
    kind = "is a web page" if b"<html" in start.lower() else "is not a file of torch.save"
    kind = kind if size else "is empty"
    if start.startswith(_ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/data.pkl") for name in archive.namelist()):
                    return
        except zipfile.BadZipFile as error:  # the list of an archive's parts is at its end
            raise UserError(f"{path} is cut short ({size:,} bytes): download it again.") from error
    raise UserError(f"{path} {kind}: download the released `.pt` file.")


def _some(content: dict[object, object]) -> str:
    names = [str(key) for key in content]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
