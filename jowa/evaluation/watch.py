"""`jowa watch`: a film of a trained agent, with what it sees, values and imagines."""

from __future__ import annotations

from pathlib import Path

from jowa.agent import Agent, build, fitted
from jowa.evaluation.config import WatchConfig
from jowa.evaluation.evaluate import playable
from jowa.evaluation.panels import Page
from jowa.evaluation.planners import planners
from jowa.evaluation.video import Moment, Picture, record
from jowa.learning import checkpoint as checkpoints
from jowa.learning.compute import resolve
from jowa.planning.config import PlannerConfig
from jowa.progress import progress_bar


def watch(config: WatchConfig) -> Path:
    """Films one episode; returns the film's path."""
    compute = resolve(config.compute)
    folder = checkpoints.find(config.checkpoint)
    saved = checkpoints.load(folder)
    (game,) = playable([config.game], saved, folder)
    planner = fitted(saved, config.planner)
    tokenizer, model = build(saved)
    ((planner, _),) = planners(planner, model.config, [game])
    agent = Agent(tokenizer.to(compute.device), model.to(compute.device), planner, compute.dtype)
    page = Page(game, in_words(planner), planned=planner.horizon > 0)
    with progress_bar("film", config.max_steps, "step") as bar:

        def draw(moment: Moment) -> Picture:
            bar.update(1)
            return page.draw(moment, agent.seen(0, game.id), agent.explain(0))

        result = record(
            agent,
            game,
            config.out,
            draw,
            max_steps=config.max_steps,
            seed=config.seed,
            epsilon=config.epsilon,
        )
    print(f"{config.out}: {result.steps} steps of {game.name}, score {result.score:g}")
    if planner.note:
        print(f"{config.out}: {planner.note}")
    return Path(config.out)


def in_words(planner: PlannerConfig) -> str:
    """How the agent decides, for a person to read."""
    if planner.name == "greedy":
        return "acts greedily by Q"
    if planner.name == "mcts":
        search = f"tree search of {planner.simulations} simulations"
    else:
        search = f"beam search of width {planner.beam_width}"
    frames = "1 frame" if planner.horizon == 1 else f"{planner.horizon} frames"
    return f"{search}, {frames} ahead"
