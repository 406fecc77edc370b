"""From a target back to the noise that a solver makes it of, as a table that the same loop runs.

The steps are those of ``ddim`` (Song et al. 2021, section 4.3; in a bridge's marginals, eq. 12) from the
lowest time upwards, with the network called where each begins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from bbdm import solvers
from bbdm.base.seeds import resolve_seeds
from bbdm.bridges import Bridge
from bbdm.bridges.timesteps import Timesteps as Times
from bbdm.kernels import philox
from bbdm.networks.arrays import padded
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Plan
from bbdm.sampling.options import Options, Seed, Timesteps
from bbdm.sampling.sources import Scale, Sources, read_sources
from bbdm.sampling.torch_loop import TorchLoop
from bbdm.solvers import StepTable


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


class Inverting(TorchLoop, Sampler[torch.Tensor]):
    """What a sampler on PyTorch knows of its noise: what seeds draw, and what leads to a target."""

    bridge: Bridge

    def noise(self, source: Any, seed: Seed = None, **options: Any) -> torch.Tensor:
        """The noise that seeds draw for a call: with it as ``noise``, the call gives the same images.

        Args:
            source: what a call takes, of one size; only the size counts.
            seed: an integer, or one for each source; None draws one.
            options: those of the call, which decide the number of steps.

        Returns:
            (K, B, C, H, W) standard normals, one for each step, on the grid that the network sees.
        """
        self, o = self._of(options)
        plan = self._plan(o)
        sources, batches = self._read(plan, source, 0, o, split=False)
        if len(batches) > 1:
            raise ValueError("noise needs pictures of one size, got several")
        shape = self._shapes.channels, *self._shapes.grid(batches[0].size)
        own = resolve_seeds(seed, sources.count)
        seeds = self._seeds([own[owner] for owner in sources.owners])
        return torch.stack([philox.normal(seeds, index, shape) for index in range(len(plan.times))])

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
        self, o = self._of(options)
        table, row, count = inversion(self.bridge, timesteps, steps)
        plan = Plan("ddim", table, table.timesteps.tolist(), self._load(table))
        sources, batches = self._read(plan, source, 0, o)
        x0, states = self._targets(target, sources, o), []
        for batch in batches:
            inputs, images = self._inputs(batch), len(batch.indices)
            rows = batch.indices + batch.indices[-1:] * (len(batch.source) - images)
            padding = padded(x0[rows], self._shapes.padded(batch.size))
            encoded = padding if self.codec is None else self.codec.encode(padding.float(), "target").to(padding.dtype)
            inputs.noise = encoded.new_zeros(len(plan.times), *encoded.shape)
            inputs.noise[-1] = encoded
            *_, state = self._states(plan, batch, inputs, lambda _: None)
            states.append(state.x[:images].clone())
        state = torch.cat(states)
        if row is None:
            result = self._decode(state)[(..., *map(slice, batches[0].size))]
            return sources.restore([(list(range(len(result))), result)])
        noise = state.new_zeros(count, *state.shape)
        noise[row] = state
        return noise

    def _targets(self, target: Any, sources: Sources, o: Options) -> torch.Tensor:
        """(B, C, H, W) targets in [-1, 1], as many as there are sources and of their size."""
        kind, stored = self.pictures, o.target_values is not None or o.source_values is not None
        scale = Scale(o.range, replace(kind, source=o.target_values or kind.target, neighbours=0), stored, self.axes)
        targets = read_sources(target, self.array, self.noun, self._shapes.image_channels, scale)
        sizes = [[f"{len(i)} of {tuple(images.shape[2:])}" for i, images in each.groups] for each in (sources, targets)]
        if len(sizes[0]) > 1 or sizes[0] != sizes[1]:
            found = " and ".join(", ".join(each) for each in sizes)
            raise ValueError(f"target and source must be as many pictures of one size, got {found}")
        return self._array(targets.groups[0][1])
