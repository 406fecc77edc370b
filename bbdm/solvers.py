"""Solvers: functions from (bridge, timesteps) to a :class:`StepTable`.

Each step of each solver is one row of weights, x_r = c_x x_s + c_y y + c_0 x0hat + c_h x0hat_prev + c_z z, so
the sampling loop does not know the bridge, the objective or the solver. All tables are float64.

Rows come from the non-Markovian step of DDIM (Song et al. 2021, eq. 12) in a bridge's marginals, with the
noise scale eta_r that a solver chooses, and from DPM-Solver++(2M) (Lu et al. 2022) in pinned coordinates, as
a weight w on the previous x0hat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from bbdm import timesteps as skips
from bbdm.bridges import ABridge, Bridge, BrownianBridge

Solver = Literal["dpm2m", "sde-dpm2m", "ddim", "posterior", "fast", "ancestral"]
DEFAULT: Solver = "dpm2m"


@dataclass(frozen=True)
class StepTable:
    """The weights of every step of a sampling loop, one row for each network evaluation; float64."""

    timesteps: npt.NDArray[np.int64]  # (K,) strictly decreasing; the times that the network is called at
    prediction: npt.NDArray[np.float64]  # (K, 3) x0hat as weights of x, y and the network's output
    coefficients: npt.NDArray[np.float64]  # (K, 5) the next x as weights of x, y, x0hat, the previous x0hat, noise

    def __post_init__(self) -> None:
        for name in ("timesteps", "prediction", "coefficients"):
            owned = np.array(getattr(self, name), order="C")  # a copy, which nobody else can change
            owned.setflags(write=False)
            object.__setattr__(self, name, owned)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def rows(self) -> npt.NDArray[np.float64]:
        """(K, 8) prediction and coefficients side by side, as a step takes them."""
        return np.concatenate([self.prediction, self.coefficients], axis=1)

    @property
    def noisy(self) -> list[int]:
        """The rows that need noise."""
        return np.flatnonzero(self.coefficients[:, 4]).tolist()


Noise = tuple[float, float]  # eta_r as weights of sigma_r and of the standard deviation of x_r given x_s, x0, y
ALL: Noise = (1, 0)
HALF: Noise = (0.5, 0)
NONE: Noise = (0, 0)
POSTERIOR: Noise = (0, 1)


@dataclass(frozen=True)
class _Settings:
    """A solver of the non-Markovian family."""

    noise: Noise
    first: Noise | None = None  # on the first row; None: the general row is valid at the top too
    multistep: bool = False


_FAMILY = {
    "ddim": _Settings(NONE, ALL),
    "dpm2m": _Settings(NONE, ALL, multistep=True),
    "sde-dpm2m": _Settings(POSTERIOR, multistep=True),
    "posterior": _Settings(POSTERIOR),
    "fast": _Settings(HALF, HALF),
}


def build(
    bridge: Bridge, solver: str = DEFAULT, timesteps: str | Iterable[int] | None = None, steps: int | None = None
) -> StepTable:
    """The table of a solver.

    Args:
        bridge: the bridge to sample.
        solver: ``dpm2m``, ``sde-dpm2m``, ``ddim``, ``posterior``, ``fast`` or ``ancestral``.
        timesteps: a name from :mod:`bbdm.timesteps`, or strictly decreasing integers from ``bridge.top``.
        steps: number of network evaluations, instead of ``timesteps``.

    Raises:
        ValueError: an unknown solver; ``steps`` together with ``timesteps``; times that the bridge or the
            solver cannot take.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be one of {get_args(Solver)}, got {solver!r}")
    if steps is not None and timesteps is not None:
        raise ValueError(f"give steps or timesteps, not both; got steps={steps} and timesteps={timesteps!r}")
    if solver == "ancestral":
        return _ancestral(bridge, timesteps, steps)
    times = skips.resolve(bridge, _default_timesteps(bridge, solver, steps) if timesteps is None else timesteps, steps)
    return StepTable(times, bridge.prediction(times), _family_rows(bridge, times, _FAMILY[solver]))


