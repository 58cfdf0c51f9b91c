"""What decides the data of a game, and how its making is cut into units of work."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from jowa.collecting.behaviours import BEHAVIOURS, Tier
from jowa.envs import MAX_SEED
from jowa.errors import UserError
from jowa.games import Game

_VERSION = 5  # 5: cut into units
KINDS = ("full", "short", "whole")
# Options of planners that recipes from before there were any mean.
_NEW_OF_PLANNERS = {"rewards": "likeliest", "reward_weight": None, "caution": 0.0}


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of a tier of one game: who makes it, when and beside what changes nothing in it.

    `kind` is "full" (games from a true reset to their end), "short" (episodes from varied starts)
    or "whole" (all of a learner's tier); `target` is how many transitions it is to have: exactly
    for short episodes, at least for full games, since the last one is finished.
    """

    game: Game
    tier: int
    kind: str
    piece: int
    target: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides what the data of a game will be.

    `weights` maps the names of agents' tiers to the sha256 sums of their networks.
    `piece` is about how many transitions a unit of work has.
    """

    transitions: int
    tiers: tuple[Tier, ...]
    short_episode_steps: int
    short_share: float
    max_frames: int
    seed: int
    piece: int
    weights: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("transitions", "short_episode_steps", "piece"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; use 1 or more.")
        if not 0.0 <= self.short_share <= 1.0:
            raise UserError(f"short_share is {self.short_share}; use a number from 0 to 1.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed is {self.seed}; use a whole number from 0 to {MAX_SEED}.")
        total = sum(tier.share for tier in self.tiers)
        if abs(total - 1.0) > 1e-6:
            raise UserError(f"the shares of the tiers add up to {total:g}; make it 1.")
        if len({tier.name for tier in self.tiers}) < len(self.tiers):
            raise UserError("two tiers have the same name; give each its own.")

    def budgets(self, tier: int) -> dict[str, int]:
        """Transitions of a tier by kind."""
        share = self.tiers[tier].share * self.transitions
        if self.tiers[tier].behaviour == "learner":
            return {"whole": round(share)}
        short = round(share * self.short_share)
        return {"full": round(share) - short, "short": short}

    def units(self, game: Game) -> list[Unit]:
        """The work of one game in the order of its data; pieces of a kind differ by at most 1."""
        units: list[Unit] = []
        for tier in range(len(self.tiers)):
            for kind, budget in self.budgets(tier).items():
                pieces = 1 if kind == "whole" else -(-budget // self.piece)
                units += [
                    Unit(game, tier, kind, piece, budget // pieces + (piece < budget % pieces))
                    for piece in range(pieces)
                    if budget > 0
                ]
        return units

    def entropy(self, unit: Unit) -> list[int]:
        """The seed of all that is random in a unit."""
        return [self.seed, unit.game.id, unit.tier, KINDS.index(unit.kind), unit.piece]

    @property
    def source(self) -> str:
        """Who plays, in words."""
        behaviours = {tier.behaviour for tier in self.tiers}
        return ", ".join(words for name, words in BEHAVIOURS.items() if name in behaviours)

    def provenance(self) -> dict[str, Any]:
        """The recipe as plain values; an agent is named by its weights, wherever they lie."""
        values = dataclasses.asdict(self)
        weights = values.pop("weights")
        values["tiers"] = [
            {name: value for name, value in tier.items() if value is not None}
            for tier in values["tiers"]
        ]
        for tier in values["tiers"]:
            if tier["name"] in weights:
                tier["checkpoint"] = weights[tier["name"]]
            if tier["reaction_steps"] == 0:
                del tier["reaction_steps"]  # as in recipes from before there was any
            if "learner" in tier:
                del tier["learner"]["device"]  # where it learns is no part of what is made
                if tier["learner"]["last"] == 1.0:
                    del tier["learner"]["last"]  # which recipes from before there was it mean
            planner = tier.get("planner", {})
            for name, usual in _NEW_OF_PLANNERS.items():
                if name in planner and planner[name] == usual:
                    del planner[name]
        values["recipe_version"] = _VERSION
        values["ale_py"] = importlib.metadata.version("ale-py")
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def digest(self) -> str:
        """A name for the recipe: parts of another one have another."""
        text = json.dumps(self.provenance(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
