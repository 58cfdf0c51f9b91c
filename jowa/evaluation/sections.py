"""What the sections of a report say, gathered from scores as plain data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jowa.errors import UserError
from jowa.evaluation import table as tables
from jowa.evaluation.aggregates import (
    BOOTSTRAP_SEED,
    IQM,
    Estimate,
    Profile,
    estimates,
    improvement,
    profile,
    raw_scores,
)
from jowa.evaluation.scores import (
    AgentScores,
    Evaluation,
    GameBaselines,
    agents,
    protocol_gaps,
)

# What must be alike for two evaluations to compare.
PROTOCOL_SETTINGS = ("max_frames", "sticky", "epsilon")

Kind = Literal["agent", "seed", "reference"]


@dataclass(frozen=True)
class Comparison:
    """Two agents or single evaluations, by label, to set against each other: how the second
    differs."""

    title: str
    first: str
    second: str


@dataclass(frozen=True)
class Contrast:
    """What a comparison found, on the games that both played.

    `improvement` is the probability that an episode of the second beats one of the first, averaged
    over the `shared` games, which every seed of both played (None without any); `unlike` says in
    which settings they differ, so that they hardly compare.
    """

    pair: Comparison
    differences: list[tables.Difference]
    improvement: Estimate | None
    shared: int
    unlike: str


@dataclass(frozen=True)
class BlockRow:
    """One line of the aggregates: an agent, one of its seeds, or a reference.

    `kind` says which of these; `played` are its episodes a game, in words.
    """

    label: str
    kind: Kind
    played: str
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class Block:
    """Aggregates of all that played the same games, and their performance profiles."""

    games: tuple[str, ...]
    rows: list[BlockRow]
    profiles: list[Profile]


def headline(table: tables.ScoreTable, references: Sequence[str] = ()) -> list[str]:
    """One sentence an agent: its aggregate, or its score if it played only one game."""
    sentences = []
    for found in sorted(table.aggregates, key=lambda found: found.label in references):
        label = found.label + (" (reference)" if found.label in references else "")
        rows = [row for row in table.rows if found.label in row.cells]
        if len(rows) == 1:
            sentences.append(f"{label}: {_one_game(found.label, rows[0])}")
        elif "iqm" in found.estimates:
            sentences.append(f"{label}: {_many_games(found)}")
    return sentences


def _one_game(label: str, row: tables.ScoreRow) -> str:
    cell = row.cells[label]
    references = {"random": row.random, "best constant action": row.constant, "data": row.data}
    known = [f"{name} {tables.number(v)}" for name, v in references.items() if v is not None]
    text = f"{tables.number(cell.mean)} {tables.span(cell.interval)}".rstrip()
    return f"{text} in {row.game}" + (f" ({', '.join(known)})." if known else ".")


def _many_games(found: tables.Aggregate) -> str:
    iqm = found.estimates["iqm"]
    text = f"{tables.show(IQM, iqm)} {tables.show_interval(IQM, iqm)}".rstrip()
    text += f" human-normalised score (IQM over {len(found.games)} games)"
    if found.with_constant:
        text += (
            f", above the best constant action in {found.beats_constant} of {found.with_constant}"
        )
    return text + "."


def warnings(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """(labels, departures from the protocol), one entry for evaluations with the same ones."""
    labels: dict[str, list[str]] = {}
    for evaluation in evaluations:
        if gaps := protocol_gaps(evaluation):
            labels.setdefault("; ".join(gaps), []).append(evaluation.label)
    return [(", ".join(names), gaps) for gaps, names in labels.items()]


def remarks(evaluations: Sequence[Evaluation], table: tables.ScoreTable) -> list[str]:
    """What a reader of the table must know: published stand-ins, games left out, cut episodes."""
    found = []
    if any(not row.random_measured and row.random is not None for row in table.rows):
        found.append("† published, not measured here.")
    if unmeasured := [row.game for row in table.rows if not row.random_measured]:
        found.append(f"Random and constant play were not measured in {', '.join(unmeasured)}.")
    found += tables.left_out_notes(table)
    for evaluation in evaluations:
        flags = [flag for game in evaluation.games.values() for flag in game.truncated]
        if any(flags):
            cut = f"the cap cut {sum(flags)} of {len(flags)} episodes."
            found.append(f"{evaluation.label}: {cut}")
        if planner_note := evaluation.settings.get("note"):
            found.append(f"{evaluation.label}: {planner_note}.")
    return found


def blocks(
    table: tables.ScoreTable,
    players: Sequence[AgentScores],
    baselines: Mapping[str, GameBaselines],
    references: Sequence[str],
) -> list[Block]:
    """Aggregates by set of games; trivial play stands in each whose games all have baselines.

    One game alone has nothing to aggregate.
    """
    by_label = {player.label: player for player in players}
    found = []
    for names in dict.fromkeys(row.games for row in table.aggregates if len(row.games) > 1):
        same = [row for row in table.aggregates if row.games == names]
        same.sort(key=lambda row: row.label in references)
        rows = []
        for aggregate in same:
            player = by_label[aggregate.label]
            kind: Kind = "reference" if player.label in references else "agent"
            episodes = played(player, names)
            rows.append(BlockRow(player.label, kind, episodes, aggregate.estimates))
            if len(player.seeds) > 1:
                rows += [_block_row(_alone(seed), "seed", names) for seed in player.seeds]
        trivial = _trivial(names, baselines)
        rows += [_block_row(player, "reference", names) for player in trivial]
        members = [by_label[aggregate.label] for aggregate in same]
        found.append(Block(names, rows, _profiles([*members, *trivial], names)))
    return found


def _alone(seed: Evaluation) -> AgentScores:
    return AgentScores(seed.label, (seed,))


def _trivial(names: Sequence[str], baselines: Mapping[str, GameBaselines]) -> list[AgentScores]:
    """Random play and the best constant action as players of these games, where all are known."""
    if not all(name in baselines for name in names):
        return []
    random = {name: baselines[name].random for name in names}
    constant = {name: baselines[name].constant for name in names}
    return [
        _alone(Evaluation("random play", random)),
        _alone(Evaluation("best constant", constant)),
    ]


def _block_row(player: AgentScores, kind: Kind, names: Sequence[str]) -> BlockRow:
    found = estimates(raw_scores(player, names))
    return BlockRow(player.label, kind, played(player, names), found)


def played(player: AgentScores, names: Iterable[str]) -> str:
    """Episodes a game, such as `16`, `4 to 16` or `3 seeds of 16`."""
    episodes = counts(len(run.scores) for name in names for run in player.runs(name))
    return f"{len(player.seeds)} seeds of {episodes}" if len(player.seeds) > 1 else episodes


def counts(found: Iterable[int]) -> str:
    """Least and largest of some counts, once if they are the same; empty without any."""
    known = sorted(set(found))
    return " to ".join(str(count) for count in dict.fromkeys(known[:1] + known[-1:]))


def _profiles(players: Sequence[AgentScores], names: Sequence[str]) -> list[Profile]:
    """Performance profiles over the same thresholds."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    tops = [max(seed.normalised().values()) for player in players for seed in player.seeds]
    # Far beyond human play the mean tells the difference; outliers would squeeze all the rest.
    thresholds = np.linspace(-0.1, float(np.clip(max(tops) * 1.05, 0.2, 3.0)), 201)
    return [
        profile(raw_scores(player, names), thresholds, label=player.label, rng=rng)
        for player in players
    ]


