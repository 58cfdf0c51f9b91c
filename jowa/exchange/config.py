"""The typed configuration of the commands that exchange data with other formats."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class ConvertDqnReplayConfig:
    """Makes episodes of the DQN Replay dataset: play of DQN agents as they learn, 60 games.

    games              names, as `jowa games` lists them
    source             folder of the dataset's files, <Game>/<run>/replay_logs/ as in its bucket
    root               folder of the data; one file a game
    transitions        to take of each game, about: whole episodes, drawn uniformly; 0 is all
    runs               runs to take them from, 1 to 5; empty draws `draw_runs` of them by the seed
    draw_runs          how many runs to draw
    checkpoints        numbers of the checkpoints to take them from, 0 to 50; empty is all there are
    last_checkpoints   only the last this many of them; 0 is all
    seed               decides what is drawn
    workers            checkpoints converted at once, each in a process of under 1 GiB; 0 is one a
                       core
    overwrite          make the data anew, and replace what is there
    download           fetch missing files to `source`; stopped, it goes on where it was
    url                where from
    retries            more attempts to fetch a file of which nothing arrives
    delete_converted   with download: delete an observation file (99% of the data) once converted
    lap_rows           rows of a file; not 1,000,000 in tests only
    time_limit         steps after which games were cut; not 27,000 in tests only

    The tiers `early`, `middle` and `late` are thirds of the agents' training. Rewards are clipped
    in the dataset already, so that scores are not known. Stopped at any moment, the same command
    goes on. What was found and dropped is printed, and kept in the file's `facts`.
    """

    games: list[str] = MISSING
    source: str = "datasets/data/dqn_replay_files"
    root: str = "datasets/data/dqn_replay"
    transitions: int = 10_000_000
    runs: list[int] = field(default_factory=list)
    draw_runs: int = 2
    checkpoints: list[int] = field(default_factory=list)
    last_checkpoints: int = 0
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    download: bool = False
    url: str = "https://storage.googleapis.com/atari-replay-datasets/dqn"
    retries: int = 8
    delete_converted: bool = False
    lap_rows: int = 1_000_000
    time_limit: int = 27_000


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
