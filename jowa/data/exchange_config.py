"""The typed configuration of the commands that exchange episodes with other formats."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class ExportConfig:
    """Writes one game's episodes as a Minari dataset, which other offline-RL code reads.

    It lies where Minari keeps its own: in $MINARI_DATASETS_PATH, or else ~/.minari/datasets. Frames
    are uncompressed there (7 kB each). Needs `pip install "jowa[minari]"`.

    root               folder of the data
    game               name, as `jowa games` lists them
    id                 name of the new dataset, such as atari/pong-v0
    actions            minimal: numbered as in the game's own set; full: as in the set of all 18
    """

    root: str = MISSING
    game: str = MISSING
    id: str = MISSING
    actions: str = "minimal"


@dataclass
class ImportConfig:
    """Makes a game's episode file of a local Minari dataset.

    Observations must be grey 84x84 frames, uint8; actions the game's minimal set or all 18. The
    observation after the last step of an episode is dropped. Needs `pip install "jowa[minari]"`.

    id                 name of the dataset, below $MINARI_DATASETS_PATH or ~/.minari/datasets
    game               whose play it is, as `jowa games` lists them
    root               folder of the data
    overwrite          replace an episode file that is there
    """

    id: str = MISSING
    game: str = MISSING
    root: str = MISSING
    overwrite: bool = False
