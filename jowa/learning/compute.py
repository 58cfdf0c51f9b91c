"""Where and in which precision a command computes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta

import torch

from jowa.errors import UserError
from jowa.learning.allocator import keep_freed_memory
from jowa.learning.distributed import ALONE, PATIENCE, Processes, join, local_rank

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class ComputeConfig:
    """`device` and `dtype` may be "auto": a GPU where there is one; bfloat16 where it is fast.

    `threads` 0 means OMP_NUM_THREADS where one process is alone, and else all cores. `parallel`
    says what each process of training under torchrun holds: ddp, all of the model; fsdp, its part
    of the model's weights, gradients and optimiser state, for models that outgrow one GPU. Both
    learn the same, and either goes on from the other's checkpoints.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    parallel: str = "ddp"


@dataclass(frozen=True)
class Compute:
    """The resolved device, autocast dtype (float32 means no autocast) and place in the job."""

    device: torch.device
    dtype: torch.dtype
    processes: Processes = ALONE
    parallel: str = "ddp"

    @property
    def shards(self) -> bool:
        """Whether models are to be sharded: alone, a process holds all of them anyway."""
        return self.parallel == "fsdp" and self.processes.size > 1

    def compiles(self, wish: bool | None) -> bool:
        """Whether to compile: as wished, else on a GPU, where it pays; a CPU gains nothing."""
        return self.device.type == "cuda" if wish is None else wish

    def replays(self, wish: bool | None) -> bool:
        """Whether to replay a step as one CUDA graph: as wished, else where one GPU trains alone.

        Raises UserError where it is wished for in vain.
        """
        able = self.device.type == "cuda" and self.processes.size == 1
        if wish and not able:
            raise UserError(
                f"replay=true records a step of one GPU that trains alone, but this job has "
                f"{self.processes.size} process(es) on {self.device.type}: leave replay out."
            )
        return able if wish is None else wish

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Mixed precision around a forward pass; weights stay float32."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )


def resolve(config: ComputeConfig, patience: timedelta = PATIENCE) -> Compute:
    """Checks the wishes against the machine, sets the number of threads (and, on a CPU, keeps the
    memory that is freed), and joins the other processes of the job, who wait `patience` for each
    other."""
    if config.device not in ("auto", "cpu") and not config.device.startswith("cuda"):
        raise UserError(f"compute.device is {config.device!r}: use auto, cpu or cuda.")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "compute.device is cuda, but this machine shows no GPU to PyTorch: "
            "use compute.device=cpu, or install a CUDA build of torch."
        )
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if name == "cuda":
        device = torch.device("cuda", local_rank())
    if config.parallel not in ("ddp", "fsdp"):
        raise UserError(f"compute.parallel is {config.parallel!r}: use ddp or fsdp.")
    if config.dtype != "auto" and config.dtype not in DTYPES:
        raise UserError(f"compute.dtype is {config.dtype!r}: use auto, float32 or bfloat16.")
    if config.threads < 0:
        raise UserError(f"compute.threads is {config.threads}: use 1 or more, or 0 for all cores.")
    dtype = _fast_dtype(device) if config.dtype == "auto" else DTYPES[config.dtype]
    torch.set_num_threads(config.threads or _threads())
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.cuda.set_device(device)
    return Compute(device, dtype, join(device, patience), config.parallel)


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without AVX512-BF16 or AMX a CPU emulates bfloat16 many times slower than float32.
        native = "bf16" in cpu_info("flags")
    return torch.bfloat16 if native else torch.float32


def cpu_info(key: str) -> str:
    """What Linux says of the processor, such as its "model name"; empty where it is not known."""
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith(key)), "")
    except OSError:
        return ""
    return line.partition(":")[2].strip()


def _threads() -> int:
    """This process's share of the cores, or what the user wants every program to take."""
    on_host, wanted = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("OMP_NUM_THREADS", "")
    if on_host is None and wanted.isdigit() and int(wanted):  # torchrun sets it to 1 of its own
        return int(wanted)
    return max(1, len(os.sched_getaffinity(0)) // int(on_host or 1))
