"""The score table: one row a game, one column a player, with intervals and aggregates.

Made once from the data, then shown as plain text, Markdown or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jowa import games
from jowa.evaluation.aggregates import (
    BOOTSTRAP_SEED,
    IQM,
    Estimate,
    Measure,
    estimates,
    raw_scores,
)
from jowa.evaluation.scores import (
    AgentScores,
    Evaluation,
    GameBaselines,
    agents,
    normalisable,
    normalise,
    score_range,
)
from jowa.evaluation.statistics import (
    RESAMPLES,
    Interval,
    difference_interval,
    interval_of,
    redrawn_means,
)


@dataclass(frozen=True)
class Cell:
    """One agent on one game: mean raw score and its 95% interval, raw and normalised.

    Intervals are None with one episode, normalised numbers None without a human score.
    """

    mean: float
    interval: Interval | None
    hns: float | None
    hns_interval: Interval | None


@dataclass(frozen=True)
class ScoreRow:
    """One game: raw scores of the reference players (None where unknown), then a cell a label.

    `random` is the measured random play if there is a baseline, else the published score;
    `baseline_episodes` of random play and of each constant action were played (0 of neither).
    """

    game: str
    random: float | None
    baseline_episodes: int
    constant: float | None
    constant_action: str
    data: float | None
    human: float | None
    cells: dict[str, Cell]

    @property
    def random_measured(self) -> bool:
        """Whether `random` was played here."""
        return self.baseline_episodes > 0


@dataclass(frozen=True)
class Aggregate:
    """What an agent scores over its games together, and which games that cannot hold.

    `left_out` have no human score, `unshared` were not played by every seed.
    """

    label: str
    games: tuple[str, ...]
    left_out: tuple[str, ...]
    unshared: tuple[str, ...]
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    beats_constant: int = 0
    with_constant: int = 0


@dataclass(frozen=True)
class ScoreTable:
    """Rows in game order, columns in the order of `labels`."""

    labels: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    aggregates: tuple[Aggregate, ...]


@dataclass(frozen=True)
class Difference:
    """mean(second) - mean(first) in raw score on one game, with its 95% interval."""

    game: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Whether the second is better or worse: only where the interval excludes 0."""
        if self.interval is None:
            return "one episode: no interval"
        low, high = self.interval
        return "second is better" if low > 0 else "second is worse" if high < 0 else "not clear"


def score_table(
    evaluations: Sequence[Evaluation],
    baselines: Mapping[str, GameBaselines] | None = None,
    data_means: Mapping[str, float | None] | None = None,
) -> ScoreTable:
    """Table of the evaluations' agents with the references that are known.

    Raises UserError where two evaluations have the same label.
    """
    players = agents(evaluations)
    names = {name for player in players for name in player.played}
    rows = [
        _row(name, players, (baselines or {}).get(name), (data_means or {}).get(name))
        for name in sorted(names, key=lambda name: games.get(name).id)
    ]
    return ScoreTable(
        tuple(player.label for player in players),
        tuple(rows),
        tuple(aggregate(player, rows) for player in players),
    )


def differences(first: AgentScores, second: AgentScores) -> list[Difference]:
    """How the second agent differs from the first on each game that both played."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    found = []
    shared = set(first.played) & set(second.played)
    for name in sorted(shared, key=lambda name: games.get(name).id):
        a, b = _episodes(first, name), _episodes(second, name)
        spread = difference_interval(a, b, rng=rng) if _varies(a) and _varies(b) else None
        before, after = _mean(a), _mean(b)
        found.append(Difference(name, before, after, after - before, spread))
    return found


def _episodes(agent: AgentScores, game: str) -> list[list[float]]:
    return [run.scores for run in agent.runs(game)]


def _mean(runs: Sequence[Sequence[float]]) -> float:
    """Mean over seeds of their means over episodes."""
    return float(np.mean([np.mean(run) for run in runs]))


def _varies(runs: Sequence[Sequence[float]]) -> bool:
    """Whether there is more than one number to draw from."""
    return len(runs) > 1 or len(runs[0]) > 1


def _row(
    name: str,
    players: Sequence[AgentScores],
    baseline: GameBaselines | None,
    data: float | None,
) -> ScoreRow:
    game = games.get(name)
    return ScoreRow(
        game=name,
        random=game.random if baseline is None else baseline.random.mean,
        baseline_episodes=0 if baseline is None else len(baseline.random.scores),
        constant=None if baseline is None else baseline.constant.mean,
        constant_action="" if baseline is None else baseline.constant_action,
        data=data,
        human=game.human,
        cells={player.label: _cell(player, name) for player in players if name in player.played},
    )


def _cell(agent: AgentScores, game: str) -> Cell:
    runs = _episodes(agent, game)
    mean = _mean(runs)
    raw, hns, hns_interval = None, None, None
    if _varies(runs):
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        raw = interval_of(redrawn_means([runs], RESAMPLES, rng).mean(axis=(1, 2)))
    if score_range(game) is not None:
        hns = normalise(game, mean)
        if raw is not None:
            hns_interval = normalise(game, raw[0]), normalise(game, raw[1])
    return Cell(mean, raw, hns, hns_interval)


def aggregate(agent: AgentScores, rows: Sequence[ScoreRow] = ()) -> Aggregate:
    """The agent over all its games with a human score that every seed played."""
    kept, left_out = normalisable(agent.games)
    constants = [
        row.cells[agent.label].mean > row.constant
        for row in rows
        if agent.label in row.cells and row.constant is not None
    ]
    return Aggregate(
        label=agent.label,
        games=tuple(sorted(kept, key=lambda name: games.get(name).id)),
        left_out=tuple(left_out),
        unshared=tuple(agent.unshared),
        estimates=estimates(raw_scores(agent, kept)) if kept else {},
        beats_constant=sum(constants),
        with_constant=len(constants),
    )


def number(value: float | None) -> str:
    """A raw score for reading: whole from 100 on, else with one decimal (two below 1)."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 2 if 0 < abs(value) < 1 else 1
    return f"{value:z,.{digits}f}"


