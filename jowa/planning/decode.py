"""Greedy decoding of an imagined frame, token by token or by drafts; both give the same tokens.

R rows; a block is the action (position 0) and the frame's 36 tokens (positions 1 to 36). The
activation at position k predicts the token at k + 1.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jowa.errors import UserError
from jowa.models.decoding import Cache, Window, extend, prefill
from jowa.models.outputs import Tables
from jowa.models.world_action import BLOCK_TOKENS, FRAME_TOKENS, WorldActionModel
from jowa.planning.native import Native, takes
from jowa.planning.searches import Searches
from jowa.planning.static_state import Work

Integers = NDArray[np.int64]
MODES = ("auto", "drafted", "native", "plain", "static")
TRIALS = 3  # timed frames of each decode before `auto` settles on one


class Frame(NamedTuple):
    """An imagined frame (R, 36), and the activations (R, D) at its action and its last token."""

    tokens: Tensor
    action_hidden: Tensor
    hidden: Tensor


@dataclass
class Block:
    """A frame to imagine for each of R rows, behind the cache's tail.

    `base` (R, 37, D) embeds what is known of it beforehand (`WorldActionModel.embed_block`),
    `previous` (R, 36) is the frame before, the first draft. Rows come in groups of `siblings`,
    which follow the same frame by different actions. `noise` (R, 36, V) is added to the logits:
    Gumbel noise makes the choice of the largest a sample of the distribution.
    """

    model: WorldActionModel
    tables: Tables
    cache: Cache
    base: Tensor
    previous: Tensor
    siblings: int = 1
    noise: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.base)

    def embed(self, base: Tensor, tokens: Tensor) -> Tensor:
        """`base` (T, D) with what the tokens (T,) at their positions add; V adds nothing."""
        return base + F.embedding(tokens, self.tables.observation)

    def choose(self, hidden: Tensor, hints: Tensor, noise: Tensor | None) -> Tensor:
        """The tokens (T,) that activations (T, D) predict where the last frame had `hints`."""
        copying = self.model.config.copy_previous
        logits = self.model.predict_tokens(hidden, hints if copying else None)
        if logits.dtype == torch.bfloat16:
            logits = logits.float()  # argmax of bfloat16 takes a CPU ten times as long
        return (logits if noise is None else logits + noise).argmax(-1)


def plain(block: Block) -> Frame:
    """One token a pass: 37 passes of R tokens."""
    model = block.model
    tokens: list[Tensor] = []
    token = torch.full_like(block.previous[:, 0], model.config.vocabulary)
    for k in range(BLOCK_TOKENS):
        x = block.embed(block.base[:, k], token)
        hidden = extend(model.transformer, x, block.cache, Window(k, k + 1))
        if k == 0:
            action_hidden = hidden
        if k < FRAME_TOKENS:
            noise = None if block.noise is None else block.noise[:, k]
            token = block.choose(hidden, block.previous[:, k], noise)
            tokens.append(token)
    return Frame(torch.stack(tokens, 1), action_hidden, hidden)


def drafted(block: Block, siblings: int, count: Callable[[int], None]) -> Frame:
    """Guesses whole frames and checks them, until nothing changes.

    A pass computes all positions at once from the tokens guessed so far. What a position then
    predicts is right if all tokens before it are, so every pass settles at least one more token,
    and usually most; settled tokens stay in the cache and settled rows drop out. The first draft
    is the frame before; all but the first of every `siblings` rows start one pass later, from the
    guess of the first. `count` is told the number of tokens of each pass.
    """
    R, V = block.rows, block.model.config.vocabulary
    device, D = block.base.device, block.base.shape[-1]
    tokens = F.pad(block.previous, (1, 0), value=V)
    flat = tokens.view(-1)
    hints = F.pad(block.previous, (0, 1), value=V).view(-1)
    base = block.base.reshape(-1, D)
    action_hidden = block.base.new_empty(R, D)
    hidden_last = block.base.new_empty(R, D)
    waiting = np.arange(R) % siblings > 0
    start = np.where(waiting, BLOCK_TOKENS, 0)  # the first position to compute
    while True:
        work = _Work.of(start, block.cache, device)
        count(len(work.at))
        x = block.embed(base[work.at], flat[work.at])
        hidden = extend(block.model.transformer, x, block.cache, work.window)
        hidden_last[work.rows] = hidden[work.ends].to(hidden_last.dtype)
        first = np.flatnonzero(start == 0)
        if len(first):
            rows = torch.from_numpy(first).to(device)
            action_hidden[rows] = hidden[work.begins(start)].to(action_hidden.dtype)
        at = work.at[work.predicting]
        noise = None
        if block.noise is not None:
            noise = block.noise.flatten(0, 1)[at - at // BLOCK_TOKENS]
        guess = block.choose(hidden[work.predicting], hints[at], noise)
        changed = at[guess != flat[at + 1]].cpu().numpy() + 1
        flat[at + 1] = guess
        start = np.full(R, BLOCK_TOKENS)
        np.minimum.at(start, changed // BLOCK_TOKENS, changed % BLOCK_TOKENS)
        if waiting.any():
            followers = np.flatnonzero(waiting)
            leaders = torch.from_numpy(followers - followers % siblings).to(device)
            tokens[torch.from_numpy(followers).to(device)] = tokens[leaders]
            start[waiting] = 0
            waiting[:] = False
        if (start == BLOCK_TOKENS).all():
            return Frame(tokens[:, 1:], action_hidden, hidden_last)


@dataclass(frozen=True)
class _Work:
    """What one pass computes: the places `at` (T,) of its tokens among all rows' R·37, in order;
    the unsettled `rows`, the `ends` in `at` of their last tokens, and which predict another."""

    at: Tensor
    rows: Tensor
    ends: Tensor
    predicting: Tensor
    window: Window

    @classmethod
    def of(cls, start: Integers, cache: Cache, device: torch.device) -> _Work:
        """Row r is to be computed from position `start[r]` on (37: not at all)."""
        rows = np.flatnonzero(start < BLOCK_TOKENS)
        first = int(start[rows].min())
        width = BLOCK_TOKENS - first
        needed = np.arange(first, BLOCK_TOKENS) >= start[rows, None]
        i, w = np.nonzero(needed)
        at = rows[i] * BLOCK_TOKENS + first + w
        ends = np.cumsum(needed.sum(1)) - 1
        predicting = np.flatnonzero(w < width - 1)

        def tensor(array: Integers) -> Tensor:
            return torch.from_numpy(array).to(device)

        window = Window(first, BLOCK_TOKENS)
        if len(at) < len(start) * width:
            environments, place, grid = _grid(rows, cache)
            cells = place[i] * width + w
            tokens = np.zeros(len(grid) * width, dtype=np.int64)
            tokens[cells] = np.arange(len(at))
            window = Window(
                first,
                BLOCK_TOKENS,
                environments=None
                if _counts_up(environments, cache.environments)
                else tensor(environments),
                rows=None if _counts_up(grid, cache.rows) else tensor(grid),
                cells=tensor(cells),
                tokens=tensor(tokens),
                slots=tensor(rows[i] * cache.tail_keys[0].shape[2] + first + w),
            )
        return cls(tensor(at), tensor(rows), tensor(ends), tensor(predicting), window)

    def begins(self, start: Integers) -> Tensor:
        """Where in `at` the actions of the rows that begin at position 0 stand."""
        lengths = BLOCK_TOKENS - start[start < BLOCK_TOKENS]
        begins = (np.cumsum(lengths) - lengths)[lengths == BLOCK_TOKENS]
        return torch.from_numpy(begins).to(self.at.device)


def _grid(rows: Integers, cache: Cache) -> tuple[Integers, Integers, Integers]:
    """Places the unsettled `rows` in a grid (B', n): the environment of each of B', the rows'
    places, and the row at every place (any of the environment's at padding). Rows of an environment
    stand together, so that they share its prefix."""
    N = cache.rows // cache.environments
    environments, group, counts = np.unique(rows // N, return_inverse=True, return_counts=True)
    n = int(counts.max())
    if n == N:  # then every row keeps its own place
        grid = (environments[:, None] * N + np.arange(N)).flatten()
        return environments, group * N + rows % N, grid
    place = group * n + np.arange(len(rows)) - (np.cumsum(counts) - counts)[group]
    grid = np.repeat(environments * N, n)
    grid[place] = rows
    return environments, place, grid


def _counts_up(array: Integers, length: int) -> bool:
    """Whether it is 0, 1, ... length - 1."""
    return len(array) == length and bool((array == np.arange(length)).all())


@dataclass
class Decoder:
    """Decodes blocks by one of MODES and counts what it did.

    Where there is a choice (plain or drafted, siblings together or one pass later) every way is
    timed on the first few frames of every shape (rows, cached tokens), and then the fastest is kept
    to. Tokens do not depend on it, but for rounding where logits tie: who needs the same bits in
    every run says `timed=False`, and siblings go one pass later without trying.

    With mode static, which auto is on a GPU, a beam search takes `searches` instead; with mode
    native contexts are read and frames decoded by compiled code. What those do not do (static: tree
    search; both: samples; native: other precisions than float32, heads that are no multiple of 32
    wide) is done as if that were not so; on a GPU native is as auto.
    """

    mode: str = "auto"
    timed: bool = True
    work: Work = field(default_factory=Work)
    _seconds: dict[tuple[object, ...], dict[int, list[float]]] = field(default_factory=dict)
    _tables: tuple[tuple[object, ...], Tables] | None = None
    searches: Searches = field(default_factory=Searches)
    native: Native = field(default_factory=Native)

    def static(self, device: torch.device) -> bool:
        """Whether beam searches are static on a device."""
        return self.mode == "static" or (self.mode in ("auto", "native") and device.type == "cuda")

    def tables(self, model: WorldActionModel) -> Tables:
        """The model's tables, computed once for as long as its weights stay what they are."""
        config = model.config
        weights = [model.observation_embedding.weight]
        if config.codebook_width:
            weights += [model.codebook, model.codebook_projection.weight]
        if model.has_reader:
            weights.append(model.pictures)
        if config.copy_previous:
            weights.append(model.hint_embedding.weight)
            if config.codebook_width:
                weights.append(model.hint_projection.weight)
        if any(weight.is_inference() for weight in weights):
            return model.tables()  # nothing tells when such weights change
        precision = torch.is_autocast_enabled(model.support.device.type)
        state = (weakref.ref(model), precision, [(w.data_ptr(), w._version) for w in weights])
        if self._tables is None or self._tables[0] != state:
            self._tables = state, model.tables()
        return self._tables[1]

    def forget(self) -> None:
        """Drops what was computed from weights, to be called where these changed unbeknown to
        autograd: by a fused optimiser, or through `.data`."""
        self._tables = None
        self.native.forget()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"decode is {self.mode!r}: use one of {', '.join(MODES)}.")

    def prefill(
        self, model: WorldActionModel, x_BPD: Tensor, last: Tensor, capacity: int
    ) -> tuple[Cache, Tensor]:
        """As of `decoding.prefill`."""
        if self.mode == "native" and takes(model):
            return self.native.prefill(model, x_BPD, last, capacity)
        return prefill(model.transformer, x_BPD, last, capacity)

    def __call__(self, block: Block) -> Frame:
        self.work.frames += block.rows
        if self.mode == "native" and block.noise is None and takes(block.model):
            return self._native(block)
        # A way is the number of siblings of which the first goes ahead; 0 is plain decoding.
        ways = [] if self.mode == "drafted" else [0]
        if self.mode != "plain":
            ways += sorted({1, block.siblings})
        if len(ways) == 1 or not self.timed:
            return self._run(ways[-1], block)
        prefix = block.cache.prefix_keys[0]
        # Rows by powers of two: environments finish one by one.
        shape = (block.rows.bit_length(), prefix.shape[2], block.cache.filled, block.siblings)
        key = (*shape, prefix.dtype, torch.get_num_threads())
        seconds = self._seconds.setdefault(key, {way: [] for way in ways})
        if len(seconds[ways[0]]) > TRIALS:  # the first warms up
            fastest = min(ways, key=lambda way: float(np.median(seconds[way][1:])))
            return self._run(fastest, block)
        for way in ways:
            started = _now(block.base.device)
            frame = self._run(way, block)
            seconds[way].append(_now(block.base.device) - started)
        return frame

    def _run(self, way: int, block: Block) -> Frame:
        if way == 0:
            self.work.passed(BLOCK_TOKENS * block.rows, BLOCK_TOKENS)
            return plain(block)
        return drafted(block, way, self.work.passed)

    def _native(self, block: Block) -> Frame:
        frame, passes, tokens = self.native.decode(
            block.model, block.tables, block.cache, block.base, block.previous
        )
        self.work.passed(tokens, passes)
        return Frame(*frame)


_DECODERS: weakref.WeakKeyDictionary[WorldActionModel, Decoder] = weakref.WeakKeyDictionary()


def decoder_of(model: WorldActionModel) -> Decoder:
    """The decoder of those who bring none; it remembers what is fast with this model, but nothing
    of its weights: not all that changes weights says so."""
    decoder = _DECODERS.setdefault(model, Decoder())
    decoder.forget()
    return decoder


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
