"""The 60 Atari games: ids, minimal action sets and the scores that normalise results.

Ids are those of the released JOWA weights (one row of the task embedding a game). The facts live
in games.json beside this file, whose note says where each number comes from.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

import numpy as np

from jowa.errors import UserError

_FACTS = json.loads(files("jowa").joinpath("games.json").read_text(encoding="utf-8"))

FULL_ACTION_SET: tuple[str, ...] = tuple(_FACTS["full_action_set"])
NUM_ACTIONS = len(FULL_ACTION_SET)


@dataclass(frozen=True)
class Game:
    """One game: its id, minimal action set (by name) and mean scores of known players.

    `random`, `human` and `dqn` are raw scores, None where nobody has published one.
    """

    name: str
    id: int
    actions: tuple[str, ...]
    random: float | None = None
    human: float | None = None
    dqn: float | None = None

    @cached_property
    def action_ids(self) -> tuple[int, ...]:
        """Indices of the minimal actions in the full 18-action set, in the game's own order."""
        return tuple(FULL_ACTION_SET.index(action) for action in self.actions)

    @property
    def rom(self) -> str:
        """Name of the ROM in ale-py, such as `space_invaders`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name).lower()


GAMES: dict[str, Game] = {
    name: Game(name, **{**facts, "actions": tuple(facts["actions"])})
    for name, facts in sorted(_FACTS["games"].items(), key=lambda item: int(item[1]["id"]))
}
NUM_GAMES = len(GAMES)

# (60, 18), true where the action belongs to the game's minimal set.
LEGAL_ACTIONS = np.zeros((NUM_GAMES, NUM_ACTIONS), dtype=bool)
for _game in GAMES.values():
    LEGAL_ACTIONS[_game.id, list(_game.action_ids)] = True
LEGAL_ACTIONS.setflags(write=False)

_NAMES_BY_ID = tuple(GAMES)


def get(name: str) -> Game:
    """The game called `name`; raises UserError with the nearest names for an unknown one."""
    if name in GAMES:
        return GAMES[name]
    folded = {known.lower(): known for known in GAMES}
    near = difflib.get_close_matches(name.lower().replace("_", ""), folded, n=3)
    hint = f"did you mean {' or '.join(folded[n] for n in near)}?" if near else "see `jowa games`."
    raise UserError(f"there is no game called {name!r}: {hint}")


def check_ids(ids: np.ndarray) -> None:
    """Raises UserError unless every id (E,) is a game's."""
    unknown = ids[(ids < 0) | (ids >= NUM_GAMES)]
    if len(unknown):
        raise UserError(
            f"there is no game of id {unknown[0]}: ids are 0 to {NUM_GAMES - 1}, as `jowa games` "
            f"lists them."
        )


def by_id(game_id: int) -> Game:
    """The game with this id (0 to 59); raises UserError for another."""
    check_ids(np.array([game_id]))
    return GAMES[_NAMES_BY_ID[game_id]]