def percent(value: float | None) -> str:
    """A normalised score as a percentage."""
    if value is None:
        return "-"
    return f"{100 * value:z,.{0 if abs(value) >= 0.1 else 1}f}%"


def span(bounds: tuple[float, float] | None, of: str = "raw") -> str:
    """An interval such as `[3.1, 5.0]`; empty without one. `of` is "raw" or "percent"."""
    if bounds is None:
        return ""
    show = number if of == "raw" else percent
    return f"[{show(bounds[0])}, {show(bounds[1])}]"


def show(measure: Measure, estimate: Estimate | None) -> str:
    """The value of a measure, without its interval."""
    if estimate is None:
        return "-"
    return f"{estimate.value:.2g}" if measure.is_count else percent(estimate.value)


def show_interval(measure: Measure, estimate: Estimate | None) -> str:
    """The interval of a measure; empty without one."""
    if estimate is None or estimate.interval is None:
        return ""
    if measure.is_count:
        return "[{:.2g}, {:.2g}]".format(*estimate.interval)
    return span(estimate.interval, "percent")


def text_rows(table: ScoreTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows of strings, for the terminal and for Markdown."""
    header = ["Game", "Random", "Best constant", "Data", "Human", *table.labels]
    lines = []
    for row in table.rows:
        constant = number(row.constant)
        if row.constant_action:
            constant += f" ({row.constant_action}, {row.baseline_episodes} ep.)"
        random = number(row.random) + ("" if row.random_measured or row.random is None else "†")
        line = [row.game, random, constant, number(row.data), number(row.human)]
        for label in table.labels:
            cell = row.cells.get(label)
            parts = []
            if cell is not None:
                parts = [number(cell.mean), span(cell.interval)]
                parts += [f"= {percent(cell.hns)}"] if cell.hns is not None else []
            line.append(" ".join(part for part in parts if part) or "-")
        lines.append(line)
    total = ["IQM, human-normalised", "", "", "", ""]
    for found in table.aggregates:
        iqm = found.estimates.get("iqm")
        text = f"{show(IQM, iqm)} {show_interval(IQM, iqm)}".strip()
        plural = "game" if len(found.games) == 1 else "games"
        total.append(f"{text} ({len(found.games)} {plural})" if found.games else "-")
    return header, [*lines, total]


def left_out_notes(table: ScoreTable) -> list[str]:
    """Names the games that no aggregate holds, with the reason."""
    notes = []
    names = sorted({name for found in table.aggregates for name in found.left_out})
    if names:
        notes.append(
            f"Left out of the aggregates, having no published human score: {', '.join(names)}."
        )
    names = sorted({name for a in table.aggregates for name in normalisable(a.games, "dqn")[1]})
    if names:
        notes.append(f"Left out of IQM by DQN, having no published DQN score: {', '.join(names)}.")
    for found in table.aggregates:
        if found.unshared:
            notes.append(
                f"Left out of the aggregates of {found.label}, not being played by every seed: "
                f"{', '.join(found.unshared)}."
            )
    return notes


def format_table(table: ScoreTable) -> str:
    """The table as aligned plain text for a terminal."""
    header, rows = text_rows(table)
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = []
    for line in [header, ["-" * width for width in widths], *rows]:
        cells = [line[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    if any(not row.random_measured and row.random is not None for row in table.rows):
        lines.append("† published, not measured here")
    return "\n".join([*lines, *left_out_notes(table)])
