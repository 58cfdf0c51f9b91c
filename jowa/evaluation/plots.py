"""The report's plots: their style, learning curves, and SVG for HTML or PNG for Markdown.

Colours in an SVG are CSS variables, so that a page's light and dark themes both reach the plot.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jowa.errors import UserError

# Light theme; every colour is a CSS variable `--name` of the page.
COLOURS = {
    "ink": "#1b1f24",
    "muted": "#5f6b7a",
    "grid": "#dfe3e8",
    "series-1": "#2563c9",
    "series-2": "#c4520a",
    "series-3": "#12805c",
    "series-4": "#9333b8",
    "series-5": "#b3261e",
    "series-6": "#7a6200",
}
SERIES = [name for name in COLOURS if name.startswith("series")]
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # labels and metrics are text, whatever they hold
    "svg.fonttype": "none",
    "svg.hashsalt": "jowa",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": COLOURS["grid"],
    "axes.axisbelow": True,
}
MAX_POINTS = 150


@dataclass
class Curve:
    """A training log: for every metric its steps and values, where each phase starts, and the
    seconds of training by step.

    Steps run on through the phases, whose own counts may start again from 0.
    """

    label: str
    metrics: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    phases: list[tuple[str, float]] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)

    def minutes(self, steps: np.ndarray) -> np.ndarray:
        """Of training up to each of the steps."""
        known = np.array(self.seconds)
        return np.asarray(np.interp(steps, known[:, 0], known[:, 1]) / 60)


def read_curve(label: str, path: str | Path) -> Curve:
    """Read a JSON-lines log of {"step", "phase", "seconds", metric: number, ...}.

    A resumed run repeats the steps after its checkpoint: the later lines count. A torn last line
    is skipped.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"the training log {path} cannot be read: {error.strerror}.") from None
    curve = Curve(label)
    phase, offset, last = None, 0.0, 0.0
    for place, line in enumerate(lines):
        try:
            entry = json.loads(line)
            step, name = float(entry["step"]), str(entry.get("phase", ""))
        except (ValueError, KeyError, TypeError):
            if place == len(lines) - 1:
                break
            raise UserError(
                f"line {place + 1} of the training log {path} is not a log entry."
            ) from None
        if name != phase:
            phase = name
            offset = last if step <= last else 0.0
            curve.phases.append((name, last))
        last = offset + step
        _add(curve, entry, last)
    return curve


def _add(curve: Curve, entry: dict[str, object], step: float) -> None:
    for key, value in entry.items():
        if key in ("step", "phase") or isinstance(value, bool):
            continue
        if isinstance(value, int | float) and np.isfinite(value):
            points = curve.seconds if key == "seconds" else curve.metrics.setdefault(key, [])
            while points and points[-1][0] >= step:
                points.pop()
            points.append((step, float(value)))


def plot_metric(metric: str, curves: Sequence[Curve]) -> Figure:
    """The metric of every curve over steps, dashed on held-out episodes where it was measured
    there, with a line where a phase begins; beside it the same over minutes of training, if the
    logs tell them."""
    timed = any(curve.seconds for curve in curves)
    with mpl.rc_context(STYLE):
        figure, axes = panel(7.4 if timed else 3.7, 2.3, columns=2 if timed else 1)
        drawn = [curve for curve in curves if metric in curve.metrics]
        for colour, curve in zip(cycle(len(curves)), curves, strict=True):
            for name, line in ((metric, "-"), (f"validation/{metric}", "--")):
                if name in curve.metrics:
                    steps, values = _thin(np.array(curve.metrics[name]))
                    style: dict[str, Any] = {
                        "linestyle": line,
                        "color": COLOURS[colour],
                        "linewidth": 1.5,
                    }
                    axes[0].plot(steps, values, **style)
                    if curve.seconds:
                        axes[1].plot(curve.minutes(steps), values, **style)
        _mark_phases(axes[0], drawn)
        axes[0].set_title(metric)
        axes[0].set_xlabel("step")
        axes[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if timed:
            axes[1].set_xlabel("minutes of training")
            axes[1].xaxis.set_major_locator(MaxNLocator(5))
        for side in axes:
            side.grid(axis="y", linewidth=0.7)
            side.yaxis.set_major_locator(MaxNLocator(5))
            for axis in (side.xaxis, side.yaxis):
                axis.set_major_formatter(lambda value, _: short(value))
        return figure


def _mark_phases(axes: Axes, curves: Sequence[Curve]) -> None:
    """A dotted line and a name where a phase begins, unless at the edge of what is drawn."""
    low, high = axes.dataLim.intervalx
    inner = low + 0.02 * (high - low), high - 0.02 * (high - low)
    for name, start in {phase for curve in curves for phase in curve.phases}:
        if inner[0] <= start <= inner[1]:
            axes.axvline(start, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
            axes.annotate(
                name,
                (start, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -9),
                textcoords="offset points",
                fontsize=8,
                color=COLOURS["muted"],
            )


def svg(figure: Figure, description: str) -> str:
    """The figure as inline SVG that scales to its container and takes the page's colours."""
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Element ids repeat from figure to figure; only those of definitions are referred to.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font-size: \1px", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    label = re.sub(r"[^\w .,:()/%-]", "", description)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def png(figure: Figure) -> bytes:
    """The figure as PNG on white."""
    buffer = io.BytesIO()
    figure.set_facecolor("white")
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def panel(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of this size in inches, transparent, and its panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for side in axes:
        side.patch.set_alpha(0)
    return figure, axes


def cycle(count: int) -> list[str]:
    """Names of `count` colours, again from the first where they run out."""
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _thin(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over runs of neighbours, so that a long noisy log stays a readable line."""
    if len(points) <= MAX_POINTS:
        return points[:, 0], points[:, 1]
    means = np.array([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])
    return means[:, 0], means[:, 1]


def short(value: float) -> str:
    """A tick's label: 1500 as 1.5k."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
