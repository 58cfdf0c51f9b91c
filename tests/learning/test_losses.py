"""The losses against slow, plain references, and what padding may not do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jowa.learning.losses import (
    IGNORE,
    cql_penalty,
    n_step_targets,
    next_token_targets,
    project,
    squared_td_loss,
    step_losses,
    td_loss,
)

SUPPORT = torch.linspace(-10, 30, 51, dtype=torch.float64)


def slow_projection(value: float, discount: float, probs: list[float], support: list[float]):
    """Bellemare et al. (2017), algorithm 1, one atom at a time."""
    low, high, atoms = support[0], support[-1], len(support)
    out, gap = [0.0] * atoms, (high - low) / (atoms - 1)
    for p, z in zip(probs, support, strict=True):
        position = (min(max(value + discount * z, low), high) - low) / gap
        below, above = math.floor(position), math.ceil(position)
        if above > atoms - 1 or below == above:
            out[min(below, atoms - 1)] += p
        else:
            out[below] += p * (above - position)
            out[above] += p * (position - below)
    return out


@st.composite
def distributions(draw: st.DrawFn) -> tuple[float, float, Tensor, Tensor]:
    atoms = draw(st.integers(2, 51))
    low = draw(st.floats(-20, 5))
    support = torch.linspace(low, low + draw(st.floats(0.5, 50)), atoms, dtype=torch.float64)
    weights = draw(st.lists(st.floats(0, 1), min_size=atoms, max_size=atoms))
    probs = torch.tensor(weights, dtype=torch.float64) + 1e-3
    value, discount = draw(st.floats(-30, 30)), draw(st.floats(0, 1))
    return value, discount, probs / probs.sum(), support


@given(distributions())
@settings(deadline=None, max_examples=150)
def test_projection_equals_the_slow_one_and_keeps_mass(
    case: tuple[float, float, Tensor, Tensor],
) -> None:
    value, discount, probs, support = case
    ours = project(torch.tensor(value).double(), torch.tensor(discount).double(), probs, support)
    slow = slow_projection(value, discount, probs.tolist(), support.tolist())
    np.testing.assert_allclose(ours.numpy(), slow, atol=1e-6)
    assert float(ours.sum()) == pytest.approx(1.0)
    assert (ours >= 0).all()


@given(st.floats(-9, 9), st.floats(0, 0.5), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_projection_keeps_the_mean_inside_the_support(
    value: float, discount: float, seed: int
) -> None:
    """value + discount * z stays inside [-10, 30] for z in [-2, 30]."""
    probs = np.random.default_rng(seed).random(51)
    probs[:10] = 0.0
    if discount * 30 + value > 30 or discount * -2 + value < -10:
        return
    p = torch.from_numpy(probs / probs.sum())
    projected = project(torch.tensor(value).double(), torch.tensor(discount).double(), p, SUPPORT)
    mean = float((projected * SUPPORT).sum())
    assert mean == pytest.approx(value + discount * float((p * SUPPORT).sum()), abs=1e-6)


@pytest.mark.parametrize("reward", [-1.0, 0.0, 1.0])
def test_a_terminal_target_is_the_reward_whatever_follows(reward: float) -> None:
    probs = torch.rand(51, dtype=torch.float64)
    target = project(
        torch.tensor(reward).double(), torch.zeros(()).double(), probs / probs.sum(), SUPPORT
    )
    assert float((target * SUPPORT).sum()) == pytest.approx(reward)
    assert (target > 0).sum() <= 2
    assert (target > 0)[(SUPPORT - reward).abs() > 0.8].sum() == 0


@st.composite
def episodes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, ends and mask (B, L) with padding on either side and ends on last real steps."""
    L = draw(st.integers(1, 8))
    rewards, ends, masks = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        left = draw(st.integers(0, L - 1))
        right = draw(st.integers(left + 1, L))
        mask = [left <= t < right for t in range(L)]
        rewards.append([float(draw(st.integers(-1, 1))) if m else 0.0 for m in mask])
        ended = draw(st.booleans())
        ends.append([ended and t == right - 1 for t in range(L)])
        masks.append(mask)
    return torch.tensor(rewards), torch.tensor(ends), torch.tensor(masks)


def slow_target(
    rewards: list[float], ends: list[bool], mask: list[bool], t: int, gamma: float, n: int
) -> tuple[float, float, int] | None:
    """(return, discount, bootstrap step) of step t, or None where it has no target."""

    def known(s: int) -> bool:
        return mask[s] and (ends[s] or (s + 1 < len(mask) and mask[s + 1]))

    if not known(t):
        return None
    total, discount, s = 0.0, 1.0, t
    for _ in range(n):
        if not known(s):
            break
        total += discount * rewards[s]
        if ends[s]:
            return total, 0.0, s
        discount *= gamma
        s += 1
    return total, discount, s


@given(episodes(), st.integers(1, 10), st.sampled_from([0.5, 0.99, 1.0]))
@settings(deadline=None, max_examples=200)
def test_n_step_targets_equal_the_slow_ones(
    case: tuple[Tensor, Tensor, Tensor], n: int, gamma: float
) -> None:
    rewards, ends, mask = case
    targets = n_step_targets(rewards, ends, mask, gamma, n)
    for b in range(len(mask)):
        for t in range(mask.shape[1]):
            slow = slow_target(rewards[b].tolist(), ends[b].tolist(), mask[b].tolist(), t, gamma, n)
            assert bool(targets.rows[b, t]) == (slow is not None)
            if slow is not None:
                assert float(targets.returns[b, t]) == pytest.approx(slow[0], abs=1e-5)
                assert float(targets.discounts[b, t]) == pytest.approx(slow[1], abs=1e-6)
                if slow[1] > 0:
                    assert int(targets.bootstrap[b, t]) == slow[2]


@given(episodes())
@settings(deadline=None, max_examples=60)
def test_one_step_is_the_published_algorithm(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """All real steps but each segment's last, and the ends; r + 0.99 V(next), or r alone."""
    rewards, ends, mask = case
    targets = n_step_targets(rewards, ends, mask, 0.99)
    last = torch.tensor([[m and not any(row[t + 1 :]) for t, m in enumerate(row)] for row in mask])
    assert torch.equal(targets.rows, (mask & ~last) | ends)
    torch.testing.assert_close(targets.returns[targets.rows], rewards[targets.rows])
    torch.testing.assert_close(
        targets.discounts[targets.rows], torch.where(ends, 0.0, 0.99)[targets.rows]
    )
    steps = torch.arange(mask.shape[1]).expand_as(mask)
    going = targets.rows & ~ends
    assert torch.equal(targets.bootstrap[going], steps[going] + 1)


def test_td_loss_by_hand_with_the_best_legal_action() -> None:
    """Two steps; the illegal action looks best and must not be bootstrapped from."""
    support = torch.tensor([0.0, 1.0, 2.0])
    target_probs = torch.tensor([0.0, 0.0, 1.0]).expand(1, 2, 3, 3).clone()
    target_probs[0, 1, 0] = torch.tensor([1.0, 0.0, 0.0])  # value 0
    target_probs[0, 1, 1] = torch.tensor([0.0, 1.0, 0.0])  # value 1
    probs = torch.tensor([0.2, 0.5, 0.3]).expand(1, 2, 3, 3)
    legal = torch.tensor([[True, True, False]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    actions = torch.zeros(1, 2, dtype=torch.long)
    targets = n_step_targets(torch.tensor([[1.0, 0.0]]), torch.tensor([[False, False]]), mask, 0.5)
    # 1 + 0.5 * 1 = 1.5: half on atom 1, half on atom 2; the second step has no target.
    loss = td_loss(probs, target_probs, actions, targets, legal, support)
    assert float(loss) == pytest.approx(-0.5 * math.log(0.5) - 0.5 * math.log(0.3), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_cql_penalty_by_hand(temperature: float) -> None:
    values = torch.tensor([[[1.0, 2.0, 0.5], [3.0, -1.0, 0.0], [99.0, 99.0, 99.0]]])
    mask = torch.tensor([[True, True, False]])
    everywhere, in_data = cql_penalty(values, torch.tensor([[1, 2, 0]]), mask, mask, temperature)

    def soft(row: list[float]) -> float:
        return temperature * math.log(sum(math.exp(v / temperature) for v in row))

    expected = (soft([1.0, 2.0, 0.5]) + soft([3.0, -1.0, 0.0])) / 2
    assert float(everywhere) == pytest.approx(expected, rel=1e-5)
    assert float(in_data) == pytest.approx((2.0 + 0.0) / 2)


def test_combo_raises_the_value_of_real_actions_only() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [5.0, 7.0]]])
    mask, real = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])
    actions = torch.tensor([[1, 0, 1]])
    cql, combo = (cql_penalty(values, actions, mask, m) for m in (mask, real))
    assert float(cql[0]) == float(combo[0])
    assert float(cql[1]) == pytest.approx((2 + 3 + 7) / 3)
    assert float(combo[1]) == pytest.approx((2 + 3) / 2)


def test_squared_td_loss_by_hand() -> None:
    """Three steps: one bootstraps from the best legal action, one ends, one is padding."""
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [50.0, 50.0]]], requires_grad=True)
    target_values = torch.tensor([[[0.0, 0.0], [6.0, 9.0], [70.0, 70.0]]])
    rewards, ends = torch.tensor([[0.5, -1.0, 0.0]]), torch.tensor([[False, True, False]])
    targets = n_step_targets(rewards, ends, torch.tensor([[True, True, False]]), 0.9)
    legal = torch.tensor([[True, False]])
    loss = squared_td_loss(values, target_values, torch.tensor([[1, 0, 0]]), targets, legal)
    first, second = 2.0 - (0.5 + 0.9 * 6.0), 3.0 - (-1.0)
    assert float(loss.detach()) == pytest.approx(0.5 * (first**2 + second**2) / 2)
    loss.backward()
    expected = torch.tensor([[[0.0, first / 2], [second / 2, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(values.grad, expected)


@given(episodes())
@settings(deadline=None, max_examples=30)
def test_next_token_targets_equal_a_slow_loop(case: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, mask = case
    tokens = torch.randint(0, 1000, (*mask.shape, 36))
    targets = next_token_targets(tokens, mask)
    B, L = mask.shape
    for b in range(B):
        for t in range(L):
            for k in range(36):
                at = (t, k + 1) if k < 35 else (t + 1, 0)
                real = at[0] < L and bool(mask[b, at[0]])
                expected = int(tokens[b, at[0], at[1]]) if real else IGNORE
                assert int(targets[b, 36 * t + k]) == expected


def right_padded(real: list[int], L: int = 5) -> Tensor:
    return torch.arange(L) < torch.tensor(real).unsqueeze(1)


def world_inputs(mask: Tensor, junk: float) -> list[Tensor]:
    """Logits and data whose padded part is zero (junk = 0) or wild."""
    torch.manual_seed(0)
    B, L = mask.shape
    logits = [torch.randn(B, L, 3), torch.randn(B, L, 2)]
    logits = [torch.where(mask.unsqueeze(-1), x, junk) for x in logits]
    rewards = torch.randint(-1, 2, (B, L)).float().masked_fill(~mask, 1.0 if junk else 0.0)
    ends = torch.where(mask, torch.zeros(B, L, dtype=torch.bool), bool(junk))
    return [*[x.requires_grad_() for x in logits], rewards, ends]


def test_padding_contributes_nothing_to_rewards_and_ends() -> None:
    mask = right_padded([5, 2, 1])
    results = []
    for junk in (0.0, 40.0):
        inputs = world_inputs(mask, junk)
        losses = step_losses(*inputs, mask, 3.0)
        sum(losses).backward()
        results.append((*losses, *(x.grad for x in inputs[:2])))
        assert (inputs[0].grad[~mask] == 0).all() and (inputs[1].grad[~mask] == 0).all()
    for calm, wild in zip(*results, strict=True):
        torch.testing.assert_close(calm, wild)


@pytest.mark.parametrize("left", [False, True])
def test_padding_contributes_nothing_to_q(left: bool) -> None:
    mask = right_padded([5, 2, 1])
    mask = mask.flip(1) if left else mask
    support, legal = torch.linspace(-2, 2, 5), torch.ones(3, 4, dtype=torch.bool)
    results = []
    for junk in (0, 1):
        torch.manual_seed(1)
        m = mask[..., None, None]
        logits = torch.where(m, torch.randn(3, 5, 4, 5), 30.0 * junk * torch.randn(3, 5, 4, 5))
        logits.requires_grad_()
        target = torch.where(m, torch.randn(3, 5, 4, 5), junk * 9.0).softmax(-1)
        actions = torch.where(mask, torch.randint(0, 4, (3, 5)), junk)
        rewards = torch.where(mask, torch.randint(-1, 2, (3, 5)).float(), float(junk))
        ends = torch.zeros_like(mask)
        ends[0, -1] = True
        ends |= ~mask & bool(junk)
        probs = logits.softmax(-1)
        targets = n_step_targets(rewards, ends, mask, 0.9, 3)
        td = td_loss(probs, target, actions, targets, legal, support)
        everywhere, in_data = cql_penalty((probs * support).sum(-1), actions, mask, mask)
        (td + everywhere - in_data).backward()
        assert (logits.grad[~mask] == 0).all()
        results.append((td, everywhere, in_data, logits.grad))
    for calm, wild in zip(*results, strict=True):
        torch.testing.assert_close(calm, wild)


def test_reward_weight_multiplies_only_steps_with_a_reward() -> None:
    mask = right_padded([4, 4])
    inputs = world_inputs(mask, 0.0)
    rewards = inputs[2]
    assert (rewards != 0)[mask].any() and (rewards == 0)[mask].any()
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(
            inputs[0].flatten(0, 1), rewards.flatten().long() + 1, reduction="none"
        ).view_as(rewards)
        weighted = torch.where(rewards != 0, 5.0 * plain, plain)[mask].mean()
        got, _ = step_losses(*inputs, mask, 5.0)
    torch.testing.assert_close(got, weighted)
