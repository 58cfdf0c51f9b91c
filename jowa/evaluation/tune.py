"""`jowa tune`: chooses the beam search's numbers by play on seeds that no score is reported on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jowa.agent import build, check_pair, fitted
from jowa.errors import UserError
from jowa.evaluation.batches import Played, Protocol, Work, split
from jowa.evaluation.config import TuneConfig
from jowa.evaluation.evaluate import playable, weights
from jowa.evaluation.journal import discard
from jowa.evaluation.launch import carry_out
from jowa.evaluation.planners import TUNED_VERSION, TUNING_SEEDS, read_tuned
from jowa.evaluation.scores import normalise, score_range
from jowa.evaluation.table import number, percent
from jowa.files import write_json
from jowa.games import Game
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import versions
from jowa.planning.config import PlannerConfig

RESAMPLES = 2000
BOOTSTRAP_SEED = 0  # the same scores must give the same choice
Scores = Mapping[str, NDArray[np.float64]]  # raw scores (episodes,) by game
# What of a planner is chosen here or says where it was.
CHOSEN = ("context", "beam_width", "horizon", "per_game", "note")


class Setting(NamedTuple):
    """What is chosen: past frames, paths kept, and imagined frames ahead."""

    context: int
    beam_width: int
    horizon: int

    @property
    def imagined_frames(self) -> int:
        """How many frames a decision imagines: W at first, then W of every kept path."""
        W, H = self.beam_width, self.horizon
        return 0 if H == 0 else W + (H - 1) * W * W

    @property
    def cost(self) -> tuple[int, int]:
        """What decides between settings that are not clearly of different worth."""
        return self.imagined_frames, self.context


@dataclass(kw_only=True)
class _Tuning(Work):
    """All that a choice needs."""

    config: TuneConfig
    games: list[Game]
    candidates: list[Setting]
    asked: dict[str, Any]


def tune(config: TuneConfig) -> Path:
    """Plays every setting, and writes the choice; returns its path."""
    work, first = carry_out(prepare, config)
    if first:
        _write(work)
    return Path(config.out)


def prepare(config: TuneConfig) -> _Tuning:
    """Reads and checks all that is needed, and plays nothing."""
    _check(config)
    folder = checkpoints.find(config.checkpoint)
    saved = checkpoints.load(folder)
    games = playable(config.games, saved, folder)
    if not config.per_game and not any(score_range(game.name) for game in games):
        raise UserError(
            f"none of {', '.join(game.name for game in games)} has a published human score to "
            f"normalise by, so no setting can be chosen for all: use per_game=true."
        )
    fixed = fitted(saved, config.planner)
    tokenizer, model = build(saved)
    check_pair(tokenizer, model)
    candidates = settings(config)
    protocol = Protocol(TUNING_SEEDS + config.seed, config.max_frames, config.epsilon)
    used = {name: versions()[name] for name in ("jowa", "torch", "ale-py")}
    facts = {"weights": weights(saved), "dtype": config.compute.dtype, "versions": used}
    batches = []
    for candidate in candidates:
        planner = dataclasses.replace(fixed, **candidate._asdict())
        batches += split(
            [(planner, games)],
            config.episodes,
            config.envs_per_game,
            config.envs_per_batch,
            protocol,
            facts,
        )
    asked = _asked(config, fixed, games, candidates, protocol, facts)
    out = Path(config.out)
    return _Tuning(
        title=f"{len(candidates)} settings",
        tokenizer=tokenizer,
        model=model,
        batches=batches,
        journals=out.with_name(f"{out.name}.journal"),
        kept=out.exists() and read_tuned(out).get("asked") == asked,
        config=config,
        games=games,
        candidates=candidates,
        asked=asked,
    )


def _check(config: TuneConfig) -> None:
    if config.planner.name == "mcts" or config.planner.per_game:
        raise UserError("`jowa tune` chooses settings of the beam search: use planner=beam.")
    for name in ("contexts", "beam_widths", "horizons"):
        if not getattr(config, name):
            raise UserError(f"{name} is empty: give at least one number to choose from.")
    if config.episodes < 2:
        raise UserError(f"episodes is {config.episodes}: a choice needs at least 2.")
    if not 0 <= config.confidence < 1:
        raise UserError(f"confidence is {config.confidence}: give 0 to less than 1, such as 0.95.")
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}: give 0 or more.")


def settings(config: TuneConfig) -> list[Setting]:
    """All combinations, cheapest first; greedy play has no beam width."""
    grid = itertools.product(config.contexts, config.beam_widths, config.horizons)
    found = {Setting(context, W if H else 1, H) for context, W, H in grid}
    return sorted(found, key=lambda setting: (setting.cost, setting))


def _asked(
    config: TuneConfig,
    planner: PlannerConfig,
    games: list[Game],
    candidates: list[Setting],
    protocol: Protocol,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """What decides the choice, as JSON data."""
    options = {k: v for k, v in dataclasses.asdict(planner).items() if k not in CHOSEN}
    return {
        "games": [game.name for game in games],
        "candidates": [list(candidate) for candidate in candidates],
        "planner": options,
        "per_game": config.per_game,
        "confidence": config.confidence,
        "episodes": config.episodes,
        "envs_per_game": config.envs_per_game,
        "envs_per_batch": config.envs_per_batch,
        **dataclasses.asdict(protocol),
        **facts,
    }


def choose(candidates: Sequence[Setting], scores: Sequence[Scores], confidence: float) -> int:
    """The place of the setting to use, given the scores of each: the cheapest of those that are
    not worse than the best with the given confidence.

    One game is judged by its raw scores, several by the mean of human-normalised ones. Episode i
    of every setting has the same seed: episodes are compared in pairs.
    """
    values = [_values(each) for each in scores]
    means = [float(np.mean([game.mean() for game in each])) for each in values]
    order = sorted(range(len(candidates)), key=lambda i: candidates[i].cost)
    best = max(order, key=lambda i: means[i])  # of equals the cheapest
    return next(i for i in order if i == best or not _worse(values[i], values[best], confidence))


def _values(scores: Scores) -> list[NDArray[np.float64]]:
    if len(scores) == 1:
        return list(scores.values())
    return [
        np.array([normalise(game, score) for score in raw])
        for game, raw in scores.items()
        if score_range(game) is not None
    ]


def _worse(
    ours: Sequence[NDArray[np.float64]],
    theirs: Sequence[NDArray[np.float64]],
    confidence: float,
) -> bool:
    """Whether the mean over games of our mean scores is below theirs in more than `confidence` of
    the bootstrap's resamples."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    total = np.zeros(RESAMPLES)
    for mine, other in zip(ours, theirs, strict=True):
        picks = rng.integers(len(mine), size=(RESAMPLES, len(mine)))
        total += (mine - other)[picks].mean(axis=1)
    return float((total < 0).mean()) > confidence


