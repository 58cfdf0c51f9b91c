"""How evaluations under the full protocol stand beside the published agents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jowa import games
from jowa.evaluation.aggregates import Estimate, estimates, raw_scores
from jowa.evaluation.scores import AgentScores, protocol_gaps

# The paper tuned planner settings for each game on the returns that it reports.
TUNED = "_with_planning"


@dataclass(frozen=True)
class Entry:
    """One row of a standing: mean raw scores by game, and the measures over those games."""

    label: str
    ours: bool
    tuned: bool
    raw: dict[str, float]
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Standing:
    """Our agents and the published ones on the `games` they share, of `published` ones in all.

    Entries are in order of their IQM, best first.
    """

    games: tuple[str, ...]
    published: int
    entries: tuple[Entry, ...]


def published_scores() -> dict[str, dict[str, float]]:
    """Mean raw scores of the published agents, by agent and game."""
    text = files("jowa").joinpath("published_scores.json").read_text(encoding="utf-8")
    return json.loads(text)["raw_scores"]


def standings(agents: Sequence[AgentScores]) -> tuple[list[Standing], list[tuple[str, str]]]:
    """A standing for every set of games that agents share with the published ones; who is left out.

    The latter are (labels, reason). A number beside another invites comparison whatever is written
    about it, so that an agent that was not played under the full protocol is named with the
    reason, and not shown.
    """
    known = published_scores()
    all_games = sorted(
        set.intersection(*(set(scores) for scores in known.values())),
        key=lambda name: games.get(name).id,
    )
    sharing: dict[tuple[str, ...], list[AgentScores]] = {}
    left_out: dict[str, list[str]] = {}
    for agent in agents:
        common = tuple(name for name in all_games if name in agent.games)
        if not agent.is_protocol:
            gaps = dict.fromkeys(gap for seed in agent.seeds for gap in protocol_gaps(seed))
            left_out.setdefault("; ".join(gaps), []).append(agent.label)
        elif not common:
            left_out.setdefault("played none of the published games", []).append(agent.label)
        else:
            sharing.setdefault(common, []).append(agent)
    found = [_standing(common, len(all_games), members) for common, members in sharing.items()]
    return found, [(", ".join(labels), reason) for reason, labels in left_out.items()]


def _standing(common: tuple[str, ...], published: int, agents: Sequence[AgentScores]) -> Standing:
    entries = []
    for agent in agents:
        runs = raw_scores(agent, common)
        means = {
            name: sum(seed.games[name].mean for seed in agent.seeds) / len(runs) for name in common
        }
        entries.append(Entry(agent.label, True, False, means, estimates(runs)))
    for label, scores in published_scores().items():
        means = {name: scores[name] for name in common}
        known = estimates({name: [score] for name, score in means.items()})
        entries.append(Entry(label.replace("_", " "), False, label.endswith(TUNED), means, known))
    entries.sort(key=lambda entry: -entry.estimates["iqm"].value)
    return Standing(common, published, tuple(entries))
