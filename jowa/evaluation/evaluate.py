"""`jowa evaluate`: a trained agent plays for scores."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jowa import games as game_facts
from jowa.agent import build, check_pair, fitted, never_trained
from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.evaluation.baselines import baseline_scores
from jowa.evaluation.batches import Protocol, Work, split
from jowa.evaluation.config import EvaluateConfig
from jowa.evaluation.journal import discard
from jowa.evaluation.launch import carry_out
from jowa.evaluation.planners import TUNING_SEEDS, planners, tuned_planner
from jowa.evaluation.rollout import by_game
from jowa.evaluation.scores import Evaluation, ScoreFile, agents, make_settings, protocol_gaps
from jowa.evaluation.table import format_table, score_table
from jowa.games import Game
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import Checkpoint, versions
from jowa.planning.config import PlannerConfig

# What settings say of how it went, which is not known beforehand.
OUTCOME = ("seconds", "seconds_per_1000_decisions", "decisions", "cut_episodes")


@dataclass(kw_only=True)
class _Evaluating(Work):
    """All that one evaluation plays and says."""

    config: EvaluateConfig
    folder: Path
    games: list[Game]
    settings: dict[str, Any]
    weights: dict[str, str]
    data_means: dict[str, float | None] = field(default_factory=dict)


def evaluate(config: EvaluateConfig) -> Path:
    """Plays, and writes the scores file; returns its path."""
    work, first = carry_out(prepare, config)
    if first:
        _write(work)
    return Path(config.out)


def prepare(config: EvaluateConfig) -> _Evaluating:
    """Reads and checks all that is needed to play, and plays nothing."""
    if config.seed >= TUNING_SEEDS:
        raise UserError(
            f"seed is {config.seed}: seeds from {TUNING_SEEDS} on are for `jowa tune`, so that no "
            f"score is reported on what settings were chosen by; give a smaller one."
        )
    folder = checkpoints.find(config.checkpoint)
    saved = checkpoints.load(folder)
    games = playable(config.games, saved, folder)
    tokenizer, model = build(saved)
    check_pair(tokenizer, model)
    identity = weights(saved)
    planner = config.planner
    if config.tuned is not None:
        planner = tuned_planner(config.tuned, model.config, identity, config.seed)
    planner = fitted(saved, planner)
    groups = planners(planner, model.config, games)
    protocol = Protocol(config.seed, config.max_frames, config.epsilon)
    counts = {"episodes": config.episodes, "envs_per_game": config.envs_per_game}
    batch_size: dict[str, Any] = {"envs_per_batch": config.envs_per_batch}
    rules: dict[str, Any] = {**counts, **dataclasses.asdict(protocol)}
    how = batch_size | planner_settings(planner, groups)
    if config.compute.dtype != "float32":
        how["dtype"] = config.compute.dtype
    settings = make_settings(**rules, **how)
    facts = {
        "weights": identity,
        "dtype": config.compute.dtype,
        "versions": settings["versions"],
    }
    batches = split(groups, **counts, **batch_size, protocol=protocol, facts=facts)
    out = Path(config.out)
    scores = ScoreFile.load(out) if out.exists() else ScoreFile()
    # Said before anything is played, not when it is to be written.
    agents([*_others(scores, config.label), Evaluation(config.label, {}, {})])
    rules["episodes"] = config.baseline_episodes or config.episodes
    baselines = functools.partial(baseline_scores, cache_dir=out.parent / "baselines", **rules)
    return _Evaluating(
        title=config.label,
        tokenizer=tokenizer,
        model=model,
        batches=batches,
        journals=out.with_name(f"{out.name}.journal"),
        kept=_same(_labelled(scores, config.label), games, settings, identity),
        baseline_games=games,
        baselines=baselines if config.baselines else None,
        config=config,
        folder=folder,
        games=games,
        settings=settings,
        weights=identity,
        data_means=_data_means(config.data_root, games),
    )


def weights(saved: Checkpoint) -> dict[str, str]:
    """sha256 of the checkpoint's model and tokenizer."""
    return {stem: saved.state["sha256"][stem] for stem in ("model", "tokenizer")}


def playable(names: list[str], saved: Checkpoint, folder: Path) -> list[Game]:
    """The games to play; UserError for one that the checkpoint was never trained on."""
    known = saved.state["games"]
    for name in names:
        if game_facts.get(name).name not in known:
            raise never_trained(f"the checkpoint {folder}", name, known)
    return [game_facts.get(name) for name in names or known]


def planner_settings(
    planner: PlannerConfig, groups: list[tuple[PlannerConfig, list[Game]]]
) -> dict[str, Any]:
    """What the scores file says of how the agent decided; the numbers are by game where they
    differ."""
    named = {"planner": planner.name, **planner.options, "decode": decoding(planner)}
    if planner.note:
        named["note"] = planner.note
    if not planner.per_game:
        numbers = {"beam_width": planner.beam_width, "horizon": planner.horizon}
        return {**named, **numbers, "context": planner.context}
    by_game = {
        game.name: [own.context, own.beam_width, own.horizon]
        for own, group in groups
        for game in group
    }
    return {**named, "context_beam_width_horizon": by_game}


