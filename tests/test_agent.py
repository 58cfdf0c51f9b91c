"""The player's memory: contexts of every length, resets, replaced actions, idle environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import jowa
from jowa.agent import Agent, fitted
from jowa.cli import composed
from jowa.data.episodes import EpisodeFile
from jowa.data.segments import SegmentDataset
from jowa.errors import UserError
from jowa.learning.checkpoint import Checkpoint
from jowa.planning.beam import plan
from jowa.planning.config import PlannerConfig

ALL = {"codebook_width": 4, "copy_previous": True, "reader_width": 8}
AgentMaker = Callable[..., Agent]


@pytest.fixture
def make_agent(
    data: list[EpisodeFile],
    make_tokenizer: Callable[..., torch.nn.Module],
    make_model: Callable[..., torch.nn.Module],
) -> AgentMaker:
    tokenizer = make_tokenizer()
    batch = SegmentDataset(data).batch(np.array([0, 20]))
    inputs = batch.observations, batch.games, batch.mask_padding, batch.keys
    tokenizer.learn(tokenizer.train().loss(*inputs).statistics)
    model = make_model(scale=10.0, **ALL)
    model.set_codes(tokenizer)

    def make(horizon: int = 1, context: int = 4, **options: Any) -> Agent:
        planner = PlannerConfig(
            beam_width=2, horizon=horizon, context=context, gamma=0.95, **options
        )
        return Agent(tokenizer, model, planner)

    return make


@pytest.fixture
def screens(data: list[EpisodeFile]) -> tuple[np.ndarray, np.ndarray]:
    """Frames (8, 3, 84, 84) of three environments over eight steps, and their games (3,)."""
    pong, freeway = data
    starts = [(pong, 0), (freeway, 10), (pong, 120)]
    frames = np.stack([file.frames(np.arange(8) * 3 + at) for file, at in starts], axis=1)
    return frames, np.array([file.game.id for file, _ in starts])


def everywhere(count: int = 3) -> np.ndarray:
    return np.ones(count, dtype=bool)


def test_environments_of_different_ages_do_not_touch_each_other(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray]
) -> None:
    """Episodes restart at different times; each plays as if it were alone."""
    frames, games = screens
    together = make_agent()
    alone = [make_agent() for _ in range(3)]
    together.reset(everywhere())
    restarts = {2: 1, 3: 0, 6: 1}
    chosen = []
    for t in range(8):
        if t in restarts:
            which = np.arange(3) == restarts[t]
            together.reset(which)
            alone[restarts[t]].reset(everywhere(1))
        actions = together.act(frames[t], games)
        for e in range(3):
            assert alone[e].act(frames[t, e : e + 1], games[e : e + 1])[0] == actions[e]
        chosen.append(actions)
    assert len(np.unique(np.stack(chosen))) > 2, "the agent does not always do the same"


def test_a_reset_forgets_everything(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, games = screens
    used, fresh = make_agent(), make_agent()
    for t in range(5):
        used.act(frames[t], games)
    used.reset(everywhere())
    for t in range(4, 8):
        assert np.array_equal(used.act(frames[t], games), fresh.act(frames[t], games))


def test_decisions_are_those_of_the_planner_on_the_last_frames_and_executed_actions(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray]
) -> None:
    """Exploration replaces some actions: the context holds what was really sent."""
    frames, games = screens
    agent = make_agent(context=3)
    tokens, sent = [], []
    game_ids = torch.from_numpy(games)
    for t in range(6):
        frame = torch.from_numpy(frames[t]).unsqueeze(1)
        tokens.append(agent.tokenizer.encode(frame, game_ids))
        past = sent[max(0, t - 2) :]
        expected = plan(
            agent.model,
            torch.stack(tokens[-3:], 1),
            torch.stack(past, 1) if past else torch.zeros(3, 0, dtype=torch.long),
            game_ids,
            2,
            1,
            0.95,
        )
        actions = agent.act(frames[t], games)
        assert actions.tolist() == expected.actions.tolist()
        if t % 2:
            actions = np.array([1, t % 3, 4])
            agent.executed(actions)
        sent.append(torch.from_numpy(actions))


def test_idle_environments_are_left_as_they_were(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, games = screens
    agent, reference = make_agent(), make_agent()
    for t in range(8):
        active = np.array([True, t not in (2, 3, 5), True])
        actions = agent.act(frames[t], games, active)
        agent.executed(np.where(active, actions, 0))  # as a rollout does
        if active[1]:
            assert reference.act(frames[t, 1:2], games[1:2])[0] == actions[1]
    mine, theirs = agent.context(np.array([1])), reference.context(np.array([0]))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_what_was_seen_is_the_decoded_frame(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, games = screens
    agent = make_agent()
    agent.act(frames[0], games)
    agent.act(frames[1], games)
    seen = agent.seen(1, int(games[1]))
    game = torch.from_numpy(games[1:2])
    tokens = agent.tokenizer.encode(torch.from_numpy(frames[1, 1:2]).unsqueeze(1), game)
    expected = agent.tokenizer.decode(tokens, game)[0, 0]
    assert seen.dtype == np.uint8
    np.testing.assert_allclose(seen, expected.detach().numpy() * 255, atol=0.51)


@pytest.mark.parametrize("options", [{"horizon": 2}, {"horizon": 0}, {"search": "mcts"}])
def test_an_explanation_is_that_of_the_last_decision(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray], options: dict[str, Any]
) -> None:
    frames, games = screens
    agent = make_agent(**options)
    agent.act(frames[0], games)
    actions = agent.act(frames[1], games, np.array([True, False, True]))
    agent.executed(np.zeros(3, dtype=np.int64))
    for row in (0, 2):
        why, game = agent.explain(row), games[row]
        assert why.action == actions[row]
        legal = agent.model.legal_actions[game].numpy()
        assert np.array_equal(np.isfinite(why.q), legal)
        if agent.planner.horizon == 0:
            assert why.futures == [] and why.q.argmax() == why.action
            continue
        assert int(why.futures[0].actions[0]) == why.action
        assert why.futures[0].score == why.score
        for future, seen in zip(why.futures, why.frames, strict=True):
            decoded = agent.tokenizer.decode(future.frames, torch.full((len(seen),), game))
            expected = decoded.detach().clamp(0, 1)[:, 0].numpy() * 255
            assert seen.dtype == np.uint8 and seen.shape == expected.shape
            np.testing.assert_allclose(seen, expected, atol=0.51)
    with pytest.raises(AssertionError, match="environment 1 was not active"):
        agent.explain(1)


@pytest.mark.parametrize(
    "options",
    [
        {"search": "mcts", "simulations": 6, "choice": "visits", "leaf": "mean"},
        {"stop_at_end": True, "value": "min", "decode": "drafted"},
        {"rewards": "expected", "reward_weight": 4.0, "caution": 1.0},
        {"horizon": 0},
    ],
)
def test_every_search_plays_legally_with_contexts_of_all_lengths_at_once(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray], options: dict[str, Any]
) -> None:
    frames, games = screens
    agent = make_agent(**options)
    for t in range(6):
        if t in (2, 3):
            agent.reset(np.arange(3) == t - 2)
        actions = agent.act(frames[t], games)
        assert agent.model.legal_actions[torch.from_numpy(games), torch.from_numpy(actions)].all()
    assert agent.context(np.arange(3))[2].tolist() == [4, 3, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"search": "best"},
        {"decode": "fast"},
        {"value": "max"},
        {"rewards": "most"},
        {"reward_weight": 0.0},
        {"reward_weight": 4.0},
        {"gamma": 1.5},
        {"caution": -1.0},
        {"caution": 1.0, "search": "mcts"},
        {"leaf": "min"},
        {"choice": "first"},
        {"simulations": 0},
        {"temperature": 0.0},
        {"beam_width": 0},
    ],
)
def test_planner_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        PlannerConfig(**wrong).validate()


def test_the_cautious_planner_is_one_that_says_what_it_does() -> None:
    settings = composed("evaluate", ["checkpoint=runs/x", "planner=cautious"])
    planner = OmegaConf.to_object(settings).planner
    planner.validate()
    assert planner.options == {"rewards": "expected", "caution": 3.0}


@pytest.mark.parametrize("rewards", ["likeliest", "expected"])
def test_a_planner_takes_what_is_left_open_from_the_agents_training(rewards: str) -> None:
    """The agent that comes with jowa was trained with a discount of 0.97, and with steps that have
    a reward counted four times."""
    planner = jowa.load("nano", planner=PlannerConfig(rewards=rewards)).planner
    assert planner.gamma == 0.97
    assert planner.reward_weight == (4.0 if rewards == "expected" else 1.0)
    told = PlannerConfig(rewards=rewards, gamma=0.5, reward_weight=1.0)
    assert jowa.load("nano", planner=told).planner == told


def test_of_an_agent_whose_training_is_not_known_it_takes_what_is_published() -> None:
    saved = Checkpoint(0, {"games": []}, {})
    planner = fitted(saved, PlannerConfig(rewards="expected"))
    assert (planner.gamma, planner.reward_weight) == (0.99, 1.0)


def test_a_reset_by_numbers_is_one_by_flags(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray]
) -> None:
    """Emulators may say 0 and 1, which as places would be the first two environments."""
    frames, games = screens
    by_flags, by_numbers = make_agent(), make_agent()
    for t in range(6):
        if t == 3:
            by_flags.reset(np.array([False, True, True]))
            by_numbers.reset(np.array([0, 1, 1], dtype=np.uint8))
        assert np.array_equal(by_flags.act(frames[t], games), by_numbers.act(frames[t], games))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda frames: frames / np.float32(255), "float32"),
        (lambda frames: frames[:2], r"\(2, 84, 84\) of 3 games"),
        (lambda frames: frames[:, :42], r"\(3, 42, 84\)"),
    ],
)
def test_what_is_no_frame_is_refused_and_forgotten(
    make_agent: AgentMaker,
    screens: tuple[np.ndarray, np.ndarray],
    wrong: Callable[[np.ndarray], np.ndarray],
    said: str,
) -> None:
    frames, games = screens
    interrupted, straight = make_agent(), make_agent()
    for t in range(5):
        if t == 2:
            with pytest.raises(UserError, match=said):
                interrupted.act(wrong(frames[t]), games)
        assert np.array_equal(interrupted.act(frames[t], games), straight.act(frames[t], games))


def test_a_game_it_never_saw_is_refused_and_forgotten() -> None:
    """A loaded agent's values of another game would mean nothing."""
    agent = jowa.load("nano")
    frames = np.zeros((2, 84, 84), dtype=np.uint8)
    pong, enduro = jowa.games.get("Pong").id, jowa.games.get("Enduro").id
    first = agent.act(frames, np.array([pong, pong]))
    with pytest.raises(UserError, match=r"never trained on Enduro \(only on .*Pong"):
        agent.act(frames, np.array([pong, enduro]))
    agent.reset(everywhere(2))
    assert np.array_equal(agent.act(frames, np.array([pong, pong])), first)
    # Nothing is asked of what is not active.
    agent.reset(everywhere(2))
    alone = agent.act(frames, np.array([pong, enduro]), active=np.array([True, False]))
    assert alone.tolist() == [first[0], 0]


def test_an_agent_may_be_used_within_inference_mode_and_without(
    make_agent: AgentMaker, screens: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, games = screens
    agent, other = make_agent(), make_agent()
    with torch.inference_mode():
        agent.act(frames[0], games)
    other.act(frames[0], games)
    sent = np.array([0, 2, 3], dtype=np.int32)
    for each in (agent, other):
        each.executed(sent)
    assert np.array_equal(agent.act(frames[1], games), other.act(frames[1], games))


def test_what_tokens_show_is_plain_data(make_agent: AgentMaker) -> None:
    agent = make_agent()
    shown = agent.tokenizer.decode(torch.zeros(1, 36, dtype=torch.long), torch.tensor([0]))
    assert shown.numpy().shape == (1, 1, 84, 84)
