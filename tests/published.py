"""Published samplers that are not solvers here, as tables for the Gaussian harness.

Their updates are linear in the state, the source and the estimates x0hat, so each call is a row as a solver's
is. Times may repeat: Heun's method looks at the end of a step and again at the start of the next.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm import GOUB
from bbdm.bridges import Bridge
from bbdm.solvers import StepTable

Row = list[float]


class _Flow(NamedTuple):
    """dx/dt as weights of x, y and x0hat, and the noise for the square root of a time."""

    x: float
    y: float
    x0hat: float
    noise: float


def _flow(bridge: Bridge, t: float, share: float) -> _Flow:
    """The reverse flow at a time; ``share`` of the diffusion is stochastic: 0 is the ODE, 1 the SDE."""
    h = 1e-6 * min(t, bridge.end - t)
    before, now, after = (bridge.marginal(v) for v in (t - h, t, t + h))
    alpha, beta, sigma = (float(v) for v in now)
    d_alpha, d_beta, d_sigma = (float(b - a) / (2 * h) for a, b in zip(before, after, strict=True))
    diffusion = share * (sigma * d_sigma - d_alpha / alpha * sigma**2)
    rate = d_sigma / sigma + diffusion / sigma**2
    return _Flow(rate, d_beta - rate * beta, d_alpha - rate * alpha, np.sqrt(2 * diffusion))


def _euler(flow: _Flow, dt: float) -> Row:
    return [1 + flow.x * dt, flow.y * dt, flow.x0hat * dt, 0.0, flow.noise * np.sqrt(abs(dt))]


def _levels(steps: int, low: float, high: float, rho: float) -> list[float]:
    """The times of Karras et al. 2022, equation 5, and 0."""
    return [*(np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho).tolist(), 0.0]


def _table(bridge: Bridge, times: list[float], rows: list[Row]) -> StepTable:
    count = len(times)
    return StepTable(np.array(times), np.zeros((count, 3)), np.array(rows), np.zeros((count, 2)), np.array(times))


def ddbm_heun(bridge: Bridge, steps: int = 40, churn: float = 0.33) -> StepTable:
    """DDBM's sampler (Zhou et al. 2024, algorithm 1): a step of the SDE, then Heun's of the ODE."""
    levels = _levels(steps, bridge.low, bridge.end - 1e-4, 7)
    times: list[float] = []
    rows: list[Row] = []
    for start, end in pairwise(levels):
        middle = start + churn * (end - start)
        first, dt = _euler(_flow(bridge, middle, 0), end - middle), end - middle
        times += [start, middle]
        rows += [_euler(_flow(bridge, start, 1), middle - start), first]
        if end:
            c_x, c_y, c_0 = first[:3]  # from them, the state before the first half is known again
            then = _flow(bridge, end, 0)
            times.append(end)
            rows.append(
                [
                    (1 + 1 / c_x + dt * then.x) / 2,
                    (dt * then.y - c_y / c_x) / 2,
                    dt * then.x0hat / 2,
                    -c_0 / c_x / 2,
                    0.0,
                ]
            )
    return _table(bridge, times, rows)


def ecsi_stochastic(bridge: Bridge, steps: int = 20, share: float = 0.3) -> StepTable:
    """ECSI's sampler (Zhang et al. 2024): Euler on a partly stochastic flow, the last two steps DDIM's."""
    levels = _levels(steps, bridge.low + 1e-4, bridge.end - 1e-4, 0.6)
    rows: list[Row] = []
    for i, (start, end) in enumerate(pairwise(levels)):
        if i < steps - 2:
            rows.append(_euler(_flow(bridge, start, share), end - start))
            continue
        (alpha, beta, sigma), (alpha_r, beta_r, sigma_r) = (map(float, bridge.marginal(t)) for t in (start, end))
        kept = sigma_r / sigma
        rows.append([kept, beta_r - kept * beta, alpha_r - kept * alpha, 0.0, 0.0])
    return _table(bridge, levels[:-1], rows)


def goub_sde(bridge: GOUB) -> StepTable:
    """GOUB's sampler (Yue et al. 2024): Euler-Maruyama of the reverse SDE, its first step without score."""
    pulled: npt.NDArray[np.float64] = bridge._pulled  # pyright: ignore[reportPrivateUsage]
    rows: list[Row] = []
    for t in range(bridge.num_steps, 0, -1):
        theta = pulled[t] - pulled[t - 1]
        diffusion = 2 * bridge.noise_scale**2 * theta
        if t == bridge.num_steps:
            rows.append([1 + theta, -theta, 0.0, 0.0, np.sqrt(diffusion)])
            continue
        left = np.exp(2 * (pulled[t] - pulled[-1]))
        pull = theta + diffusion * left / (bridge.noise_scale**2 * (1 - left))  # of x to y
        alpha, beta, sigma = (float(v) for v in bridge.marginal(t))
        score = diffusion / sigma**2
        rows.append([1 + pull - score, score * beta - pull, score * alpha, 0.0, np.sqrt(diffusion)])
    return _table(bridge, list(range(bridge.num_steps, 0, -1)), rows)
