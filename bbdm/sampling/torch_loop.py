"""The loop on PyTorch: its arrays are tensors on a device, a step is one op, and runs may be captured.

And the way back: from a target to the noise that ``ddim`` makes it of, by a table that the same loop runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from bbdm import solvers
from bbdm.base.recent import Recent
from bbdm.bridges import Bridge
from bbdm.bridges.timesteps import Timesteps as Times
from bbdm.codec import Codec
from bbdm.execution.compiled import Compiled, Graphs
from bbdm.kernels import philox
from bbdm.kernels.bridge_step import unchecked
from bbdm.kernels.elementwise import CHANNELS_LAST, layout
from bbdm.networks.arrays import padded
from bbdm.networks.base import Body, Network
from bbdm.networks.windows import WindowGrid
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Advance, Batch, Callback, Inputs, Plan, State
from bbdm.sampling.options import Options, Seed, Timesteps
from bbdm.sampling.sources import Sources, read_sources
from bbdm.solvers import StepTable


class TorchLoop(Sampler[torch.Tensor]):
    """The loop on PyTorch; see :class:`bbdm.sampling.loop.Loop` for what its methods give."""

    array, noun, _inference = torch.Tensor, "a tensor", torch.inference_mode
    unet: Network  # on the device in ``dtype``
    bridge: Bridge
    codec: Codec | None
    device: torch.device
    dtype: torch.dtype  # of the network's computation
    clamp: tuple[float, float] | None  # of every estimate of the target
    _body: Body  # the network's, eager, compiled or from a package
    _embedder: Callable[[torch.Tensor], torch.Tensor]  # of times, with weights that are not rounded to dtype
    _graphs: Graphs | None
    _kept_weights: Recent[list[torch.Tensor]]  # of windows: a captured graph cannot copy them

    def _load(self, table: StepTable) -> tuple[torch.Tensor, ...]:
        """(K, 10) rows and opening, which uses the last one, (K,) their numbers, (K, M) embedded times."""
        with torch.no_grad():
            embedding = self._embedder(torch.tensor(table.network_times, dtype=torch.float32))
            steps = torch.arange(len(table), device=self.device)
            return self._array(table.rows), self._array(table.opening), steps, self._array(embedding)

    def _encode(self, source: torch.Tensor) -> torch.Tensor:
        y = source if self.codec is None else self.codec.encode(source.float(), "source").to(self._like.dtype)
        return y.contiguous(memory_format=CHANNELS_LAST[y.ndim])

    def _decode(self, state: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return state if self.codec is None else self.codec.decode(state)

    def _put(self, array: torch.Tensor) -> torch.Tensor:
        array = array.to(self.dtype) if array.is_floating_point() else array
        return array.contiguous(memory_format=layout(array.ndim))

    def _get(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._like.dtype)

    def _weights(self, windows: WindowGrid, size: Sequence[int]) -> list[torch.Tensor]:
        return self._kept_weights.get((windows, tuple(size)), windows, size)

    def _net(self, plan: Plan, conditions: Mapping[str, torch.Tensor], x: torch.Tensor, index: int) -> torch.Tensor:
        return self._body(x, plan.loaded[3][index : index + 1], conditions)

    def _step(
        self, plan: Plan, inputs: Inputs, state: State | None, prediction: torch.Tensor | None, index: int
    ) -> State:
        """One row of the table, which overwrites the buffers of the state; they are channels_last."""
        rows, opening, steps, _ = plan.loaded
        y = inputs.y
        if state is None:
            rows, index, prediction = opening, len(plan.times) - 1, y
            state = State(*(torch.empty_like(y, dtype=dtype) for dtype in (y.dtype, y.dtype, self.dtype)))
        seeds, noise = (inputs.seeds, None) if inputs.noise is None else (None, inputs.noise[index])
        images, others = (state.x, state.x0hat, state.inputs, prediction, y), (seeds, noise, inputs.mask)
        unchecked(*images, rows, steps[index : index + 1], *others, *(self.clamp or (None, None)))
        return state

    def _last(self, batch: Batch, inputs: Inputs, advance: Advance, callback: Callback) -> torch.Tensor:
        """The state after all steps; by a captured run, where there is nothing to do between two steps."""
        if self._graphs is None or not callback is inputs.noise is inputs.mask is None:
            return super()._last(batch, inputs, advance, callback)
        names = [list(each) for each in inputs.conditions]

        def run(tensors: list[torch.Tensor]) -> torch.Tensor:
            y, seeds, *rest = tensors
            values = iter(rest)
            again = Inputs(y, [{name: next(values) for name in each} for each in names], seeds)
            *_, last = self._states(batch, again, lambda _: None)
            return last.x

        tensors = [inputs.y, inputs.seeds, *(value for each in inputs.conditions for value in each.values())]
        key = batch.plan, batch.windows, batch.guidance, tuple(map(tuple, names))
        body, weights = self._body, self._kept_weights
        functions = body.functions if isinstance(body, Compiled) else list  # with constants that replays read
        x = self._graphs(key, run, tensors, lambda: [functions(), weights.values()])
        advance(self._calls(batch, len(batch.source)))
        return x

    def noise(self, source: Any, seed: Seed = None, **options: Any) -> torch.Tensor:
        """The noise that seeds draw for a call: with it as ``noise``, the call gives the same images.

        Args:
            source: what a call takes, of one size; only the size counts.
            seed: an integer, or one for each source; None draws one.
            options: those of the call, which decide the number of steps.

        Returns:
            (K, B, C, H, W) standard normals, one for each step, on the grid that the network sees.
        """
        self, _, sources, batches = self._call(source, seed, options)
        if len(sources.groups) > 1:
            raise ValueError("noise needs pictures of one size, got several")
        shape = self._shapes.channels, *self._shapes.grid(batches[0].size)
        seeds = [each for batch in batches for each in batch.seeds[: len(batch.indices)]]
        seeds = torch.tensor(seeds, device=self.device)
        return torch.stack([philox.normal(seeds, index, shape) for index in range(len(batches[0].plan.times))])

    @torch.inference_mode()
    def encode(
        self, target: Any, source: Any, steps: int | None = None, *, timesteps: Timesteps = None, **options: Any
    ) -> Any:
        """The noise that the deterministic solver ``ddim`` makes a target of, for interpolation and editing.

        ``sampler(source, noise=noise, solver="ddim", steps=steps)`` gives the target back, but for the error
        of the steps. Noises of two targets may be mixed, and another source or condition be given.

        Args:
            target: what a result is, of the kind of ``source``.
            source: what a call takes, of one size.
            steps: of ``ddim``; its default if None. One network call fewer is made.
            timesteps: of ``ddim``, in place of ``steps``.
            options: conditions, windows, guidance and values, as in a call.

        Returns:
            (K, B, C, H, W) noise on the grid that the network sees: zeros but in the step that draws it. Of a
            bridge without noise, what takes the source's place, in its type.

        Raises:
            ValueError: target and source have other numbers or sizes, or there are fewer than 2 steps.
        """
        way_back = {"solver": lambda bridge, _: inversion(bridge, timesteps, steps).table}
        self, o, sources, batches = self._call(source, 0, options | way_back)
        _, row, count = inversion(self.bridge, timesteps, steps)
        x0, states = self._targets(target, sources, o), []
        for batch in batches:
            inputs = self._inputs(batch)
            rows = batch.indices + batch.indices[-1:] * (len(batch.source) - len(batch.indices))
            images = padded(x0[rows], self._shapes.padded(batch.size))
            encoded = images if self.codec is None else self.codec.encode(images.float(), "target").to(images.dtype)
            inputs.noise = encoded.new_zeros(len(batch.plan.times), *encoded.shape)
            inputs.noise[-1] = encoded
            *_, state = self._states(batch, inputs, lambda _: None)
            states.append(state.x[: len(batch.indices)].clone())
        state = torch.cat(states)
        if row is None:
            result = self._decode(state)[(..., *map(slice, batches[0].size))]
            return sources.restore([(list(range(len(result))), result)])
        noise = state.new_zeros(count, *state.shape)
        noise[row] = state
        return noise

    def _targets(self, target: Any, sources: Sources, o: Options) -> torch.Tensor:
        """(B, C, H, W) targets in [-1, 1], as many as there are sources and of their size."""
        scale = self._scale(o)
        kind = replace(scale.kind, source=scale.kind.target, neighbours=0)
        scale = replace(scale, channels=self._shapes.image_channels, kind=kind)
        targets = read_sources(target, self.array, self.noun, scale)
        sizes = [[f"{len(i)} of {tuple(images.shape[2:])}" for i, images in each.groups] for each in (sources, targets)]
        if len(sizes[0]) > 1 or sizes[0] != sizes[1]:
            found = " and ".join(", ".join(each) for each in sizes)
            raise ValueError(f"target and source must be as many pictures of one size, got {found}")
        return self._array(targets.groups[0][1])


class Inversion(NamedTuple):
    """The table that undoes ``ddim``, whose noise in the last row stands for the target."""

    table: StepTable
    row: int | None  # that the noise is of, among the sampler's; None without noise: the state is that at the top
    steps: int  # of the sampler


def inversion(bridge: Bridge, timesteps: Any = None, steps: int | None = None) -> Inversion:
    """The table that undoes ``ddim`` of some times.

    Raises:
        ValueError: times that the bridge cannot take, or fewer than 2.
    """
    sampled = solvers.build(bridge, "ddim", timesteps, steps)
    times: Times = sampled.timesteps[::-1]
    if len(times) < 2:
        raise ValueError(f"the way back needs at least 2 steps, got {len(times)}")
    alpha, beta, sigma = bridge.at(times)
    start = beta[0].item(), alpha[0].item()  # of source and target, at the lowest time
    if bridge.deterministic:  # the source takes the place of the noise, and is near the target there
        start, beta, sigma = (0.0, sum(start)), np.zeros_like(beta), beta
    kappa = sigma[1:] / sigma[:-1]
    zero = np.zeros_like(kappa)
    columns = kappa, beta[1:] - kappa * beta[:-1], alpha[1:] - kappa * alpha[:-1], zero, zero
    coefficients = np.stack(columns, axis=1)
    calls, row = times[:-1], None
    inputs, prediction = bridge.input(calls), bridge.prediction(calls)
    if bridge.deterministic:  # the source is what is looked for: it is what state and estimate make it
        share = prediction[:, 1] / sigma[:-1]
        prediction = np.stack([prediction[:, 0] + share, zero, prediction[:, 2]], axis=1)
        prediction /= 1 + alpha[:-1, None] * share[:, None]
    (_, c_y, c_0, _, c_z), (of_y, of_z) = sampled.coefficients[0], sampled.start
    if c_z:  # the first step draws its noise around the estimate at the source: the last call is there
        calls, row = np.append(times[:-2], times[-1]), 0
        coefficients[-1] = 1 / c_z, -c_y / c_z, -c_0 / c_z, 0, 0
        (i_x, i_y), (p_x, p_y, p_f) = sampled.inputs[0], sampled.prediction[0]
        inputs[-1], prediction[-1] = (0, i_x + i_y), (0, p_x + p_y, p_f)  # of the source in place of the state
    elif of_z:  # the sampler starts from noise, which has the number of its last row
        coefficients[-1] /= of_z
        coefficients[-1, 1] -= of_y / of_z
        row = len(times) - 1
    return Inversion(
        StepTable(calls, prediction, coefficients, inputs, bridge.network_time(calls), start), row, len(times)
    )
