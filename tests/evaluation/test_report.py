"""The report: complete, self-contained, escaped, and whole when parts are missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image

from jowa.errors import UserError
from jowa.evaluation.plots import MAX_POINTS, Curve, plot_metric, read_curve, svg
from jowa.evaluation.report import Comparison, ReportInput, write_report
from jowa.evaluation.scores import (
    Evaluation,
    GameBaselines,
    GameScores,
    make_settings,
    protocol_gaps,
)

FULL = {"episodes": 16, "envs_per_game": 16, "max_frames": 108_000, "seed": 0}


def evaluation(label, planner="greedy", mean=0.0, checkpoint="runs/a", games=("Pong",), **changes):
    settings = make_settings(**{**FULL, "planner": planner, **changes})
    scores = [mean + i % 3 for i in range(settings["episodes"])]
    played = {g: GameScores(g, scores, [9] * len(scores), [False] * len(scores)) for g in games}
    return Evaluation(label, played, settings, checkpoint)


def write_log(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def full_report(tmp_path):
    log = write_log(
        tmp_path / "log.jsonl",
        [
            {"step": s, "phase": phase, "seconds": 0.1 * s, "loss": 1.0 / (s + 1)}
            for phase in ("world", "joint")
            for s in range(0, 50, 5)
        ],
    )
    image.imsave(tmp_path / "pixels.png", np.zeros((8, 8)))
    (tmp_path / "film.mp4").write_bytes(b"film")
    random = GameScores("Pong", [-20.0, -21.0])
    constant = GameScores("Pong", [-15.0, -16.0])
    return ReportInput(
        "Title",
        [
            evaluation("plain"),
            evaluation("planned", planner="beam", mean=5.0, horizon=2),
            evaluation("scratch", mean=-18.0, checkpoint="runs/b"),
        ],
        {"Pong": GameBaselines("Pong", random, constant, "UPFIRE")},
        {"Pong": 7.5},
        [("demo", log)],
        [],
        [("Reconstruction", tmp_path / "pixels.png"), ("Dream", tmp_path / "missing.png")],
        tmp_path / "film.mp4",
        {"collect": 30.0, "train": 600.0},
        ["One seed."],
        [Comparison("Fine-tuned against from scratch", "scratch", "plain")],
        {"commit": "abc123"},
    )


class Checker(HTMLParser):
    """Fails on tags that are not closed in order; keeps what a browser would fetch or run."""

    VOID = frozenset(("meta", "img", "br", "hr", "link"))

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        # Paragraphs and such may not be left open in our own template.
        assert self.open.pop() == tag


def parse(path):
    checker = Checker()
    checker.feed(path.read_text())
    assert checker.open == []
    return checker


def test_report_holds_every_part_and_fetches_nothing(full_report, tmp_path):
    path = write_report(full_report, tmp_path / "out")
    checker = parse(path)
    text = path.read_text()
    for part in (
        "-20.5",
        "-15.5",
        "UPFIRE",
        "7.5",
        "14.6",
        "plain",
        "planned",
        "One seed.",
        "abc123",
    ):
        assert part in text
    assert "Planned against greedy" in text and "Fine-tuned against from scratch" in text
    assert "second is better" in text
    assert "10 min" in text and "picture missing" in text
    assert "Not the full protocol" not in text
    assert checker.tags.count("svg") == 2 and "script" not in checker.tags
    assert all(source.startswith(("data:", "#")) for source in checker.sources)
    assert any(source.startswith("data:video/mp4") for source in checker.sources)
    assert "prefers-color-scheme: dark" in text


def test_markdown_says_the_same_with_pictures_beside_it(full_report, tmp_path):
    out = write_report(full_report, tmp_path / "out").parent
    text = (out / "report.md").read_text()
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) == 3
    for link in links:
        assert (out / link).read_bytes().startswith(b"\x89PNG")
    for part in (
        "-20.5",
        "-15.5 (UPFIRE)",
        "7.5",
        "One seed.",
        "picture missing",
        "second is better",
    ):
        assert part in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for block in tables:
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_report_without_anything_but_a_title(tmp_path):
    path = write_report(ReportInput("Empty"), tmp_path)
    parse(path)
    assert "<h1>Empty</h1>" in path.read_text()
    assert (tmp_path / "report.md").read_text().startswith("# Empty\n")


def test_report_on_a_game_without_human_score_or_baselines(tmp_path):
    report = ReportInput("T", [evaluation("a", games=("Pooyan", "AirRaid"))])
    text = write_report(report, tmp_path).read_text()
    assert "Left out of the aggregates" in text and "Pooyan" in text and "AirRaid" in text


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>|&"
    log = write_log(tmp_path / "log.jsonl", [{"step": 1, "phase": evil, evil: 1.0}] * 2)
    report = ReportInput(
        evil,
        [evaluation(evil, checkpoint=evil), evaluation("b", planner="beam", checkpoint=evil)],
        curves=[(evil, log), ("other", log)],
        images=[(evil, tmp_path / "none.png")],
        film=tmp_path / evil.replace("/", ""),
        timings={evil: 1.0},
        notes=[evil],
        comparisons=[Comparison(evil, evil, "b")],
        provenance={evil: evil},
    )
    path = write_report(report, tmp_path / "out")
    assert "<script" not in path.read_text()
    assert "script" not in parse(path).tags
    assert "<script" not in (path.parent / "report.md").read_text()


def test_short_and_capped_evaluations_are_called_so(tmp_path):
    capped = evaluation("capped", max_frames=4000)
    capped.games["Pong"].truncated[:3] = [True] * 3
    short = evaluation("short", episodes=4)
    text = write_report(ReportInput("T", [capped, short]), tmp_path).read_text()
    assert "Not the full protocol" in text
    assert "capped: episodes are cut at 4,000 frames (protocol 108,000)." in text
    assert "short: 4 episodes a game (protocol 16)." in text
    assert "the cap cut 3 of 16 episodes" in text
    assert protocol_gaps(evaluation("full")) == []
    assert protocol_gaps(Evaluation("a", {"Pong": GameScores("Pong", [1.0] * 16)}))


def test_large_films_stay_beside_the_report(tmp_path):
    (tmp_path / "big.mp4").write_bytes(bytes(3_000_001))
    path = write_report(ReportInput("T", film=tmp_path / "big.mp4"), tmp_path / "out")
    assert parse(path).sources == ["../big.mp4"]


def test_report_is_reproducible(full_report, tmp_path):
    first, second = (write_report(full_report, tmp_path / "out").read_bytes() for _ in range(2))
    assert first == second


def test_log_runs_on_through_phases_and_later_lines_count(tmp_path):
    entries = [{"step": s, "phase": "a", "loss": float(s)} for s in (0, 10, 20)]
    entries += [{"step": 10, "phase": "a", "loss": 11.0}, {"step": 20, "phase": "a", "loss": 21.0}]
    entries += [{"step": 0, "phase": "b", "loss": 5.0, "new": float("nan")}]
    entries += [{"step": 10, "phase": "b", "loss": 6.0}]
    curve = read_curve("x", write_log(tmp_path / "log.jsonl", entries))
    assert curve.metrics == {"loss": [(0, 0), (10, 11), (20, 5), (30, 6)]}
    assert curve.phases == [("a", 0), ("b", 20)]


def test_torn_last_line_is_skipped_but_a_damaged_log_is_named(tmp_path):
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