def contrasts(asked: Sequence[Comparison], evaluations: Sequence[Evaluation]) -> list[Contrast]:
    """The comparisons asked for, then planned against greedy play of the same checkpoints.

    Raises UserError for a label that is not there.
    """
    players = agents(evaluations)
    by_label = {player.label: player for player in players}
    for evaluation in evaluations:
        by_label.setdefault(evaluation.label, _alone(evaluation))
    for pair in asked:
        check_labels((pair.first, pair.second), by_label, "compare")
    pairs = list(asked)
    named = {(pair.first, pair.second) for pair in pairs}
    for planned in players:
        for greedy in players:
            if not _same_checkpoints(greedy, planned):
                continue
            if _is_greedy(planned) or not _is_greedy(greedy):
                continue
            if (greedy.label, planned.label) not in named:
                pairs.append(Comparison("Planned against greedy", greedy.label, planned.label))
    found = [_contrast(pair, by_label[pair.first], by_label[pair.second]) for pair in pairs]
    return [contrast for contrast in found if contrast.differences]


def check_labels(wanted: Sequence[str], known: Mapping[str, object], option: str) -> None:
    """UserError for a wanted label that no evaluation has."""
    for label in wanted:
        if label not in known:
            there = ", ".join(repr(name) for name in known) or "none at all"
            raise UserError(
                f"{option} names {label!r}, which no scores file holds: the labels are {there}."
            )


