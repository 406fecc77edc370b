"""Solvers: functions from (bridge, timesteps) to a :class:`StepTable`.

Each step of each solver is one row of weights, x_r = c_x x_s + c_y y + c_0 x0hat + c_h x0hat_prev + c_z z, so
the sampling loop does not know the bridge, the objective or the solver. All tables are float64.

Rows come from the non-Markovian step of DDIM (Song et al. 2021, eq. 12) in a bridge's marginals, with the
noise scale eta_r that a solver chooses, and from DPM-Solver++(2M) (Lu et al. 2022) in pinned coordinates, as
a weight w on the previous x0hat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """The weights of every step of a sampling loop, one row for each network evaluation.

    Attributes:
        timesteps: (K,) int64, strictly decreasing; the times that the network is called at.
        prediction: (K, 3) float64; x0hat as weights of x, y and the network's output.
        coefficients: (K, 5) float64; the next x as weights of x, y, x0hat, the previous x0hat, and noise.
    """

    timesteps: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.float64]
    coefficients: npt.NDArray[np.float64]

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


@dataclass(frozen=True)
class _Step:
    """The quantities of a step from time s to time r that solvers use."""

    index: int
    nu_prev: float  # nu of the time before s; infinite on the first two rows
    nu_s: float
    nu_r: float
    sigma_s: float
    sigma_r: float

    @property
    def posterior_std(self) -> float:
        """Standard deviation of x_r given x_s, x0 and y."""
        return self.sigma_r * np.sqrt(1 - (self.nu_r / self.nu_s) ** 2)

    @property
    def multistep_weight(self) -> float:
        """DPM-Solver++(2M): w = h / (2 h_prev) with h a difference of -ln nu; 0 on the first two rows."""
        if self.index < 2:
            return 0.0
        return 0.5 * np.log(self.nu_s / self.nu_r) / np.log(self.nu_prev / self.nu_s)


@dataclass(frozen=True)
class _Settings:
    """A solver of the non-Markovian family."""

    eta: Callable[[_Step], float]
    first_eta: Callable[[_Step], float] | None  # None: the general row is valid at the top too
    multistep: bool = False


def _all_noise(step: _Step) -> float:
    return step.sigma_r


def _half_noise(step: _Step) -> float:
    return 0.5 * step.sigma_r


def _no_noise(step: _Step) -> float:
    return 0.0


def _posterior_noise(step: _Step) -> float:
    return step.posterior_std


_FAMILY: dict[str, _Settings] = {
    "ddim": _Settings(_no_noise, _all_noise),
    "dpm2m": _Settings(_no_noise, _all_noise, multistep=True),
    "sde-dpm2m": _Settings(_posterior_noise, None, multistep=True),
    "posterior": _Settings(_posterior_noise, None),
    "fast": _Settings(_half_noise, _half_noise),
}


def build(
    bridge: Bridge,
    solver: str = DEFAULT,
    timesteps: str | Iterable[int] | None = None,
    steps: int | None = None,
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
    alpha, beta, sigma = bridge.marginal(times)
    nu = bridge.nu(times)
    rows = np.zeros((len(times), 5))
    for i in range(len(times) - 1):
        step = _Step(
            index=i,
            nu_prev=float(nu[i - 1]) if i else np.inf,
            nu_s=float(nu[i]),
            nu_r=float(nu[i + 1]),
            sigma_s=float(sigma[i]),
            sigma_r=float(sigma[i + 1]),
        )
        pinned = i == 0 and (settings.first_eta is not None or step.sigma_s == 0)  # x is y, and has weight 0
        if pinned:
            kappa, eta = 0.0, (settings.first_eta or _all_noise)(step)
        else:
            eta = settings.eta(step)
            kappa = np.sqrt(step.sigma_r**2 - eta**2) / step.sigma_s
        w = step.multistep_weight if settings.multistep else 0.0
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
    row = _ancestral_abridge_row if isinstance(bridge, ABridge) else _ancestral_brownian_row
    rows = np.array([row(bridge, int(t)) for t in times])
    rows[-1] = 0.0, 0.0, 1.0, 0.0, 0.0
    return StepTable(times, bridge.prediction(times), rows)


def _ancestral_abridge_row(bridge: Bridge, t: int) -> tuple[float, float, float, float, float]:
    """Semi-implicit Euler of the reverse SDE, drift and score evaluated at t - 1."""
    assert isinstance(bridge, ABridge)
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


def _ancestral_brownian_row(bridge: Bridge, t: int) -> tuple[float, float, float, float, float]:
    """Euler-Maruyama of the reverse SDE with diffusion sqrt(2 max_variance)."""
    assert isinstance(bridge, BrownianBridge)
    noise = np.sqrt(2 * bridge.max_variance / bridge.num_steps) if t > 1 else 0.0
    return 1 - 1 / t, 0.0, 1 / t, 0.0, noise
