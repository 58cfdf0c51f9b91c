"""The report: complete, self-contained, escaped, and whole when parts are missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import image

from jowa.errors import UserError
from jowa.evaluation.commands import merged, report
from jowa.evaluation.config import ReportConfig
from jowa.evaluation.published import published_scores, standings
from jowa.evaluation.report import ReportInput, write_report
from jowa.evaluation.scores import (
    Evaluation,
    GameBaselines,
    GameScores,
    ScoreFile,
    agents,
    make_settings,
    protocol_gaps,
)
from jowa.evaluation.sections import Comparison

FULL = {"episodes": 16, "envs_per_game": 16, "max_frames": 108_000, "seed": 0}


def evaluation(label, planner="greedy", mean=0.0, checkpoint="runs/a", games=("Pong",), **changes):
    settings = make_settings(**{**FULL, "planner": planner, **changes})
    scores = [mean + i % 3 for i in range(settings["episodes"])]
    played = {g: GameScores(g, scores, [9] * len(scores), [False] * len(scores)) for g in games}
    return Evaluation(label, played, settings, checkpoint)


@pytest.fixture
def full_report(tmp_path, write_log):
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
        "-15.5 (UPFIRE, 2 ep.)",
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


def test_everything_from_outside_is_escaped(tmp_path, write_log):
    evil = "<script>alert(1)</script>|&"
    log = write_log(tmp_path / "log.jsonl", [{"step": 1, "phase": evil, evil: 1.0}] * 2)
    report = ReportInput(
        evil,
        [
            evaluation(evil, checkpoint=evil, games=("Pong", "Boxing")),
            evaluation("b", planner="beam", checkpoint=evil, games=("Pong", "Boxing")),
            evaluation("short " + evil, episodes=2),
        ],
        curves=[(evil, log), ("other", log)],
        images=[(evil, tmp_path / "none.png")],
        film=tmp_path / evil.replace("/", ""),
        timings={evil: 1.0},
        notes=[evil],
        comparisons=[Comparison(evil, evil, "b")],
        provenance={evil: evil},
        references=["b"],
        remarks=[evil],
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


def test_aggregates_stand_beside_trivial_play_and_references(tmp_path):
    names = ("Pong", "Boxing", "Pooyan")
    constant = {name: GameScores(name, [-15.0, -16.0, -15.0]) for name in names}
    baselines = {n: GameBaselines(n, GameScores(n, [-20.0] * 2), constant[n], "UP") for n in names}
    players = [evaluation("agent", games=names), evaluation("clone", games=names, mean=-3.0)]
    page = write_report(ReportInput("T", players, baselines, references=["clone"]), tmp_path)
    text, markdown = page.read_text(), (tmp_path / "report.md").read_text()
    parse(page)
    assert "2 games: Boxing, Pong" in text and "no published human score: Pooyan" in text
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in lines}
    assert rows["agent"][1] == "16" and rows["random play (reference)"][1] == "2"
    assert all("[" in cell for cell in rows["agent"][2:8])
    assert "clone (reference)" in rows and "best constant (reference)" in rows
    assert "Performance profile" in text and "Optimality gap" in text
    with pytest.raises(UserError, match=r"'clown'.*'agent', 'clone'"):
        write_report(ReportInput("T", players, references=["clown"]), tmp_path)


def test_seeds_are_one_agent_with_its_seeds_below(tmp_path):
    names = ("Pong", "Boxing")
    seeds = [evaluation(f"a/{i}", games=names, mean=4.0 * i) for i in range(3)]
    markdown = write_report(ReportInput("T", seeds), tmp_path).with_suffix(".md").read_text()
    assert "- a: 56% [" in markdown and "- a/0: " not in markdown
    assert "| a | 3 seeds of 16 |" in markdown
    assert all(f" a/{i} | 16 |" in markdown for i in range(3))


def published_player(label, names, **changes):
    """An evaluation whose means are JOWA's 150M agent's."""
    played = evaluation(label, games=names, **changes)
    for name, game in played.games.items():
        game.scores = [published_scores()["JOWA_150M_with_planning"][name]] * len(game.scores)
    return played


def test_published_agents_are_compared_on_the_common_games_only(tmp_path):
    every = list(published_scores()["EDT_200M"])
    few = ["Assault", "Pong", "Phoenix"]
    whole, part = published_player("whole", every), evaluation("part", games=few)
    short = published_player("short", every, max_frames=4000)
    found, apart = standings(agents([whole, part, short]))
    assert [label for label, _ in apart] == ["short"] and "4,000 frames" in apart[0][1]
    assert [standing.games for standing in found] == [tuple(every), ("Assault", "Phoenix")]
    by_label = {entry.label: entry for entry in found[0].entries}
    assert len(by_label) == 14
    assert by_label["whole"].estimates["iqm"].value == pytest.approx(0.8469, abs=1e-4)
    twin = by_label["JOWA 150M with planning"]
    assert twin.estimates["iqm"].value == by_label["whole"].estimates["iqm"].value
    assert twin.tuned and not by_label["EDT 200M"].tuned
    assert twin.estimates["iqm"].interval is None
    short = evaluation("short", games=few, max_frames=4000)
    text = write_report(ReportInput("T", [part, short]), tmp_path).read_text()
    assert "Only 2 of the 15 published games are common: Assault, Phoenix" in text
    table = text[text.index("Beside the published") : text.index("Not shown here")]
    assert "short" not in table and "short" in text[text.index("Not shown here") :]


def test_comparison_gives_the_probability_of_improvement_and_unlike_settings(tmp_path):
    players = [evaluation("a"), evaluation("b", mean=1.0, max_frames=4000)]
    pair = Comparison("T", "a", "b")
    text = write_report(ReportInput("T", players, comparisons=[pair]), tmp_path).read_text()
    # Scores 0, 1, 2 (6, 5, 5 of 16) against 1, 2, 3: of 256 pairs 171 are above and 55 equal.
    assert "78%" in text and "Probability of improvement" in text
    assert "Not played alike: max frames 108,000 against 4,000." in text


def saved(path, *evaluations, **parts):
    ScoreFile(list(evaluations), **parts).save(path)
    return str(path)


def test_report_names_what_is_wrong_with_labels(tmp_path):
    one = saved(tmp_path / "one.json", evaluation("a"))
    two = saved(tmp_path / "two.json", evaluation("a"), evaluation("b"))
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"one\.json and .*two\.json both .*'a'"):
        report(ReportConfig(out=out, scores=[one, two]))
    with pytest.raises(UserError, match=r"'c'.*'a', 'b'"):
        report(ReportConfig(out=out, scores=[two], compare=["a|c"]))
    with pytest.raises(UserError, match=r"'d'.*'a', 'b'"):
        report(ReportConfig(out=out, scores=[two], references=["d"]))
    assert not (tmp_path / "out").exists()


def test_files_that_contradict_each_other_are_said_to(tmp_path):
    def baselines(*scores):
        games = GameScores("Pong", list(scores))
        return {"Pong": GameBaselines("Pong", games, games, "UP")}

    first = ScoreFile([evaluation("a")], baselines(-21.0), {"Pong": 1.0})
    second = ScoreFile([evaluation("b")], baselines(-20.0, -20.0), {"Pong": 2.0})
    whole, remarks = merged({"one": first, "two": second})
    assert [e.label for e in whole.evaluations] == ["a", "b"]
    assert whole.baselines["Pong"].random.mean == -20.0 and whole.data_means == {"Pong": 1.0}
    assert len(remarks) == 2 and all("Pong" in remark for remark in remarks)
    assert merged({"one": first, "same": ScoreFile([], baselines(-21.0))})[1] == []


def test_runs_of_one_folder_name_are_told_apart(tmp_path, write_log):
    for parent in ("one", "two"):
        (tmp_path / parent / "run").mkdir(parents=True)
        entries = [{"step": 1, "phase": "a", "q/td": 1.0}]
        write_log(tmp_path / parent / "run" / "metrics.jsonl", entries)
    runs = [str(tmp_path / parent / "run") for parent in ("one", "two")]
    page = report(ReportConfig(out=str(tmp_path / "out"), runs=runs))
    assert all(run in page.read_text() for run in runs)


def test_large_films_stay_beside_the_report(tmp_path):
    (tmp_path / "big.mp4").write_bytes(bytes(3_000_001))
    path = write_report(ReportInput("T", film=tmp_path / "big.mp4"), tmp_path / "out")
    assert parse(path).sources == ["../big.mp4"]


def test_report_is_reproducible(full_report, tmp_path):
    first, second = (write_report(full_report, tmp_path / "out").read_bytes() for _ in range(2))
    assert first == second
