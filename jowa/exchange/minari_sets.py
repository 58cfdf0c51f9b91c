"""What exporting to Minari (https://minari.farama.org) and importing from it have in common.

Minari wants T + 1 observations for T steps. The store has no frame after the last step, so an
export repeats the last one, and an import drops it. What else Minari has no place for goes into the
metadata of the dataset (`jowa`) and of its episodes, where an import finds it again: the tier,
whether the episode starts at a true reset, and how it ended (Minari marks an episode as truncated
where only the recording stopped).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED
from jowa.errors import UserError

END_NAMES = {END_NONE: "none", END_TERMINAL: "terminal", END_TRUNCATED: "truncated"}


def load_minari() -> Any:
    """The package, which is optional; UserError without it."""
    try:
        import minari
    except ImportError as error:
        raise UserError('this needs Minari: `pip install "jowa[minari]"`.') from error
    return minari


def dataset_folder(dataset_id: str) -> Path:
    """Where Minari keeps or will keep the dataset; UserError for a malformed id."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # the latter without a version
        raise UserError(
            f"id={dataset_id} is no name of a Minari dataset: use NAME-v0 or SPACE/NAME-v0."
        ) from error
    return Path(get_dataset_path(dataset_id))
