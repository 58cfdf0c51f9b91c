"""Searches ask a model as it plays, whatever mode training has left it in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

from torch import nn

from jowa.models.world_action import WorldActionModel

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every part is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def in_evaluation_mode(
    search: Callable[Concatenate[WorldActionModel, P], R],
) -> Callable[Concatenate[WorldActionModel, P], R]:
    """A search whose model drops nothing out."""

    def asked(model: WorldActionModel, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not model.training:
            return search(model, *args, **kwargs)
        with evaluating(model):
            return search(model, *args, **kwargs)

    functools.update_wrapper(asked, search)
    return asked
