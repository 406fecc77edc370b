"""Translation between two sets without pairs: the Schroedinger bridge, by iterated Markovian fitting.

One network is trained both ways. It sees the direction as a class, and not the source. First, the ends of a
path are random pairs. Then the averaged weights make the other end of each real one,
and each direction learns real targets from such sources: Shi et al. 2023 (DSBM), in the online form of De
Bortoli et al. 2024. It comes to rest where both directions are one process: of all that lead from one set to
the other, the nearest to a Brownian motion of variance ``eps``.

The estimate has to be a function of the state, the time and the direction alone. An objective or a solver
with a part of the path's own source comes to rest elsewhere, without a word; see
:attr:`~bbdm.bridges.base.Bridge.markov`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from bbdm import solvers
from bbdm.bridges import Bridge, BrownianBridge
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.rows import UnpairedRows
from bbdm.defaults import Defaults
from bbdm.kernels import philox
from bbdm.networks.base import Network
from bbdm.networks.conditions import DIRECTION, DIRECTIONS
from bbdm.training.bridge import VALIDATION_STEPS, BridgeTask
from bbdm.training.config import UnpairedConfig
from bbdm.training.initial import DIGITS
from bbdm.training.optimization import Optimization
from bbdm.training.preparation import encode
from bbdm.training.task import Forward, Losses, sample_numbers

log = logging.getLogger(__name__)
# Euler-Maruyama: its noise counts the spread of x0 given the state, that of posterior does not
SOLVER = "ancestral"
RESULT_STEPS = 30
FIRST_STREAM = 2  # of noise: each step of the other ends has a stream of its own


def between_sets(bridge: BrownianBridge, eps: float | None = None) -> BrownianBridge:
    """A bridge whose statistics were measured, for both directions, of variance ``eps``.

    Without ``eps`` it is the mean variance of the values of both sets. Then the noise in the middle of a path
    has half of their standard deviation: enough for neighbours to meet, and too little to forget the source.
    """
    variance = (bridge.sigma_data**2 + bridge.sigma_source**2) / 2
    sigma = float(f"{math.sqrt(variance):.{DIGITS}g}")
    eps = float(f"{variance:.3g}") if eps is None else eps
    sides = {"sigma_data": sigma, "sigma_source": sigma, "cov": min(bridge.cov, 0.9 * sigma**2)}
    return replace(bridge, max_variance=eps / 2, **sides)


class UnpairedTask(BridgeTask):
    """The training between two sets; ``config`` is an :class:`UnpairedConfig`.

    Sources and targets of a batch are of the sets A and B, and have nothing to do with each other; half of
    the examples go back. Arguments and errors are those of a :class:`BridgeTask`.

    Attributes:
        table: the steps that make the other ends.

    Raises:
        ValueError: the bridge does not serve both directions, or has fewer times than ``simulation_steps``,
            or the network has other conditions than the class ``direction``, with AtoB and BtoA.
    """

    config: UnpairedConfig
    paired = False

    def __init__(
        self, network: Network, bridge: Bridge, config: UnpairedConfig, *args: Any, **functions: Any
    ) -> None:
        check_bridge(bridge)
        if (
            network.condition_channels
            or not network.network_config.two_way
            or len(network.inputs) > 1
        ):
            takes = ", ".join(map(str, network.inputs.values())) or "none"
            raise ValueError(
                f"without pairs, a network takes the class {DIRECTION!r} of {' and '.join(DIRECTIONS)} alone, and does "
                f"not see the source; the conditions of this one are {takes}"
            )
        if config.simulation_steps > bridge.top:
            raise ValueError(
                f"simulation_steps must be at most {bridge.top}, as for T, got {config.simulation_steps}"
            )
        super().__init__(network, bridge, config, *args, **functions)
        self._simulator: Any = self.average
        self.table = solvers.build(bridge, SOLVER, steps=config.simulation_steps)
        self.defaults = Defaults(SOLVER, min(RESULT_STEPS, int(bridge.top)))

    def begin(self, optimization: Optimization) -> None:
        """Compile the averaged weights, which make the other ends, where the run is compiled."""
        self._simulator = optimization.compiled(self.average)
        pairing = self.config.pairing_steps
        total = optimization.total
        if self.train is not None and self.processes.first and pairing >= total:
            log.warning("pairing_steps=%s, and the run has %s: no ends are made", pairing, total)

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Losses (B,) of real targets, from sources that are drawn, or made of them."""
        if step >= self.config.pairing_steps:
            back = 1 - batch.conditions[DIRECTION]
            sources = self.other_ends(self._simulator, batch.target, back, seeds, step)
            batch = batch._replace(source=sources)
        return super().losses(network, batch, seeds, step)

    @torch.no_grad()
    def other_ends(
        self,
        network: Forward,
        real: torch.Tensor,
        way: torch.Tensor,
        seeds: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """What a network makes of real ends (N, C, H, W), each in its direction (N,)."""
        table = self.table
        x = real
        for row, (c_x, c_y, c_0, _, c_z) in enumerate(table.coefficients.tolist()):
            estimate = self.estimate(network, table, row, x, real, {DIRECTION: way})
            x = c_x * x + c_y * real + c_0 * estimate
            if c_z:
                x = x + c_z * philox.normal(seeds, step, tuple(x.shape[1:]), FIRST_STREAM + row)
        return x

    @torch.no_grad()
    def validate(
        self, batches: Iterable[tuple[Example, torch.Tensor]], pairs: Pairs
    ) -> dict[str, float]:
        """The energy distances of results of the averaged weights to the set that they should be of.

        They compare whole sets, so that they depend on no batch and no number of processes. Pictures of the
        smaller set count once.
        ``validation_loss`` is the mean of both ways.
        """
        results: dict[str, list[torch.Tensor]] = {way: [] for way in DIRECTIONS}
        targets: dict[str, list[torch.Tensor]] = {way: [] for way in DIRECTIONS}
        of_sources, of_targets = examples_of_sets(pairs)
        for batch, seeds in batches:
            if self.codec is not None:
                batch = encode(batch, self.codec)
            numbers = sample_numbers(seeds)
            sides = (batch.source, batch.target)
            counted = (numbers < of_sources, numbers < of_targets)
            for side, way in enumerate(DIRECTIONS):
                there = torch.full_like(seeds, side)
                ends = self.other_ends(
                    self.average, sides[side], there, seeds, VALIDATION_STEPS[side]
                )
                results[way].append(ends[counted[side]].cpu())
                targets[way].append(sides[1 - side][counted[1 - side]].cpu())
        losses: dict[str, float] = {}
        for way in DIRECTIONS:
            outputs = torch.cat(list(chain(*self.processes.gather(results[way]))))
            real = torch.cat(list(chain(*self.processes.gather(targets[way]))))
            losses[f"validation_loss_{way}"] = energy_distance(outputs, real)
        return {"validation_loss": sum(losses.values()) / 2, **losses}


def examples_of_sets(pairs: Pairs) -> tuple[int, ...]:
    """How many examples, from the first on, have each source once, and how many each target."""
    rows = pairs.rows
    sizes = rows.sizes if isinstance(rows, UnpairedRows) else (len(rows), len(rows))
    if pairs.spec.slices is not None:
        sizes = tuple(pairs.ends[size - 1] for size in sizes)
    return tuple(size * pairs.spec.crops for size in sizes)


def check_bridge(bridge: Bridge) -> None:
    """Raise ValueError unless a bridge serves both directions of a training without pairs."""
    times = np.linspace(bridge.low, bridge.top, 9)
    same = (
        np.allclose(bridge.at(times).alpha, bridge.at(bridge.end - times).beta)
        and bridge.turned is bridge
    )
    if bridge.continuous or not (bridge.markov and bridge.closed and same):
        raise ValueError(
            "without pairs, the estimate must be a function of the state, the time and the direction alone, and the "
            "path the same both ways: a BrownianBridge with noise and the objective 'residual' or 'preconditioned', "
            f"with one sigma_data and sigma_source (between_sets); got {bridge!r}"
        )


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of two sets (N, C, *S), |x| being the root mean square of values.

    Of two pictures or more it has no bias: sets of one distribution have values around 0. One picture says
    nothing of distances in its set, which count as 0.
    """
    a = a.flatten(1).double()
    b = b.flatten(1).double()
    between = torch.cdist(a, b).mean()
    within = _mean_distance(a) + _mean_distance(b)
    return float(2 * between - within) / math.sqrt(a.shape[1])


def _mean_distance(x: torch.Tensor) -> torch.Tensor:
    """The mean distance of two different rows of (N, D); 0 of one row."""
    return torch.cdist(x, x).sum() / max(1, len(x) * (len(x) - 1))
