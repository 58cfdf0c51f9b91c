"""Curves read from training logs, and plots as a page holds them."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from jowa.errors import UserError
from jowa.evaluation.plots import MAX_POINTS, Curve, plot_metric, read_curve, svg


def test_log_runs_on_through_phases_and_later_lines_count(tmp_path, write_log):
    entries = [{"step": s, "phase": "a", "loss": float(s)} for s in (0, 10, 20)]
    entries += [{"step": 10, "phase": "a", "loss": 11.0}, {"step": 20, "phase": "a", "loss": 21.0}]
    entries += [{"step": 0, "phase": "b", "loss": 5.0, "new": float("nan")}]
    entries += [{"step": 10, "phase": "b", "loss": 6.0}]
    curve = read_curve("x", write_log(tmp_path / "log.jsonl", entries))
    assert curve.metrics == {"loss": [(0, 0), (10, 11), (20, 5), (30, 6)]}
    assert curve.phases == [("a", 0), ("b", 20)]


def test_torn_last_line_is_skipped_but_a_damaged_log_is_named(tmp_path, write_log):
    path = write_log(tmp_path / "log.jsonl", [{"step": 0, "phase": "a", "loss": 1.0}])
    path.write_text(path.read_text() + '{"step": 1, "pha')
    assert read_curve("x", path).metrics == {"loss": [(0, 1)]}
    path.write_text('{"step": 1, "pha\n' + path.read_text())
    with pytest.raises(UserError, match=r"line 1 .*log\.jsonl"):
        read_curve("x", path)
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_curve("x", tmp_path / "none.jsonl")


def test_plots_are_valid_scalable_svg_with_the_page_colours():
    points = [(float(s), float(s % 7)) for s in range(5000)]
    text = svg(plot_metric("loss", [Curve("a", {"loss": points}, [("p", 0.0)])]), 'loss <&">')
    root = ElementTree.fromstring(text)
    assert "width" not in root.attrib and "viewBox" in root.attrib
    assert "var(--series-1)" in text and "#2563c9" not in text
    assert len(text) < 200 * MAX_POINTS


def test_held_out_episodes_are_drawn_dashed_beside_what_was_learned_from():
    learned, held_out = [(0.0, 3.0), (9.0, 1.0)], [(9.0, 2.0)]
    both = {"loss": learned, "validation/loss": held_out}
    plain = plot_metric("loss", [Curve("a", {"loss": learned}, [("p", 0.0)])])
    figure = plot_metric("loss", [Curve("a", both, [("p", 0.0)])])
    assert len(plain.axes[0].lines) == 1
    first, second = figure.axes[0].lines
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert first.get_color() == second.get_color()
    assert second.get_xydata().tolist() == [[9.0, 2.0]]


def test_what_was_learned_is_drawn_over_updates_and_over_time(tmp_path, write_log):
    entries = [{"step": s, "phase": "a", "seconds": 6.0 * s, "loss": float(s)} for s in (0, 10, 20)]
    # Stopped and gone on from step 10, more slowly.
    entries += [{"step": 20, "phase": "a", "seconds": 120.0, "loss": 21.0}]
    figure = plot_metric("loss", [read_curve("x", write_log(tmp_path / "log.jsonl", entries))])
    steps, minutes = (axes.lines[0].get_xydata().tolist() for axes in figure.axes)
    assert steps == [[0, 0], [10, 10], [20, 21]]
    assert minutes == [[0, 0], [1, 10], [2, 21]]
