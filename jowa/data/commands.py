"""What `jowa data info`, `jowa data verify` and `jowa data sample` do."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from jowa.data import info_text
from jowa.data.check import check_store, count_frames, leftovers
from jowa.data.config import InfoConfig, SampleConfig, VerifyConfig
from jowa.data.info import store_info
from jowa.data.sheet import contact_sheet
from jowa.data.store import open_store, store_paths
from jowa.errors import UserError
from jowa.files import write_atomically, write_json
from jowa.progress import progress_bar

# A new process imports PyTorch first: in these seconds another could have checked so many.
_FRAMES_WORTH_A_PROCESS = 500_000


def info(config: InfoConfig) -> None:
    """Prints what a store holds, and writes it to `config.out` if that is given."""
    if config.out and not config.out.endswith(".json"):
        raise UserError(f"out={config.out} must be named *.json.")
    found = store_info(config.root, store_paths(config.root, config.games))
    print(info_text.text(found, config.details))
    if config.out:
        write_json(Path(config.out), found)


def verify(config: VerifyConfig) -> None:
    """Checks a store; UserError where a file is damaged, after all of them were named."""
    if config.workers < 0:
        raise UserError(f"workers is {config.workers}: use 0 (as many as pay) or more.")
    paths = store_paths(config.root, config.games)
    started = time.monotonic()
    frames = count_frames(paths)
    worthwhile = min(len(os.sched_getaffinity(0)), 1 + frames // _FRAMES_WORTH_A_PROCESS)
    with progress_bar("verifying", frames, "frame") as bar:
        workers = config.workers or worthwhile
        checked = list(check_store(config.root, paths, workers, bar.update))
    seconds = time.monotonic() - started
    damaged = [one for one in checked if one.problems]
    for one in sorted(damaged, key=lambda one: one.path):
        print(*one.problems, sep="\n")
    for path in leftovers(config.root):
        print(f"{path} was left by a writer that was interrupted, or is being written: no damage.")
    gigabytes = sum(one.frame_bytes for one in checked) / 1e9
    print(
        f"checked {len(paths)} files, {gigabytes:,.2f} GB of frames in {seconds:.1f} s "
        f"({gigabytes / seconds:.2f} GB/s)"
    )
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(paths)} games in {config.root} have damaged files, which are "
            f"named above: make or copy those again; all others are whole."
        )
    print("every array and every frame matches its hash")


def sample(config: SampleConfig) -> None:
    """Draws a contact sheet of one game's play."""
    out = Path(config.out)
    if out.suffix != ".png":
        raise UserError(f"out={out} must be named *.png.")
    with open_store(config.root, [config.game])[0] as file:
        picture = contact_sheet(
            file, number=config.number, length=config.length, tier=config.tier, seed=config.seed
        )
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_atomically(out, content.getvalue())
    print(f"wrote {out} ({picture.width} x {picture.height})")