def _default_timesteps(bridge: Bridge, solver: str, steps: int | None) -> skips.Name:
    if solver == "posterior":
        return "uniform" if bridge.low else "bbdm"
    return "paper" if solver == "fast" and steps is None else "karras"


def _family_rows(bridge: Bridge, times: npt.NDArray[np.int64], settings: _Settings) -> npt.NDArray[np.float64]:
    alpha, beta, sigma = (weights.tolist() for weights in bridge.marginal(times))
    nu = bridge.nu(times).tolist()  # infinite, if anywhere, on the first row
    rows = np.zeros((len(times), 5))
    for i in range(len(times) - 1):
        posterior_std = sigma[i + 1] * np.sqrt(1 - (nu[i + 1] / nu[i]) ** 2)
        pinned = i == 0 and (settings.first is not None or sigma[0] == 0)  # x is y, and has weight 0
        of_sigma, of_posterior = (settings.first or ALL) if pinned else settings.noise
        eta = of_sigma * sigma[i + 1] + of_posterior * posterior_std
        kappa = 0.0 if pinned else np.sqrt(sigma[i + 1] ** 2 - eta**2) / sigma[i]
        w = 0.0
        if settings.multistep and i >= 2:  # DPM-Solver++(2M): h / (2 h_prev) with h a difference of -ln nu
            w = 0.5 * np.log(nu[i] / nu[i + 1]) / np.log(nu[i - 1] / nu[i])
        gain = alpha[i + 1] - kappa * alpha[i]
        rows[i] = kappa, beta[i + 1] - kappa * beta[i], gain * (1 + w), -gain * w, eta
    rows[-1, 2] = 1.0  # the clean image
    return rows


def _ancestral(bridge: Bridge, timesteps: str | Iterable[int] | None, steps: int | None) -> StepTable:
    """The public code's sampling: the reverse SDE at every time (A-Bridge paper, algorithm 2)."""
    if bridge.low == 0 or not isinstance(bridge, ABridge | BrownianBridge):
        raise ValueError("solver 'ancestral' does not exist for the original BBDM's schedules; use 'posterior'")
    everything = range(bridge.top, bridge.low - 1, -1)
    if steps is not None and steps != len(everything):
        raise ValueError(f"solver 'ancestral' takes every time, steps={len(everything)}; got steps={steps}")
    times = skips.resolve(bridge, everything if timesteps is None else timesteps)
    if np.any(np.diff(times) != -1):
        raise ValueError(f"solver 'ancestral' needs consecutive timesteps, got {times.tolist()}")
    rows = np.array(
        [_abridge_row(bridge, t) if isinstance(bridge, ABridge) else _brownian_row(bridge, t) for t in times.tolist()]
    )
    rows[-1] = 0.0, 0.0, 1.0, 0.0, 0.0
    return StepTable(times, bridge.prediction(times), rows)


def _abridge_row(bridge: ABridge, t: int) -> tuple[float, float, float, float, float]:
    """Semi-implicit Euler of the reverse SDE, drift and score evaluated at t - 1."""
    T = bridge.num_steps
    if t == T:
        pull = 1 / (T * np.log(T))
        return 1 - pull, 0.0, pull, 0.0, np.sqrt(2) / T
    if t == 1:
        return 0.0, 0.0, 1.0, 0.0, 0.0
    b = T - t + 1
    g = np.log(T / b)
    c = 1 - 1 / b + 1 / (b * g)
    noise = bridge.c_lambda * np.sqrt(b) / T if t > 2 else 0.0
    return 1 / c, -(1 / b - (t - 1) / (T * b * g)) / c, 1 / (T * g * c), 0.0, noise / c


def _brownian_row(bridge: BrownianBridge, t: int) -> tuple[float, float, float, float, float]:
    """Euler-Maruyama of the reverse SDE with diffusion sqrt(2 max_variance)."""
    noise = np.sqrt(2 * bridge.max_variance / bridge.num_steps) if t > 1 else 0.0
    return 1 - 1 / t, 0.0, 1 / t, 0.0, noise
