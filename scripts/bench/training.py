"""Speed of a training step, as a share of what the machine's matrix products allow.

    python scripts/bench/training.py [--sizes nano jowa_40m:4] [--batch 16] [--device cuda]

For each size: our step of stage 2 (world model and Q on tokens) beside the same model trained
plainly (eager, float32, no fused kernels), in turns in one process; tokens a second, FLOPs a
token, share of the measured bfloat16 matrix-product rate, peak memory, share of the time spent
waiting for data. A size may name its own batch (jowa_40m:4). The floor is the time of the step's
matrix products alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from jowa.cli import composed
from jowa.data.segments import Batch
from jowa.games import GAMES
from jowa.learning import objective as objectives
from jowa.learning.checkpoint import versions
from jowa.learning.compute import Compute, ComputeConfig, resolve
from jowa.learning.config import PretrainConfig
from jowa.learning.loss_config import LossConfig
from jowa.learning.losses import IGNORE
from jowa.learning.objective import Objective
from jowa.learning.optim import OptimizerConfig, build_optimizer
from jowa.learning.step import Step
from jowa.models.flops import flops_per_token
from jowa.models.tokenizer import FRAME_SIZE
from jowa.models.tokenizers import build_tokenizer
from jowa.models.world_action import BLOCK_TOKENS, FRAME_TOKENS, WorldActionModel

FRAMES = 8
WARM_UP = 5  # turns that compile, choose kernels and record


def random_batch(size: int, vocabulary: int | None, frames: int = FRAMES) -> Batch:
    """Full segments of random tokens of three games, or of random frames where there is no
    vocabulary."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([GAMES[name].id for name in ("Pong", "Breakout", "Boxing")])
    shape = (size, frames)
    nowhere = torch.zeros(shape, dtype=torch.bool)
    observations = (
        torch.randint(0, 256, (*shape, FRAME_SIZE, FRAME_SIZE), generator=generator).byte()
        if vocabulary is None
        else torch.randint(0, vocabulary, (*shape, FRAME_TOKENS), generator=generator)
    )
    return Batch(
        observations=observations,
        actions=torch.randint(0, 18, shape, generator=generator),
        rewards=torch.randint(-1, 2, shape, generator=generator).float(),
        ends=nowhere,
        mask_padding=~nowhere,
        games=ids[torch.arange(size) % len(ids)],
        imagined=nowhere,
        keys=torch.arange(size),
    )


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = min(timed(device, lambda: a @ b) for _ in range(8))
    return 2.0 * n**3 / best


def timed(device: torch.device, work: Callable[[], object]) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain_token_loss(
    features: Tensor,
    layer: nn.Linear,
    targets: Tensor,
    gates: Tensor | None = None,
    hints: Tensor | None = None,
) -> Tensor:
    """What `token_loss` computes, with all logits in memory."""
    logits = layer(features)
    if gates is not None and hints is not None:
        known = (hints < logits.shape[1]) * gates
        index = hints.clamp(max=logits.shape[1] - 1).unsqueeze(1)
        logits = logits.scatter_add(1, index, known.unsqueeze(1))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


class Plain:
    """The same model trained without anything that this project does for speed."""

    def __init__(self, objective: Objective, compute: Compute) -> None:
        self.objective, self.device = objective, compute.device
        parameters = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, foreach=False, fused=False)
        self.parameters = parameters

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        lean, objectives.token_loss = objectives.token_loss, plain_token_loss
        loss, metrics, _ = self.objective(batch)
        objectives.token_loss = lean
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=False)
        self.optimizer.step()
        float(metrics["loss/total"])


def measure(
    size: str, segments: int, options: argparse.Namespace, compute: Compute, rate: float
) -> dict[str, Any]:
    recipe = ["model=nano"] if size == "nano" else ["experiment=published", f"model={size}"]
    config = OmegaConf.to_object(composed("pretrain", [*recipe, "run=-", "data.games=[Pong]"]))
    assert isinstance(config, PretrainConfig)
    losses = LossConfig(world_model=0.1, q=1.0)
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    torch.compiler.reset()  # or a second size is compiled for any size, which is slower
    tokenizer = build_tokenizer(config.tokenizer).requires_grad_(False)
    model = WorldActionModel(config.model)
    objective = Objective(tokenizer, model, losses).to(compute.device).train()
    objective.freeze_unused()
    batch = random_batch(segments, config.model.vocabulary)
    here = batch.to(compute.device)
    step = Step(
        objective,
        build_optimizer(objective, OptimizerConfig()),
        OptimizerConfig(),
        compute,
        10**6,
        1000,
        options.compile,
        options.replay,
    )
    ways: dict[str, Callable[[], object]] = {"ours": lambda: step(here, 0, False)}
    if not options.alone:
        plain = Plain(copy.deepcopy(objective), compute)
        ways["plain"] = lambda: plain(here)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + WARM_UP):
        for name, work in ways.items():
            seconds = timed(compute.device, work)
            if turn >= WARM_UP:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    tokens = segments * FRAMES * BLOCK_TOKENS
    flops = tokens * flops_per_token(config.model)
    return {
        "size": size,
        "batch": segments,
        "milliseconds": {name: round(1e3 * m, 2) for name, m in medians.items()},
        "speedup": round(medians["plain"] / medians["ours"], 2) if "plain" in medians else None,
        "tokens_per_second": round(tokens / medians["ours"]),
        "mflops_per_token": round(flops / tokens / 1e6, 2),
        "floor_milliseconds": round(1e3 * flops / rate, 2),
        "utilisation": round(flops / rate / medians["ours"], 3),
        "reading_share": round(reading_seconds(segments) / medians["ours"], 4),
        "peak_gib": round(peak_bytes(compute.device) / 2**30, 2),
    }


def reading_seconds(batch: int) -> float:
    """What it takes to read a batch of stored tokens, which training waits for."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 1024, (100_000, FRAME_TOKENS), dtype=np.uint16)
    rows = rng.integers(0, 100_000 - FRAMES, (20, batch, 1)) + np.arange(FRAMES)
    start = time.perf_counter()
    for row in rows:
        torch.from_numpy(stored[row].astype(np.int64))
    return (time.perf_counter() - start) / len(rows)


def peak_bytes(device: torch.device) -> int:
    """Of the GPU's memory for this size, the plain way's too if it is timed; or of this process's,
    for all sizes so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["nano"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 is one a core")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--replay", action="store_true", help="the step as one CUDA graph")
    parser.add_argument("--alone", action="store_true", help="leave the plain way out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    compute = resolve(ComputeConfig(options.device, options.dtype, options.threads))
    rates = {
        name: matmul_rate(compute.device, getattr(torch, name)) for name in ("float32", "bfloat16")
    }
    print({name: f"{rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()})
    rows = []
    for wanted in options.sizes:
        size, _, batch = wanted.partition(":")
        rows.append(measure(size, int(batch or options.batch), options, compute, rates["bfloat16"]))
        print(rows[-1], flush=True)
    if options.out:
        facts = {
            "command": " ".join(["python", *sys.argv]),
            "versions": versions(),
            "device": device_name(compute.device),
            "threads": torch.get_num_threads(),
            "dtype": str(compute.dtype).removeprefix("torch."),
            "compiled": options.compile,
            "replayed": options.replay,
            "matmul_flops_per_second": {name: round(rate) for name, rate in rates.items()},
        }
        options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return 0


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