def _same_checkpoints(one: AgentScores, other: AgentScores) -> bool:
    checkpoints = [{seed.checkpoint for seed in agent.seeds} for agent in (one, other)]
    return checkpoints[0] == checkpoints[1] and "" not in checkpoints[0]


def _is_greedy(agent: AgentScores) -> bool:
    settings = [seed.settings for seed in agent.seeds]
    return all(s.get("planner") == "greedy" or s.get("horizon") == 0 for s in settings)


def _contrast(pair: Comparison, first: AgentScores, second: AgentScores) -> Contrast:
    shared = [name for name in first.games if name in second.games]
    better = None
    if shared:
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        better = improvement(raw_scores(second, shared), raw_scores(first, shared), rng=rng)
    unlike = []
    for name in PROTOCOL_SETTINGS:
        values = [{seed.settings.get(name) for seed in agent.seeds} for agent in (first, second)]
        if values[0] != values[1]:
            shown = [" or ".join(sorted(_text(value) for value in found)) for found in values]
            unlike.append(f"{name.replace('_', ' ')} {shown[0]} against {shown[1]}")
    found = tables.differences(first, second)
    return Contrast(pair, found, better, len(shared), "; ".join(unlike))


def settings(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the settings, one column an evaluation; what none recorded is left out."""
    columns = []
    for evaluation in evaluations:
        flat = {"checkpoint": evaluation.checkpoint or None}
        for name, value in evaluation.settings.items():
            if name == "versions" and isinstance(value, Mapping):
                flat |= {str(package): value[package] for package in value}
            else:
                flat[name.replace("_", " ")] = value
        seconds, decisions = flat.get("seconds"), flat.get("decisions")
        if seconds and decisions:
            flat["decisions a second"] = f"{float(decisions) / float(seconds):,.1f}"
        if seconds:
            flat["seconds"] = duration(float(seconds))
        columns.append(flat)
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(_text(column.get(name)) for column in columns)] for name in names]
    rows = [row for row in rows if any(text != "-" for text in row[1:])]
    renamed = {"seconds": "wall time", "is protocol": "full protocol"}
    rows = [[renamed.get(row[0], row[0]), *row[1:]] for row in rows]
    return ["", *(evaluation.label for evaluation in evaluations)], rows


def provenance(
    entries: Mapping[str, Any], evaluations: Sequence[Evaluation]
) -> list[tuple[str, str]]:
    """(name, text) of where everything comes from."""
    found = {str(key): _text(value) for key, value in entries.items()}
    for evaluation in evaluations:
        for key, value in evaluation.provenance.items():
            found[f"{evaluation.label}: {key}"] = _text(value)
    return list(found.items())


def run_entry(starts: Sequence[Mapping[str, Any]]) -> str:
    """How a training run was last started, in words, from its `run.json`."""
    last = starts[-1]
    versions = last.get("versions", {})
    parts = [
        shlex.join(last.get("command", [])),
        f"seed {last.get('seed', 'unknown')}",
        f"processes {last.get('processes', 1)}, device {last.get('device', 'unknown')}",
        "versions " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"starts {len(starts)}, the last {last.get('time', 'at an unknown time')}",
    ]
    return "; ".join(parts)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def duration(seconds: float) -> str:
    """Wall time for reading: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
