"""How fast the planner decides, beside the plain search in the same run.

    python scripts/bench/planning.py CHECKPOINT DATA_ROOT --out eval/results/planning.json

Every row interleaves the plain search of one environment (float32, token by token, copied cache)
with the planner, so that both see the same machine; times are medians. `speedup` is per
environment: the plain search's time for one, times the number of environments, by ours for all.
`floor_ms` is what the arithmetic of each needed token, once, takes at the rate of a large matrix
product in the same process, or reading the weights once a pass that nothing can spare.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from plain_search import plain_search
from torch import Tensor

import jowa
from jowa.agent import Agent, for_inference
from jowa.data.episodes import EpisodeFile
from jowa.data.store import open_store
from jowa.learning.checkpoint import find, load
from jowa.learning.losses import IGNORE, next_token_targets
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import BLOCK_TOKENS, WorldActionConfig, WorldActionModel
from jowa.planning.beam import plan
from jowa.planning.decode import Decoder
from jowa.planning.mcts import tree_search

CONTEXT = 4
# Beam widths and horizons; the first is timed with every decode.
SETTINGS = {"nano": ((2, 2), (1, 0), (2, 1), (4, 2)), "40m": ((2, 2),)}
Context = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    facts = _facts(args)
    agent = jowa.load(args.checkpoint, device=args.device)
    files = open_store(args.data_root, load(find(args.checkpoint)).state["games"])
    models = {"nano": agent.model}
    if args.steps:
        models["40m"] = briefly_trained(agent, files, args.steps)
    peak = {name: _peak(dtype) for name, dtype in _DTYPES.items()}
    rows: list[dict[str, Any]] = []
    for size, model in models.items():
        lowered = {"float32": model, "bfloat16": for_inference(model, torch.bfloat16)}
        pool = contexts(agent, files, args.decisions, seed=1)
        for width, horizon in SETTINGS[size]:
            expected = plain_search(model, *pool, width, horizon).actions
            for envs in args.envs:
                for dtype in _DTYPES:
                    first = (width, horizon) == SETTINGS[size][0]
                    for decode in ("auto", "drafted", "plain") if first else ("auto",):
                        row = {"model": size, "W": width, "H": horizon, "envs": envs}
                        row |= {"dtype": dtype, "decode": decode}
                        row |= measure(
                            model, lowered[dtype], pool, row, expected, args.repeats, peak[dtype]
                        )
                        rows.append(row)
                        write(args.out, facts, rows)
                        print(_line(row), flush=True)
    rows += [trees(agent, files, envs, args.repeats) for envs in args.envs]
    write(args.out, facts, rows)


def write(out: str | None, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if out:
        Path(out).write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(
    model: WorldActionModel,
    lowered: WorldActionModel,
    pool: Context,
    row: dict[str, Any],
    expected: Tensor,
    repeats: int,
    peak: float,
) -> dict[str, Any]:
    """Times the planner on `envs` environments beside the plain search on one."""
    width, horizon, envs = row["W"], row["H"], row["envs"]
    decoder, dtype = Decoder(row["decode"]), _DTYPES[row["dtype"]]
    starts = range(0, len(pool[0]), envs)

    def ours(start: int) -> Tensor:
        batch = tuple(x[start : start + envs] for x in pool)
        with torch.autocast(pool[0].device.type, dtype, enabled=dtype != torch.float32):
            return plan(lowered, *batch, width, horizon, decoder=decoder).actions

    chosen = torch.cat([ours(start) for start in starts])
    for _ in range(max(0, 5 - len(starts))):
        ours(0)  # `auto` has made up its mind after that
    decoder.work.frames = decoder.work.passes = decoder.work.tokens = 0
    plain_s, our_s = [], []
    for i in range(repeats):
        one = i * 7 % len(pool[0])
        single = tuple(x[one : one + 1] for x in pool)
        plain_s.append(_seconds(lambda: plain_search(model, *single, width, horizon)))  # noqa: B023
        start = starts[i % len(starts)]
        our_s.append(_seconds(lambda: ours(start)))  # noqa: B023
    plain_ms, ms = 1e3 * statistics.median(plain_s), 1e3 * statistics.median(our_s)
    floor = 1e3 * floor_s(model, envs, width, horizon, peak, row["dtype"])
    levels = max(1, repeats * horizon)
    return {
        "ms": round(ms, 2),
        "decisions_per_s": round(1e3 * envs / ms, 1),
        "plain_search_ms": round(plain_ms, 2),
        "speedup": round(plain_ms * envs / ms, 2),
        "passes_per_frame": round(decoder.work.passes / levels, 2),
        "tokens_per_frame": round(decoder.work.tokens / max(1, decoder.work.frames), 1),
        "floor_ms": round(floor, 2),
        "times_floor": round(ms / floor, 1),
        "equal_decisions": f"{int((chosen == expected).sum())}/{len(expected)}",
    }


def floor_s(
    model: WorldActionModel, envs: int, width: int, horizon: int, peak: float, dtype: str
) -> float:
    """Seconds: each token's arithmetic once (`peak` FLOP/s), or each pass's weights once."""
    sizes = model.config.transformer
    L, D, V = sizes.layers, sizes.width, model.config.vocabulary
    prefix = CONTEXT * BLOCK_TOKENS - 1
    rows = [width if depth == 0 else width * width for depth in range(horizon)]
    # Of the last layer a prefix needs keys and values alone.
    flops = 2.0 * envs * prefix * D * D * (12 * (L - 1) + 2)
    flops += 4.0 * envs * prefix * prefix / 2 * D * (L - 1)
    for depth, n in enumerate(rows):
        keys = prefix + (depth + 0.5) * BLOCK_TOKENS
        per_token = 2.0 * (12 * L * D * D + D * D + D * V) + 4.0 * keys * D * L
        flops += envs * n * BLOCK_TOKENS * per_token
    weights = sum(p.numel() for p in model.transformer.parameters()) + D * (D + V)
    size = 2 if dtype == "bfloat16" else 4
    return max(flops / peak, (1 + horizon) * weights * size / _bandwidth())


def trees(agent: Agent, files: list[EpisodeFile], envs: int, repeats: int) -> dict[str, Any]:
    """Tree search with 16 simulations, two deep, nano."""
    pool, decoder = contexts(agent, files, envs, seed=2), Decoder()
    run = lambda: tree_search(agent.model, *pool, 16, 2, decoder=decoder)  # noqa: E731
    for _ in range(2):
        run()
    ms = 1e3 * statistics.median(_seconds(run) for _ in range(repeats))
    row = {"model": "nano", "search": "mcts", "simulations": 16, "H": 2, "envs": envs}
    row |= {"dtype": "float32", "decode": "auto", "ms": round(ms, 2)}
    print(row, flush=True)
    return row


def contexts(agent: Agent, files: list[EpisodeFile], count: int, seed: int) -> Context:
    """Real frames' tokens (count, CONTEXT, 36), games in turn, actions and games."""
    rng = np.random.default_rng(seed)
    tokens, actions, games = [], [], []
    for i in range(count):
        file = files[i % len(files)]
        steps = rng.integers(0, file.num_transitions - CONTEXT) + np.arange(CONTEXT)
        game = torch.tensor([file.game.id])
        frames = torch.from_numpy(file.frames(steps)).unsqueeze(1).to(agent.device)
        with torch.inference_mode():
            tokens.append(agent.tokenizer.encode(frames, game.repeat(CONTEXT)))
        taken = torch.from_numpy(file.actions[steps[:-1]].astype(np.int64))
        actions.append(taken.to(agent.device))
        games.append(game)
    return torch.stack(tokens), torch.stack(actions), torch.cat(games)


