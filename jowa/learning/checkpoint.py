"""Checkpoints: a directory a step, complete or not there.

Layout of `RUN/checkpoints/step_00001000/`: `model.safetensors`, `tokenizer.safetensors`,
`training.safetensors` (optimiser and random state; absent in imported weights), `state.json`
(sizes, position, score, configuration, versions, sha256 sums of the others) and, written last,
`COMPLETE`. Where one is read, a file of `jowa export-weights` will do, and so will the name of an
agent that comes with jowa as such a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jowa.errors import UserError
from jowa.files import write_atomically
from jowa.learning import weight_file
from jowa.learning.retention import kept
from jowa.learning.sharding import split_like
from jowa.learning.weight_file import Tensors

FORMAT = 3  # 2: the tokenizer has a kind; 3: Q with a reader reads frames alone
_SHIPPED = Path(__file__).resolve().parents[1] / "weights"


@dataclass
class Checkpoint:
    """What a checkpoint holds. `state` is plain JSON data; `tensors` maps file stem to tensors."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensors] = field(default_factory=dict)


def save(run: Path, checkpoint: Checkpoint, keep: int, keep_best: int = 0) -> Path:
    """Writes the checkpoint, then points `latest` to it, then prunes all that need not be kept:
    not among the last `keep`, nor the best `keep_best`, nor the end of a phase.

    An interruption at any moment leaves the earlier checkpoints and perhaps a folder without
    `COMPLETE`, which no reader takes and the next save removes.
    """
    folder = run / "checkpoints"
    target = folder / f"step_{checkpoint.step:08d}"
    temporary = folder / f".{target.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for stem, tensors in checkpoint.tensors.items():
            contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            save_file(contiguous, temporary / f"{stem}.safetensors")
        sums = {stem: file_sha256(temporary / f"{stem}.safetensors") for stem in checkpoint.tensors}
        state = {"format": FORMAT, "step": checkpoint.step, "sha256": sums, **checkpoint.state}
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
        for file in temporary.iterdir():
            _sync(file)
        (temporary / "COMPLETE").touch()
        _sync(temporary)
        _remove(target)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"the checkpoint {target} could not be written ({error}): make room and run the same "
            f"command again; the checkpoint before it is untouched."
        ) from error
    write_atomically(folder / "latest", target.name)
    stay = kept(complete(run), keep, keep_best)
    for old in (*folder.glob("step_*"), *folder.glob(".step_*.writing")):
        if old not in stay:
            _remove(old)
    return target


