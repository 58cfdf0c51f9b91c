"""What the world-action model gives: its heads' outputs, and its embedding tables.

B rows, L frames, D width, V observation tokens, A = 18 actions, Z atoms, Q ensemble members.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What one forward pass computes; fields that were not asked for are None.

    B is the number of `world_rows` in all but the Q logits.

    observation_logits stand at the 36 predicting positions of each block in order: 0 to 34
    predict tokens 1 to 35 of the same frame, the action position token 0 of the next frame.
    `predicting` and `hints` are what they are computed from.
    """

    observation_logits: Tensor | None = None  # (B, 36·L, V)
    reward_logits: Tensor | None = None  # (B, L, 3), classes of sign(r) + 1
    end_logits: Tensor | None = None  # (B, L, 2)
    q_logits: Tensor | None = None  # (Q, B, L, A·Z); (Q, B, L, A) if not distributional
    target_q_logits: Tensor | None = None  # likewise, no gradient
    predicting: Tensor | None = None  # (B, 36·L, D) activations at the predicting positions
    hints: Tensor | None = None  # (B, 36·L) the previous frame's tokens there, if they are copied


class Tables(NamedTuple):
    """Embedding tables as they are looked up, so that decoding computes them once."""

    observation: Tensor  # (V + 1, D), last row zeros: the place is not an observation's
    hint: Tensor | None  # (V + 1, D), last row: there is no previous frame
    pictures: Tensor | None  # (V + 1, 196), the codes' scaled pictures and zeros
