"""The way back: from a target to the noise that ``ddim`` makes it of, by a table that the same loop runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bbdm import solvers
from bbdm.bridges import Bridge
from bbdm.bridges.timesteps import Timesteps as Times
from bbdm.codec import Codec
from bbdm.kernels import philox
from bbdm.networks.arrays import padded
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Batch
from bbdm.sampling.options import Seed, Timesteps
from bbdm.sampling.sources import Sources, read_sources
from bbdm.solvers import StepTable

CALLS_ALONE = ("solver", "mask", "noise", "callback")  # options that say nothing of the way back


class Inverting(Sampler[torch.Tensor]):
    """What a sampler on PyTorch says of noise."""

    codec: Codec | None
    device: torch.device

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
            options: conditions, windows, guidance, values and ``batch_size``, as in a call.

        Returns:
            (K, B, C, H, W) noise on the grid that the network sees: zeros but in the step that draws it. Of a
            bridge without noise, what takes the source's place, in its type.

        Raises:
            ValueError: target and source have other numbers or sizes, there are fewer than 2 steps, or an
                option is of calls alone: ``solver``, ``mask``, ``noise`` or ``callback``.
        """
        for name in CALLS_ALONE:
            if options.get(name) is not None:
                raise ValueError(f"encode takes no {name}: it is an option of calls")

        def ddim(bridge: Bridge, _: int | None) -> StepTable:
            return inversion(bridge, timesteps, steps)[0]

        self, _, sources, batches = self._call(source, 0, {**options, "solver": ddim})
        with torch.inference_mode():
            result = self._encoded(target, sources, batches, timesteps, steps)
        return self._copy(result) if isinstance(result, torch.Tensor) else result

    def _encoded(
        self, target: Any, sources: Sources, batches: list[Batch], timesteps: Timesteps, steps: int | None
    ) -> Any:
        """What :meth:`encode` returns, of the batches of a call."""
        _, row, count = inversion(self.bridge, timesteps, steps)
        x0, states = self._targets(target, sources), []
        for batch in batches:
            inputs = self._inputs(batch)
            rows = batch.indices + batch.indices[-1:] * (len(batch.source) - len(batch.indices))
            images = padded(x0[rows], self._shapes.padded(batch.size))
            encoded = images if self.codec is None else self.codec.encode(images.float(), "target").to(images.dtype)
            inputs.noise = encoded.new_zeros(len(batch.plan.times), *encoded.shape)
            inputs.noise[-1] = encoded
            *_, state = self._states(batch, inputs)
            states.append(state.x[: len(batch.indices)].clone())
        state = torch.cat(states)
        if row is None:
            result = self._decode(state)[(..., *map(slice, batches[0].size))]
            return sources.restore([(list(range(len(result))), result)])
        noise = state.new_zeros(count, *state.shape)
        noise[row] = state
        return noise

    def _targets(self, target: Any, sources: Sources) -> torch.Tensor:
        """(B, C, H, W) targets in [-1, 1], as many as there are sources and of their size."""
        kind = replace(sources.scale.spec, source=sources.scale.spec.target, neighbours=0)
        targets = read_sources(target, replace(sources.scale, channels=self._shapes.image_channels, spec=kind))
        sizes = [[f"{len(i)} of {tuple(images.shape[2:])}" for i, images in each.groups] for each in (sources, targets)]
        if len(sizes[0]) > 1 or sizes[0] != sizes[1]:
            found = " and ".join(", ".join(each) for each in sizes)
            raise ValueError(f"target and source must be as many pictures of one size, got {found}")
        return self._array(targets.groups[0][1])


def inversion(bridge: Bridge, timesteps: Any, steps: int | None) -> tuple[StepTable, int | None, int]:
    """The table that undoes ``ddim`` of some times, whose noise in the last row stands for the target.

    Returns:
        The table; the row of the sampler's table that the noise is of, None of a bridge without noise, where
        the state at the top is what is looked for; and the number of the sampler's steps.

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
    return StepTable(calls, prediction, coefficients, inputs, bridge.network_time(calls), start), row, len(times)
