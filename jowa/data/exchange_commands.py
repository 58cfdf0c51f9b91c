"""What `jowa data export` and `jowa data import` do."""

from __future__ import annotations

from pathlib import Path

from jowa import games
from jowa.data.episodes import EpisodeFile, open_store
from jowa.data.exchange_config import ExportConfig, ImportConfig
from jowa.data.minari_export import export_episodes
from jowa.data.minari_import import import_episodes, load_dataset
from jowa.errors import UserError
from jowa.learning.monitor import progress_bar


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


def _describe(path: Path) -> str:
    with EpisodeFile(path) as file:
        return f"{path}: {file.num_transitions:,} transitions in {file.num_episodes:,} episodes"
