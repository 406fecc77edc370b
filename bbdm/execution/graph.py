"""All steps of a loop as one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bbdm.base.recent import Recent
from bbdm.execution.compiled import SHAPES_KEPT, Compiled
from bbdm.execution.loop import Loop, State
from bbdm.networks.base import Conditions
from bbdm.networks.guidance import Guidance
from bbdm.networks.windows import Windowing


class GraphedLoop:
    """A loop captured as one CUDA graph for each shape: all steps in one launch.

    Threads take turns. Outputs are copies, ordered on the caller's stream.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: Recent[tuple[torch.cuda.CUDAGraph, State, object]] = Recent(self._capture, SHAPES_KEPT)
        self._done = torch.cuda.Event()

    def __call__(
        self,
        y: torch.Tensor,
        seeds: torch.Tensor,
        conditions: Sequence[Conditions],
        windows: Windowing | None = None,
        guidance: Guidance | None = None,
        together: bool = True,
    ) -> torch.Tensor:
        """The last state, for y, seeds and the network's conditions on the device.

        Conditions are those of each evaluation of a step. Windows and guidance are as for :meth:`Loop.over`.
        """
        with self._captured.lock, torch.cuda.device(y.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)  # another thread's replay may run on another stream
            told = self._loop.told(conditions)
            key = y.shape, windows, guidance, *(value.shape for value in told.values())
            graph, state, _ = self._captured.get(key, y, seeds, told, windows, guidance, together)
            state.y.copy_(y)
            state.seeds.copy_(seeds)
            for name, buffer in state.conditions.items():
                buffer.copy_(told[name])
            graph.replay()
            result = state.x.clone()
            self._done.record(stream)
            return result

    def _capture(
        self,
        y: torch.Tensor,
        seeds: torch.Tensor,
        conditions: Conditions,
        windows: Windowing | None,
        guidance: Guidance | None,
        together: bool,
    ) -> tuple[torch.cuda.CUDAGraph, State, object]:
        """The graph, its buffers, and what else it reads, which must outlive it: all weights."""
        own = {name: value.clone() for name, value in conditions.items()}
        network = self._loop.network
        loop = self._loop.over(windows, guidance, together=together)
        state = loop.start(y.clone(), seeds.clone(), conditions=own)
        stream = torch.cuda.Stream()  # a new one, so that samplers may capture at the same time
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compile, tune and load kernels before the capture
            loop.advance(state, 0) if guidance is None else loop.run(state)
        torch.cuda.current_stream().wait_stream(stream)
        used = [network.at(*call) for call in loop.calls(state)] if isinstance(network, Compiled) else network
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            loop.restart(state)
            loop.run(state)
        return graph, state, (loop, used)
