"""Drafted decoding of frames in C++ for CPUs (native.cpp), which is compiled when first used.

On a small model PyTorch takes longer to start its operations than to do them.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.errors import UserError
from jowa.models.decoding import Cache, cache_of
from jowa.models.outputs import Tables
from jowa.models.transformer import Block
from jowa.models.world_action import WorldActionModel

_SOURCE = Path(__file__).with_name("native.cpp")
_COMPILE = ("g++", "-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-c")


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Affine(ctypes.Structure):
    _fields_ = _fields(ctypes.c_void_p, "weight bias")


class _Layer(ctypes.Structure):
    _fields_ = _fields(_Affine, "ln1 qkv proj ln2 up down")


class _Cached(ctypes.Structure):
    _fields_ = _fields(ctypes.c_void_p, "prefix_keys prefix_values tail_keys tail_values")


class _Task(ctypes.Structure):
    """`Task` of native.cpp."""

    _fields_ = [
        *_fields(ctypes.c_int64, "layers heads width vocabulary"),
        *_fields(ctypes.c_int64, "rows environments prefix capacity filled threads"),
        ("blocks", ctypes.POINTER(_Layer)),
        *_fields(_Affine, "ln_f first second gate"),
        ("table", ctypes.c_void_p),
        ("cache", ctypes.POINTER(_Cached)),
        *_fields(ctypes.c_void_p, "prefix_mask tail_mask base previous last"),
        *_fields(ctypes.c_void_p, "tokens action_hidden hidden"),
        *_fields(ctypes.c_int64, "passes computed"),
    ]


@cache
def library() -> ctypes.CDLL:
    """The compiled code; UserError where it cannot be compiled."""
    try:
        made_in = tempfile.TemporaryDirectory()
    except OSError as error:
        raise UserError(
            f"decode=native compiles C++ into a temporary folder, and there is none that can be "
            f"written ({error}): set TMPDIR, or leave decode=auto."
        ) from None
    with made_in as folder:
        made, shared = f"{folder}/native.o", f"{folder}/native.so"
        # OpenMP is not linked: it is to be PyTorch's own, whose threads are there already.
        commands = [*_COMPILE, str(_SOURCE), "-o", made], ["g++", "-shared", made, "-o", shared]
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, text=True)
            return ctypes.CDLL(shared)
        except FileNotFoundError:
            raise UserError(
                "decode=native compiles C++ when first used, but there is no g++: install it, or "
                "leave decode=auto."
            ) from None
        except (subprocess.CalledProcessError, OSError) as error:
            why = getattr(error, "stderr", None) or error
            raise UserError(
                f"decode=native does not compile here: leave decode=auto. {why}"
            ) from None


def takes(model: WorldActionModel) -> bool:
    """Whether the compiled code is for such a model: float32 on a CPU without autocast, heads of
    whole panels."""
    weight, sizes = next(model.observation_head.parameters()), model.config.transformer
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and sizes.width // sizes.heads % library().panel() == 0
    )


class Native:
    """Computes by weights in the order in which the compiled code reads them."""

    def __init__(self) -> None:
        self._state: tuple[object, ...] | None = None
        self._task = _Task()  # but for what is of one call
        self._kept: list[Tensor] = []  # what it points to

    def forget(self) -> None:
        """Reads the weights anew when next asked."""
        self._state = None

    def prefill(
        self, model: WorldActionModel, x_BPD: Tensor, last: Tensor, capacity: int
    ) -> tuple[Cache, Tensor]:
        """As of `decoding.prefill`."""
        (B, P, D), sizes = x_BPD.shape, model.config.transformer
        shape = sizes.layers, sizes.heads, B, P, D // sizes.heads
        # Zeros, as nothing is written to padding.
        keys, values = (list(x_BPD.new_zeros(shape)) for _ in range(2))
        cache, hidden = cache_of(keys, values, last, capacity), x_BPD.new_empty(B, D)
        inputs = {"base": x_BPD.contiguous(), "last": last.contiguous()}
        self._run(library().read_contexts, model, cache, {**inputs, "hidden": hidden})
        return cache, hidden

    def decode(
        self,
        model: WorldActionModel,
        tables: Tables,
        cache: Cache,
        base: Tensor,
        previous: Tensor,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], int, int]:
        """The fields of `decode.Frame`, of arguments as of `decode.Block`; how many passes the row
        took that took most, and the tokens computed in all."""
        action_hidden, hidden = base.new_empty(2, *base[:, 0].shape)
        tokens = torch.empty_like(previous, memory_format=torch.contiguous_format)
        places: dict[str, Tensor | None] = {
            "table": tables.observation.contiguous(),
            "base": base.contiguous(),
            "previous": previous.contiguous(),
            "prefix_mask": cache.prefix_mask,
            "tail_mask": cache.tail_mask,
            "tokens": tokens,
            "action_hidden": action_hidden,
            "hidden": hidden,
        }
        task = self._run(library().decode, model, cache, places)
        return (tokens, action_hidden, hidden), task.passes, task.computed

    def _run(
        self,
        function: Callable[[object], object],
        model: WorldActionModel,
        cache: Cache,
        places: dict[str, Tensor | None],
    ) -> _Task:
        """Calls compiled code with a task that points to a cache and to tensors."""
        self._read(model)
        task = _Task.from_buffer_copy(self._task)
        task.rows, task.environments, task.filled = cache.rows, cache.environments, cache.filled
        task.prefix, task.capacity = cache.prefix_keys[0].shape[2], cache.tail_keys[0].shape[2]
        task.threads = torch.get_num_threads()
        kinds = cache.prefix_keys, cache.prefix_values, cache.tail_keys, cache.tail_values
        layers = (_Cached(*map(_pointer, layer)) for layer in zip(*kinds, strict=True))
        task.cache = (_Cached * task.layers)(*layers)
        for name, tensor in places.items():
            setattr(task, name, _pointer(tensor))
        function(ctypes.byref(task))
        return task

    def _read(self, model: WorldActionModel) -> None:
        """Lays the weights out anew if they are not what they were."""
        parts = model.transformer, model.observation_head
        weights = [weight for part in parts for weight in part.parameters()]
        if model.config.copy_previous:
            weights += model.copy_gate.parameters()
        if not any(weight.is_inference() for weight in weights):  # of those nothing tells
            state = weakref.ref(model), [(w.data_ptr(), w._version) for w in weights]
            if state == self._state:
                return
            self._state = state
        self._kept.clear()
        task, sizes = self._task, model.config.transformer
        task.layers, task.heads, task.width = sizes.layers, sizes.heads, sizes.width
        task.vocabulary = model.config.vocabulary
        task.blocks = (_Layer * task.layers)(*map(self._layer, model.transformer.blocks))
        task.ln_f = self._plain(model.transformer.ln_f)
        first, _, second = model.observation_head
        task.first, task.second = self._panels(first), self._panels(second)
        task.gate = self._plain(model.copy_gate) if model.config.copy_previous else _Affine()

    def _layer(self, block: nn.Module) -> _Layer:
        assert isinstance(block, Block)
        up, _, down = block.mlp
        return _Layer(
            ln1=self._plain(block.ln1),
            qkv=self._panels(block.attention.qkv),
            proj=self._panels(block.attention.proj),
            ln2=self._plain(block.ln2),
            up=self._panels(up),
            down=self._panels(down),
        )

    def _plain(self, module: nn.LayerNorm | nn.Linear) -> _Affine:
        """Weight and bias as they are."""
        kept = [module.weight.detach().contiguous(), module.bias.detach().contiguous()]
        self._kept += kept
        return _Affine(*map(_pointer, kept))

    def _panels(self, linear: nn.Module) -> _Affine:
        """Weights (panels, inputs, panel) and biases, outputs padded to whole panels."""
        assert isinstance(linear, nn.Linear)
        size = library().panel()
        pad = -linear.out_features % size
        weight = F.pad(linear.weight.detach(), (0, 0, 0, pad)).unflatten(0, (-1, size))
        kept = [weight.mT.contiguous(), F.pad(linear.bias.detach(), (0, pad))]
        self._kept += kept
        return _Affine(*map(_pointer, kept))


def _pointer(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()
