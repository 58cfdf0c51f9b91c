"""Names and sizes of the published weights, translated to ours.

The released files are flat state dicts of float32 tensors whose names may carry a prefix.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from jowa.games import NUM_ACTIONS
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import WorldActionConfig

_PREFIX = re.compile(r"^(_orig_mod\.)?(module\.)?")
_BUFFERS = re.compile(r"(\.indices|attn\.mask)$")
_RENAMES = (
    (r"^pos_emb\.", "position_embedding."),
    (r"^embedder\.embedding_tables\.0\.", "action_embedding."),
    (r"^embedder\.embedding_tables\.1\.", "observation_embedding."),
    (r"^task_emb\.embedding_tables\.0\.", "task_action_embedding."),
    (r"^task_emb\.embedding_tables\.1\.", "task_observation_embedding."),
    (r"^head_observations\.head_module\.", "observation_head."),
    (r"^head_rewards\.head_module\.", "reward_head."),
    (r"^head_ends\.head_module\.", "end_head."),
    (r"\.attn\.", ".attention."),
)
_Q_PARAMETERS = (
    "linear1.weight",
    "linear1.bias",
    "norm1.weight",
    "norm1.bias",
    "linear2.weight",
    "linear2.bias",
    "norm2.weight",
    "norm2.bias",
    "linear3.weight",
    "linear3.bias",
)


def translate(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from a released one: prefixes and buffers dropped, attention fused."""
    state: dict[str, Tensor] = {}
    for name, tensor in released.items():
        name = _PREFIX.sub("", name)
        if _BUFFERS.search(name):
            continue
        if match := re.match(r"^head_q(_target)?\.head_module\.params\.(\d)$", name):
            head = "target_q_head" if match[1] else "q_head"
            state[f"{head}.{_Q_PARAMETERS[int(match[2])]}"] = tensor
            continue
        for pattern, ours in _RENAMES:
            name = re.sub(pattern, ours, name)
        state[name] = tensor
    for name in [name for name in state if ".attention.query." in name]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("query", "qkv")] = torch.cat(parts)
    return state


def infer_config(state: dict[str, Tensor], heads: int) -> WorldActionConfig:
    """The sizes of a translated state dict; the number of heads leaves no trace in it."""
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.blocks.")}
    vocabulary, width = state["observation_embedding.weight"].shape
    members, q_width, _ = state["q_head.linear1.weight"].shape
    return WorldActionConfig(
        transformer=TransformerConfig(layers=len(layers), heads=heads, width=width),
        vocabulary=vocabulary,
        q_width=q_width,
        q_members=members,
        atoms=state["q_head.linear3.bias"].shape[1] // NUM_ACTIONS,
    )
