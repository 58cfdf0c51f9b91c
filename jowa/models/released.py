"""The published weights: their names and sizes, checked and translated to ours.

The released files are flat state dicts of float32 tensors whose names may carry a prefix. Every
function here takes such a dict and `what`, the words that errors call it by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.games import NUM_ACTIONS, NUM_GAMES
from jowa.models.conv_tokenizer import ConvTokenizer
from jowa.models.conv_tokenizer import infer_config as infer_tokenizer_config
from jowa.models.skeleton import Skeleton
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import BLOCK_TOKENS, MAX_FRAMES, WorldActionConfig, WorldActionModel

# What the released models were pretrained on (JOWA paper, section 4).
PRETRAINED_GAMES = (
    *("Assault", "Atlantis", "BeamRider", "Berzerk", "Carnival"),
    *("Centipede", "ChopperCommand", "DemonAttack", "NameThisGame", "Phoenix"),
    *("Seaquest", "SpaceInvaders", "StarGunner", "TimePilot", "Zaxxon"),
)

# Compiled and data-parallel modules save their names with these in front, in either order.
_PREFIX = re.compile(r"^((_orig_mod|module)\.)*")
_BUFFERS = re.compile(r"(^|\.)(indices|attn\.mask)$")
_MODULES = {
    "transformer": "transformer",
    "position_embedding": "pos_emb",
    "action_embedding": "embedder.embedding_tables.0",
    "observation_embedding": "embedder.embedding_tables.1",
    "task_action_embedding": "task_emb.embedding_tables.0",
    "task_observation_embedding": "task_emb.embedding_tables.1",
    "observation_head": "head_observations.head_module",
    "reward_head": "head_rewards.head_module",
    "end_head": "head_ends.head_module",
    "q_head": "head_q.head_module.params",
    "target_q_head": "head_q_target.head_module.params",
}
# The Q head's parameters are numbered in the released files.
_Q_PARAMETERS = (
    *("linear1.weight", "linear1.bias", "norm1.weight", "norm1.bias"),
    *("linear2.weight", "linear2.bias", "norm2.weight", "norm2.bias"),
    *("linear3.weight", "linear3.bias"),
)
_TABLE = _MODULES["observation_embedding"] + ".weight"
_Q_FIRST, _Q_LAST = (f"{_MODULES['q_head']}.{i}" for i in (0, len(_Q_PARAMETERS) - 1))
# Why some numbers of rows are as they are.
_ROWS = {
    "position_embedding": f"a row for each of {MAX_FRAMES} frames' {BLOCK_TOKENS} tokens",
    "action_embedding": f"a row for each of {NUM_ACTIONS} actions",
    "task_action_embedding": f"a row for each of {NUM_GAMES} games",
    "task_observation_embedding": f"a row for each of {NUM_GAMES} games",
}
_REASONS = {f"{_MODULES[ours]}.weight": reason for ours, reason in _ROWS.items()}
# How names begin that only one of the two kinds of file has.
_KINDS = {
    "model": ("transformer.blocks.", "embedder.", "head_"),
    "tokenizer": ("encoder.", "decoder.", "pre_quant_conv.", "post_quant_conv."),
}
_HEADS = {512: 8, 768: 12}  # of each published width; the number leaves no trace in the weights


def released_names(name: str) -> list[str]:
    """The released tensors that make up our model's parameter `name`: one, or query, key, value."""
    module, _, rest = name.partition(".")
    if module in ("q_head", "target_q_head"):
        rest = str(_Q_PARAMETERS.index(rest))
    name = f"{_MODULES[module]}.{rest}".replace(".attention.", ".attn.")
    if ".attn.qkv." in name:
        return [name.replace("qkv", part) for part in ("query", "key", "value")]
    return [name]