def decoding(planner: PlannerConfig) -> str:
    """How imagined frames are decoded where nothing may be chosen by timing."""
    return planner.decode if planner.decode in ("native", "plain") else "drafted"


def _labelled(scores: ScoreFile, label: str) -> Evaluation | None:
    return next((e for e in scores.evaluations if e.label == label), None)


def _others(scores: ScoreFile, label: str) -> list[Evaluation]:
    return [e for e in scores.evaluations if e.label != label]


def _same(
    kept: Evaluation | None, games: list[Game], settings: dict[str, Any], identity: dict[str, str]
) -> bool:
    """Whether an evaluation is what the same command would play again."""
    if kept is None or kept.provenance.get("weights") != identity:
        return False
    same_games = list(kept.games) == [game.name for game in games]
    return same_games and _asked(kept.settings) == _asked(settings)


def _asked(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without how it went."""
    return {name: value for name, value in settings.items() if name not in OUTCOME}


def _data_means(data_root: str | None, games: list[Game]) -> dict[str, float | None]:
    """Mean raw score of full games in the data, by game."""
    means = {}
    for game in games if data_root is not None else []:
        with EpisodeFile(Path(data_root or "") / f"{game.name}.h5") as data:
            means[game.name] = data.statistics()["mean_return"]
    return means


def _write(work: _Evaluating) -> None:
    """Adds what was played to the scores file, prints it, and clears the journals away."""
    config, out = work.config, Path(work.config.out)
    scores = ScoreFile.load(out) if out.exists() else ScoreFile()
    before = _labelled(scores, config.label)
    if work.kept:
        print(f"kept: {out} already holds {config.label!r} of this checkpoint and these settings")
    else:
        if before is not None:
            print(f"replaced: {out} held {config.label!r} {_difference(before, work)}")
        scores.evaluations = [*_others(scores, config.label), _evaluation(work)]
    scores.data_means |= work.data_means
    if work.baselines is not None:
        for game in work.baseline_games:
            scores.baselines[game.name] = work.baselines(game)  # from the file that `share` left
    scores.save(out)
    discard(work.journals, work.paths())
    print(format_table(score_table(scores.evaluations, scores.baselines, scores.data_means)))
    for line in _remarks(scores, config.label):
        print(line)
    if work.journals.exists():
        print(f"{work.journals} holds play of other settings that was not finished")


def _difference(before: Evaluation, work: _Evaluating) -> str:
    """In words, how an evaluation that is replaced was made."""
    if before.provenance.get("weights") != work.weights:
        return "of other weights"
    old, new = _asked(before.settings), _asked(work.settings)
    changes = [
        f"{k} {old.get(k)}, now {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)
    ]
    return f"with {'; '.join(changes)}" if changes else "of other games"


def _evaluation(work: _Evaluating) -> Evaluation:
    """What all batches played, as data; only times differ if it is played again."""
    played = work.results()
    results = [result for batch in played for result in batch.results]
    seconds, decisions = sum(batch.seconds for batch in played), sum(r.steps for r in results)
    outcome = {
        "seconds": round(seconds, 1),
        "seconds_per_1000_decisions": round(1000 * seconds / decisions, 2),
        "decisions": decisions,
        "cut_episodes": sum(result.truncated for result in results),
    }
    machines = [machine for batch in played for machine in batch.machines]
    unique = [m for i, m in enumerate(machines) if m not in machines[:i]]
    config = dataclasses.asdict(work.config)
    del config["launcher"]  # who played has no bearing on what
    grouped = by_game(results)
    return Evaluation(
        work.config.label,
        {game.name: grouped[game.name] for game in work.games},
        {**work.settings, **outcome},
        checkpoints.named(work.folder),
        {"weights": work.weights, "versions": versions(), "config": config, "machines": unique},
    )


def _remarks(scores: ScoreFile, label: str) -> list[str]:
    """What a reader of the table must know of the evaluation called `label`."""
    evaluation = next(e for e in scores.evaluations if e.label == label)
    settings, remarks = evaluation.settings, []
    if gaps := protocol_gaps(evaluation):
        remarks.append(f"not the full protocol: {'; '.join(gaps)}")
    flags = [flag for game in evaluation.games.values() for flag in game.truncated]
    if any(flags):
        count = "all" if all(flags) else f"{sum(flags)} of"
        remarks.append(
            f"the cap of {settings['max_frames']:,} frames cut {count} {len(flags)} episodes: "
            f"their scores are those of the part that was played"
        )
    if note := settings.get("note"):
        remarks.append(note)
    for other in scores.evaluations:
        rules = [
            f"{name} {other.settings.get(name)}"
            for name in ("max_frames", "sticky", "epsilon")
            if other.settings.get(name) != settings.get(name)
        ]
        if rules:
            remarks.append(f"not comparable with {other.label}, played with {', '.join(rules)}")
    remarks.append(
        f"{settings['seconds_per_1000_decisions']:.1f} s per 1,000 decisions "
        f"({settings['decisions']:,} in {settings['seconds']:,.0f} s)"
    )
    return [f"{label}: {remark}" for remark in remarks]
