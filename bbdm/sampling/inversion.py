"""The way back: from a target to the noise that ``ddim`` makes it of, by a table that the same loop runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bbdm import solvers
from bbdm.bridges import Bridge
from bbdm.bridges.timesteps import Row, Timesteps
from bbdm.codec import Codec
from bbdm.kernels import philox
from bbdm.networks.arrays import padded
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Batch, Plan
from bbdm.sampling.options import Seed, TimestepsLike
from bbdm.sampling.sources import Sources, read_sources
from bbdm.solvers import StepTable

CALLS_ALONE = ("solver", "mask", "noise", "callback")  # options that say nothing of the way back


def noise(
    sampler: Sampler[torch.Tensor], source: Any, seed: Seed, options: Mapping[str, Any]
) -> torch.Tensor:
    """(K, B, C, H, W) the noise of a call; see :meth:`bbdm.BridgeSampler.noise`."""
    call = sampler.read(source, seed, options)
    if len(call.groups) > 1:
        raise ValueError("noise needs pictures of one size, got several")
    (group,) = call.groups
    shape = (sampler.shapes.channels, *sampler.shapes.grid(group.size))
    seeds = torch.tensor(group.seeds, device=sampler.backend.like.device)
    return torch.stack(
        [philox.normal(seeds, index, shape) for index in range(len(group.plan.times))]
    )


def encode(
    sampler: Sampler[torch.Tensor],
    codec: Codec | None,
    target: Any,
    source: Any,
    steps: int | None,
    timesteps: TimestepsLike,
    options: Mapping[str, Any],
) -> Any:
    """The noise of targets; see :meth:`bbdm.BridgeSampler.encode`."""
    for name in CALLS_ALONE:
        if options.get(name) is not None:
            raise ValueError(f"encode takes no {name}: it is an option of calls")
    inversions: list[Inversion] = []

    def plan_of(directed: Sampler[torch.Tensor]) -> Plan:
        inversions.append(inversion(directed.bridge, timesteps, steps))
        return directed.plan_of("ddim", inversions[0].table)

    call = sampler.read(source, 0, options, plan_of)  # nothing is drawn
    (inverse,) = inversions
    targets = _targets(sampler, target, call.sources)
    batches = call.batches()
    state = torch.cat([_encoded(sampler, codec, batch, targets) for batch in batches])
    if inverse.row is None:
        backend = sampler.backend
        with backend.turn():
            pictures = backend.copy(backend.decode(state)[(..., *map(slice, batches[0].size))])
        return call.sources.restore([(list(range(len(pictures))), pictures)])
    noise = state.new_zeros(inverse.steps, *state.shape)
    noise[inverse.row] = state
    return noise


def _encoded(
    sampler: Sampler[torch.Tensor], codec: Codec | None, batch: Batch, targets: torch.Tensor
) -> torch.Tensor:
    """The last state of a batch whose table takes the target as the noise of its last row."""
    backend = sampler.backend
    filling = len(batch.source) - len(batch.indices)
    rows = batch.indices + batch.indices[-1:] * filling
    with backend.turn():
        x0 = padded(targets[rows], sampler.shapes.padded(batch.size))
        if codec is not None:
            x0 = codec.encode(x0.float(), "target").to(x0.dtype)
        noise = x0.new_zeros(len(batch.plan.times), *x0.shape)
        noise[-1] = x0
        run = backend.begin(batch, replace(sampler.loop.inputs(batch), noise=noise))
        for index in range(len(batch.plan.times)):
            backend.step(run, index)
        return backend.copy(run.state.x[: len(batch.indices)])


def _targets(sampler: Sampler[torch.Tensor], target: Any, sources: Sources) -> torch.Tensor:
    """(B, C, H, W) targets in [-1, 1], as many as there are sources and of their size."""
    scale = sources.scale
    spec = replace(scale.spec, source=scale.spec.target, neighbours=0)
    targets = read_sources(
        target, replace(scale, channels=sampler.shapes.image_channels, spec=spec)
    )
    got = _described(sources)
    if len(sources.groups) > 1 or got != _described(targets):
        raise ValueError(
            f"target and source must be as many pictures of one size, got {got} and {_described(targets)}"
        )
    _, images = targets.groups[0]
    return sampler.loop.array(images)


def _described(sources: Sources) -> str:
    """How many pictures there are of each size."""
    return ", ".join(
        f"{len(indices)} of {tuple(images.shape[2:])}" for indices, images in sources.groups
    )


@dataclass(frozen=True, eq=False)
class Inversion:
    """How ``ddim`` is undone.

    Args:
        table: whose noise in the last row stands for the target.
        row: of the sampler's table that the noise is of; None of a bridge without noise, where the state at
            the top is what is looked for.
        steps: the number of the sampler's.
    """

    table: StepTable
    row: int | None
    steps: int


def inversion(bridge: Bridge, timesteps: Any, steps: int | None) -> Inversion:
    """The table that undoes ``ddim`` of some times.

    Raises:
        ValueError: times that the bridge cannot take, or fewer than 2.
    """
    sampled = solvers.build(bridge, "ddim", timesteps, steps)
    count = len(sampled)
    if count < 2:
        raise ValueError(f"the way back needs at least 2 steps, got {count}")
    times = sampled.timesteps[::-1]
    if bridge.deterministic:
        return Inversion(_to_source(bridge, times), None, count)
    table = _to_noise(bridge, times)
    first = Row(*sampled.rows[0])
    of_y, of_noise = sampled.start
    if first.c_z != 0:
        return Inversion(_to_first_noise(bridge, table, sampled), 0, count)
    if of_noise == 0:
        return Inversion(table, None, count)
    # The sampler starts from noise, which has the number of its last row: the last state becomes that noise
    coefficients = table.coefficients.copy()
    last = coefficients[-1]
    last /= of_noise
    last[1] -= of_y / of_noise
    return Inversion(replace(table, coefficients=coefficients), count - 1, count)


def _to_noise(bridge: Bridge, times: Timesteps) -> StepTable:
    """From a target at the lowest of times upwards, by the network's estimates at all but the highest."""
    alpha, beta, sigma = bridge.at(times)
    kappa = sigma[1:] / sigma[:-1]
    zero = np.zeros_like(kappa)
    c_y = beta[1:] - kappa * beta[:-1]
    c_0 = alpha[1:] - kappa * alpha[:-1]
    calls = times[:-1]
    return StepTable(
        timesteps=calls,
        prediction=bridge.prediction(calls),
        coefficients=np.stack([kappa, c_y, c_0, zero, zero], axis=1),
        inputs=bridge.input(calls),
        network_times=bridge.network_times(calls),
        start=(beta[0].item(), alpha[0].item()),  # of source and target
    )


