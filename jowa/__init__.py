"""jowa: an offline, model-based agent that plays many Atari games with one network.

What needs PyTorch is imported when its name is first used: commands and processes that only handle
data start in a fraction of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jowa import games
from jowa.errors import UserError

if TYPE_CHECKING:
    from jowa import scores
    from jowa.agent import Agent, load
    from jowa.learning.released_files import load_released
    from jowa.planning.beam import plan
    from jowa.planning.config import PlannerConfig
    from jowa.planning.paths import Plan

__all__ = [
    "Agent",
    "Plan",
    "PlannerConfig",
    "UserError",
    "games",
    "load",
    "load_released",
    "plan",
    "scores",
]

_MODULES = {
    "Agent": "jowa.agent",
    "load": "jowa.agent",
    "load_released": "jowa.learning.released_files",
    "Plan": "jowa.planning.paths",
    "plan": "jowa.planning.beam",
    "PlannerConfig": "jowa.planning.config",
}


def __getattr__(name: str) -> Any:
    if name == "scores":
        return importlib.import_module("jowa.scores")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'jowa' has no attribute {name!r}")
