"""jowa: an offline, model-based agent that plays many Atari games with one network."""

from jowa import games, scores
from jowa.agent import Agent, load
from jowa.errors import UserError
from jowa.learning.released_files import load_released
from jowa.planning.beam import Plan, plan

__all__ = ["Agent", "Plan", "UserError", "games", "load", "load_released", "plan", "scores"]
