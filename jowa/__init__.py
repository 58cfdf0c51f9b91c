"""jowa: an offline, model-based agent that plays many Atari games with one network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jowa import games, scores
from jowa.errors import UserError

if TYPE_CHECKING:
    from jowa.agent import Agent, load
    from jowa.learning.released_files import load_released
    from jowa.planning.beam import Plan, plan

__all__ = ["Agent", "Plan", "UserError", "games", "load", "load_released", "plan", "scores"]

# Fetched when they are first used: they need torch, which many worker processes can do without.
_HOMES = {
    "Agent": "jowa.agent",
    "load": "jowa.agent",
    "load_released": "jowa.learning.released_files",
    "Plan": "jowa.planning.beam",
    "plan": "jowa.planning.beam",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jowa' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