def _write(work: _Tuning) -> None:
    """Chooses, writes the file, prints it, and clears the journals away."""
    out = Path(work.config.out)
    if work.kept:
        print(f"kept: {out} already holds the choice among these settings")
    else:
        if out.exists():
            print(f"replaced: {out} held a choice among other settings")
        write_json(out, _content(work))
    discard(work.journals, work.paths())
    for line in _shown(read_tuned(out)):
        print(line)


def _content(work: _Tuning) -> dict[str, Any]:
    played = work.results()
    size = len(played) // len(work.candidates)
    parts = [played[at : at + size] for at in range(0, len(played), size)]
    scores = [_scores(part, work.games) for part in parts]
    config, names = work.config, [game.name for game in work.games]
    confidence = config.confidence
    if config.per_game:
        chosen = {
            name: choose(work.candidates, [{name: each[name]} for each in scores], confidence)
            for name in names
        }
    else:
        chosen = dict.fromkeys(names, choose(work.candidates, scores, confidence))
    planner: dict[str, Any] = {**dataclasses.asdict(PlannerConfig()), **work.asked["planner"]}
    return {
        "version": TUNED_VERSION,
        "rule": (
            f"the cheapest setting, by imagined frames a decision and then by context, whose mean "
            f"is not below the best one's with {confidence:.0%} confidence (paired bootstrap over "
            f"episodes)"
        ),
        "per_game": config.per_game,
        "settings": {name: list(work.candidates[place]) for name, place in chosen.items()},
        "planner": planner,
        "weights": work.asked["weights"],
        "seed": work.asked["seed"],
        "episodes": config.episodes,
        "max_frames": config.max_frames,
        "candidates": [
            _outcome(*item) for item in zip(work.candidates, parts, scores, strict=True)
        ],
        "asked": work.asked,
    }


def _scores(played: Sequence[Played], games: Sequence[Game]) -> dict[str, NDArray[np.float64]]:
    """Raw scores (episodes,) by game, in order of slot and episode."""
    results = [result for batch in played for result in batch.results]
    return {g.name: np.array([r.score for r in results if r.game == g.name]) for g in games}


def _outcome(setting: Setting, played: Sequence[Played], scores: Scores) -> dict[str, Any]:
    """How one setting played; only its time differs if it is played again."""
    results = [result for batch in played for result in batch.results]
    seconds = sum(batch.seconds for batch in played)
    return {
        **setting._asdict(),
        "imagined_frames": setting.imagined_frames,
        "scores": {game: each.tolist() for game, each in scores.items()},
        "cut_episodes": sum(result.truncated for result in results),
        "seconds_per_1000_decisions": round(1000 * seconds / sum(r.steps for r in results), 2),
    }


def _shown(stored: dict[str, Any]) -> list[str]:
    """The choice as lines of text: a row a setting, a star where it was chosen."""
    games = list(stored["settings"])
    lines = ["context  W  H  s/1,000" + "".join(f"  {name:>14}" for name in games) + "     human"]
    for item in stored["candidates"]:
        setting = [item[name] for name in Setting._fields]
        line = "{:7}  {}  {}".format(*setting) + f"  {item['seconds_per_1000_decisions']:7.1f}"
        for name in games:
            star = "*" if stored["settings"][name] == setting else ""
            line += f"  {number(float(np.mean(item['scores'][name]))) + star:>14}"
        means = {name: float(np.mean(raw)) for name, raw in item["scores"].items()}
        known = [normalise(name, mean) for name, mean in means.items() if score_range(name)]
        lines.append(f"{line}  {percent(float(np.mean(known)) if known else None):>8}")
    lines.append(
        f"*: {stored['rule']}; seed {stored['seed']}, {stored['episodes']} episodes a game, cap of "
        f"{stored['max_frames']:,} frames"
    )
    played = len(stored["candidates"]) * len(games) * stored["episodes"]
    cut = sum(item["cut_episodes"] for item in stored["candidates"])
    lines.append(f"the cap cut {cut} of {played} episodes")
    return lines
