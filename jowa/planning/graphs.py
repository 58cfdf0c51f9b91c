"""CUDA graphs of computations that are done again and again at the same addresses."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Graphs:
    """Runs computations by name: the first time as they are, which warms up what a capture must not
    (cuBLAS, compiled kernels), from the second on as a captured graph; on other devices than CUDA
    always as they are.

    What is run reads and writes tensors that outlive it, and is the same work for one name. The
    graphs share one pool of memory, as they never run side by side.
    """

    def __init__(self, device: torch.device) -> None:
        self._captures = device.type == "cuda"
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        if self._captures:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    @property
    def names(self) -> set[Hashable]:
        """Of what has been captured."""
        return set(self._graphs)

    def run(self, name: Hashable, work: Callable[[], None]) -> None:
        """Does the work, or replays it."""
        if not self._captures:
            work()
        elif name in self._graphs:
            self._graphs[name].replay()
        elif name in self._warm:
            self._capture(name, work)
        else:
            self._warm.add(name)
            with self._aside():
                work()

    def _capture(self, name: Hashable, work: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        with self._aside():
            # Not `torch.cuda.graph`, which empties PyTorch's cache of memory for every graph. Other
            # threads (of data loading) may go on using the GPU meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        graph.replay()
        self._graphs[name] = graph

    def _aside(self) -> _Aside:
        return _Aside(self._stream)


class _Aside:
    """On a stream beside the current one, after what is queued there and before what will be."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream, self._context = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._context.__enter__()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
