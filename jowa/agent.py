"""The player: keeps the last frames and actions of every environment and plans each decision.

E environments, c context frames.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jowa import games as game_facts
from jowa.errors import UserError
from jowa.games import check_ids
from jowa.learning.checkpoint import Checkpoint, fill, find
from jowa.learning.checkpoint import load as load_checkpoint
from jowa.models.heads import EnsembleLinear
from jowa.models.skeleton import Skeleton
from jowa.models.tokenizer import FRAME_SIZE, Tokenizer, to_bytes
from jowa.models.tokenizers import build_tokenizer, from_state
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import WorldActionConfig, WorldActionModel
from jowa.planning.beam import plan
from jowa.planning.config import PlannerConfig
from jowa.planning.decode import Decoder
from jowa.planning.mcts import tree_search
from jowa.planning.paths import Plan
from jowa.planning.trace import Future, Trace


@dataclass(frozen=True)
class Explanation:
    """Why the last `Agent.act` chose as it did in one environment.

    action   the chosen one, in the 18-action set
    score    of the best future: what the planner expects; of greedy play the action's Q
    q        expected returns (18,) at the newest frame, -inf for illegal actions
    futures  what the planner imagined, best first; nothing of greedy play
    frames   of each future its h imagined frames, decoded: uint8 (h, 84, 84)
    """

    action: int
    score: float
    q: np.ndarray
    futures: list[Future]
    frames: list[np.ndarray]


class Agent:
    """Acts in many environments of many games at once with one tokenizer and model.

    With `timed` false nothing is chosen by timing, so that on a CPU the same calls give the same
    bits in every run. `games` are the names of those it was trained on, the only ones that it
    plays; None plays all.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: WorldActionModel,
        planner: PlannerConfig,
        dtype: torch.dtype = torch.float32,
        timed: bool = True,
        games: Sequence[str] | None = None,
    ) -> None:
        planner.validate()
        planner = planner.filled()
        check_pair(tokenizer, model)
        self.tokenizer, self.model = tokenizer.eval(), for_inference(model.eval(), dtype)
        self.planner, self.dtype = planner, dtype
        self.device = model.support.device
        self.games = None if games is None else tuple(games)
        self.decoder = Decoder(planner.decode, timed)
        self._acted = self._games = np.zeros(0, dtype=np.int64)  # rows of the last `act`
        self._plan, self._trace = Plan(torch.empty(0), torch.empty(0)), Trace()
        self._allocate(0)

    def _allocate(self, environments: int) -> None:
        """Rings of the last frames' tokens and the actions after them: frame t of an episode is
        in slot t modulo their length."""
        shape = (environments, self.planner.context)
        self._tokens = torch.zeros(*shape, 36, dtype=torch.long, device=self.device)
        self._actions = torch.zeros(*shape, dtype=torch.long, device=self.device)
        self._ages = np.zeros(environments, dtype=np.int64)  # frames seen in the episode

    def reset(self, which: np.ndarray) -> None:
        """Forgets the past of the environments where `which` (E,) is true."""
        which = np.asarray(which, dtype=bool)  # numbers would be taken for places
        if len(which) != len(self._ages):
            self._allocate(len(which))
        self._ages[which] = 0

    def act(
        self, frames: np.ndarray, games: np.ndarray, active: np.ndarray | None = None
    ) -> np.ndarray:
        """Actions int64 (E,) in the 18-action set for frames uint8 (E, 84, 84) of games (E,).

        Rows where `active` (E,) is false are left alone and get action 0.
        """
        games = np.asarray(games, dtype=np.int64)
        rows = self.observe(frames, games, active)
        chosen = np.zeros(len(frames), dtype=np.int64)
        if len(rows):
            self._games, self._trace = games[rows], Trace()
            self._plan = self._decide(rows, self._games, self._trace)
            chosen[rows] = self._plan.actions.cpu().numpy()
            self.executed(chosen)
        return chosen

    def observe(
        self,
        frames: np.ndarray,
        games: np.ndarray,
        active: np.ndarray | None = None,
        encode: bool = True,
    ) -> np.ndarray:
        """Takes in what `act` would without deciding; `executed` is then told the actions.

        Without `encode` time passes, but the frames are not kept: for those that will have left
        the context by the next decision. Returns the active rows.
        """
        games = np.asarray(games, dtype=np.int64)
        check_frames(frames, games)
        rows = np.flatnonzero(active) if active is not None else np.arange(len(frames))
        check_known(games[rows], self.games)
        if len(frames) != len(self._ages):
            self._allocate(len(frames))
        self._acted = rows
        self._ages[rows] += 1
        if encode and len(rows):
            self._remember(frames[rows], games[rows], rows)
        return rows

    @torch.inference_mode()
    def executed(self, actions: np.ndarray) -> None:
        """Notes the actions (E,) really sent, where they differ from those of `act`, or were never
        asked for; rows that were not active keep theirs."""
        rows = self._acted
        sent = self._index(np.asarray(actions, dtype=np.int64)[rows])
        self._actions[self._index(rows), self._newest(rows)] = sent

    def _index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device)

    def _newest(self, rows: np.ndarray) -> Tensor:
        return self._index((self._ages[rows] - 1) % self.planner.context)

    @torch.inference_mode()
    def _remember(self, frames: np.ndarray, games: np.ndarray, rows: np.ndarray) -> None:
        """Writes the new frames' tokens over the oldest."""
        batch = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).unsqueeze(1)
        tokens = self.tokenizer.encode(batch, self._index(games))
        self._tokens[self._index(rows), self._newest(rows)] = tokens

    def context(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The last frames' tokens (R, T, 36) up to the newest, the actions between them (R, T - 1)
        and how many of the T frames are real (R,), T being the most of them; or, where shapes are
        to stay the same, the whole context."""
        context = self.planner.context
        lengths = np.minimum(self._ages[rows], context)
        T = context if self.decoder.static(self.device) else int(lengths.max())
        slots = self._index((self._ages[rows, None] - T + np.arange(T)) % context)
        index = self._index(rows).unsqueeze(1)
        return self._tokens[index, slots], self._actions[index, slots[:, :-1]], self._index(lengths)

    @torch.inference_mode()
    def seen(self, row: int, game_id: int) -> np.ndarray:
        """What the tokenizer keeps of the newest frame of an environment, uint8 (84, 84)."""
        return self._decode(self._tokens[row, self._newest(np.array([row]))], game_id)[0]

    @torch.inference_mode()
    def explain(self, row: int) -> Explanation:
        """Why the last `act` chose as it did in environment `row`, which was active then."""
        assert row in self._acted, f"environment {row} was not active in the last `act`"
        at = int(np.flatnonzero(self._acted == row)[0])
        futures = self._trace.futures(at)
        game = int(self._games[at])
        return Explanation(
            action=int(self._plan.actions[at]),
            score=float(self._plan.scores[at]),
            q=self._trace.q[at].float().cpu().numpy(),
            futures=futures,
            frames=[self._decode(future.frames, game) for future in futures],
        )

    def _decode(self, tokens: Tensor, game_id: int) -> np.ndarray:
        """Frames uint8 (N, 84, 84) of tokens (N, 36) of one game."""
        games = torch.full((len(tokens),), game_id, device=self.device)
        return to_bytes(self.tokenizer.decode(tokens, games)).cpu().numpy()

    def _decide(self, rows: np.ndarray, games: np.ndarray, trace: Trace) -> Plan:
        planner = self.planner
        assert planner.gamma is not None
        tokens, actions, lengths = self.context(rows)
        options: dict[str, Any] = {
            "lengths": lengths if int(lengths.min()) < tokens.shape[1] else None,
            "stop_at_end": planner.stop_at_end,
            "pessimistic": planner.value == "min",
            "reward_weight": planner.reward_weight if planner.rewards == "expected" else None,
            "decoder": self.decoder,
            "trace": trace,
        }
        args = (self.model, tokens, actions, self._index(games))
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=autocast):
            if planner.name == "mcts":
                return tree_search(
                    *args,
                    planner.simulations,
                    planner.horizon,
                    planner.gamma,
                    temperature=planner.temperature,
                    leaf=planner.leaf,
                    choice=planner.choice,
                    **options,
                )
            options["caution"] = planner.caution
            return plan(*args, planner.beam_width, planner.horizon, planner.gamma, **options)


def for_inference(model: WorldActionModel, dtype: torch.dtype) -> WorldActionModel:
    """The model itself for float32; else a copy whose linear maps hold their weights in `dtype`,
    so that autocast need not convert them for every decision."""
    if dtype == torch.float32:
        return model
    lowered = copy.deepcopy(model)
    for module in lowered.modules():
        if isinstance(module, nn.Linear | EnsembleLinear):
            module.to(dtype)
    return lowered


def check_frames(frames: np.ndarray, games: np.ndarray) -> None:
    """UserError unless an agent can look at them."""
    if frames.dtype != np.uint8 or frames.shape != (len(games), FRAME_SIZE, FRAME_SIZE):
        raise UserError(
            f"frames are {frames.dtype} {frames.shape} of {len(games)} games: an agent takes grey "
            f"uint8 (E, {FRAME_SIZE}, {FRAME_SIZE}), one of each environment, as emulators give "
            f"them (not scaled), and their games' ids (E,)."
        )
    check_ids(games)


def check_known(ids: np.ndarray, names: Sequence[str] | None) -> None:
    """UserError for a game, of ids (E,), that is none of `names`; None are all."""
    if names is None:
        return
    unknown = np.setdiff1d(ids, [game_facts.get(name).id for name in names])
    if len(unknown):
        raise never_trained("this agent", game_facts.by_id(int(unknown[0])).name, names)


def never_trained(who: str, game: str, known: Sequence[str]) -> UserError:
    """What to say where `who`, trained on the games `known`, is to play another."""
    return UserError(
        f"{who} was never trained on {game} (only on {', '.join(known)}): fine-tune it first by "
        f"`jowa finetune game={game}`."
    )


def check_pair(tokenizer: Tokenizer, model: WorldActionModel) -> None:
    """UserError unless the model knows as many tokens as the tokenizer has codes."""
    if tokenizer.vocabulary != model.config.vocabulary:
        raise UserError(
            f"the tokenizer's codebook has {tokenizer.vocabulary} codes, but the model knows "
            f"{model.config.vocabulary} tokens: they do not belong together."
        )


def build(saved: Checkpoint, fresh: bool = False) -> tuple[Tokenizer, WorldActionModel]:
    """Tokenizer and model of a checkpoint; `fresh` keeps the sizes and draws new weights."""
    sizes = dict(saved.state["model"])
    sizes["transformer"] = TransformerConfig(**sizes["transformer"])
    with nullcontext() if fresh else Skeleton():
        tokenizer = build_tokenizer(from_state(saved.state["tokenizer"]))
        model = WorldActionModel(WorldActionConfig(**sizes))
    if not fresh:
        fill(tokenizer, saved.tensors["tokenizer"], "the checkpoint's tokenizer")
        fill(model, saved.tensors["model"], "the checkpoint's model")
    return tokenizer, model


def fitted(saved: Checkpoint, planner: PlannerConfig) -> PlannerConfig:
    """The planner with what it leaves open as the agent was trained.

    UserError if it would imagine with a world model that training left out.
    """
    phase = saved.state.get("position", {}).get("phase")  # published weights have none
    settings = saved.state.get("config", {}).get("training" if phase == "finetune" else phase)
    if settings is None:
        return planner.filled()
    losses = settings["losses"]
    if planner.horizon and not losses["world_model"]:
        raise UserError(
            f"this agent was trained without a world model ({phase}: losses.world_model=0), so "
            f"what a planner imagines would mean nothing: play it with planner=greedy."
        )
    return planner.filled(losses["gamma"], losses.get("reward_weight", 1.0))


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    planner: PlannerConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> Agent:
    """The agent of a run directory, a checkpoint or a file of `jowa export-weights`, or one that
    comes with jowa, by its name; greedy unless a planner is given.

    Raises UserError where there is none, or it is damaged.
    """
    saved = load_checkpoint(find(path))
    planner = fitted(saved, planner or PlannerConfig(beam_width=1, horizon=0))
    tokenizer, model = build(saved)
    return Agent(tokenizer.to(device), model.to(device), planner, dtype, games=saved.state["games"])
