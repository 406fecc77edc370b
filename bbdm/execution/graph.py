"""Functions of tensors that were captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from bbdm.base.recent import Recent
from bbdm.execution.compiled import SHAPES_KEPT

Tensors = list[torch.Tensor]
Captured = tuple[torch.cuda.CUDAGraph, Tensors, torch.Tensor, Any]


class Graphs:
    """A function's runs, captured once for each key: all their kernels in one launch.

    Threads take turns. Results are copies, ordered on the caller's stream.

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: Recent[Captured] = Recent(self._capture, SHAPES_KEPT)
        self._done = torch.cuda.Event()

    def __call__(
        self, key: Hashable, function: Callable[[Tensors], torch.Tensor], tensors: Sequence[torch.Tensor], reads: Any
    ) -> torch.Tensor:
        """The function's result for tensors.

        Args:
            key: of the graph, besides the shapes of ``tensors``.
            function: of the tensors; what else it reads on the device must not change.
            tensors: what the function gets, on the device.
            reads: returns what else the graph reads, such as weights, which must outlive it.
        """
        with self._captured.lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)  # another thread's replay may run on another stream
            shapes = tuple(tensor.shape for tensor in tensors)
            graph, buffers, output, _ = self._captured.get((key, shapes), function, tensors, reads)
            for buffer, tensor in zip(buffers, tensors, strict=True):
                buffer.copy_(tensor)
            graph.replay()
            result = output.clone()
            self._done.record(stream)
            return result

    def _capture(self, function: Callable[[Tensors], torch.Tensor], tensors: Tensors, reads: Any) -> Captured:
        buffers = [tensor.clone() for tensor in tensors]
        stream = torch.cuda.Stream()  # a new one, so that samplers may capture at the same time
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compile, tune and load kernels before the capture
            function(buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            output = function(buffers)
        return graph, buffers, output, reads()
