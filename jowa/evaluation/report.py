"""The report: one self-contained HTML file, and the same as Markdown with its pictures beside it.

Everything is made from data (scores, logs, pictures); what is missing is left out, or named.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from jowa.evaluation import table as tables
from jowa.evaluation.plots import (
    SERIES,
    human_off_scale,
    plot_game,
    plot_metric,
    png,
    read_curve,
    svg,
)
from jowa.evaluation.scores import Evaluation, GameBaselines, protocol_gaps
from jowa.files import write_atomically

INLINE_FILM_BYTES = 3_000_000
PICTURES = "report-images"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, by label, to set against each other: how the second differs."""

    title: str
    first: str
    second: str


@dataclass
class ReportInput:
    """What a report is made of; every part but the title may be empty.

    `curves` are (label, path of a JSON-lines training log); `metrics` picks what is drawn, in
    order (all metrics when empty). `images` are (caption, path of a PNG). `timings` are wall
    seconds by stage. `data_means` are the mean raw scores of the training data by game. Greedy and
    planned evaluations of one checkpoint are compared without being asked for.
    """

    title: str
    evaluations: Sequence[Evaluation] = ()
    baselines: Mapping[str, GameBaselines] = field(default_factory=dict)
    data_means: Mapping[str, float | None] = field(default_factory=dict)
    curves: Sequence[tuple[str, str | Path]] = ()
    metrics: Sequence[str] = ()
    images: Sequence[tuple[str, str | Path]] = ()
    film: str | Path | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    comparisons: Sequence[Comparison] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plot:
    name: str
    figure: Figure
    note: str = ""


def write_report(report: ReportInput, out_dir: str | Path) -> Path:
    """Write report.html, report.md and its pictures into `out_dir`; returns the HTML file's path.

    Raises UserError for a training log that cannot be read.
    """
    out = Path(out_dir)
    view = _view(report, out)
    plots = {"score_plots": _score_plots(view["table"]), "curve_plots": _curve_plots(report)}
    inline = {
        key: [(Markup(svg(plot.figure, plot.name)), plot.note) for plot in found]
        for key, found in plots.items()
    }
    pictures = {
        key: [
            (plot.name, _save_picture(out, place, plot.name, png(plot.figure)))
            for place, plot in enumerate(found, 1)
        ]
        for key, found in plots.items()
    }
    beside = {
        "images": [
            (caption, _copy_picture(out, place, path))
            for place, (caption, path) in enumerate(report.images, 1)
        ]
    }
    html = _template("report.html.j2", escape=True).render({**view, **inline})
    markdown = _template("report.md.j2", escape=False).render({**view, **pictures, **beside})
    write_atomically(out / "report.md", re.sub(r"\n{3,}", "\n\n", markdown).encode())
    write_atomically(out / "report.html", html.encode())
    return out / "report.html"


def headline(table: tables.ScoreTable) -> list[str]:
    """One sentence an evaluation: its aggregate, or its score if it played only one game."""
    sentences = []
    for aggregate in table.aggregates:
        rows = [row for row in table.rows if aggregate.label in row.cells]
        if len(rows) == 1:
            sentences.append(_one_game(aggregate.label, rows[0]))
            continue
        if aggregate.games == 0 or aggregate.iqm is None:
            continue
        text = (
            f"{aggregate.label}: {tables.percent(aggregate.iqm)} "
            f"{tables.span(aggregate.interval, 'percent')}".rstrip()
            + f" human-normalised score (IQM over {aggregate.games} games)"
        )
        if aggregate.with_constant:
            text += (
                f", above the best constant action in {aggregate.beats_constant} of "
                f"{aggregate.with_constant}"
            )
        sentences.append(text + ".")
    return sentences


def _one_game(label: str, row: tables.ScoreRow) -> str:
    cell = row.cells[label]
    references = {"random": row.random, "best constant action": row.constant, "data": row.data}
    known = [f"{name} {tables.number(v)}" for name, v in references.items() if v is not None]
    text = f"{label}: {tables.number(cell.mean)} {tables.span(cell.interval)}".rstrip()
    return f"{text} in {row.game}" + (f" ({', '.join(known)})." if known else ".")


def _view(report: ReportInput, out: Path) -> dict[str, Any]:
    table = tables.score_table(report.evaluations, report.baselines, report.data_means)
    header, rows = tables.text_rows(table)
    return {
        "title": report.title,
        "headline": headline(table),
        "warnings": _warnings(report.evaluations),
        "table": table,
        "header": header,
        "rows": rows,
        "remarks": _remarks(report.evaluations, table),
        "comparisons": _comparisons(report),
        "settings": _settings(report.evaluations),
        "timings": [(stage, _duration(seconds)) for stage, seconds in report.timings.items()],
        "provenance": _provenance(report),
        "notes": list(report.notes),
        "legend": list(zip((label for label, _ in report.curves), SERIES * 9, strict=False)),
        "images": [
            (caption, _data_url(Path(path), "image/png")) for caption, path in report.images
        ],
        "film": _film(report.film, out),
        "film_path": _relative(Path(report.film), out) if report.film else None,
    }