def briefly_trained(agent: Agent, files: list[EpisodeFile], steps: int) -> WorldActionModel:
    """A model of the 40M size with nano's options, its world model trained for `steps` batches."""
    torch.manual_seed(0)
    nano = agent.model.config
    config = WorldActionConfig(
        TransformerConfig(layers=4, heads=8, width=512, dropout=0.0, attention="matmul"),
        vocabulary=nano.vocabulary,
        q_width=768,
        codebook_width=nano.codebook_width,
        copy_previous=nano.copy_previous,
        reader_width=nano.reader_width,
    )
    model = WorldActionModel(config)
    model.set_codes(agent.tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)
    for step in range(steps):
        batches = [contexts(agent, files, 8, seed=int(rng.integers(1 << 30)))]
        tokens, actions, games = (torch.cat(parts) for parts in zip(*batches, strict=True))
        tokens, actions = tokens.clone(), F.pad(actions, (0, 1))
        with torch.autocast(agent.device.type, torch.bfloat16):
            logits = model(tokens, actions, games, q=False).observation_logits.flatten(0, 1)
        targets = next_token_targets(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        loss = F.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(
                f"40m-shaped model, step {step}: cross-entropy {float(loss.detach()):.2f}",
                flush=True,
            )
    return copy.deepcopy(model).eval()


def _seconds(run: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def _peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    a, b = torch.randn(1024, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
    torch.mm(a, b)
    return 2 * 1024**3 / min(_seconds(lambda: torch.mm(a, b)) for _ in range(10))


def _bandwidth() -> float:
    """Bytes/s of reading memory, here a sum."""
    data = torch.ones(1 << 24)
    return 4 * len(data) / min(_seconds(lambda: data.sum()) for _ in range(3))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:>5} W={row['W']} H={row['H']} envs={row['envs']:<3} {row['dtype']:<8} "
        f"{row['decode']:<8}{row['ms']:>9.1f} ms {row['decisions_per_s']:>7.1f}/s  plain search "
        f"{row['plain_search_ms']:>7.1f} ms  x{row['speedup']:<6} passes/frame "
        f"{row['passes_per_frame']:<6} tokens/frame {row['tokens_per_frame']:<6} "
        f"floor x{row['times_floor']:<6} equal {row['equal_decisions']}"
    )


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo") if "model name" in line),
        platform.processor(),
    )
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "command": " ".join(["python", *sys.argv]),
        "revision": revision.stdout.strip(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
        "note": "the 40m-shaped model is not the published one: briefly trained, see --steps",
    }


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="run or checkpoint of `jowa pretrain`")
    parser.add_argument("data_root", help="its episodes, for real contexts")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--decisions", type=int, default=64, help="compared with the plain search")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=60, help="training of the 40m size; 0: leave")
    parser.add_argument("--out", help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
