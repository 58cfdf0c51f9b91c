"""How fast the planner decides, beside the plain search in the same run.

    python scripts/bench/planning.py CHECKPOINT DATA_ROOT --out eval/results/planning.json
    python scripts/bench/planning.py nano --random --device cuda --sizes jowa_150m --beams 4x2 \\
        --envs 1 16 64 --dtypes bfloat16 --decodes static drafted

Every row interleaves the plain search of one environment (float32, token by token, copied cache)
with the planner, so that both see the same machine; times are medians. `speedup` is per
environment: the plain search's time for one, times the number of environments, by ours for all.
`floor_ms` is what the arithmetic of each needed token, once, takes at the rate of a large matrix
product in the same process, or reading the weights once a pass that nothing can spare.
"""

from __future__ import annotations

import argparse
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

import torch
from plain_search import plain_search
from planning_inputs import CONTEXT, Context, Contexts, made_up_contexts, of_size, real_contexts
from torch import Tensor

import jowa
from jowa.agent import Agent, for_inference
from jowa.data.store import open_store
from jowa.learning.checkpoint import find, load
from jowa.models.world_action import BLOCK_TOKENS, WorldActionModel
from jowa.planning.beam import plan
from jowa.planning.decode import MODES, Decoder
from jowa.planning.mcts import tree_search
from jowa.planning.static_state import Work

# Beam widths and horizons of the checkpoint's model; of other sizes the first alone.
BEAMS = ("2x2", "1x0", "2x1", "4x2")
OWN = "own"  # the size that is the checkpoint's own model, as trained as it is


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    facts = _facts(args)
    agent = jowa.load(args.checkpoint, device=device)
    if args.data_root:
        games = load(find(args.checkpoint)).state["games"]
        contexts = real_contexts(agent, open_store(args.data_root, games))
    else:
        contexts = made_up_contexts(agent.model.config.vocabulary, device)
    peak = {name: _peak(_DTYPES[name], device) for name in args.dtypes}
    pool = contexts(max(args.decisions, *args.envs), 1)
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        own = size == OWN
        model = agent.model if own else of_size(size, agent, contexts, args.steps)
        lowered = {name: for_inference(model, _DTYPES[name]) for name in args.dtypes}
        beams = args.beams or (BEAMS if own else BEAMS[:1])
        for number, beam in enumerate(beams):
            width, horizon = map(int, beam.split("x"))
            some = tuple(x[: args.decisions] for x in pool)
            expected = plain_search(model, *some, width, horizon).actions
            for envs in args.envs:
                for dtype in args.dtypes:
                    for decode in args.decodes[: 1 if number else None]:
                        row = {
                            "model": _name(args) if own else size,
                            "W": width,
                            "H": horizon,
                            "envs": envs,
                        }
                        row |= {"dtype": dtype, "decode": decode}
                        row |= measure(
                            model, lowered[dtype], pool, row, expected, args.repeats, peak[dtype]
                        )
                        rows.append(row)
                        write(args.out, facts, rows)
                        print(_line(row), flush=True)
    if args.trees:
        rows += [trees(_name(args), agent, contexts, envs, args.repeats) for envs in args.envs]
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
    decoder, dtype, device = Decoder(row["decode"]), _DTYPES[row["dtype"]], pool[0].device
    compared = range(0, len(expected), envs)
    # Few enough that each has been decided thrice before: graphs are captured by then, and `auto`
    # has made up its mind.
    starts = compared[:4]

    def ours(start: int) -> Tensor:
        batch = tuple(x[start : start + envs] for x in pool)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return plan(lowered, *batch, width, horizon, decoder=decoder).actions

    chosen = torch.cat([ours(start) for start in compared])[: len(expected)]
    for start in [*starts, *starts, *[0] * (5 - 2 * len(starts))]:
        ours(start)
    decoder.work = Work()
    plain_s, our_s = [], []
    for i in range(repeats):
        one = i * 7 % len(expected)
        single = tuple(x[one : one + 1] for x in pool)
        if i < 5:  # no less sure, and it is slow
            plain_s.append(
                _seconds(lambda: plain_search(model, *single, width, horizon), device)  # noqa: B023
            )
        start = starts[i % len(starts)]
        our_s.append(_seconds(lambda: ours(start), device))  # noqa: B023
    plain_ms, ms = 1e3 * statistics.median(plain_s), 1e3 * statistics.median(our_s)
    floor = 1e3 * floor_s(model, envs, width, horizon, peak, row["dtype"])
    levels, work = max(1, repeats * horizon), decoder.work
    return {
        "ms": round(ms, 2),
        "decisions_per_s": round(1e3 * envs / ms, 1),
        "plain_search_ms": round(plain_ms, 2),
        "speedup": round(plain_ms * envs / ms, 2),
        "passes_per_frame": round(work.passes / levels, 2),
        "tokens_per_frame": round(work.tokens / max(1, work.frames), 1),
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
    bandwidth = _bandwidth(model.support.device)
    return max(flops / peak, (1 + horizon) * weights * size / bandwidth)


def trees(name: str, agent: Agent, contexts: Contexts, envs: int, repeats: int) -> dict[str, Any]:
    """Tree search with 16 simulations, two deep."""
    pool, decoder = contexts(envs, 2), Decoder()
    run = lambda: tree_search(agent.model, *pool, 16, 2, decoder=decoder)  # noqa: E731
    for _ in range(2):
        run()
    ms = 1e3 * statistics.median(_seconds(run, agent.device) for _ in range(repeats))
    row = {"model": name, "search": "mcts", "simulations": 16, "H": 2, "envs": envs}
    row |= {"dtype": "float32", "decode": "auto", "ms": round(ms, 2)}
    print(row, flush=True)
    return row


def _name(args: argparse.Namespace) -> str:
    return Path(args.checkpoint).name


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, b), device) for _ in range(10))


def _bandwidth(device: torch.device) -> float:
    """Bytes/s of reading memory, here a sum."""
    data = torch.ones(1 << (28 if device.type == "cuda" else 24), device=device)
    return 4 * len(data) / min(_seconds(lambda: data.sum(), device) for _ in range(3))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:>9} W={row['W']} H={row['H']} envs={row['envs']:<3} {row['dtype']:<8} "
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
        "note": "models but the checkpoint's own are briefly trained, see --steps",
    }


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="run or checkpoint of `jowa pretrain`, or `nano`")
    parser.add_argument("data_root", nargs="?", help="its episodes, for real contexts")
    parser.add_argument("--random", action="store_true", help="contexts without data, made up")
    parser.add_argument("--sizes", nargs="+", default=[OWN, "jowa_40m"])
    parser.add_argument("--beams", nargs="+", help="such as 4x2: beam width 4, horizon 2")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--decodes", nargs="+", choices=MODES, default=["auto", "drafted", "plain"])
    parser.add_argument("--dtypes", nargs="+", choices=list(_DTYPES), default=list(_DTYPES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--decisions", type=int, default=64, help="compared with the plain search")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--steps", type=int, default=60, help="training of sizes but the checkpoint's own"
    )
    parser.add_argument("--no-trees", dest="trees", action="store_false", help="beam search alone")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    if bool(args.data_root) == args.random:
        parser.error("give a data root or --random, and not both")
    return args


if __name__ == "__main__":
    main()
