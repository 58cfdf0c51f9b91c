"""The kinds of tokenizer: which class a configuration builds, and how a checkpoint names it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jowa.models.conv_tokenizer import ConvTokenizer, ConvTokenizerConfig
from jowa.models.patch_tokenizer import PatchTokenizer, PatchTokenizerConfig
from jowa.models.tokenizer import Tokenizer, TokenizerConfig

KINDS: dict[str, type[TokenizerConfig]] = {
    "patch": PatchTokenizerConfig,
    "conv": ConvTokenizerConfig,
}


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """An untrained tokenizer of the configuration's kind."""
    if isinstance(config, PatchTokenizerConfig):
        return PatchTokenizer(config)
    assert isinstance(config, ConvTokenizerConfig), "a tokenizer's configuration has a kind"
    return ConvTokenizer(config)


def to_state(config: TokenizerConfig) -> dict[str, Any]:
    """The configuration as JSON data, its kind included."""
    kind = next(kind for kind, cls in KINDS.items() if cls is type(config))
    return {"kind": kind, **dataclasses.asdict(config)}


def from_state(state: dict[str, Any]) -> TokenizerConfig:
    """What `to_state` was given."""
    sizes = {key: value for key, value in state.items() if key != "kind"}
    return KINDS[state["kind"]](**sizes)
