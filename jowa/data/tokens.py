"""Frames as tokens: encoded once, kept on disk beside their tokenizer's fingerprint, and placed
where training reads them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.files import publish, temporary_path

TOKENS_PER_FRAME = 36
_DTYPE = np.dtype("<u2")

PLACES = ("auto", "memory", "mapped", "device")

# (M, 84, 84) uint8 frames and a game id to (M, 36) integers
Encode = Callable[[np.ndarray, int], np.ndarray]


def encode_store(
    files: Sequence[EpisodeFile],
    encode: Encode,
    tokenizer_fingerprint: str,
    root: str | Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[np.ndarray]:
    """Tokens of all frames of each file, read from disk where this tokenizer has made them before.

    They lie in `root/<tokenizer fingerprint>/<Game>-<file fingerprint>.npy`, so another tokenizer
    or other episodes never meet them. A file that is cut short or of another shape is made anew.

    Args:
        encode: called with blocks of at most 1024 frames (M, 84, 84) uint8 and the game's id;
            returns (M, 36) integers below 65536.
        tokenizer_fingerprint: hex digest that changes with the tokenizer's weights and settings.
        root: folder to keep tokens in.
        progress: called with the game's name, frames done and frames in all, also for files
            that need no work.

    Returns:
        For each file (N, 36) uint16, memory-mapped read-only.
    """
    folder = Path(root) / tokenizer_fingerprint[:16]
    tokens = []
    for file in files:
        path = folder / f"{file.game.name}-{file.fingerprint[:16]}.npy"
        known = _load(path, file.num_transitions)
        if known is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(path, file, encode, progress)
            except OSError as error:
                raise UserError(f"cannot write tokens to {path}: {error}") from error
            known = _load(path, file.num_transitions)
            assert known is not None
        elif progress is not None:
            progress(file.game.name, file.num_transitions, file.num_transitions)
        tokens.append(known)
    return tokens


def place(
    tokens: Sequence[np.ndarray], where: str, device: torch.device, most_in_memory: int
) -> list[np.ndarray] | Tensor:
    """Puts stored tokens where batches are to be gathered from, for `SegmentDataset`.

    Args:
        tokens: (N, 36) uint16 for each file, memory-mapped, as from `encode_store`.
        where: "memory": one array; "mapped": as they are, so that only what a batch holds is read;
            "device": a table on the device, which gathers by index; "auto": "memory" if they take
            at most `most_in_memory` bytes, else "mapped".
        device: that training runs on.

    Returns:
        Arrays of uint16, or the device's table (N, 36) int16 with the same bits.
    """
    check_place(where)
    size = sum(part.nbytes for part in tokens)
    if where == "mapped" or (where == "auto" and size > most_in_memory):
        return list(tokens)
    if where != "device":
        return [np.concatenate([np.asarray(part) for part in tokens])]
    try:
        rows = sum(len(part) for part in tokens)
        table = torch.empty((rows, TOKENS_PER_FRAME), dtype=torch.int16, device=device)
        for part, out in zip(tokens, table.split([len(part) for part in tokens]), strict=True):
            out.copy_(torch.tensor(part.view("<i2")))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"data.tokens=device, but the tokens take {size / 2**30:.1f} GiB and {device} has not "
            f"that much left: use data.tokens=memory or data.tokens=mapped."
        ) from error
    return table


def check_place(where: str) -> None:
    """Raises UserError where there is no such place."""
    if where not in PLACES:
        raise UserError(f"data.tokens is {where!r}: use {', '.join(PLACES)}.")


def _header(num_frames: int) -> bytes:
    """The .npy header of (num_frames, 36) uint16 in C order."""
    out = io.BytesIO()
    shape = (num_frames, TOKENS_PER_FRAME)
    np.lib.format.write_array_header_1_0(
        out, {"descr": _DTYPE.str, "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


def _load(path: Path, num_frames: int) -> np.ndarray | None:
    """The stored tokens, or None where they are missing, cut short or of another shape."""
    header, shape = _header(num_frames), (num_frames, TOKENS_PER_FRAME)
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                return None
        if path.stat().st_size != len(header) + _DTYPE.itemsize * shape[0] * shape[1]:
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    return np.memmap(path, dtype=_DTYPE, mode="r", offset=len(header), shape=shape)


def _write(
    path: Path,
    file: EpisodeFile,
    encode: Encode,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    temporary = temporary_path(path)
    done = 0
    try:
        # Plain writes, not a memory map: a full disk then raises instead of killing the process.
        with temporary.open("wb") as out:
            out.write(_header(file.num_transitions))
            for frames in file.blocks():
                tokens = encode(frames, file.game.id)
                assert tokens.shape == (len(frames), TOKENS_PER_FRAME), tokens.shape
                assert tokens.min() >= 0 and tokens.max() <= np.iinfo(_DTYPE).max
                out.write(tokens.astype(_DTYPE).tobytes())
                done += len(frames)
                if progress is not None:
                    progress(file.game.name, done, file.num_transitions)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class StoredTokens:
    """One file of tokens: by which tokenizer, of which game and of which episodes.

    `tokenizer` and `episodes` are the first 16 digits of fingerprints.
    """

    path: Path
    tokenizer: str
    game: str
    episodes: str

    def whole(self, num_frames: int) -> bool:
        """Whether it has the size and header of `num_frames` frames; tokens carry no hash."""
        return _load(self.path, num_frames) is not None


def stored_tokens(root: str | Path) -> list[StoredTokens]:
    """All files of tokens in the folder that `encode_store` keeps them in, by name."""
    return [
        StoredTokens(path, path.parent.name, *path.stem.rsplit("-", 1))
        for path in sorted(Path(root).glob("*/*-*.npy"))
    ]
