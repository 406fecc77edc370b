"""Translation between two sets without pairs: the Schroedinger bridge, by iterated Markovian fitting.

One network is trained both ways. It sees the direction as a class, and not the source. First, the ends of a
path are random pairs, or one picture twice. Then the averaged weights make the other end of each real one,
and each direction learns real targets from such sources: Shi et al. 2023 (DSBM), in the online form of De
Bortoli et al. 2024. It comes to rest where both directions are one process: of all that lead from one set to
the other, the nearest to a Brownian motion of variance ``eps``.

The estimate has to be a function of the state, the time and the direction alone. An objective or a solver
with a part of the path's own source comes to rest elsewhere, without a word; see
:attr:`~bbdm.bridges.base.Bridge.markov`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bbdm import solvers
from bbdm.bridges import Bridge, BrownianBridge
from bbdm.data.examples import Example
from bbdm.data.spec import Condition
from bbdm.kernels import philox
from bbdm.networks.base import Network
from bbdm.sampling.sampler import BridgeSampler
from bbdm.solvers import Defaults, StepTable
from bbdm.training import statistics
from bbdm.training.bridge import VALIDATION_STEPS, BridgeTask, encode
from bbdm.training.config import UnpairedConfig
from bbdm.training.losses import bridge_loss
from bbdm.training.task import Forward, Losses

DIRECTION, DIRECTIONS = "direction", ("AtoB", "BtoA")
TOLD = {DIRECTION: Condition("class", size=DIRECTIONS, label=DIRECTIONS[0])}  # the conditions of examples
SOLVER = "ancestral"  # Euler-Maruyama: its noise counts the spread of x0 given the state, that of posterior does not
RESULT_STEPS = 30
FIRST_STREAM = 2  # of noise: each step of the other ends has a stream of its own
BACKWARDS = 1 << 62  # added to the seeds of the direction BtoA


def between_sets(bridge: BrownianBridge, eps: float | None = None) -> BrownianBridge:
    """A bridge whose statistics were measured, for both directions, of variance ``eps``.

    Without ``eps`` it is the mean variance of the values of both sets. Then the noise in the middle of a path
    has half of their standard deviation: enough for neighbours to meet, and too little to forget the source.
    """
    variance = (bridge.sigma_data**2 + bridge.sigma_source**2) / 2
    sigma = float(f"{math.sqrt(variance):.{statistics.DIGITS}g}")
    eps = float(f"{variance:.3g}") if eps is None else eps
    sides = {"sigma_data": sigma, "sigma_source": sigma, "cov": min(bridge.cov, 0.9 * sigma**2)}
    return replace(bridge, max_variance=eps / 2, **sides)


class UnpairedTask(BridgeTask):
    """The training between two sets; ``config`` is an :class:`UnpairedConfig`.

    Sources and targets of a batch are of the sets A and B, and have nothing to do with each other. Arguments
    and errors are those of a :class:`BridgeTask`.

    Raises:
        ValueError: the bridge does not serve both directions, or the network has other conditions than the
            class ``direction``, with AtoB and BtoA.
    """

    config: UnpairedConfig

    def __init__(self, network: Network, bridge: Bridge, config: UnpairedConfig, *args: Any, **functions: Any) -> None:
        check_bridge(bridge)
        if network.condition_channels or network.further.settings() != {"classes": {DIRECTION: DIRECTIONS}}:
            takes = ", ".join(map(str, network.inputs.values())) or "none"
            raise ValueError(
                f"the network of a training without pairs takes the class {DIRECTION!r} of {', '.join(DIRECTIONS)} "
                f"alone, and does not see the source; the conditions of this one are {takes}"
            )
        super().__init__(network, bridge, config, *args, **functions)

    @property
    def defaults(self) -> Defaults:
        """The solver of results."""
        return Defaults(SOLVER, RESULT_STEPS)

    @cached_property
    def table(self) -> StepTable:
        """The steps that make the other ends."""
        return solvers.build(self.bridge, SOLVER, steps=self.config.simulation_steps)

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Losses and times (2B,): of B from made A, then of A from made B."""
        real, count = torch.cat([batch.target, batch.source]), len(seeds)
        way = torch.arange(2, device=seeds.device).repeat_interleave(count)
        seeds = torch.cat([seeds, seeds + BACKWARDS])
        if step >= self.config.pairing_steps:
            other = self.other_ends(real, 1 - way, seeds, step)
        else:
            other = real if self.config.pairing == "identity" else real.roll(count, 0)
        t = (
            self.bridge.draw_times(seeds, step)
            if self.draw_times is None
            else self.draw_times(seeds, step, self.bridge)
        )
        about: dict[str, Any] = {"conditions": {DIRECTION: way}, "seeds": seeds, "step": step}
        with self.autocast():
            losses = bridge_loss(network, self.bridge, real, other, t, loss=self.loss, per_image=True, **about)
        forth, back = losses.detach().view(2, count).mean(1)
        return losses, {"t": t, "loss_AtoB": forth, "loss_BtoA": back}

    @torch.no_grad()
    def other_ends(self, real: torch.Tensor, way: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
        """What the averaged weights make of real ends (N, C, H, W), each in its direction (N,)."""
        table, x = self.table, real
        for row in range(len(table)):
            (i_x, _), (p_x, _, p_f) = table.inputs[row].tolist(), table.prediction[row].tolist()
            c_x, c_y, c_0, _, c_z = table.coefficients[row].tolist()
            t = torch.full((len(x),), float(table.network_times[row]), device=x.device)
            with self.autocast():
                prediction = self.average(i_x * x, t, {DIRECTION: way})
            x = (c_x + c_0 * p_x) * x + c_y * real + c_0 * p_f * prediction.float()
            if c_z:
                x = x + c_z * philox.normal(seeds, step, tuple(x.shape[1:]), FIRST_STREAM + row)
        return x

    @torch.no_grad()
    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """The energy distances of results of the averaged weights to the set that they should be of.

        They are of the pictures of a batch, times their number; ``validation_loss`` is the mean of both ways.
        """
        batch = batch if self.codec is None else encode(batch, self.codec)
        ends, count = torch.cat([batch.source, batch.target]), len(seeds)
        way = torch.arange(2, device=seeds.device).repeat_interleave(count)
        made = self.other_ends(ends, way, torch.cat([seeds, seeds + BACKWARDS]), VALIDATION_STEPS[0])
        forth, back = energy_distance(made[:count], batch.target), energy_distance(made[count:], batch.source)
        found = {"validation_loss": (forth + back) / 2, "validation_AtoB": forth, "validation_BtoA": back}
        return {name: count * value for name, value in found.items()}

    def translated(self, source: torch.Tensor, way: str, seed: int | Sequence[int] = 0) -> torch.Tensor:
        """Pictures in a direction, by the solver of results."""
        sampler = BridgeSampler(self.average, self.bridge, codec=self.codec, defaults=self.defaults)
        return sampler(source, seed=seed, conditions={DIRECTION: way})

    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """Pictures of both sets, each with its translation."""
        forth, back = (self.translated(x, way) for x, way in zip((batch.source, batch.target), DIRECTIONS, strict=True))
        return {"A": batch.source, "A to B": forth, "B": batch.target, "B to A": back}

    def warnings(self) -> list[str]:
        """What makes the run show less than it could."""
        steps = self.config.pairing_steps
        if self.total > steps:
            return super().warnings()
        late = f"the other ends are made after pairing_steps={steps} optimizer steps, and the run has {self.total}"
        return [*super().warnings(), f"{late}: results will be those of {self.config.pairing} pairs"]


def check_bridge(bridge: Bridge) -> None:
    """Raise ValueError unless a bridge serves both directions of a training without pairs."""
    times = np.linspace(bridge.low, bridge.top, 9)
    if not bridge.markov or not np.allclose(bridge.alpha(times), bridge.beta(bridge.end - times)):
        raise ValueError(
            "without pairs, the estimate must be a function of the state, the time and the direction alone, and the "
            "path the same both ways: a BrownianBridge with noise and the objective 'preconditioned' or 'residual'; "
            f"got {bridge!r}"
        )


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of two sets (N, C, *S), |x| being the root mean square of values.

    It has no bias, so that sets of one distribution have values around 0.
    """
    a, b = a.flatten(1).float(), b.flatten(1).float()
    own = (torch.cdist(x, x).sum() / max(1, len(x) * (len(x) - 1)) for x in (a, b))
    return float(2 * torch.cdist(a, b).mean() - sum(own)) / math.sqrt(a.shape[1])
