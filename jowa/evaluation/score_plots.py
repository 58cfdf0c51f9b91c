"""Plots of scores: the players of a game, aggregates as bars, performance profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jowa.evaluation.aggregates import Profile
from jowa.evaluation.plots import COLOURS, STYLE, cycle, panel, short
from jowa.evaluation.statistics import Interval
from jowa.evaluation.table import ScoreRow

NARROW, WIDE = 3.9, 5.0  # inches
REFERENCE = "muted"  # colour of everything that is not an agent of the report
LINE_STYLES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Bar:
    """One row of a plot: a label, a value with its interval, and a colour's name."""

    label: str
    value: float
    interval: Interval | None
    colour: str


def colours(labels: Sequence[str], references: Sequence[str]) -> dict[str, str]:
    """The colour's name of every label: agents take the series in turn, references are grey."""
    own = [label for label in labels if label not in references]
    found = dict(zip(own, cycle(len(own)), strict=True))
    return {label: found.get(label, REFERENCE) for label in labels}


def plot_game(row: ScoreRow, colour: Mapping[str, str]) -> Figure:
    """One panel: means of a game's players as dots, with 95% intervals for the evaluations."""
    human = None if human_off_scale(row) else row.human
    known = {
        "random": row.random,
        "best constant": row.constant,
        "data": row.data,
        "human": human,
    }
    bars = [Bar(name, v, None, REFERENCE) for name, v in known.items() if v is not None]
    bars += [
        Bar(label, row.cells[label].mean, row.cells[label].interval, colour[label])
        for label in colour
        if label in row.cells
    ]
    with mpl.rc_context(STYLE):
        figure, axes = _rows(row.game, bars)
        for place, bar in enumerate(bars):
            hollow = bar.colour == REFERENCE
            axes.plot(
                bar.value,
                place,
                "o",
                markersize=6.5,
                markeredgecolor=COLOURS[bar.colour],
                markerfacecolor="none" if hollow else COLOURS[bar.colour],
            )
            if bar.interval is not None:
                line = COLOURS[bar.colour]
                axes.plot(bar.interval, [place, place], color=line, linewidth=2, alpha=0.55)
        axes.margins(x=0.08)
        axes.xaxis.set_major_formatter(_short)
        return figure


def human_off_scale(row: ScoreRow) -> bool:
    """Whether the human score would squeeze all the others into a corner of the panel."""
    if row.human is None or not row.cells:
        return False
    others = [cell.mean for cell in row.cells.values()]
    others += [value for value in (row.random, row.constant, row.data) if value is not None]
    width = max(others) - min(others)
    return bool(row.human > max(others) + 2 * width)


def plot_bars(
    title: str, bars: Sequence[Bar], *, percent: bool = True, width: float = NARROW
) -> Figure:
    """One panel: a bar for each row, from 0, with its 95% interval as a line."""
    with mpl.rc_context(STYLE):
        figure, axes = _rows(title, bars, width)
        for place, bar in enumerate(bars):
            colour = COLOURS[bar.colour]
            axes.barh(place, bar.value, height=0.6, color=colour, alpha=0.75)
            if bar.interval is not None:
                axes.plot(bar.interval, [place, place], color=COLOURS["ink"], linewidth=1.5)
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
        if not percent:
            axes.set_xlim(0, max(1.0, axes.get_xlim()[1]))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not percent))
        axes.xaxis.set_major_formatter(_percent if percent else _short)
        return figure


def plot_profiles(profiles: Sequence[Profile], colour: Mapping[str, str]) -> Figure:
    """One panel: the share of games above every human-normalised score, with 95% bands."""
    with mpl.rc_context(STYLE):
        rows = (len(profiles) + 1) // 2  # of the legend
        figure, (axes,) = panel(WIDE, 3.0 + 0.2 * rows)
        used: dict[str, int] = {}
        for found in profiles:
            name = colour.get(found.label, REFERENCE)
            style = LINE_STYLES[used.get(name, 0) % len(LINE_STYLES)]
            used[name] = used.get(name, 0) + 1
            line: dict[str, Any] = {"color": COLOURS[name], "linestyle": style, "linewidth": 1.6}
            axes.step(found.thresholds, found.share, where="post", label=_clip(found.label), **line)
            if name != REFERENCE:
                band: dict[str, Any] = {"color": COLOURS[name], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(found.thresholds, found.low, found.high, step="post", **band)
        axes.set_title("Performance profile")
        axes.set_xlabel("human-normalised score")
        axes.set_ylabel("share of games above it")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(profiles[0].thresholds[0], profiles[0].thresholds[-1])
        axes.grid(linewidth=0.7)
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_percent)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        return figure


def _percent(value: float, _: float) -> str:
    return f"{100 * value:,g}%"


def _short(value: float, _: float) -> str:
    return short(value)


def _rows(title: str, bars: Sequence[Bar], width: float = NARROW) -> tuple[Figure, Axes]:
    """A panel with a named row for every bar, the first on top."""
    figure, (axes,) = panel(width, 0.75 + 0.27 * len(bars))
    axes.set_yticks(range(len(bars)), [_clip(bar.label) for bar in bars])
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(axis="x", linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines["left"].set_visible(False)
    axes.set_title(title)
    return figure, axes


def _clip(label: str, limit: int = 26) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"
