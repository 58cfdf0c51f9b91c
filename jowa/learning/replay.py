"""A training step as one CUDA graph.

A small model's step is a thousand operations of a few microseconds each, which take the host
longer to ask for than the device to do. Recorded once and replayed, they are asked for all at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jowa.data.segments import Batch

_WARM_UP = 3  # ordinary calls first, in which memory is reserved and libraries choose their ways

Outputs = dict[str, Tensor]


class Replay:
    """Calls `work(batch)` as it is a few times, then records it, and from then on replays that.

    `work` may change tensors, such as weights, only in place; it must take no decision on the host
    by what the device computed; and all batches must be of one shape. The outputs of a replay are
    overwritten by the next.
    """

    def __init__(self, work: Callable[[Batch], Outputs], device: torch.device) -> None:
        self._work, self._calls = work, 0
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._outputs: Outputs = {}

    def __call__(self, batch: Batch) -> Outputs:
        self._calls += 1
        if self._calls <= _WARM_UP:
            return self._warm_up(batch)
        if self._graph is None or self._batch is None:
            self._batch = Batch(**{name: tensor.clone() for name, tensor in vars(batch).items()})
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._outputs = self._work(self._batch)
        for name, tensor in vars(self._batch).items():
            tensor.copy_(getattr(batch, name), non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _warm_up(self, batch: Batch) -> Outputs:
        """An ordinary call, on the stream that will record: autograd remembers streams."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self._work(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs
