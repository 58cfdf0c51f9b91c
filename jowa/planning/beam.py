"""Beam search over imagined futures (JOWA paper, section 3; greedy play is horizon 0).

B environments, N nodes each, W beam width, H horizon.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.games import NUM_ACTIONS, by_id
from jowa.models.world_action import FRAME_TOKENS, MAX_FRAMES, WorldActionModel
from jowa.planning.decode import Decoder, decoder_of
from jowa.planning.dream import Dream
from jowa.planning.evaluation_mode import in_evaluation_mode
from jowa.planning.paths import Level, Path, Plan, Rules, best, expand, futures, root, select
from jowa.planning.searches import Question
from jowa.planning.trace import Trace


def check(beam_width: int, horizon: int, context: int) -> None:
    """Raises UserError unless the planner's numbers fit together."""
    if beam_width < 1:
        raise UserError(f"beam_width is {beam_width}, but a search keeps at least 1 path.")
    if horizon < 0:
        raise UserError(f"horizon is {horizon}; it must be 0 (greedy) or more.")
    if context < 1 or horizon + context > MAX_FRAMES:
        raise UserError(
            f"horizon {horizon} plus context {context} must lie between 1 and {MAX_FRAMES} frames, "
            f"the length of the model's sequence: make one of them smaller."
        )


def begin(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    horizon: int,
    lengths: Tensor | None,
    decoder: Decoder | None,
) -> Dream:
    """The dream at the roots of a search that looks `horizon` frames ahead."""
    playable = model.legal_actions.any(-1)[games]
    if not playable.all():
        raise unplayable(model, games)
    obs_tokens, actions, lengths = within(horizon, obs_tokens, actions, lengths)
    return Dream.start(model, obs_tokens, actions, games, horizon, lengths, decoder)


def unplayable(model: WorldActionModel, games: Tensor) -> UserError:
    """What to say where a game has no legal action."""
    name = by_id(int(games[~model.legal_actions.any(-1)[games]][0])).name
    return UserError(f"{name} has no legal action among the model's: nothing can be chosen.")


def within(
    horizon: int, obs_tokens: Tensor, actions: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Contexts without their oldest frames where those and `horizon` more exceed the sequence; as
    int64, and no longer than they are, for compiled code trusts both."""
    room = MAX_FRAMES - horizon
    if lengths is not None:
        most = min(room, obs_tokens.shape[1])
        lengths = lengths.to(obs_tokens.device, torch.long).clamp(1, most)
    obs_tokens, actions = obs_tokens.long(), actions.long()
    return obs_tokens[:, -room:], actions[:, max(0, actions.shape[1] + 1 - room) :], lengths


@torch.inference_mode()
def plan(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    beam_width: int = 2,
    horizon: int = 2,
    gamma: float = 0.99,
    *,
    lengths: Tensor | None = None,
    stop_at_end: bool = False,
    pessimistic: bool = False,
    caution: float = 0.0,
    reward_weight: float | None = None,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    trace: Trace | None = None,
) -> Plan:
    """Decides for B environments at once.

    obs_tokens (B, T, 36) holds T past frames of which the last is the current one, actions
    (B, T - 1) those between them, games (B,); with `lengths` (B,) only the last `lengths[b]` frames
    of row b, 1 to T, are real. From the root every kept node is expanded by its `beam_width` best
    legal actions; a node at depth d scores Σ_{i<d} γ^i r̂_i + γ^d max_a Q(s_d, a); the best
    `beam_width` of all expanded nodes are kept.

    `stop_at_end` ends a path's value where the model predicts the episode's end; `pessimistic`
    takes the least of the ensemble's values instead of their mean; `caution` weighs a cost of every
    step, what its action's Q falls short of the best one's where it is taken: a Q with a penalty
    says by that how unlike the data an action is, which the value of an imagined frame does not (0
    is the published search, much is greedy play); with a `reward_weight` imagined rewards are the
    expected instead of the likeliest ones, of a model that was trained with rewarded steps counted
    so many times; a `generator` draws the
    imagined frames, rewards and ends instead of taking the likeliest; `decoder` chooses how frames
    are decoded, which changes results by rounding at most, and remembers what is fast; a `trace`
    is filled with what was considered.
    """
    path = imagine(
        model,
        obs_tokens,
        actions,
        games,
        beam_width,
        horizon,
        gamma,
        lengths=lengths,
        stop_at_end=stop_at_end,
        pessimistic=pessimistic,
        caution=caution,
        reward_weight=reward_weight,
        generator=generator,
        decoder=decoder,
        trace=trace,
    )
    return Plan(path.actions[:, 0], path.scores)


@in_evaluation_mode
@torch.inference_mode()
def imagine(
    model: WorldActionModel,
    obs_tokens: Tensor,
    actions: Tensor,
    games: Tensor,
    beam_width: int = 2,
    horizon: int = 2,
    gamma: float = 0.99,
    *,
    lengths: Tensor | None = None,
    stop_at_end: bool = False,
    pessimistic: bool = False,
    caution: float = 0.0,
    reward_weight: float | None = None,
    generator: torch.Generator | None = None,
    decoder: Decoder | None = None,
    trace: Trace | None = None,
) -> Path:
    """The whole path of which `plan`, given the same, returns the first action."""
    check(beam_width, horizon, 1)
    rules = Rules(beam_width, gamma, stop_at_end, caution, reward_weight)
    decoder = decoder or decoder_of(model)
    if generator is None and decoder.static(model.support.device):
        contexts = within(horizon, obs_tokens, actions, lengths)
        question = Question(*contexts, games, horizon, rules, pessimistic)
        return _static(model, question, decoder, trace)
    dream = begin(model, obs_tokens, actions, games, horizon, lengths, decoder)
    B = len(games)
    environments = torch.arange(B, device=games.device).unsqueeze(1)
    root_q = dream.q_values(pessimistic)
    beam, levels = root(root_q), list[Level]()
    rows_BN = environments  # where the kept nodes are in the dream
    # Where no game has more legal actions than this, wider beams hold only padding.
    width = min(beam_width, int(model.legal_actions[games].sum(-1).max()))
    for depth in range(1, horizon + 1):
        action, real = expand(beam, width)
        dream = dream.branch(rows_BN.flatten().repeat_interleave(width), siblings=width)
        rewards, ends = (
            x.view(B, -1) for x in dream.step(action.flatten(), generator, reward_weight)
        )
        q = dream.q_values(pessimistic).view(B, -1, NUM_ACTIONS)
        frames = dream.frame.view(B, -1, FRAME_TOKENS)
        beam, level = select(beam, frames, action, real, rewards, ends, q, depth, rules)
        levels.append(level)
        rows_BN = environments * action.shape[1] + level.kept
    if trace is not None:
        trace.q, trace.futures = root_q, partial(futures, levels)
    return best(levels, beam)


def _static(
    model: WorldActionModel, question: Question, decoder: Decoder, trace: Trace | None
) -> Path:
    """The best path by a search of static shapes."""
    answer = decoder.searches.run(model, question, decoder.work)
    if not answer.playable:
        raise unplayable(model, question.games)
    if trace is not None:
        trace.q, levels = answer.considered()
        trace.futures = partial(futures, levels)
    return answer.path
