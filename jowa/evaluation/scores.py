"""Scores as data: normalisation, what was played and how, and the file that keeps it."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jowa import games
from jowa.errors import UserError
from jowa.evaluation.statistics import iqm
from jowa.files import write_json

SCORES_VERSION = 1
PROTOCOL_MAX_FRAMES = 108_000
PROTOCOL_EPISODES = 16
PROTOCOL_STICKY = 0.25
PROTOCOL_EPSILON = 0.001


def score_range(game_name: str, by: str = "human") -> tuple[float, float] | None:
    """Raw scores (random, `by`) that map to 0 and 1, or None where one is not published."""
    if by not in ("human", "dqn"):
        raise UserError(f"scores are normalised by 'human' or 'dqn', not by {by!r}.")
    game = games.get(game_name)
    top = game.human if by == "human" else game.dqn
    return None if game.random is None or top is None else (game.random, top)


def normalise(game_name: str, score: float, by: str = "human") -> float:
    """(score - random) / (by - random): 0 is random play, 1 is `by` ("human" or "dqn").

    Raises UserError for a game without published random and `by` scores.
    """
    ends = score_range(game_name, by)
    if ends is None:
        raise UserError(
            f"{game_name} has no published random and {by} scores to normalise by: "
            "report its raw score, or leave it out of the aggregate."
        )
    return (score - ends[0]) / (ends[1] - ends[0])


def normalisable(names: Iterable[str], by: str = "human") -> tuple[list[str], list[str]]:
    """The games that an aggregate can hold, and those it must leave out for want of a score."""
    known = {name: score_range(name, by) is not None for name in names}
    return [name for name in known if known[name]], [name for name in known if not known[name]]


@dataclass
class GameScores:
    """The episodes of one game: raw scores, lengths in agent steps, whether the cap ended them."""

    game: str
    scores: list[float]
    steps: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean raw score."""
        return float(np.mean(self.scores))


@dataclass
class GameBaselines:
    """What play without looking scores: uniformly random, and the best single action held."""

    game: str
    random: GameScores
    constant: GameScores
    constant_action: str
    constant_means: dict[str, float] = field(default_factory=dict)


@dataclass
class Evaluation:
    """One agent's episodes on some games, with the settings that made them."""

    label: str
    games: dict[str, GameScores]
    settings: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def is_protocol(self) -> bool:
        """Whether this is the full protocol, so that scores compare with published ones."""
        enough = all(len(game.scores) >= PROTOCOL_EPISODES for game in self.games.values())
        return bool(self.games) and enough and is_protocol(self.settings)

    def normalised(self, by: str = "human") -> dict[str, float]:
        """Normalised mean score of every game that can be normalised."""
        kept, _ = normalisable(self.games, by)
        return {name: normalise(name, self.games[name].mean, by) for name in kept}


@dataclass(frozen=True)
class AgentScores:
    """One agent: the evaluations of its training seeds, of which there often is only one."""

    label: str
    seeds: tuple[Evaluation, ...]

    @property
    def games(self) -> list[str]:
        """What every seed played."""
        return [name for name in self.seeds[0].games if not self._skipped(name)]

    @property
    def unshared(self) -> list[str]:
        """What only some seeds played; no aggregate can hold these games."""
        return [name for name in self.played if self._skipped(name)]

    @property
    def played(self) -> list[str]:
        """What any seed played."""
        return list(dict.fromkeys(name for seed in self.seeds for name in seed.games))

    def runs(self, game: str) -> list[GameScores]:
        """The episodes of a game, for every seed that played it."""
        return [seed.games[game] for seed in self.seeds if game in seed.games]

    @property
    def is_protocol(self) -> bool:
        """Whether every seed was played under the full protocol."""
        return all(seed.is_protocol for seed in self.seeds)

    def _skipped(self, game: str) -> bool:
        return any(game not in seed.games for seed in self.seeds)


def agents(evaluations: Sequence[Evaluation]) -> list[AgentScores]:
    """Evaluations by agent: the labels `NAME/0`, `NAME/1`, ... are seeds of the agent `NAME`.

    Raises UserError where two evaluations have the same label, or an agent's name is a label too.
    """
    seeds: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        match = re.fullmatch(r"(.+)/\d+", evaluation.label)
        seeds.setdefault(match[1] if match else evaluation.label, []).append(evaluation)
    labels = [evaluation.label for evaluation in evaluations]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(
                f"two evaluations are called {label!r}: give each a label of its own, by "
                "`jowa evaluate label=...` or in its scores file."
            )
        if len(seeds.get(label, ())) > 1:
            raise UserError(
                f"{label!r} is an evaluation and the name of the seeds {label}/...: rename one."
            )
    return [AgentScores(label, tuple(found)) for label, found in seeds.items()]