def _remove(folder: Path) -> None:
    """Deletes a checkpoint so that a kill half-way leaves nothing that a reader takes."""
    (folder / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def complete(run: Path) -> list[Path]:
    """The complete checkpoints of a run directory, oldest first. Torn ones are passed over."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / "COMPLETE").exists())


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run directory, or None."""
    return max(complete(run), default=None)


def shipped() -> dict[str, Path]:
    """The agents that come with jowa: files of `jowa export-weights`, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob(f"*{weight_file.SUFFIX}"))}


def find(path: str | Path) -> Path:
    """The checkpoint at `path`, itself one, a run directory or a file of `jowa export-weights`;
    else, if there is nothing, the agent of that name that comes with jowa.

    UserError if there is none.
    """
    found = Path(path)
    if found.is_file() or (found / "COMPLETE").exists():
        return found
    if (last := newest(found)) is not None:
        return last
    names = shipped()
    if str(path) in names:
        if not found.exists():
            return names[str(path)]
        raise UserError(
            f"there is no complete checkpoint in the folder {path}, which hides the agent of that "
            f"name that comes with jowa: rename the folder, or work in another one."
        )
    raise UserError(
        f"there is no complete checkpoint in {path}: give a run directory, one of its "
        f"checkpoints/step_* folders, a file of `jowa export-weights`, or the name of an agent "
        f"that comes with jowa ({', '.join(names) or 'none does'})."
    )


def named(found: Path) -> str:
    """What records call a checkpoint that `find` found: its path, or its name if it came with
    jowa."""
    return found.stem if found.parent == _SHIPPED else str(found)


def origin(
    found: Path, saved: Checkpoint, stems: tuple[str, ...] = ("model", "tokenizer")
) -> dict[str, Any]:
    """What a run remembers of the weights that it starts from."""
    sums = {stem: saved.state["sha256"][stem] for stem in stems}
    return {"checkpoint": named(found), "step": saved.step, "sha256": sums}


def load(
    path: Path,
    stems: tuple[str, ...] = ("model", "tokenizer"),
    optional: tuple[str, ...] = (),
) -> Checkpoint:
    """Reads state, the tensors `stems` and those of `optional` that exist, of what `find` found.

    Those of a file are float32, whatever it holds them in.
    """
    if path.is_file():
        return _load_file(path, stems)
    try:
        state = json.loads((path / "state.json").read_text())
        _check_format(path, state)
        files = {stem: path / f"{stem}.safetensors" for stem in (*stems, *optional)}
        present = [stem for stem, file in files.items() if file.exists()]
        if absent := [stem for stem in stems if stem not in present]:
            raise UserError(
                f"the checkpoint {path} holds no {absent[0]}: give one of `jowa pretrain` or "
                f"`jowa finetune`; if this is one, delete that folder, and the one before it is "
                f"used."
            )
        for stem in present:
            if file_sha256(files[stem]) != state["sha256"][stem]:
                raise ValueError(f"{files[stem].name} is not as it was written")
        tensors = {stem: load_file(files[stem]) for stem in present}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint {path} is damaged ({error}): delete that folder, and the one "
            f"before it is used."
        ) from error
    return Checkpoint(state["step"], state, tensors)


def _load_file(path: Path, stems: tuple[str, ...]) -> Checkpoint:
    try:
        state = weight_file.read_state(path)
        _check_format(path, state)
        tensors = weight_file.read_tensors(path, state) if stems else {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        mend = "install jowa again" if path.parent == _SHIPPED else "get or export it again"
        raise UserError(
            f"{path} is damaged, or no file of `jowa export-weights` ({error}): {mend}."
        ) from error
    return Checkpoint(state["step"], state, {stem: tensors[stem] for stem in stems})


def _check_format(path: Path, state: dict[str, Any]) -> None:
    """UserError for a state of another format than this jowa reads."""
    if state["format"] > FORMAT:
        raise UserError(
            f"the checkpoint {path} is of format {state['format']}, newer than this jowa "
            f"reads ({FORMAT}): update jowa."
        )
    if state["format"] < FORMAT:
        raise UserError(
            f"the checkpoint {path} is of format {state['format']}, from before jowa's first "
            f"release, which this one ({FORMAT}) no longer reads: train anew."
        )


def fill(module: nn.Module, tensors: Tensors, what: str) -> None:
    """Loads weights into a module; UserError naming the first that is missing, left or unlike.

    A skeleton takes the tensors themselves as its own; other modules copy them.
    """
    own = module.state_dict()
    for name in [*own, *tensors]:
        ours = tuple(own[name].shape) if name in own else None
        theirs = tuple(tensors[name].shape) if name in tensors else None
        if ours != theirs:
            raise UserError(
                f"{what} does not fit the configured sizes: {name} is {theirs or 'missing'} in "
                f"the checkpoint and {ours or 'unknown'} here; use the configuration the "
                f"checkpoint was made with."
            )
    skeleton = any(parameter.is_meta for parameter in module.parameters())
    module.load_state_dict(tensors, assign=skeleton)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> Tensors:
    """The optimiser's state by parameter name, such as `optimizer/q_head.weight/exp_avg`."""
    return {
        f"optimizer/{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def fill_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Tensors, names: dict[Tensor, str]
) -> None:
    """Puts back what `optimizer_tensors` gave."""
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            name, _, entry = rest.partition("/")
            parameter = by_name[name]
            # A fused step counter lives beside its parameter, like the moments.
            value = value.to(parameter.device)
            moment = value.shape == parameter.shape
            optimizer.state[parameter][entry] = split_like(parameter, value) if moment else value


def versions() -> dict[str, str]:
    """Versions of what decides a result, and the git revision where there is one."""
    found = {name: version(name) for name in ("jowa", "torch", "numpy", "ale-py")}
    found["python"] = platform.python_version()
    found["git"] = git("rev-parse", "HEAD") or "unknown"
    return found


def git(*arguments: str) -> str | None:
    """What git says of the checkout that this code is in; None without a git or a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Makes what is written at `path` survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
