"""Collecting: budgets, tiers, units, determinism, keeping and refusing files, what is found."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jowa.collecting import learner
from jowa.collecting.behaviours import Tier
from jowa.collecting.collect import collect
from jowa.collecting.constants import blind_returns
from jowa.collecting.learner import LearnerConfig
from jowa.collecting.recipe import Recipe
from jowa.collecting.search import SearchConfig
from jowa.data.episodes import (
    END_NONE,
    END_TERMINAL,
    END_TRUNCATED,
    EpisodeFile,
    EpisodeWriter,
)
from jowa.data.store import verify
from jowa.errors import UserError
from jowa.games import Game, get

TIERS = (
    Tier("expert", "scripted", 0.5, epsilon=0.02, burst_probability=0.01),
    Tier("random", "random", 0.5),
)
RANDOM = (Tier("random", "random", 1.0),)
SETTINGS: dict[str, Any] = {
    "transitions": 800,
    "tiers": TIERS,
    "short_episode_steps": 50,
    "short_share": 0.5,
    "max_frames": 600,
    "seed": 3,
}


def fingerprints(root: Path, names: list[str]) -> list[str]:
    result = []
    for name in names:
        with EpisodeFile(root / f"{name}.h5") as file:
            result.append(file.fingerprint)
    return result


def test_workers_and_ctrl_c_do_not_change_the_data(tmp_path: Path) -> None:
    games, settings = ["Pong", "Breakout"], SETTINGS | {"piece": 100, "max_frames": 300}
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    calls: list[tuple[str, int, int]] = []

    def stop(name: str, done: int, total: int) -> None:
        if len(list(stopped.glob(".parts/*/*.h5"))) > 2:
            raise KeyboardInterrupt

    def note(name: str, done: int, total: int) -> None:
        calls.append((name, done, total))

    with pytest.raises(KeyboardInterrupt):
        collect(games, stopped, **settings, workers=2, progress=stop)
    assert not multiprocessing.active_children()
    parts = {path: path.stat().st_mtime_ns for path in stopped.glob(".parts/*/*.h5")}
    assert len(parts) > 2 and not list(stopped.glob("*.h5"))

    def keep_parts(name: str, done: int, total: int) -> None:
        note(name, done, total)
        for path in parts:
            assert not path.exists() or path.stat().st_mtime_ns == parts[path]

    # Finished with another number of workers than it was begun with.
    one = collect(games, stopped, **settings, workers=1, progress=keep_parts)
    assert list(one) == games and {one[name]["status"] for name in games} == {"collected"}
    assert {("Pong", 800, 800), ("Breakout", 800, 800)} <= set(calls)
    assert all(0 <= done <= total for _, done, total in calls)
    assert calls[0][1] >= 100, "finished parts count at once"
    collect(games, whole, **settings, workers=2)
    assert fingerprints(stopped, games) == fingerprints(whole, games)
    assert sorted(path.name for path in whole.iterdir()) == ["Breakout.h5", "Pong.h5"]


def test_tiers_get_their_share_of_full_and_short_episodes(tmp_path: Path) -> None:
    path = tmp_path / "Breakout.h5"
    statistics = collect(["Breakout"], tmp_path, **SETTINGS, piece=60)["Breakout"]
    assert statistics["transitions"] >= 800
    verify(path)
    with EpisodeFile(path) as file:
        lengths = np.diff(file.episode_starts)
        full = file.episode_full == 1
        last = file.ends[file.episode_starts[1:] - 1]
        assert list(file.tiers) == ["expert", "random"]
        for tier in (0, 1):
            mine = file.episode_tiers == tier
            assert lengths[mine & ~full].sum() == 200
            # Finished games only, and none more than the share needs, although each of the four
            # units had to finish its last one (150 steps at most).
            games = lengths[mine & full]
            assert games.sum() >= 200 and games[:-1].sum() < 200
        assert (lengths[~full] <= 50).all()
        assert set(last[full]) <= {END_TERMINAL, END_TRUNCATED}
        assert (lengths[full & (last == END_TRUNCATED)] == 150).all()
        assert (last[~full] == END_NONE).sum() > 0
        assert set(file.actions) <= set(get("Breakout").action_ids)
        # Short episodes start at many different points of the game.
        starts = file.frames(file.episode_starts[:-1][~full])
        assert len({frame.tobytes() for frame in starts}) > len(starts) * 0.8


@pytest.mark.parametrize(("piece", "numbers"), [(5000, [1, 1]), (100, [4, 3]), (1, [375, 250])])
def test_units_share_a_tier_evenly(piece: int, numbers: list[int]) -> None:
    tiers = (Tier("a", "random", 0.625), Tier("b", "learner", 0.375))
    recipe = Recipe(1000, tiers, 50, 0.4, 400, 0, piece)
    units = recipe.units(get("Pong"))
    for kind, number, budget in zip(("full", "short"), numbers, (375, 250), strict=True):
        targets = [unit.target for unit in units if unit.kind == kind]
        assert len(targets) == number and sum(targets) == budget
        assert max(targets) - min(targets) <= 1
    assert [unit.target for unit in units if unit.tier == 1] == [375]
    streams = {tuple(recipe.entropy(unit)) for unit in units}
    assert len(streams) == len(units), "no two units play the same"


def test_seed_and_pieces_decide_the_data(tmp_path: Path) -> None:
    small = SETTINGS | {"transitions": 200, "tiers": RANDOM, "max_frames": 100}
    changes: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {},
        "c": {"seed": 4},
        "d": {"piece": 25},
    }
    for name, change in changes.items():
        collect(["Pong"], tmp_path / name, **(small | change))
    a, b, c, d = (fingerprints(tmp_path / name, ["Pong"])[0] for name in changes)
    assert a == b and len({a, c, d}) == 3


def test_present_files_are_kept_refused_or_replaced(tmp_path: Path) -> None:
    small = SETTINGS | {"transitions": 200, "max_frames": 100}
    made = collect(["Pong"], tmp_path, **small)["Pong"]
    before = (tmp_path / "Pong.h5").stat().st_mtime_ns
    kept = collect(["Pong"], tmp_path, **small)["Pong"]
    assert kept["status"] == "kept" and kept["facts"] == made["facts"]
    assert (tmp_path / "Pong.h5").stat().st_mtime_ns == before
    other = small | {"seed": 4}
    with pytest.raises(UserError, match=r"Pong\.h5.*overwrite=true.*another root"):
        collect(["Pong"], tmp_path, **other)
    assert collect(["Pong"], tmp_path, **other, overwrite=True)["Pong"]["status"] == "collected"
    assert collect(["Pong"], tmp_path, **other)["Pong"]["status"] == "kept"


def test_parts_of_another_recipe_and_damaged_ones_are_played_anew(tmp_path: Path) -> None:
    settings = SETTINGS | {"tiers": RANDOM, "transitions": 200, "piece": 50, "max_frames": 100}

    def begin(root: Path, **change: Any) -> set[Path]:
        before = set(root.glob(".parts/Pong/*.h5"))

        def stop(name: str, done: int, total: int) -> None:
            if set(root.glob(".parts/Pong/*.h5")) - before:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collect(["Pong"], root, **(settings | change), progress=stop)
        return set(root.glob(".parts/Pong/*.h5")) - before

    first = begin(tmp_path / "a", seed=4)
    second = begin(tmp_path / "a")
    assert first and second
    damaged = min(second)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1  # somewhere in the frames
    damaged.write_bytes(content)
    collect(["Pong"], tmp_path / "a", **settings)
    collect(["Pong"], tmp_path / "b", **settings)
    assert fingerprints(tmp_path / "a", ["Pong"]) == fingerprints(tmp_path / "b", ["Pong"])


def test_facts_tell_returns_cost_and_blind_play(tmp_path: Path) -> None:
    settings = SETTINGS | {"transitions": 400, "piece": 70, "constant_episodes": 2}
    facts = collect(["Breakout"], tmp_path, **settings)["Breakout"]["facts"]
    with EpisodeFile(tmp_path / "Breakout.h5") as file:
        assert file.facts == facts and file.raw_rewards is not None
        scores: dict[str, list[float]] = {"expert": [], "random": []}
        for number in np.flatnonzero(file.episode_full):
            rows = slice(*file.episode_starts[number : number + 2])
            scores[file.tiers[file.episode_tiers[number]]].append(file.raw_rewards[rows].sum())
        lengths = np.diff(file.episode_starts)
        for position, (name, mine) in enumerate(scores.items()):
            told = facts["tiers"][name]
            assert told["full_games"] == len(mine) > 0
            assert told["mean_return"] == pytest.approx(np.mean(mine))
            assert (told["min_return"], told["max_return"]) == (min(mine), max(mine))
            assert told["transitions"] == lengths[file.episode_tiers == position].sum()
            assert told["steps"] > told["transitions"], "unrecorded steps cost, too"
            speed = told["steps"] / told["seconds"]
            assert told["steps_per_second"] == pytest.approx(speed, rel=0.01)
    both = scores["expert"] + scores["random"]
    assert facts["all"]["mean_return"] == pytest.approx(np.mean(both))
    # Without FIRE no ball is served; 600 frames of it lose lives or hit a brick at most.
    assert set(facts["constants"]) == set(get("Breakout").actions)
    assert facts["constants"]["NOOP"] == 0.0 and facts["blind_episodes"] == 2
    assert facts["constants"][facts["best_constant"]] == max(facts["constants"].values())


def test_holding_up_scores_in_freeway_and_random_play_does_not() -> None:
    game, rng = get("Freeway"), np.random.default_rng(0)
    up = game.action_ids[game.actions.index("UP")]
    assert min(blind_returns(game, up, 2, 4000, rng)) > 5
    assert max(blind_returns(game, None, 1, 4000, rng)) < 3


def test_games_without_teacher_can_be_played_at_random_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Assault has no scripted teacher"):
        collect(["Pong", "Assault"], tmp_path, **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    small = SETTINGS | {"tiers": RANDOM, "transitions": 200}
    assert collect(["Assault"], tmp_path, **small)["Assault"]["transitions"] >= 200


def test_a_learner_makes_its_tier_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def record(game: Game, path: Path, **options: Any) -> None:
        asked.append(options)
        with EpisodeWriter(path, game, source="fake", tiers=[options["tier"]]) as writer:
            frames = np.full((300, 84, 84), 7, dtype=np.uint8)
            zeros = np.zeros(300)
            writer.add(frames, zeros.astype(int), zeros, END_TERMINAL)
            writer.facts["curve"] = [1, 2]
        for done in (100, 200, 300):
            options["progress"](done)

    monkeypatch.setattr(learner, "record_learner", record)
    config = LearnerConfig()
    tiers = (Tier("random", "random", 0.5), Tier("learner", "learner", 0.5, learner=config))
    settings = SETTINGS | {"tiers": tiers, "transitions": 600, "piece": 100}
    calls: list[int] = []
    made = collect(
        ["Pong"], tmp_path, **settings, progress=lambda name, done, total: calls.append(done)
    )["Pong"]
    assert calls[:4] == [0, 100, 200, 300], "it starts first, and counts as it goes"
    assert len(asked) == 1
    assert asked[0]["transitions"] == 300 and asked[0]["tier"] == "learner"
    assert asked[0]["config"] == config and asked[0]["max_frames"] == 600
    assert made["tiers"]["learner"]["transitions"] == 300
    with EpisodeFile(tmp_path / "Pong.h5") as file:
        rows = np.flatnonzero(np.repeat(file.episode_tiers, np.diff(file.episode_starts)) == 1)
        assert (file.frames(rows) == 7).all()
        assert "an online learner" in file.source
        assert file.facts["tiers"]["learner"]["learning"]["curve"] == [1, 2]


def test_where_a_learner_learns_is_no_part_of_the_recipe() -> None:
    def named(**learner_settings: Any) -> str:
        tier = Tier("learner", "learner", 1.0, learner=LearnerConfig(**learner_settings))
        return Recipe(**(SETTINGS | {"tiers": (tier,), "piece": 100})).digest()

    assert named(device="cuda") == named(device="cpu")
    assert named(steps=7_777) != named()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tiers": TIERS[:1]}, "add up to 0.5"),
        ({"tiers": (TIERS[0], TIERS[0])}, "same name"),
        ({"transitions": 0}, "transitions"),
        ({"piece": 0}, "piece"),
        ({"short_share": 2.0}, "short_share"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"constant_episodes": -1}, "constant_episodes"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        collect(["Pong"], tmp_path, **(SETTINGS | change))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"behaviour": "clever"}, "clever.*random, scripted, agent, search, learner"),
        ({"behaviour": "agent"}, "checkpoint=RUN"),
        ({"behaviour": "random", "checkpoint": "runs/x"}, "only behaviour=agent.*is random"),
        ({"behaviour": "scripted", "search": SearchConfig()}, "only behaviour=search"),
        ({"behaviour": "search", "learner": LearnerConfig()}, "only behaviour=learner"),
        ({"behaviour": "learner", "epsilon": 0.1}, "explores by its own"),
        ({"behaviour": "search", "search": SearchConfig(horizon=0)}, "search.horizon=0"),
        ({"behaviour": "search", "search": SearchConfig(horizon=3)}, "search.replan=4"),
        ({"behaviour": "search", "search": SearchConfig(lookahead=9)}, "lookahead=9.*use 13"),
        ({"behaviour": "search", "search": SearchConfig(gamma=1.5)}, "search.gamma=1.5"),
        ({"behaviour": "search", "search": SearchConfig(life_penalty=-1)}, "life_penalty=-1"),
    ],
)
def test_settings_that_a_tier_cannot_use_are_explained(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Tier("mine", share=1.0, **settings)
    assert "'mine'" in str(caught.value)
