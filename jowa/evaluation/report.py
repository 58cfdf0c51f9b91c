"""The report: one self-contained HTML file, and the same as Markdown with its pictures beside it.

Everything is made from data (scores, logs, pictures); what is missing is left out, or named.
"""

from __future__ import annotations

import base64
import itertools
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

from jowa.evaluation import score_plots, sections
from jowa.evaluation import table as tables
from jowa.evaluation.aggregates import MEASURES, Estimate
from jowa.evaluation.plots import SERIES, plot_metric, png, read_curve, svg
from jowa.evaluation.published import Standing, standings
from jowa.evaluation.scores import Evaluation, GameBaselines, agents
from jowa.evaluation.sections import Block, Comparison
from jowa.files import write_atomically

INLINE_FILM_BYTES = 3_000_000
PICTURES = "report-images"


@dataclass
class ReportInput:
    """What a report is made of; every part but the title may be empty.

    `curves` are (label, path of a JSON-lines training log); `metrics` picks what is drawn, in
    order (all metrics when empty). `images` are (caption, path of a PNG). `timings` are wall
    seconds by stage. `data_means` are the mean raw scores of the training data by game.
    `references` are labels to measure the others by, such as a clone's. `remarks` stand below the
    scores, `notes` and `provenance` at the end. Greedy and planned evaluations of one checkpoint
    are compared without being asked for, and evaluations labelled `NAME/0`, `NAME/1`, ... are seeds
    of the agent `NAME`.
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
    references: Sequence[str] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class _Plot:
    name: str
    figure: Figure
    note: str = ""
    wide: bool = False


def write_report(report: ReportInput, out_dir: str | Path) -> Path:
    """Write report.html, report.md and its pictures into `out_dir`; returns the HTML file's path.

    Raises UserError for a training log that cannot be read, or a label that is not there.
    """
    out = Path(out_dir)
    view = _view(report, out)
    plots = _plots(report, view)
    inline = {
        key: [(Markup(svg(plot.figure, plot.name)), plot.note, plot.wide) for plot in found]
        for key, found in plots.items()
    }
    places = itertools.count(1)
    pictures = {
        key: [
            (plot.name, _save_picture(out, next(places), plot.name, png(plot.figure)))
            for plot in found
        ]
        for key, found in plots.items()
    }
    beside = [
        (caption, _copy_picture(out, place, path))
        for place, (caption, path) in enumerate(report.images, 1)
    ]
    html = _template("report.html.j2", escape=True).render(view, plots=inline)
    markdown = _template("report.md.j2", escape=False).render(
        {**view, "plots": pictures, "images": beside}
    )
    write_atomically(out / "report.md", re.sub(r"\n{3,}", "\n\n", markdown).encode())
    write_atomically(out / "report.html", html.encode())
    return out / "report.html"


def _view(report: ReportInput, out: Path) -> dict[str, Any]:
    """What both templates show, but for the plots."""
    table = tables.score_table(report.evaluations, report.baselines, report.data_means)
    sections.check_labels(report.references, dict.fromkeys(table.labels), "references")
    players = agents(report.evaluations)
    header, rows = tables.text_rows(table)
    standing, apart = standings(players)
    return {
        "title": report.title,
        "headline": sections.headline(table, report.references),
        "warnings": sections.warnings(report.evaluations),
        "measures": MEASURES,
        "blocks": sections.blocks(table, players, report.baselines, report.references),
        "table": table,
        "header": header,
        "rows": rows,
        "colours": score_plots.colours(table.labels, report.references),
        "marks": {player.label: "" if player.is_protocol else "‡" for player in players},
        "references": set(report.references),
        "played": {player.label: sections.played(player, player.played) for player in players},
        "played_trivially": sections.counts(
            row.baseline_episodes for row in table.rows if row.random_measured
        ),
        "remarks": [*sections.remarks(report.evaluations, table), *report.remarks],
        "standings": standing,
        "apart": apart,
        "contrasts": sections.contrasts(report.comparisons, report.evaluations),
        "settings": sections.settings(report.evaluations),
        "timings": [(name, sections.duration(s)) for name, s in report.timings.items()],
        "provenance": sections.provenance(report.provenance, report.evaluations),
        "notes": list(report.notes),
        "legend": list(zip((label for label, _ in report.curves), SERIES * 9, strict=False)),
        "images": [
            (caption, _data_url(Path(path), "image/png")) for caption, path in report.images
        ],
        "film": _film(report.film, out),
        "film_path": _relative(Path(report.film), out) if report.film else None,
    }


def _plots(report: ReportInput, view: dict[str, Any]) -> dict[str, list[_Plot]]:
    """The plots by section."""
    colours = view["colours"]
    found = {"scores": _score_plots(view["table"], colours), "curves": _curve_plots(report)}
    for place, block in enumerate(view["blocks"]):
        found[f"block {place}"] = _block_plots(block, colours)
    for place, standing in enumerate(view["standings"]):
        found[f"standing {place}"] = [_standing_plot(standing, colours)]
    return found


def _score_plots(table: tables.ScoreTable, colours: Mapping[str, str]) -> list[_Plot]:
    plots = []
    for row in table.rows:
        figure, note = score_plots.plot_game(row, colours), ""
        if score_plots.human_off_scale(row):
            note = f"Human: {tables.number(row.human)}, off the scale."
        plots.append(_Plot(f"Scores in {row.game}", figure, note))
    return plots


def _block_plots(block: Block, colours: Mapping[str, str]) -> list[_Plot]:
    """Aggregates as bars, and performance profiles."""
    plots = []
    for measure in MEASURES:
        bars = [
            _bar(row.label, row.estimates[measure.key], colours)
            for row in block.rows
            if measure.key in row.estimates and row.kind != "seed"
        ]
        if bars:
            figure = score_plots.plot_bars(measure.title, bars, percent=not measure.is_count)
            plots.append(_Plot(measure.title, figure))
    profiles = score_plots.plot_profiles(block.profiles, colours)
    return [*plots, _Plot("Performance profile", profiles, wide=True)]


def _bar(label: str, estimate: Estimate, colours: Mapping[str, str]) -> score_plots.Bar:
    colour = colours.get(label, score_plots.REFERENCE)
    return score_plots.Bar(label, estimate.value, estimate.interval, colour)


def _standing_plot(standing: Standing, colours: Mapping[str, str]) -> _Plot:
    bars = []
    for entry in standing.entries:
        label, own = entry.label + ("*" if entry.tuned else ""), colours if entry.ours else {}
        estimate = entry.estimates["iqm"]
        colour = own.get(entry.label, score_plots.REFERENCE)
        bars.append(score_plots.Bar(label, estimate.value, estimate.interval, colour))
    title = f"IQM over {len(standing.games)} common game{'s' if len(standing.games) > 1 else ''}"
    return _Plot(title, score_plots.plot_bars(title, bars, width=score_plots.WIDE), wide=True)


def _curve_plots(report: ReportInput) -> list[_Plot]:
    curves = [read_curve(label, path) for label, path in report.curves]
    known = list(dict.fromkeys(metric for curve in curves for metric in curve.metrics))
    wanted = [metric for metric in report.metrics if metric in known] if report.metrics else known
    figures = {metric: plot_metric(metric, curves) for metric in wanted}
    return [
        _Plot(f"Learning curve of {metric}", figure, wide=len(figure.axes) > 1)
        for metric, figure in figures.items()
    ]


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
        "show": lambda estimate, measure: tables.show(measure, estimate),
        "bounds": lambda estimate, measure: tables.show_interval(measure, estimate),
        "md": _markdown_text,
    }
    source = files("jowa.evaluation").joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(source)


def _markdown_text(value: object) -> str:
    """Text that stays text in Markdown: no table borders, HTML or line breaks."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(text.split())
