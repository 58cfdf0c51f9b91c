"""Work that can be shared and interrupted: batches of environments that are decided together.

What a batch plays depends on nothing outside it, rounding included. So it does not matter which
process plays which batch, nor when: one process, several under torchrun and the jobs of a cluster
leave the same journals, and the results are read from those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from jowa.agent import Agent
from jowa.errors import UserError
from jowa.evaluation.journal import Journal, Journaled, path_of
from jowa.evaluation.rollout import EpisodeResult, Seat, check, play_seats, seats
from jowa.evaluation.scores import GameBaselines
from jowa.games import Game
from jowa.learning.compute import Compute
from jowa.learning.record import machine
from jowa.models.tokenizer import Tokenizer
from jowa.models.world_action import WorldActionModel
from jowa.planning.config import PlannerConfig
from jowa.progress import progress_bar

Groups = Sequence[tuple[PlannerConfig, Sequence[Game]]]


@dataclass(frozen=True)
class Protocol:
    """How episodes are played; `max_frames` is the cap of one in emulator frames."""

    seed: int
    max_frames: int
    epsilon: float


@dataclass(frozen=True)
class Batch:
    """Environments that one planner decides together. `facts` name all that bears on their play:
    weights, precision, versions."""

    planner: PlannerConfig
    seats: tuple[Seat, ...]
    protocol: Protocol
    facts: dict[str, Any]

    @property
    def episodes(self) -> int:
        return sum(seat.episodes for seat in self.seats)

    @cached_property
    def key(self) -> dict[str, Any]:
        """What decides its results, as JSON data."""
        return {
            "seats": [[seat.game.name, seat.slot, seat.episodes] for seat in self.seats],
            **dataclasses.asdict(self.protocol),
            "planner": dataclasses.asdict(dataclasses.replace(self.planner, per_game={}, note="")),
            **self.facts,
        }


@dataclass(frozen=True)
class Played:
    """A batch's episodes in order of game, slot and episode, the seconds they took, and where."""

    results: list[EpisodeResult]
    seconds: float
    machines: list[dict[str, Any]]


def split(
    groups: Groups,
    episodes: int,
    envs_per_game: int,
    envs_per_batch: int,
    protocol: Protocol,
    facts: dict[str, Any],
) -> list[Batch]:
    """The batches of games in groups that share a planner; `envs_per_batch` 0 puts each game's
    environments in a batch of their own. Raises UserError for numbers that cannot be played."""
    check(protocol.seed, protocol.max_frames, protocol.epsilon)
    if envs_per_batch < 0:
        raise UserError(f"envs_per_batch is {envs_per_batch}: give 0 (a game's own) or more.")
    seats([game for _, games in groups for game in games], episodes, envs_per_game)
    batches = []
    for planner, games in groups:
        planner.validate()
        row = seats(games, episodes, envs_per_game)
        size = envs_per_batch or len(row) // len(games)
        parts = [row[at : at + size] for at in range(0, len(row), size)]
        batches += [Batch(planner, tuple(part), protocol, facts) for part in parts]
    return batches


@dataclass
class Work:
    """All that a command has to play, which `share` does a part of.

    `kept` says that its results are there already. `baselines` plays random and constant play of a
    game and leaves its scores in a file.
    """

    title: str
    tokenizer: Tokenizer
    model: WorldActionModel
    batches: list[Batch]
    journals: Path
    kept: bool = False
    baseline_games: list[Game] = field(default_factory=list)
    baselines: Callable[[Game], GameBaselines] | None = None

    def share(self, compute: Compute, rank: int, size: int) -> None:
        """Plays every `size`-th batch from the `rank`-th on, from where it was left, and as many
        of the baselines; rank 0 shows how far it is."""
        mine = [] if self.kept else self.batches[rank::size]
        if mine:
            title = self.title if size == 1 else f"{self.title}, part {rank + 1} of {size}"
            total = sum(batch.episodes for batch in mine)
            players = _Players(self.tokenizer, self.model, compute)
            with progress_bar(title, total, "episode", shown=rank == 0) as bar:
                for batch in mine:
                    _play(batch, self.journals, players, bar)
        games = self.baseline_games[rank::size]
        if games and self.baselines is not None:
            title = "random and constant play"
            with progress_bar(title, len(games), "game", shown=rank == 0) as bar:
                for game in games:
                    self.baselines(game)
                    bar.update(1)

    def results(self) -> list[Played]:
        """What all batches played, in their order; UserError where something is missing."""
        return [self._read(batch) for batch in self.batches]

    def _read(self, batch: Batch) -> Played:
        with Journal(self.journals, batch.key, len(batch.seats)) as journal:
            if len(journal.results) < batch.episodes:
                raise UserError(
                    f"{journal.path} holds {len(journal.results)} of {batch.episodes} episodes: "
                    f"`out` must lie in a folder that all processes of the job see; the same "
                    f"command goes on."
                )
            names = [seat.game.name for seat in batch.seats]
            results = sorted(
                journal.results, key=lambda r: (names.index(r.game), r.slot, r.episode)
            )
            return Played(results, journal.seconds, journal.machines)

    def paths(self) -> list[Path]:
        """The journals of all batches."""
        return [path_of(self.journals, batch.key) for batch in self.batches]


class _Players:
    """Agents by planner, on the device where they play."""

    def __init__(self, tokenizer: Tokenizer, model: WorldActionModel, compute: Compute) -> None:
        self.compute = compute
        self._models = tokenizer.to(compute.device), model.to(compute.device)
        self._planner: PlannerConfig | None = None

    def agent(self, planner: PlannerConfig) -> Agent:
        """The agent that decides by `planner`; the one before it is let go."""
        if planner != self._planner:
            self._agent = Agent(*self._models, planner, self.compute.dtype, timed=False)
            self._planner = planner
        return self._agent

    def machine(self) -> dict[str, Any]:
        """Where they play, as far as rounding may depend on it."""
        compute = self.compute
        return {
            **machine(),
            "device": compute.device.type,
            "dtype": str(compute.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }


def _play(batch: Batch, journals: Path, players: _Players, bar: tqdm[Any]) -> None:
    """Plays what is left of a batch; the bar counts its episodes."""
    before = bar.n
    with Journal(journals, batch.key, len(batch.seats)) as journal:
        bar.update(len(journal.results))
        if len(journal.results) == batch.episodes:
            return
        journal.note_machine(players.machine())
        policy = Journaled(players.agent(batch.planner), journal)
        games = ", ".join(dict.fromkeys(seat.game.name for seat in batch.seats))

        def progress(results: Sequence[EpisodeResult]) -> None:
            policy.progress(results)
            bar.set_postfix_str(f"{games}: {policy.decisions:,} decisions", refresh=False)
            bar.update(before + len(journal.results) - bar.n)

        play_seats(policy, batch.seats, progress=progress, **dataclasses.asdict(batch.protocol))