def build_model(
    released: Mapping[str, Tensor], what: str, num_heads: int | None = None
) -> WorldActionModel:
    """The model of a released file, in evaluation mode; `num_heads` only for unpublished widths.

    Tensors that need no change become its parameters without a copy.
    """
    tensors = _plain(released, what, "model")
    config = infer_config(tensors, what, num_heads)
    with Skeleton():
        model = WorldActionModel(config)
    own = model.state_dict()
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in own.items():
        parts = released_names(name)
        wanted |= {part: (len(tensor) // len(parts), *tensor.shape[1:]) for part in parts}
    _check(tensors, wanted, what, "model")
    state = {}
    for name in own:
        found = [tensors[part].float() for part in released_names(name)]
        state[name] = torch.cat(found) if len(found) > 1 else found[0]
    model.load_state_dict(state, assign=True)
    return model.eval()


def build_tokenizer(released: Mapping[str, Tensor], what: str) -> ConvTokenizer:
    """The tokenizer of a released file, in evaluation mode; its perceptual net is left out."""
    tensors = _plain(released, what, "tokenizer")
    tensors = {name: t for name, t in tensors.items() if not name.startswith("lpips.")}
    _require(tensors, what, {"embedding.weight": 2, "encoder.conv_in.weight": 4})
    config = infer_tokenizer_config(tensors)
    if config.channels % 2:
        raise UserError(
            f"{what} is not a released tokenizer: encoder.conv_in.weight has {config.channels} "
            f"channels, which do not go into two groups."
        )
    with Skeleton():
        tokenizer = ConvTokenizer(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    _check(tensors, wanted, what, "tokenizer")
    state = {name: tensors[name].float() for name in wanted}
    tokenizer.load_state_dict(state, assign=True)
    return tokenizer.eval()


def infer_config(
    tensors: Mapping[str, Tensor], what: str, num_heads: int | None = None
) -> WorldActionConfig:
    """The sizes of a released model, its names without a prefix."""
    _require(tensors, what, {_TABLE: 2, _Q_FIRST: 3, _Q_LAST: 2})
    vocabulary, width = tensors[_TABLE].shape
    members, q_width, _ = tensors[_Q_FIRST].shape
    outputs = tensors[_Q_LAST].shape[1]
    if outputs % NUM_ACTIONS:
        raise UserError(
            f"{what} is not a released model: {_Q_LAST} has {outputs} outputs, which is no "
            f"multiple of the {NUM_ACTIONS} actions."
        )
    layers = {name.split(".")[2] for name in tensors if name.startswith("transformer.blocks.")}
    heads = _heads(width, num_heads, what)
    return WorldActionConfig(
        transformer=TransformerConfig(layers=len(layers), heads=heads, width=width),
        vocabulary=vocabulary,
        q_width=q_width,
        q_members=members,
        atoms=outputs // NUM_ACTIONS,
    )


def _heads(width: int, given: int | None, what: str) -> int:
    heads = _HEADS.get(width) if given is None else given
    if heads is None:
        raise UserError(
            f"{what} is of width {width}, which no published model has, and weights do not show "
            f"their number of attention heads: give num_heads=..."
        )
    if heads < 1 or width % heads:
        raise UserError(f"num_heads={heads} does not divide the width {width} of {what}.")
    return heads


def _plain(released: Mapping[str, Tensor], what: str, kind: str) -> dict[str, Tensor]:
    """The tensors without prefixes and buffers; UserError if they are of no or the other kind."""
    tensors: dict[str, Tensor] = {}
    for full_name, tensor in released.items():
        name = _PREFIX.sub("", full_name)
        if name in tensors:
            raise UserError(f"{what} is ambiguous: it holds {name} twice, with different prefixes.")
        if not _BUFFERS.search(name):
            tensors[name] = tensor
    found = [k for k, starts in _KINDS.items() if any(n.startswith(starts) for n in tensors)]
    if kind not in found:
        if found:
            raise UserError(
                f"{what} holds a {found[0]}, not a {kind}: give the files the other way round."
            )
        first = next(iter(tensors), "none")
        raise UserError(
            f"{what} holds another network: none of its {len(tensors)} tensors (first: {first}) is "
            f"one of a released {kind}."
        )
    return tensors


def _require(tensors: Mapping[str, Tensor], what: str, dimensions: dict[str, int]) -> None:
    """UserError unless the tensors that sizes are read from have their number of dimensions."""
    for name, count in dimensions.items():
        if name not in tensors:
            raise UserError(f"{what} lacks {name}, from which its sizes are read: is it complete?")
        shape = tuple(tensors[name].shape)
        if len(shape) != count or 0 in shape:
            raise UserError(f"{what} has {name} of shape {shape}, where {count} sizes are needed.")


def _check(
    tensors: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]], what: str, kind: str
) -> None:
    """UserError naming what is missing, left over, of another shape or of another type."""
    faults = []
    if missing := [name for name in wanted if name not in tensors]:
        faults.append(f"{missing[0]} is missing ({len(missing)} in all)")
    if extra := [name for name in tensors if name not in wanted]:
        faults.append(f"{extra[0]} is left over ({len(extra)} in all)")
    if faults:
        raise UserError(f"{what} does not fit a released {kind}: {' and '.join(faults)}.")
    unlike = [name for name, shape in wanted.items() if tuple(tensors[name].shape) != shape]
    if unlike:
        name = unlike[0]
        reason = _REASONS.get(name, "by the sizes of its other tensors")
        raise UserError(
            f"{what} does not fit a released {kind}: {name} is {tuple(tensors[name].shape)} where "
            f"{wanted[name]} is needed, {reason} ({len(unlike)} unlike in all)."
        )
    for name in wanted:
        if tensors[name].dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UserError(
                f"{what} does not fit a released {kind}: {name} is of {tensors[name].dtype}, where "
                f"float32 is needed (float16 and bfloat16 are converted)."
            )
