"""`jowa evaluate`: a trained agent plays for scores."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from jowa import games as game_facts
from jowa.agent import Agent, PlannerConfig, build, check_dreams
from jowa.data.episodes import EpisodeFile
from jowa.errors import UserError
from jowa.evaluation.baselines import baseline_scores
from jowa.evaluation.config import EvaluateConfig
from jowa.evaluation.planners import planners
from jowa.evaluation.rollout import EpisodeResult, by_game, play
from jowa.evaluation.scores import Evaluation, ScoreFile, make_settings
from jowa.evaluation.table import format_table, score_table
from jowa.games import Game
from jowa.learning import checkpoint as checkpoints
from jowa.learning.checkpoint import Checkpoint, versions
from jowa.learning.compute import resolve
from jowa.learning.monitor import progress_bar


def evaluate(config: EvaluateConfig) -> Path:
    """Plays, and writes the scores file; returns its path."""
    compute = resolve(config.compute)
    folder = checkpoints.find(config.checkpoint)
    saved = checkpoints.load(folder)
    games = playable(config.games, saved, folder)
    check_dreams(saved, config.planner)
    out = Path(config.out)
    scores = ScoreFile.load(out) if out.exists() else ScoreFile()
    tokenizer, model = build(saved)
    groups = planners(config.planner, model.config, games)
    settings = make_settings(**planner_settings(config.planner, groups), **_protocol(config))
    identity = {stem: saved.state["sha256"][stem] for stem in ("model", "tokenizer")}
    kept = next((e for e in scores.evaluations if e.label == config.label), None)
    if kept is not None and _same(kept, games, settings, identity):
        print(f"kept: {out} already holds {config.label!r} of this checkpoint and these settings")
    else:
        tokenizer, model = tokenizer.to(compute.device), model.to(compute.device)
        agents = [(Agent(tokenizer, model, p, compute.dtype), group) for p, group in groups]
        evaluation = _play(config, agents, settings, folder, identity)
        others = [e for e in scores.evaluations if e.label != config.label]
        scores.evaluations = [*others, evaluation]
        scores.save(out)
    if config.data_root is not None:
        for game in games:
            with EpisodeFile(Path(config.data_root) / f"{game.name}.h5") as data:
                scores.data_means[game.name] = data.statistics()["mean_return"]
    if config.baselines:
        _add_baselines(scores, games, config, out.parent / "baselines")
    scores.save(out)
    print(format_table(score_table(scores.evaluations, scores.baselines, scores.data_means)))
    if config.planner.note:
        print(f"{config.label}: {config.planner.note}")
    return out


def playable(names: list[str], saved: Checkpoint, folder: Path) -> list[Game]:
    """The games to play; UserError for one that the checkpoint was never trained on."""
    known = saved.state["games"]
    for name in names:
        if game_facts.get(name).name not in known:
            raise UserError(
                f"the checkpoint {folder} was never trained on {name} (only on "
                f"{', '.join(known)}): fine-tune it first by `jowa finetune game={name}`."
            )
    return [game_facts.get(name) for name in names or known]


def planner_settings(
    planner: PlannerConfig, groups: list[tuple[PlannerConfig, list[Game]]]
) -> dict[str, Any]:
    """What the scores file says of how the agent decided; the numbers are by game where they
    differ."""
    named = {"planner": planner.name, **planner.options}
    if not planner.per_game:
        numbers = {"beam_width": planner.beam_width, "horizon": planner.horizon}
        return {**named, **numbers, "context": planner.context}
    by_game = {
        game.name: [own.context, own.beam_width, own.horizon]
        for own, group in groups
        for game in group
    }
    return {**named, "note": planner.note, "context_beam_width_horizon": by_game}


def _protocol(config: EvaluateConfig) -> dict[str, Any]:
    return {
        "episodes": config.episodes,
        "envs_per_game": config.envs_per_game,
        "max_frames": config.max_frames,
        "epsilon": config.epsilon,
        "seed": config.seed,
    }


def _same(
    kept: Evaluation, games: list[Game], settings: dict[str, Any], identity: dict[str, Any]
) -> bool:
    """Whether an evaluation is what the same command would play again."""
    cost = ("seconds", "decisions")
    before = {k: v for k, v in kept.settings.items() if k not in cost}
    now = {k: v for k, v in settings.items() if k not in cost}
    same_games = list(kept.games) == [game.name for game in games]
    return before == now and same_games and kept.provenance.get("weights") == identity


def _play(
    config: EvaluateConfig,
    agents: list[tuple[Agent, list[Game]]],
    settings: dict[str, Any],
    folder: Path,
    identity: dict[str, Any],
) -> Evaluation:
    started, results = time.perf_counter(), list[EpisodeResult]()
    total = config.episodes * sum(len(games) for _, games in agents)
    with progress_bar(config.label, total, "episode") as bar:

        def advance(done: int, _: int, steps: int) -> None:
            bar.set_postfix_str(f"{steps:,} decisions", refresh=False)
            bar.update(len(results) + done - bar.n)

        for agent, games in agents:
            results += play(agent, games, progress=advance, **_protocol(config))
    seconds, decisions = time.perf_counter() - started, sum(r.steps for r in results)
    return Evaluation(
        config.label,
        by_game(results),
        {**settings, "seconds": round(seconds, 1), "decisions": decisions},
        str(folder),
        {"weights": identity, "versions": versions(), "config": dataclasses.asdict(config)},
    )


def _add_baselines(
    scores: ScoreFile, games: list[Game], config: EvaluateConfig, cache: Path
) -> None:
    protocol = _protocol(config)
    protocol["episodes"] = config.baseline_episodes or config.episodes
    with progress_bar("random and constant play", len(games), "game") as bar:
        for game in games:
            scores.baselines[game.name] = baseline_scores(game, cache_dir=cache, **protocol)
            bar.update(1)
