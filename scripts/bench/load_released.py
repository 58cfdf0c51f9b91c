"""Times loading files in the layout of the published weights, with random numbers in them.

    python scripts/bench/load_released.py [--sizes 40m 70m 150m] [--repeats 3] [--out FILE.json]

Each measurement runs in a process of its own, so that its peak memory is its own; the fastest of
the repeats counts. The files are in the system's cache: a cold disk adds its own time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import jowa
from jowa.learning.config import ImportWeightsConfig
from jowa.learning.import_weights import import_weights
from jowa.models.conv_tokenizer import ConvTokenizer, ConvTokenizerConfig
from jowa.models.released import released_names
from jowa.models.world_action import WorldActionConfig, WorldActionModel

MODELS = Path(__file__).parents[2] / "configs" / "model"
# Parameters of the published models, target head included.
PARAMETERS = {"40m": 19_109_681, "70m": 53_349_681, "150m": 127_778_185, "tokenizer": 4_047_489}
# tokenizer.pt also holds a perceptual network (VGG16's convolutions), which is not loaded.
PERCEPTUAL = 14_714_688
WAYS = {
    "load_released": "released files to modules, weights mapped",
    "read": "the same, and every weight read once",
    "import": "jowa import-weights",
    "load": "jowa.load of the imported checkpoint",
}


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def write_files(folder: Path, size: str) -> tuple[Path, Path]:
    """Model and tokenizer files of a size, names prefixed as in the published ones."""
    torch.manual_seed(0)
    sizes = OmegaConf.merge(
        OmegaConf.structured(WorldActionConfig), OmegaConf.load(MODELS / f"jowa_{size}.yaml")
    )
    config = OmegaConf.to_object(sizes)
    assert isinstance(config, WorldActionConfig)
    model, tokenizer = WorldActionModel(config), ConvTokenizer(ConvTokenizerConfig())
    assert count(model) == PARAMETERS[size] and count(tokenizer) == PARAMETERS["tokenizer"]
    tensors: dict[str, Tensor] = {"head_q.indices": torch.arange(8)}
    for name, tensor in model.state_dict().items():
        parts = released_names(name)
        tensors |= zip(parts, (chunk.clone() for chunk in tensor.chunk(len(parts))), strict=True)
    model_file, tokenizer_file = folder / f"JOWA_{size.upper()}.pt", folder / "tokenizer.pt"
    torch.save({f"_orig_mod.module.{name}": t for name, t in tensors.items()}, model_file)
    tensors = {**tokenizer.state_dict(), "lpips.net": torch.randn(PERCEPTUAL)}
    torch.save({f"module.{name}": t for name, t in tensors.items()}, tokenizer_file)
    return model_file, tokenizer_file


def peak_memory() -> int:
    """Most memory this process has had resident, in bytes (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(way: str, model: Path, tokenizer: Path, run: Path) -> tuple[float, float]:
    """Seconds and GiB of peak memory beyond the process's own."""
    torch.set_num_threads(1)
    before, start = peak_memory(), time.perf_counter()
    if way == "import":
        import_weights(ImportWeightsConfig(str(model), str(tokenizer), str(run)))
    elif way == "load":
        jowa.load(run)
    else:
        modules = jowa.load_released(model, tokenizer)
        if way == "read":
            sum(float(p.detach().sum()) for module in modules for p in module.parameters())
    return time.perf_counter() - start, (peak_memory() - before) / 2**30


def bench(size: str, repeats: int) -> dict[str, Any]:
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        files, run = write_files(Path(folder), size), Path(folder) / "run"
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        results: dict[str, Any] = {"gigabytes": round(gigabytes, 3)}
        for way in WAYS:
            runs = []
            for _ in range(repeats):
                if way == "import":
                    shutil.rmtree(run, ignore_errors=True)
                with fresh.Pool(1) as pool:
                    runs.append(pool.apply(measure, (way, *files, run)))
            seconds, peak = min(runs)
            results[way] = {"seconds": round(seconds, 3), "peak_gib": round(peak, 3)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["40m", "70m", "150m"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {}
    for size in arguments.sizes:
        results[size] = bench(size, arguments.repeats)
        print(f"{size}: {PARAMETERS[size]:,} parameters, {results[size]['gigabytes']:.3f} GB")
        for way, words in WAYS.items():
            seconds, peak = results[size][way]["seconds"], results[size][way]["peak_gib"]
            rate = results[size]["gigabytes"] / seconds
            print(f"  {words:<42} {seconds:6.2f} s  {rate:5.2f} GB/s  +{peak:.2f} GiB at its peak")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
