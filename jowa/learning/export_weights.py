"""`jowa export-weights`: a checkpoint becomes one small file that plays and is fine-tuned."""

from __future__ import annotations

from pathlib import Path

from jowa.agent import build, check_pair
from jowa.errors import UserError
from jowa.learning import checkpoint as checkpoints
from jowa.learning import weight_file
from jowa.learning.config import ExportWeightsConfig


def export_weights(config: ExportWeightsConfig) -> Path:
    """Writes the file, unless it is already there; returns its path."""
    out = Path(config.out)
    if out.suffix != weight_file.SUFFIX:
        raise UserError(f"out is {out}: give a file *{weight_file.SUFFIX}.")
    folder = checkpoints.find(config.checkpoint)
    saved = checkpoints.load(folder)
    check_pair(*build(saved))  # what does not load here will load nowhere
    content = weight_file.encode(saved.state, saved.tensors)
    said = "written" if weight_file.write(out, content) else "kept"
    print(
        f"{said}: {out}, {len(content) / 1e6:.1f} MB in float16, of {folder} "
        f"(games: {', '.join(saved.state['games'])})"
    )
    return out
