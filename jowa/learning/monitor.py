"""What a run says while it goes: TensorBoard, and the same numbers as JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from jowa.errors import UserError
from jowa.files import write_atomically


@dataclass
class LogConfig:
    """How often, in steps: scalars, accuracies (slower), pictures, checkpoints, and the losses and
    accuracies on `validation_batches` batches of held-out episodes, always the same ones.

    The last `keep` checkpoints are kept, every one that ends a phase, and the best `keep_best` of
    each phase: those with the lowest mean of the logged scalar `best_metric` over the steps since
    the checkpoint before.
    """

    scalars: int = 10
    details: int = 50
    pictures: int = 500
    checkpoint: int = 500
    validation: int = 500
    validation_batches: int = 16
    keep: int = 2
    keep_best: int = 0
    best_metric: str = "loss/total"


def check_log(log: LogConfig) -> None:
    """Raises UserError for numbers that make no sense."""
    for name in vars(LogConfig()):
        if name == "best_metric":
            continue
        number, least = getattr(log, name), 0 if name == "keep_best" else 1
        if number < least:
            raise UserError(f"log.{name} is {number}: use {least} or more.")


class Monitor:
    """Writes scalars and pictures of one run directory.

    `metrics.jsonl` has a line a logged step: step, phase, seconds and every scalar. Lines and
    events past the step a run resumes from are dropped, so that curves hold each step once.
    `shown` is false in all processes of a job but the first: those write nothing.
    """

    def __init__(self, run: Path, resumed_step: int, shown: bool = True) -> None:
        self._shown = shown
        if not shown:
            return
        self._pictures = run / "images"
        self._pictures.mkdir(parents=True, exist_ok=True)
        self._path = run / "metrics.jsonl"
        self._forget_after(resumed_step)
        self._lines = self._path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1)

    def _forget_after(self, step: int) -> None:
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _is_up_to(line, step)]
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def scalars(self, step: int, phase: str, seconds: float, values: dict[str, float]) -> None:
        """Logs values; names with a slash, such as `loss/total`, group them in TensorBoard."""
        if not self._shown:
            return
        line = {"step": step, "phase": phase, "seconds": round(seconds, 3), **values}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a grey picture (H, W) uint8 and keeps the newest as `images/NAME.png`."""
        assert self._shown, "only the first process makes pictures"
        self._board.add_image(name, image, step, dataformats="HW")
        Image.fromarray(image).save(self._pictures / f"{name}.png")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._lines.close()
            self._board.close()


def _is_up_to(line: str, step: int) -> bool:
    """Whether a log line is whole and not past `step`; a kill can leave half a line."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError):
        return False
