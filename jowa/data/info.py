"""What is in an episode store, as data ready for JSON; no frame is decompressed for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeFile
from jowa.data.tokens import StoredTokens, stored_tokens
from jowa.errors import UserError
from jowa.games import FULL_ACTION_SET, NUM_ACTIONS

END_NAMES = {
    END_TERMINAL: "game over",
    END_TRUNCATED: "cut at the cap",
    END_NONE: "recording stopped",
}
_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
_BINS = 24


def store_info(root: str | Path, paths: Sequence[Path]) -> dict[str, Any]:
    """What the episode files `paths` of the store `root` hold.

    Returns:
        `games`: for each readable file what `game_info` says; `damaged`: by path, why a file
        cannot be read; `total`: sums over the games.
    """
    tokens = stored_tokens(Path(root) / "tokens")
    games: dict[str, Any] = {}
    damaged: dict[str, str] = {}
    for path in paths:
        try:
            with EpisodeFile(path) as file:
                games[path.stem] = game_info(file, tokens)
        except UserError as error:
            damaged[str(path)] = str(error)
    counted = ("transitions", "episodes", "disk_bytes", "frame_bytes", "token_bytes")
    total = {name: sum(game[name] for game in games.values()) for name in counted}
    return {"root": str(root), "games": games, "damaged": damaged, "total": total}


def game_info(file: EpisodeFile, tokens: Sequence[StoredTokens] = ()) -> dict[str, Any]:
    """What one episode file holds; `tokens` are those stored beside it, of any game.

    Returns and their distributions are those of full games: from a true reset, played to the end.
    `frame_bytes` is the size of all frames uncompressed, `compression` that over the file's size.
    """
    disk_bytes = file.path.stat().st_size
    own = [_tokens(part, file) for part in tokens if part.game == file.game.name]
    returns, scored = file.returns(), file.scored
    ends = file.ends[file.episode_starts[1:] - 1]
    counts = np.bincount(file.actions, minlength=NUM_ACTIONS)
    return {
        "game": file.game.name,
        "path": str(file.path),
        "fingerprint": file.fingerprint,
        "source": file.source,
        "transitions": file.num_transitions,
        "episodes": file.num_episodes,
        "full_games": int(scored.sum()),
        "from_reset": int(file.episode_full.sum()),
        "ends": {name: int((ends == end).sum()) for end, name in END_NAMES.items()},
        "lengths": distribution(np.diff(file.episode_starts)),
        "returns": None if returns is None else distribution(returns[scored]),
        "tiers": _tiers(file, returns),
        "actions": {
            FULL_ACTION_SET[action]: int(counts[action])
            for action in range(NUM_ACTIONS)
            if counts[action] or action in file.game.action_ids
        },
        "positive_rewards": int((file.rewards > 0).sum()),
        "negative_rewards": int((file.rewards < 0).sum()),
        "raw_rewards_known": file.raw_rewards is not None,
        "disk_bytes": disk_bytes,
        "frame_bytes": file.raw_bytes,
        "compression": file.raw_bytes / disk_bytes,
        "tokens": own,
        "token_bytes": sum(part["bytes"] for part in own),
        "provenance": file.provenance,
        "facts": file.facts,
    }


def distribution(values: np.ndarray) -> dict[str, Any] | None:
    """Count, mean, quantiles and a histogram of numbers (M,); None where there are none.

    `histogram` counts the values in equal parts of the range from `min` to `max`.
    """
    if len(values) == 0:
        return None
    quantiles = np.quantile(values, list(_QUANTILES.values()))
    bins = _BINS if values.min() < values.max() else 1
    return {
        "count": len(values),
        "mean": float(values.mean()),
        **dict(zip(_QUANTILES, quantiles.tolist(), strict=True)),
        "histogram": np.histogram(values, bins)[0].tolist(),
    }


def _tiers(file: EpisodeFile, returns: np.ndarray | None) -> dict[str, Any]:
    lengths = np.diff(file.episode_starts)
    tiers = {}
    for position, name in enumerate(file.tiers):
        mine = file.episode_tiers == position
        tiers[name] = {
            "transitions": int(lengths[mine].sum()),
            "episodes": int(mine.sum()),
            "full_games": int((mine & file.scored).sum()),
            "returns": None if returns is None else distribution(returns[mine & file.scored]),
        }
    return tiers


def _tokens(part: StoredTokens, file: EpisodeFile) -> dict[str, Any]:
    """`usable` is false for tokens of other episodes, such as those that were there before."""
    usable = file.fingerprint.startswith(part.episodes) and part.whole(file.num_transitions)
    return {
        "tokenizer": part.tokenizer,
        "bytes": part.path.stat().st_size,
        "usable": usable,
        "path": str(part.path),
    }
