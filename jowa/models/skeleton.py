"""Modules without weights, for weights that come from a file.

A random start of 128 M parameters takes a second and half a gigabyte, to be overwritten at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = (torch.Tensor.normal_, torch.nn.init.normal_)


class Skeleton(TorchFunctionMode):
    """`with Skeleton(): module = ...` leaves parameters on the meta device: shapes, no memory.

    Everything else that a constructor computes, such as constant buffers, is real. Give the
    weights by `load_state_dict(..., assign=True)`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        # Layers allocate their parameters so, and fill them afterwards.
        if func is torch.empty:
            kwargs["device"] = "meta"
        # A draw without memory does nothing, but the first one imports the compiler: a second.
        if func in _DRAWS and (drawn := args[0] if args else kwargs["tensor"]).is_meta:
            return drawn
        return func(*args, **kwargs)
