"""Beam search in shapes that are known beforehand, for GPUs: stages that CUDA graphs can hold.

Frames are decoded as `decode.drafted` does, with whole rows in place of ragged tokens: a pass
computes all 37 positions of the rows that are not yet settled, and the host, which looks at nothing
but their number, replays the graph of the smallest pass that has room for them. So every token is
the greedy one by the time a level is closed, however many passes that took.

B environments, N kept nodes each, M = N·W expanded ones, R = B·M rows of a level, C rows of a pass,
P prefix tokens, K = 37 tokens of a block.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.games import NUM_ACTIONS
from jowa.models.outputs import Tables
from jowa.models.tree_decoding import Past, blank, compute_blocks, read_contexts
from jowa.models.world_action import BLOCK_TOKENS, FRAME_TOKENS, WorldActionModel
from jowa.planning.graphs import Graphs
from jowa.planning.paths import Beam, Level, Path, best, expand, root, select
from jowa.planning.static_state import Depth, Nodes, Root, Shape, Work, keep, size_for
from jowa.planning.values import expected_rewards, q_values

# Passes of fewer rows than this take a GPU no less time.
LEAST_ROWS = 16
# From so many rows on, all but the first of siblings wait one pass for a better draft: what that
# pass saves is more than the time it takes.
LEADERS_FROM = 128


class Search:
    """Decisions of one shape by one model's sizes; what is kept between stages stays in place."""

    def __init__(self, model: WorldActionModel, shape: Shape) -> None:
        B, T, H = shape.environments, shape.frames, shape.horizon
        like = model.position_embedding.weight.detach()
        integers = torch.zeros(0, dtype=torch.long, device=like.device)
        self.shape = shape
        self.graphs = Graphs(like.device)
        # Inputs; rows from `count` on are padding.
        self.obs_tokens = integers.new_zeros(B, T, FRAME_TOKENS)
        self.actions = integers.new_zeros(B, T)
        self.games, self.lengths = integers.new_zeros(B), integers.new_ones(B)
        self.count = integers.new_zeros(1)
        # For the host: environments that have no legal action, then unsettled rows by depth.
        self.counters = torch.zeros(H + 1, dtype=torch.int32, device=like.device)
        self._seen = torch.zeros(H + 1, dtype=torch.int32, pin_memory=like.is_cuda)
        self._event = torch.cuda.Event() if like.is_cuda else None
        self.root: Root | None = None
        self.tables: Tables | None = None
        self.beam: Beam | None = None
        self.path: Path | None = None
        kept, keys = 1, like.new_zeros(0, dtype=shape.dtype)
        self.width = min(shape.rules.beam_width, NUM_ACTIONS)
        self.depths: list[Depth] = []
        blocks = 0
        # Without levels nobody looks back on the contexts.
        self.contexts = blank(model.transformer, B if H else 0, T * BLOCK_TOKENS - 1, keys)
        for _ in range(H):
            R = B * kept * self.width
            hidden = like.new_zeros(2, R, like.shape[1])
            self.depths.append(Depth(blocks, hidden[0], hidden[1]))
            blocks += R
            kept = min(shape.rules.beam_width, kept * self.width)
        # Keys and values of all levels' nodes.
        self.blocks = blank(model.transformer, blocks, BLOCK_TOKENS, keys)

    # What the host does.

    def ask(
        self, obs_tokens: Tensor, actions: Tensor, games: Tensor, lengths: Tensor | None
    ) -> None:
        """Sets the inputs: as many environments as there is room for, or fewer."""
        B, T = obs_tokens.shape[:2]
        self.obs_tokens[:B].copy_(obs_tokens)
        self.actions[:B, : T - 1].copy_(actions)
        self.games[:B].copy_(games)
        if lengths is None:
            self.lengths.fill_(T)
        else:
            self.lengths[:B].copy_(lengths)
        self.count.fill_(B)

    def decide(self, model: WorldActionModel, work: Work) -> bool:
        """From the inputs to the path; false if an environment has no legal action."""
        run = self.graphs.run
        run("start", partial(self.start, model))
        for depth in range(1, self.shape.horizon + 1):
            rows = len(self.depths[depth - 1].hidden)
            work.frames += rows
            for size in self.first_passes(rows):
                work.passed(size * BLOCK_TOKENS)
            for _ in range(2 * BLOCK_TOKENS):
                if not (unsettled := self.look()[depth]):
                    break
                room = min(rows, size_for(unsettled, LEAST_ROWS))
                run((depth, room), partial(self.refine, model, depth, room))
                work.passed(room * BLOCK_TOKENS)
            else:
                raise AssertionError("every pass settles a token of each row that it computes")
            run(("close", depth), partial(self.close, model, depth))
        return self.look()[0] == 0

    def look(self) -> list[int]:
        """The counters, when all that is queued has been done."""
        if self._event is None:
            return self.counters.tolist()
        self._seen.copy_(self.counters, non_blocking=True)
        self._event.record()
        self._event.synchronize()
        return self._seen.tolist()

    # Stages, each of which can be a graph.

    def start(self, model: WorldActionModel) -> None:
        """Reads the contexts and opens the first level."""
        active = torch.arange(len(self.games), device=self.games.device) < self.count
        unplayable = active & ~model.legal_actions[self.games].any(-1)
        self.counters[0].copy_(unplayable.sum())
        self.tables = keep(self.tables, model.tables())
        T, V = self.obs_tokens.shape[1], model.config.vocabulary
        frame, position = self.obs_tokens[:, -1], self.lengths * BLOCK_TOKENS - 1
        before = self.obs_tokens[:, -2] if T > 1 else torch.full_like(frame, V)
        before = before.masked_fill((self.lengths < 2).unsqueeze(1), V)
        hidden = None
        if self.shape.horizon or not model.has_reader:
            hidden = self.read(model, self.tables, position)
        q = q_values(model, self.tables, hidden, frame, before, self.games, self.shape.pessimistic)
        self.root = keep(self.root, Root(frame, position, q))
        beam = root(q)
        returns = beam.returns.masked_fill(~active.unsqueeze(1), -torch.inf)
        self.beam = keep(self.beam, beam._replace(returns=returns))
        self._next(model, 1)

    def read(self, model: WorldActionModel, tables: Tables, position: Tensor) -> Tensor:
        """The activations (B, D) before `position` (B,), that of the newest frames' actions, and
        keys and values of the contexts if there are levels."""
        T = self.obs_tokens.shape[1]
        # Real frames first: positions then count from each row's own start.
        order = (torch.arange(T, device=position.device) - self.lengths.unsqueeze(1)) % T
        obs_tokens = self.obs_tokens.take_along_dim(order.unsqueeze(-1), dim=1)
        actions = self.actions.gather(1, order)
        hints = model.hints(obs_tokens) if model.config.copy_previous else None
        x = model.embed(obs_tokens, actions, self.games, hints, tables)[:, :-1]
        return read_contexts(model.transformer, x, position - 1, self.contexts)

    def close(self, model: WorldActionModel, depth: int) -> None:
        """Weighs the paths to a level's settled nodes, and opens the next level or chooses."""
        place = self.depths[depth - 1]
        assert place.nodes is not None
        nodes, B = place.nodes, self.shape.environments
        before = self.beam if depth == 1 else self.depths[depth - 2].beam
        assert before is not None
        logits, weight = model.reward_head(place.action_hidden), self.shape.rules.reward_weight
        rewards = (
            logits.float().argmax(-1).float() - 1
            if weight is None
            else expected_rewards(logits, weight)
        )
        ends = model.end_head(place.action_hidden).float().argmax(-1)
        games = self.games.repeat_interleave(nodes.actions.shape[1])
        frames = nodes.tokens[:, 1:]
        assert self.tables is not None
        q = q_values(
            model,
            self.tables,
            place.hidden,
            frames,
            nodes.previous,
            games,
            self.shape.pessimistic,
        )
        beam, level = select(
            before,
            frames.unflatten(0, (B, -1)),
            nodes.actions,
            nodes.real,
            rewards.view(B, -1),
            ends.bool().view(B, -1),
            q.unflatten(0, (B, -1)),
            depth,
            self.shape.rules,
        )
        place.beam, place.level = keep(place.beam, beam), keep(place.level, level)
        self._next(model, depth + 1)

    def _next(self, model: WorldActionModel, depth: int) -> None:
        """Opens a level, or chooses the path if there is none."""
        if depth <= self.shape.horizon:
            self.open(model, depth)
            return
        beam = self.depths[-1].beam if self.depths else self.beam
        assert beam is not None
        self.path = keep(self.path, best(self.levels, beam))

    @property
    def levels(self) -> list[Level]:
        return [place.level for place in self.depths if place.level is not None]

    def open(self, model: WorldActionModel, depth: int) -> None:
        """Expands the beam before a level to its nodes, and does the passes that all need."""
        place, B, D = self.depths[depth - 1], self.shape.environments, self.depths
        assert self.root is not None and self.tables is not None
        environments = torch.arange(B, device=self.games.device)
        if depth == 1:
            beam, parents = self.beam, environments.unsqueeze(1)
            previous, ancestors = self.root.frame, parents.new_empty(0, B)
        else:
            beam, level, nodes = D[depth - 2].beam, D[depth - 2].level, D[depth - 2].nodes
            assert level is not None and nodes is not None
            parents = environments.unsqueeze(1) * level.actions.shape[1] + level.kept
            previous = nodes.tokens[:, 1:]
            own = D[depth - 2].first + torch.arange(len(previous), device=parents.device)
            ancestors = torch.cat([nodes.ancestors, own.unsqueeze(0)])
        assert beam is not None
        actions, real = expand(beam, self.width)
        parents = parents.flatten().repeat_interleave(self.width)
        previous, M = previous[parents], actions.shape[1]
        games = self.games.repeat_interleave(M)
        starts = self.root.position.repeat_interleave(M) + (depth - 1) * BLOCK_TOKENS
        place.nodes = keep(
            place.nodes,
            Nodes(
                tokens=F.pad(previous, (1, 0), value=model.config.vocabulary),
                previous=previous,
                base=model.embed_block(actions.flatten(), previous, games, starts, self.tables),
                start=torch.where(real.flatten(), 0, BLOCK_TOKENS),
                ancestors=ancestors[:, parents],
                actions=actions,
                real=real,
            ),
        )
        self._first_passes(model, depth)

    def _first_passes(self, model: WorldActionModel, depth: int) -> None:
        """All rows at once or, where they are many, the first of siblings one pass ahead."""
        nodes, rows = self.depths[depth - 1].nodes, len(self.depths[depth - 1].hidden)
        assert nodes is not None
        if len(self.first_passes(rows)) > 1:
            leaders = torch.arange(0, rows, self.width, device=self.games.device)
            self._pass(model, depth, leaders)
            families = nodes.tokens.unflatten(0, (-1, self.width))
            families[:, 1:] = families[:, :1]
        self._pass(model, depth, None)

    def first_passes(self, rows: int) -> list[int]:
        """How many of a level's rows each of them computes."""
        ahead = rows >= LEADERS_FROM and self.width > 1
        return [rows // self.width, rows] if ahead else [rows]

    def refine(self, model: WorldActionModel, depth: int, room: int) -> None:
        """A pass of `room` rows, the unsettled ones first."""
        nodes = self.depths[depth - 1].nodes
        assert nodes is not None
        settled = (nodes.start == BLOCK_TOKENS).to(torch.uint8)
        some = room < len(nodes.start)
        self._pass(model, depth, settled.argsort(stable=True)[:room] if some else None)

    def _pass(self, model: WorldActionModel, depth: int, rows: Tensor | None) -> None:
        """Computes the blocks of `rows` (C,), or of all, from the tokens guessed so far, and takes
        over what they predict: it is right up to the first token that changes."""
        place = self.depths[depth - 1]
        assert place.nodes is not None and self.root is not None and self.tables is not None
        nodes = place.nodes
        everything = rows is None
        if rows is None:
            rows = torch.arange(len(nodes.tokens), device=self.games.device)
        tokens, base, previous, start = (
            x if everything else x[rows]
            for x in (nodes.tokens, nodes.base, nodes.previous, nodes.start)
        )
        past = Past(
            self.contexts,
            self.root.position,
            rows // nodes.actions.shape[1],
            self.blocks,
            nodes.ancestors if everything else nodes.ancestors[:, rows],
        )
        own = slice(place.first, place.first + len(rows)) if everything else place.first + rows
        x = base + F.embedding(tokens, self.tables.observation)
        hidden = compute_blocks(model.transformer, x, own, past)
        hints = previous if model.config.copy_previous else None
        logits = model.predict_tokens(hidden[:, :FRAME_TOKENS], hints)
        if not logits.is_cuda:
            logits = logits.float()  # argmax of bfloat16 takes a CPU ten times as long
        places = torch.arange(1, BLOCK_TOKENS, device=rows.device)
        known = tokens[:, 1:]
        guess = torch.where(places > start.unsqueeze(1), logits.argmax(-1), known)
        first = torch.where(guess != known, places, BLOCK_TOKENS).amin(1)
        nodes.tokens[:, 1:].index_copy_(0, rows, guess)
        nodes.start.index_copy_(0, rows, first)
        place.action_hidden.index_copy_(0, rows, hidden[:, 0].to(place.hidden.dtype))
        place.hidden.index_copy_(0, rows, hidden[:, -1].to(place.hidden.dtype))
        self.counters[depth].copy_((nodes.start < BLOCK_TOKENS).sum())
