"""What `jowa data export`, `jowa data import` and `jowa convert published_finetune` do."""

from __future__ import annotations

from pathlib import Path

from jowa import games
from jowa.data.episodes import EpisodeFile
from jowa.data.store import open_store
from jowa.errors import UserError
from jowa.exchange.config import ExportConfig, ImportConfig, PublishedFinetuneConfig
from jowa.exchange.minari_export import export_episodes
from jowa.exchange.minari_import import import_episodes, load_dataset
from jowa.exchange.published_finetune import PublishedFile, convert_game, find_games, provenance
from jowa.games import Game
from jowa.progress import progress_bar


def export_minari(config: ExportConfig) -> None:
    """Writes one game's episodes as a Minari dataset."""
    if config.actions not in ("minimal", "full"):
        raise UserError(f"actions={config.actions}: use minimal or full.")
    with (
        open_store(config.root, [config.game])[0] as file,
        progress_bar("exporting", file.num_transitions, "step") as bar,
    ):
        full = config.actions == "full"
        folder = export_episodes(file, config.id, full_actions=full, progress=bar.update)
        print(
            f"wrote {file.num_episodes:,} episodes, {file.num_transitions:,} steps to {folder}: "
            f'minari.load_dataset("{config.id}")'
        )


def import_minari(config: ImportConfig) -> None:
    """Makes an episode file of a Minari dataset."""
    game = games.get(config.game)
    path = Path(config.root) / f"{game.name}.h5"
    if path.exists() and not config.overwrite:
        raise UserError(f"{path} is there already: pass overwrite=true or another root.")
    dataset = load_dataset(config.id)
    with progress_bar("importing", dataset.total_steps, "step") as bar:
        found = import_episodes(dataset, game, path, bar.update)
    print(f"wrote {_describe(path)}")
    if found["jpeg"]:
        print("its frames were JPEG-encoded in the Minari dataset, so they are not exact")


def convert_published_finetune(config: PublishedFinetuneConfig) -> None:
    """Makes episode files of the published fine-tuning data, one game after the other."""
    root = Path(config.root)
    files = find_games(config.source, config.quality, config.games, root)
    kept = {game: _kept(root, game, file, config) for game, file in files.items()}
    for game, file in files.items():
        path = root / f"{game.name}.h5"
        if not kept[game]:
            _convert(file, game, config.quality, path)
        print(f"{'kept' if kept[game] else 'wrote'} {_describe(path)}")


def _convert(file: PublishedFile, game: Game, quality: str, path: Path) -> None:
    with progress_bar(f"converting {game.name}", 0, "step") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total  # known only when the file is unpacked
            bar.update(done - bar.n)

        convert_game(file, game, quality, path, advance)


def _kept(root: Path, game: Game, file: PublishedFile, config: PublishedFinetuneConfig) -> bool:
    """Whether the game's episode file was made of this very file; UserError for another one."""
    path = root / f"{game.name}.h5"
    if config.overwrite or not path.exists():
        return False
    with EpisodeFile(path) as present:
        if present.provenance != provenance(file, config.quality):
            raise UserError(
                f"{path} was made from something else: pass overwrite=true to replace it or "
                f"another root to keep both."
            )
    return True


def _describe(path: Path) -> str:
    with EpisodeFile(path) as file:
        return f"{path}: {file.num_transitions:,} transitions in {file.num_episodes:,} episodes"