def is_protocol(settings: Mapping[str, Any]) -> bool:
    """Whether settings are the full protocol's (Machado et al. 2018; 16 episodes or more)."""
    return (
        settings.get("max_frames") == PROTOCOL_MAX_FRAMES
        and settings.get("episodes", 0) >= PROTOCOL_EPISODES
        and settings.get("sticky") == PROTOCOL_STICKY
        and settings.get("epsilon") == PROTOCOL_EPSILON
    )


def protocol_gaps(evaluation: Evaluation) -> list[str]:
    """In words, where an evaluation departs from the protocol that published scores follow."""
    settings, gaps = evaluation.settings, []
    frames = settings.get("max_frames")
    if frames is not None and frames != PROTOCOL_MAX_FRAMES:
        gaps.append(f"episodes are cut at {frames:,} frames (protocol {PROTOCOL_MAX_FRAMES:,})")
    fewest = min((len(game.scores) for game in evaluation.games.values()), default=0)
    if fewest < PROTOCOL_EPISODES:
        gaps.append(f"{fewest} episodes a game (protocol {PROTOCOL_EPISODES})")
    for name, value in (("sticky", PROTOCOL_STICKY), ("epsilon", PROTOCOL_EPSILON)):
        if settings.get(name, value) != value:
            gaps.append(f"{name} is {settings[name]:g} (protocol {value:g})")
    if not gaps and not evaluation.is_protocol:
        gaps.append("its settings were not all recorded")
    return gaps


def make_settings(
    *,
    episodes: int,
    envs_per_game: int,
    max_frames: int,
    seed: int,
    sticky: float = PROTOCOL_STICKY,
    epsilon: float = PROTOCOL_EPSILON,
    planner: str = "",
    beam_width: int | None = None,
    horizon: int | None = None,
    context: int | None = None,
    seconds: float | None = None,
    decisions: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Settings of an Evaluation: protocol, planner, cost, versions, and whether it is the protocol.

    `seconds` is wall time, `decisions` the number of actions chosen in it, all episodes together.
    """
    settings = {
        "planner": planner,
        "beam_width": beam_width,
        "horizon": horizon,
        "context": context,
        "episodes": episodes,
        "envs_per_game": envs_per_game,
        "max_frames": max_frames,
        "sticky": sticky,
        "epsilon": epsilon,
        "seed": seed,
        "seconds": seconds,
        "decisions": decisions,
        **more,
        "versions": {name: _version(name) for name in ("jowa", "ale-py", "torch")},
    }
    return {**settings, "is_protocol": is_protocol(settings)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclass
class ScoreFile:
    """What scores.json holds: evaluations, the baselines of their games, and where it came from.

    `data_means` are the mean raw scores of full games in the training data. The file also states
    the human-normalised scores; they follow from the rest and are not read back.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    baselines: dict[str, GameBaselines] = field(default_factory=dict)
    data_means: dict[str, float | None] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write as JSON; an interrupted write leaves the old file or none."""
        normalised = {e.label: _summary(e) for e in self.evaluations}
        content = {"version": SCORES_VERSION, **asdict(self), "human_normalised": normalised}
        write_json(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> ScoreFile:
        """Read what `save` wrote; UserError for a missing, damaged or newer file."""
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"there is no scores file {path}: make it by `jowa evaluate`."
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a readable scores file ({error}): make it anew."
            ) from None
        version = stored.get("version") if isinstance(stored, dict) else None
        if version != SCORES_VERSION:
            raise UserError(
                f"{path} is a scores file of version {version}, this jowa reads {SCORES_VERSION}: "
                "make it anew by `jowa evaluate`."
            )
        try:
            return cls(
                [_evaluation(item) for item in stored["evaluations"]],
                {name: baselines_from(item) for name, item in stored["baselines"].items()},
                stored["data_means"],
                stored["provenance"],
            )
        except (KeyError, TypeError, AttributeError, ValueError, UserError) as error:
            raise UserError(f"{path} holds no whole scores ({error}): make it anew.") from None


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    """Human-normalised mean score of each game, their IQM, and the games left out of it."""
    scores, (_, left_out) = evaluation.normalised(), normalisable(evaluation.games)
    return {
        "games": scores,
        "iqm": iqm(list(scores.values())) if scores else None,
        "left_out": left_out,
    }


def _evaluation(stored: dict[str, Any]) -> Evaluation:
    played = {games.get(name).name: _game_scores(item) for name, item in stored["games"].items()}
    if not isinstance(stored["label"], str):
        raise ValueError(f"a label is {stored['label']!r}")
    return Evaluation(**{**stored, "games": played})


def _game_scores(stored: dict[str, Any]) -> GameScores:
    scores = GameScores(**stored)
    if not scores.scores or not all(math.isfinite(score) for score in scores.scores):
        raise ValueError(f"{scores.game} needs finite scores")
    return scores


def baselines_from(stored: dict[str, Any]) -> GameBaselines:
    """GameBaselines from its JSON form."""
    parts = {name: _game_scores(stored[name]) for name in ("random", "constant")}
    return GameBaselines(**{**stored, **parts})
