"""Where the files of the DQN Replay dataset come from: a folder, and a server to fill it from."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jowa.errors import UserError
from jowa.exchange.download import NotThereError, Patience, download
from jowa.exchange.dqn_replay import RUN_LAPS, SCALARS, STORES, file_name
from jowa.games import Game

RUNS = (1, 2, 3, 4, 5)
_NAMES = re.compile(rf"(?:\$store\$_)?(?:{'|'.join(STORES + SCALARS)})_ckpt\.(\d+)\.gz")


@dataclass(frozen=True)
class Source:
    """The dataset below `folder`, as `<Game>/<run>/replay_logs/`; missing files come from `url`.

    `url` is None where only the folder counts.
    """

    folder: Path
    url: str | None = None
    patience: Patience = field(default_factory=Patience)

    def run_folder(self, game: Game, run: int) -> Path:
        """The folder of a run's files."""
        return self.folder / game.name / str(run) / "replay_logs"

    def checkpoints(self, game: Game, run: int, progress: Callable[[int], None]) -> list[int]:
        """Numbers of all checkpoints of a run; UserError if there are none.

        A server is asked for every number; only the last, partial lap may be missing there.
        """
        if self.url is not None:
            return self._offered(game, run, progress)
        folder = self.run_folder(game, run)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        numbers = {int(match[1]) for match in map(_NAMES.fullmatch, names) if match}
        if not numbers:
            there = [str(number) for number in RUNS if self.run_folder(game, number).is_dir()]
            raise UserError(
                f"{folder} has no files of run {run} of {game.name} (runs there: "
                f"{', '.join(there) or 'none'}): copy them there, choose others with runs=[...], "
                f"or pass download=true."
            )
        return sorted(numbers)

    def _offered(self, game: Game, run: int, progress: Callable[[int], None]) -> list[int]:
        numbers = list(range(RUN_LAPS + 1))
        for number in numbers:
            try:
                self.file(game, run, number, "add_count", progress)
            except NotThereError:
                if number < RUN_LAPS:
                    raise
                return numbers[:-1]
        return numbers

    def file(
        self, game: Game, run: int, number: int, array: str, progress: Callable[[int], None]
    ) -> Path:
        """The path of a file, which is fetched if need be; UserError where it is not to be had."""
        path = self.run_folder(game, run) / file_name(array, number)
        if path.exists():
            return path
        if self.url is None:
            raise UserError(
                f"there is no {path}: copy it there, or pass download=true to fetch it."
            )
        place = path.relative_to(self.folder).as_posix()
        what = f"{array} file of checkpoint {number} of {game.name}, run {run},"
        url = f"{self.url.rstrip('/')}/{urllib.parse.quote(place)}"
        download(url, path, what, self.patience, progress)
        return path
