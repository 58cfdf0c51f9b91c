"""Sharding: every process holds only its part of the model, for models that outgrow one GPU.

What a process keeps of the model's float32 weights, gradients and optimiser state is one part in as
many as there are processes. A forward or backward pass gathers one transformer block at a time, and
everything outside of the blocks as a whole. The tokenizer, small and read at any time, stays whole
in every process. Applied from outside: the model knows nothing of it, and its checkpoints are those
of any other run.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from jowa.learning.distributed import Processes
from jowa.models.world_action import WorldActionModel


def shard(model: WorldActionModel, processes: Processes, device: torch.device) -> None:
    """Leaves this process its part of each of the model's parameters, on the device.

    The whole model is never on the device. Mixed precision stays with autocast: FSDP's own policy
    would also compute embeddings and norms in bfloat16.
    """
    # Nothing that the model returns is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (processes.size,))
    split = functools.partial(_placement, processes.size)
    for block in model.transformer.blocks:
        fully_shard(block, mesh=mesh, shard_placement_fn=split)
    # Its own parameters stay gathered from the forward to the backward pass, so that the losses can
    # read the heads' weights.
    fully_shard(model, mesh=mesh, shard_placement_fn=split)


def _placement(processes: int, parameter: nn.Parameter) -> Shard:
    """Along the first dimension that splits evenly: the first one may be an ensemble of one."""
    even = (d for d, size in enumerate(parameter.shape) if size % processes == 0)
    return Shard(next(even, 0))


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Every process holds all parameters for a while, for what reads them outside of a forward
    pass. All processes come here together; what is not sharded is left as it is."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        release(module)


def release(module: nn.Module) -> None:
    """Lets go of what a forward pass has gathered and no backward pass will need."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def average_whole_gradients(module: nn.Module, processes: Processes) -> None:
    """Averages over processes what gradients the backward pass of a sharded model does not: those
    of parameters that are whole in each of them."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    if whole:
        mean = processes.average(torch.cat([gradient.flatten() for gradient in whole]))
        for gradient, part in zip(whole, mean.split([g.numel() for g in whole]), strict=True):
            gradient.copy_(part.view_as(gradient))


def full(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; all ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collect(tensors: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """All tensors in full: on the CPU of the first process, which alone keeps what was sharded."""
    collected = {}
    for name, tensor in tensors.items():
        whole = full(tensor)
        if processes.first:
            collected[name] = whole.cpu()
    return collected


def split_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A full tensor of the parameter's shape, in parts if the parameter is."""
    if not isinstance(parameter, DTensor):
        return tensor
    # Every process has all of it: nothing is sent.
    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
