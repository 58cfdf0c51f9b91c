"""Normalised scores, what counts as the protocol, seeds of one agent, and the scores file."""

from __future__ import annotations

import json

import pytest

from jowa.errors import UserError
from jowa.evaluation.scores import (
    Evaluation,
    GameBaselines,
    GameScores,
    ScoreFile,
    agents,
    make_settings,
    normalisable,
    normalise,
)
from jowa.games import get

FULL = {"episodes": 16, "envs_per_game": 16, "max_frames": 108_000, "seed": 0}


def test_normalise_maps_random_to_0_and_human_to_1():
    pong = get("Pong")
    assert normalise("Pong", pong.random) == 0
    assert normalise("Pong", pong.human) == 1
    assert normalise("Pong", (pong.random + pong.dqn) / 2, by="dqn") == pytest.approx(0.5)


def test_games_without_a_human_score_cannot_be_normalised():
    with pytest.raises(UserError, match="Pooyan"):
        normalise("Pooyan", 100.0)
    assert normalise("Pooyan", get("Pooyan").dqn, by="dqn") == 1
    with pytest.raises(UserError, match="'gopher'"):
        normalise("Pong", 0.0, by="gopher")
    with pytest.raises(UserError, match="Pong"):
        normalise("Pongg", 0.0)


def test_games_without_a_score_are_named():
    assert normalisable(["Pong", "Pooyan", "Solaris"]) == (["Pong", "Solaris"], ["Pooyan"])
    assert normalisable(["Pong", "Pooyan", "Solaris"], "dqn") == (["Pong", "Pooyan"], ["Solaris"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, True), ({"max_frames": 4000}, False), ({"episodes": 4}, False), ({"sticky": 0.0}, False)],
)
def test_settings_say_whether_they_are_the_protocol(change, expected):
    settings = make_settings(**{**FULL, **change})
    assert settings["is_protocol"] is expected
    assert set(settings["versions"]) == {"jowa", "ale-py", "torch"}


def test_evaluation_with_too_few_episodes_is_not_the_protocol():
    settings = make_settings(**FULL)
    assert Evaluation("a", {"Pong": GameScores("Pong", [1.0] * 16)}, settings).is_protocol
    assert not Evaluation("a", {"Pong": GameScores("Pong", [1.0] * 3)}, settings).is_protocol


def example_file() -> ScoreFile:
    pong = GameScores("Pong", [1.0, -21.0], [700, 800], [False, True])
    evaluation = Evaluation("greedy", {"Pong": pong}, make_settings(**FULL), "runs/a")
    baselines = {"Pong": GameBaselines("Pong", pong, pong, "NOOP", {"NOOP": -10.0})}
    return ScoreFile([evaluation], baselines, {"command": "jowa evaluate"})


def test_score_file_round_trip(tmp_path):
    path = tmp_path / "new" / "scores.json"
    example_file().save(path)
    assert ScoreFile.load(path) == example_file()
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    example_file().save(path)
    broken = example_file()
    broken.evaluations[0].games["Pong"].scores[0] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        broken.save(path)
    assert ScoreFile.load(path) == example_file()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 99}', '{"version": 1, "evaluations": []}', "\x00"]
)
def test_unreadable_score_files_are_named(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"scores\.json"):
        ScoreFile.load(path)


@pytest.mark.parametrize("damage", [[], [1.0, float("nan")], ["high"], None, "missing"])
def test_score_files_without_whole_scores_are_named(tmp_path, damage):
    path = tmp_path / "scores.json"
    example_file().save(path)
    stored = json.loads(path.read_text())
    game = stored["evaluations"][0]["games"]["Pong"]
    if damage == "missing":
        del game["scores"]
    else:
        game["scores"] = damage
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"scores\.json holds no whole scores"):
        ScoreFile.load(path)


def test_missing_score_file_is_named(tmp_path):
    with pytest.raises(UserError, match="jowa evaluate"):
        ScoreFile.load(tmp_path / "none.json")


def played(label: str, *names: str) -> Evaluation:
    return Evaluation(label, {name: GameScores(name, [1.0]) for name in names})


def test_numbered_labels_are_seeds_of_one_agent():
    found = agents([played("a/0", "Pong", "Boxing"), played("b", "Pong"), played("a/1", "Pong")])
    assert [(agent.label, len(agent.seeds)) for agent in found] == [("a", 2), ("b", 1)]
    assert found[0].games == ["Pong"] and found[0].unshared == ["Boxing"]
    assert [agent.label for agent in agents([played("runs/best", "Pong")])] == ["runs/best"]


@pytest.mark.parametrize("labels", [("a", "a"), ("a/0", "a/0"), ("a", "a/0"), ("a/0", "a")])
def test_labels_must_tell_evaluations_apart(labels):
    with pytest.raises(UserError, match="'a"):
        agents([played(label, "Pong") for label in labels])
