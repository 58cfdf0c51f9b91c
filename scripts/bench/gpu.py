"""Every check that needs a GPU, in one go, and one JSON of what was seen.

    python scripts/bench/gpu.py --out eval/results/gpu.json [--checkpoint RUN] [--data ROOT]

Runs the GPU's share of the tests (`--only tests`; its files side by side), the conformance of all
numbers in float32 and bfloat16, the training bench for every published size (eager beside a plain
implementation, as one CUDA graph, and compiled as well), and the planner's bench, with real
contexts if there are episodes. A part that fails is recorded with what it said, and the others go
on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from jowa.learning.checkpoint import versions

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"
# What a GPU does otherwise than a CPU.
TESTS = {
    "tests_conformance": "test_conformance.py",
    "tests_replay": "learning/test_replay.py",
    "tests_token_loss": "learning/test_token_loss.py",
    "tests_tree_kernel": "models/test_tree_kernel.py",
    "tests_cuda_graphs": "planning/test_cuda_graphs.py",
}
TAIL = 4000  # characters kept of what a part said


def parts(options: argparse.Namespace) -> dict[str, list[str]]:
    """Command lines by name; those that write JSON are given --out later."""
    pytest = ["-m", "pytest", "-q", "--durations=5"]
    chosen = {name: [*pytest, str(ROOT / "tests" / file)] for name, file in TESTS.items()}
    for dtype in ("float32", "bfloat16"):
        script = [str(BENCH / "conformance.py"), "--device", "cuda", "--dtype", dtype]
        chosen[f"conformance_{dtype}"] = script
    training = [str(BENCH / "training.py"), "--device", "cuda", "--batch", str(options.batch)]
    training += ["--turns", str(options.turns), "--sizes", *options.sizes]
    chosen["training_eager"] = training
    chosen["training_replayed"] = [*training, "--replay", "--alone"]
    chosen["training_compiled"] = [*training, "--replay", "--compile", "--alone"]
    planning = [str(BENCH / "planning.py"), options.checkpoint]
    planning += [options.data] if options.data else ["--random"]
    planning += ["--device", "cuda", "--envs", "1", "16", "64", "--beams", "4x2", "--no-trees"]
    planning += ["--decodes", "static", "--dtypes", "bfloat16"]
    planning += ["--decisions", "16", "--repeats", "5", "--steps", "80"]
    chosen["planning_nano"] = [*planning, "--sizes", "own"]
    chosen["planning_jowa_150m"] = [*planning, "--sizes", "jowa_150m"]
    only = set(options.only or chosen)
    if "tests" in only:
        only |= TESTS.keys()
    return {name: command for name, command in chosen.items() if name in only}


def run(name: str, command: list[str], limit: float) -> dict[str, Any]:
    """What a part said, how long it took, and its JSON if it wrote one."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        writes = [] if name in TESTS else ["--out", str(out)]
        started = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *command, *writes],
                capture_output=True,
                text=True,
                timeout=limit,
                cwd=ROOT,
                check=False,
            )
            code, said = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            code, said = None, f"not done within {limit:.0f} s"
        return {
            "exit_code": code,
            "seconds": round(time.perf_counter() - started, 1),
            "said": said[-TAIL:],
            "result": json.loads(out.read_text()) if out.exists() else None,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="parts to run; --out keeps the others")
    parser.add_argument("--sizes", nargs="+", default=["nano", "jowa_40m", "jowa_70m", "jowa_150m"])
    parser.add_argument("--turns", type=int, default=10, help="timed training steps of each kind")
    parser.add_argument("--batch", type=int, default=64, help="segments a training step")
    parser.add_argument("--checkpoint", default="nano", help="a trained nano, for the planner")
    parser.add_argument("--data", help="its episodes")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each part")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this machine shows no GPU to PyTorch: nothing was run.", file=sys.stderr)
        return 2
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "gpu": torch.cuda.get_device_name(),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "versions": versions(),
    }
    results: dict[str, Any] = {}
    if options.only and options.out.exists():  # other parts of an earlier run stay
        results = json.loads(options.out.read_text())["parts"]
    chosen = parts(options)

    def record(name: str, found: dict[str, Any]) -> None:
        print(f"{name}: exit {found['exit_code']}, {found['seconds']} s", flush=True)
        results[name] = found
        options.out.write_text(json.dumps({**facts, "parts": results}, indent=1) + "\n")

    def started(name: str) -> dict[str, Any]:
        return run(name, chosen[name], options.limit)

    tests = [name for name in chosen if name in TESTS]
    with ThreadPoolExecutor(len(TESTS)) as pool:  # they time nothing
        for name, found in zip(tests, pool.map(started, tests), strict=True):
            record(name, found)
    for name in chosen:
        if name not in TESTS:
            record(name, started(name))
    return int(any(results[name]["exit_code"] != 0 for name in chosen))


if __name__ == "__main__":
    sys.exit(main())
