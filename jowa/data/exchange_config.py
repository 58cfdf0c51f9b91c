"""The typed configuration of the commands that exchange episodes with other formats."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass
class PublishedFinetuneConfig:
    """Makes episode files of the fine-tuning data that the JOWA authors publish.

    A file made from the same source is kept, so that a stopped conversion goes on.

    source             the zip, or the folder it was unpacked to
    root               folder of the data
    quality            expert (the last 20% of the replay data), suboptimal (all of it) or
                       highly_suboptimal (the first 20%)
    games              names; empty is all that are there
    overwrite          replace episode files made from something else
    """

    source: str = MISSING
    root: str = MISSING
    quality: str = MISSING
    games: list[str] = field(default_factory=list)
    overwrite: bool = False
