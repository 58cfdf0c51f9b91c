"""The score table: cells, aggregates, what is left out, and differences."""

from __future__ import annotations

import numpy as np
import pytest

from jowa.errors import UserError
from jowa.evaluation.scores import Evaluation, GameBaselines, GameScores, agents, normalise
from jowa.evaluation.statistics import iqm
from jowa.evaluation.table import differences, format_table, number, percent, score_table


def evaluation(label: str, **scores: list[float]) -> Evaluation:
    return Evaluation(
        label, {g: GameScores(g, s, [1] * len(s), [False] * len(s)) for g, s in scores.items()}
    )


def baseline(game: str, random: float, constant: float) -> GameBaselines:
    return GameBaselines(
        game, GameScores(game, [random]), GameScores(game, [constant]), "FIRE", {"FIRE": constant}
    )


def test_rows_hold_references_and_cells():
    agent = evaluation("agent", Pong=[1.0, 3.0], Breakout=[10.0, 20.0])
    table = score_table([agent], {"Pong": baseline("Pong", -20, -19)}, {"Pong": 5.0})
    assert [row.game for row in table.rows] == ["Breakout", "Pong"]
    breakout, pong = table.rows
    assert (pong.random, pong.constant, pong.constant_action, pong.data) == (-20, -19, "FIRE", 5)
    assert pong.random_measured and not breakout.random_measured
    assert breakout.constant is None and breakout.data is None
    cell = pong.cells["agent"]
    assert cell.mean == 2.0 and cell.hns == normalise("Pong", 2.0)
    assert cell.interval == (1.0, 3.0)
    assert cell.hns_interval == (normalise("Pong", 1.0), normalise("Pong", 3.0))


def test_aggregates_leave_out_games_without_a_human_score_by_name():
    agent = evaluation("agent", Pong=[1.0, 3.0], Breakout=[10.0, 20.0], Pooyan=[500.0, 600.0])
    table = score_table([agent], {"Pong": baseline("Pong", -20, 9)})
    aggregate = table.aggregates[0]
    values = [normalise("Pong", 2.0), normalise("Breakout", 15.0)]
    assert aggregate.left_out == ("Pooyan",)
    assert aggregate.games == ("Breakout", "Pong")
    found = aggregate.estimates["iqm"]
    assert found.value == pytest.approx(iqm(values))
    assert aggregate.estimates["mean"].value == pytest.approx(np.mean(values))
    assert found.interval[0] <= found.value <= found.interval[1]
    assert (aggregate.beats_constant, aggregate.with_constant) == (0, 1)
    assert "Pooyan" in format_table(table).splitlines()[-1]
    pooyan = next(row for row in table.rows if row.game == "Pooyan")
    assert pooyan.cells["agent"].hns is None


def test_a_single_episode_has_no_interval():
    table = score_table([evaluation("agent", Pong=[1.0])])
    assert table.rows[0].cells["agent"].interval is None
    assert table.aggregates[0].estimates["iqm"].interval is None


def test_only_unnormalisable_games_give_no_aggregate():
    table = score_table([evaluation("agent", Pooyan=[1.0, 2.0])])
    assert table.aggregates[0].estimates == {}
    assert "-" in format_table(table)


def test_evaluations_may_have_played_different_games():
    table = score_table([evaluation("a", Pong=[1.0, 2.0]), evaluation("b", Breakout=[1.0, 2.0])])
    assert [list(row.cells) for row in table.rows] == [["b"], ["a"]]


def test_labels_must_differ():
    with pytest.raises(UserError, match="'a'"):
        score_table([evaluation("a", Pong=[1.0]), evaluation("a", Pong=[2.0])])


def test_seeds_share_a_column_with_the_mean_of_their_means():
    seeds = [
        evaluation("a/0", Pong=[1.0, 3.0], Boxing=[1.0]),
        evaluation("a/1", Pong=[8.0] * 4),
        evaluation("b", Pong=[0.0]),
    ]
    table = score_table(seeds)
    assert table.labels == ("a", "b")
    (pong,) = (row for row in table.rows if row.game == "Pong")
    assert pong.cells["a"].mean == 5.0
    assert pong.cells["a"].interval == (1.5, 8.0)
    aggregate = table.aggregates[0]
    assert aggregate.games == ("Pong",) and aggregate.unshared == ("Boxing",)
    assert "not being played by every seed: Boxing" in format_table(table)


def test_games_without_a_dqn_score_are_named_too():
    text = format_table(score_table([evaluation("a", Pong=[1.0], Solaris=[900.0])]))
    assert text.splitlines()[-1].endswith("no published DQN score: Solaris.")


def test_few_episodes_of_baselines_are_shown():
    table = score_table([evaluation("a", Pong=[1.0])], {"Pong": baseline("Pong", -20, -19)})
    assert "(FIRE, 1 ep.)" in format_table(table)


def test_table_is_the_same_every_time():
    agent = evaluation("agent", Pong=list(np.arange(16.0)), Breakout=list(np.arange(16.0)))
    assert score_table([agent]) == score_table([agent])


def test_differences_only_of_shared_games_and_only_clear_ones_are_claimed():
    first = evaluation("first", Pong=[-20.0, -21.0, -20.0], Breakout=[1.0, 9.0, 5.0])
    second = evaluation("second", Pong=[5.0, 6.0, 5.0], Breakout=[2.0, 8.0, 6.0], Boxing=[1.0])
    first, second = agents([first, second])
    found = {d.game: d for d in differences(first, second)}
    assert list(found) == ["Breakout", "Pong"]
    assert found["Pong"].difference == pytest.approx(25.667, abs=1e-3)
    assert found["Pong"].verdict == "second is better"
    assert found["Breakout"].verdict == "not clear"
    assert differences(second, first)[1].verdict == "second is worse"


def test_numbers_read_well():
    assert [number(v) for v in (None, -0.001, -0.25, 12.34, -21.0, 2841262.5)] == [
        "-",
        "0.00",
        "-0.25",
        "12.3",
        "-21.0",
        "2,841,262",
    ]
    assert [percent(v) for v in (None, 0.0123, 0.847, -0.5)] == ["-", "1.2%", "85%", "-50%"]
