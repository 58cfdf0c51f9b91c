"""The score table: one row a game, one column a player, with intervals and aggregates.

Made once from the data, then shown as plain text, Markdown or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jowa import games
from jowa.errors import UserError
from jowa.evaluation.scores import (
    Evaluation,
    GameBaselines,
    GameScores,
    difference_interval,
    interval,
    iqm,
    normalise,
    score_range,
)

# Intervals in a report must not change from one making to the next.
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Cell:
    """One evaluation on one game: mean raw score and its 95% interval, raw and normalised.

    Intervals are None with one episode, normalised numbers None without a human score.
    """

    mean: float
    interval: tuple[float, float] | None
    hns: float | None
    hns_interval: tuple[float, float] | None
    episodes: int
    truncated: int


@dataclass(frozen=True)
class ScoreRow:
    """One game: raw scores of the reference players (None where unknown), then a cell a label.

    `random` is the measured random play if there is a baseline, else the published score.
    """

    game: str
    random: float | None
    random_measured: bool
    constant: float | None
    constant_action: str
    data: float | None
    human: float | None
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Aggregate:
    """Human-normalised aggregates of one evaluation and the games they cannot hold."""

    label: str
    games: int
    left_out: tuple[str, ...]
    iqm: float | None
    interval: tuple[float, float] | None
    median: float | None
    mean: float | None
    beats_constant: int
    with_constant: int


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
    """Table of evaluations with the references that are known.

    Raises UserError where two evaluations have the same label.
    """
    labels = tuple(evaluation.label for evaluation in evaluations)
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two evaluations are called {label!r}: give each a label of its own.")
    names = {name for evaluation in evaluations for name in evaluation.games}
    rows = [
        _row(name, evaluations, (baselines or {}).get(name), (data_means or {}).get(name))
        for name in sorted(names, key=lambda name: games.get(name).id)
    ]
    return ScoreTable(
        labels, tuple(rows), tuple(_aggregate(evaluation, rows) for evaluation in evaluations)
    )


def differences(first: Evaluation, second: Evaluation) -> list[Difference]:
    """How the second evaluation differs from the first on each game that both played."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    found = []
    for name in sorted(first.games.keys() & second.games.keys(), key=lambda n: games.get(n).id):
        a, b = first.games[name], second.games[name]
        spread = None
        if min(len(a.scores), len(b.scores)) > 1:
            spread = difference_interval(a.scores, b.scores, rng=rng)
        found.append(Difference(name, a.mean, b.mean, b.mean - a.mean, spread))
    return found


def _row(
    name: str,
    evaluations: Sequence[Evaluation],
    baseline: GameBaselines | None,
    data: float | None,
) -> ScoreRow:
    game = games.get(name)
    return ScoreRow(
        game=name,
        random=game.random if baseline is None else baseline.random.mean,
        random_measured=baseline is not None,
        constant=None if baseline is None else baseline.constant.mean,
        constant_action="" if baseline is None else baseline.constant_action,
        data=data,
        human=game.human,
        cells={e.label: _cell(e.games[name]) for e in evaluations if name in e.games},
    )


def _cell(scores: GameScores) -> Cell:
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    raw, hns, hns_interval = None, None, None
    if len(scores.scores) > 1:
        raw = interval({scores.game: scores.scores}, np.mean, by=None, rng=rng)
    if score_range(scores.game) is not None:
        hns = normalise(scores.game, scores.mean)
        if raw is not None:
            hns_interval = normalise(scores.game, raw[0]), normalise(scores.game, raw[1])
    return Cell(scores.mean, raw, hns, hns_interval, len(scores.scores), sum(scores.truncated))


def _aggregate(evaluation: Evaluation, rows: Sequence[ScoreRow]) -> Aggregate:
    label = evaluation.label
    kept, left_out = evaluation.normalised_games()
    values = list(evaluation.normalised().values())
    spread = None
    if kept and all(len(evaluation.games[name].scores) > 1 for name in kept):
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        spread = interval({name: evaluation.games[name].scores for name in kept}, rng=rng)
    constants = [
        row.cells[label].mean > row.constant
        for row in rows
        if label in row.cells and row.constant is not None
    ]
    return Aggregate(
        label=label,
        games=len(kept),
        left_out=tuple(left_out),
        iqm=iqm(values) if values else None,
        interval=spread,
        median=float(np.median(values)) if values else None,
        mean=float(np.mean(values)) if values else None,
        beats_constant=sum(constants),
        with_constant=len(constants),
    )


def number(value: float | None) -> str:
    """A raw score for reading: whole from 100 on, else with one decimal (two below 1)."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 2 if 0 < abs(value) < 1 else 1
    return f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A normalised score as a percentage."""
    if value is None:
        return "-"
    return f"{100 * value:,.{0 if abs(value) >= 0.1 else 1}f}%"


def span(bounds: tuple[float, float] | None, of: str = "raw") -> str:
    """An interval such as `[3.1, 5.0]`; empty without one. `of` is "raw" or "percent"."""
    if bounds is None:
        return ""
    show = number if of == "raw" else percent
    return f"[{show(bounds[0])}, {show(bounds[1])}]"


def text_rows(table: ScoreTable) -> tuple[list[str], list[list[str]]]:
    """Header and rows of strings, for the terminal and for Markdown."""
    header = ["Game", "Random", "Best constant", "Data", "Human", *table.labels]
    lines = []
    for row in table.rows:
        constant = number(row.constant)
        if row.constant_action:
            constant += f" ({row.constant_action})"
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
    for aggregate in table.aggregates:
        text = f"{percent(aggregate.iqm)} {span(aggregate.interval, 'percent')}".strip()
        plural = "game" if aggregate.games == 1 else "games"
        total.append(f"{text} ({aggregate.games} {plural})" if aggregate.games else "-")
    return header, [*lines, total]


def left_out_note(table: ScoreTable) -> str:
    """Names the games that no aggregate holds; empty if there are none."""
    names = sorted({name for aggregate in table.aggregates for name in aggregate.left_out})
    if not names:
        return ""
    return f"Left out of the aggregates, having no published human score: {', '.join(names)}."


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
    if note := left_out_note(table):
        lines.append(note)
    return "\n".join(lines)