def _to_first_noise(bridge: Bridge, table: StepTable, sampled: StepTable) -> StepTable:
    """The same where the sampler's first step draws noise around the estimate at the source.

    So the last call is there: it is shown the source in place of the state.
    """
    first = Row(*sampled.rows[0])
    i_x, i_y = sampled.inputs[0]
    prediction = table.prediction.copy()
    coefficients = table.coefficients.copy()
    inputs = table.inputs.copy()
    prediction[-1] = (0, first.p_x + first.p_y, first.p_f)
    coefficients[-1] = (1 / first.c_z, -first.c_y / first.c_z, -first.c_0 / first.c_z, 0, 0)
    inputs[-1] = (0, i_x + i_y)
    calls = np.append(table.timesteps[:-1], sampled.timesteps[0])
    return StepTable(
        calls, prediction, coefficients, inputs, bridge.network_times(calls), table.start
    )


def _to_source(bridge: Bridge, times: Timesteps) -> StepTable:
    """Of a bridge without noise, where the source is what is looked for.

    At the lowest time it is near the target; later it is what state and estimate make it.
    """
    alpha, beta, _ = bridge.at(times)
    kappa = beta[1:] / beta[:-1]
    zero = np.zeros_like(kappa)
    c_0 = alpha[1:] - kappa * alpha[:-1]
    calls = times[:-1]
    p_x, p_y, p_f = bridge.prediction(calls).T
    share = p_y / beta[:-1]
    prediction = np.stack([p_x + share, zero, p_f], axis=1)
    prediction /= 1 + alpha[:-1, None] * share[:, None]
    return StepTable(
        timesteps=calls,
        prediction=prediction,
        coefficients=np.stack([kappa, zero, c_0, zero, zero], axis=1),
        inputs=bridge.input(calls),
        network_times=bridge.network_times(calls),
        start=(0.0, beta[0].item() + alpha[0].item()),
    )