def _warnings(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """(labels, departures from the protocol), one entry for evaluations with the same ones."""
    labels: dict[str, list[str]] = {}
    for evaluation in evaluations:
        if gaps := protocol_gaps(evaluation):
            labels.setdefault("; ".join(gaps), []).append(evaluation.label)
    return [(", ".join(names), gaps) for gaps, names in labels.items()]


def _remarks(evaluations: Sequence[Evaluation], table: tables.ScoreTable) -> list[str]:
    """What a reader of the table must know: published stand-ins, games left out, cut episodes."""
    remarks = []
    if any(not row.random_measured and row.random is not None for row in table.rows):
        remarks.append("† published, not measured here.")
    if note := tables.left_out_note(table):
        remarks.append(note)
    for evaluation in evaluations:
        flags = [flag for game in evaluation.games.values() for flag in game.truncated]
        if any(flags):
            cut = f"the cap cut {sum(flags)} of {len(flags)} episodes."
            remarks.append(f"{evaluation.label}: {cut}")
        if planner_note := evaluation.settings.get("note"):
            remarks.append(f"{evaluation.label}: {planner_note}.")
    return remarks


def _comparisons(report: ReportInput) -> list[tuple[str, Comparison, list[tables.Difference]]]:
    by_label = {evaluation.label: evaluation for evaluation in report.evaluations}
    asked = [c for c in report.comparisons if c.first in by_label and c.second in by_label]
    for planned in report.evaluations:
        for greedy in report.evaluations:
            same = greedy.checkpoint and greedy.checkpoint == planned.checkpoint
            if same and _is_greedy(greedy) and not _is_greedy(planned):
                pair = Comparison("Planned against greedy", greedy.label, planned.label)
                if (pair.first, pair.second) not in {(c.first, c.second) for c in asked}:
                    asked.append(pair)
    found = [(c.title, c, tables.differences(by_label[c.first], by_label[c.second])) for c in asked]
    return [item for item in found if item[2]]


def _is_greedy(evaluation: Evaluation) -> bool:
    return evaluation.settings.get("planner") == "greedy" or evaluation.settings.get("horizon") == 0


def _settings(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
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
            flat["seconds"] = _duration(float(seconds))
        columns.append(flat)
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(_text(column.get(name)) for column in columns)] for name in names]
    rows = [row for row in rows if any(text != "-" for text in row[1:])]
    renamed = {"seconds": "wall time", "is protocol": "full protocol"}
    rows = [[renamed.get(row[0], row[0]), *row[1:]] for row in rows]
    return ["", *(evaluation.label for evaluation in evaluations)], rows


def _provenance(report: ReportInput) -> list[tuple[str, str]]:
    entries = {str(key): _text(value) for key, value in report.provenance.items()}
    for evaluation in report.evaluations:
        for key, value in evaluation.provenance.items():
            entries[f"{evaluation.label}: {key}"] = _text(value)
    return list(entries.items())


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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _score_plots(table: tables.ScoreTable) -> list[_Plot]:
    return [
        _Plot(
            f"Scores in {row.game}",
            plot_game(row, table.labels),
            f"Human: {tables.number(row.human)}, off the scale." if human_off_scale(row) else "",
        )
        for row in table.rows
    ]


def _curve_plots(report: ReportInput) -> list[_Plot]:
    curves = [read_curve(label, path) for label, path in report.curves]
    known = list(dict.fromkeys(metric for curve in curves for metric in curve.metrics))
    wanted = [metric for metric in report.metrics if metric in known] if report.metrics else known
    return [_Plot(f"Learning curve of {metric}", plot_metric(metric, curves)) for metric in wanted]


def _data_url(path: Path, kind: str) -> str | None:
    """The file as a data URL, None where it cannot be read."""
    try:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return None


def _film(film: str | Path | None, out: Path) -> str | None:
    """Source of the video element: inline if small, else the path from the report's folder."""
    if film is None or not Path(film).is_file():
        return None
    if Path(film).stat().st_size < INLINE_FILM_BYTES:
        return _data_url(Path(film), "video/mp4")
    return _relative(Path(film), out)


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _save_picture(out: Path, place: int, name: str, content: bytes) -> str:
    """Save a picture under its title, numbered to be unique; returns its path from the report."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    write_atomically(out / PICTURES / f"{slug}-{place}.png", content)
    return f"{PICTURES}/{slug}-{place}.png"


def _copy_picture(out: Path, place: int, path: str | Path) -> str | None:
    """Copy a picture beside the Markdown report; None if it is missing."""
    try:
        return _save_picture(out, place, f"picture-{Path(path).stem}", Path(path).read_bytes())
    except OSError:
        return None


def _template(name: str, *, escape: bool) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=escape, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "number": tables.number,
        "span": tables.span,
        "percent": tables.percent,
        "md": _markdown_text,
    }
    source = files("jowa.evaluation").joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(source)


def _markdown_text(value: object) -> str:
    """Text that stays text in Markdown: no table borders, HTML or line breaks."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(text.split())
