"""Distances of solvers' results from the true conditional distribution, with the ideal denoiser.

For x0 ~ N(mu, s^2) and the source y = 0, every state is Gaussian: the table maps the mean and covariance of
(x, previous x0hat) exactly, without sampling.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bbdm.bridges import Bridge
from bbdm.solvers import StepTable

Array = npt.NDArray[np.float64]
CASES = [(1.0, 0.5), (1.0, 0.1), (0.5, 1.0)]  # (mu, s)
# pixels of one colour: their mean is hidden by a noise that is 16 times smaller, the root of it
AREA = 256


def ideal_x0hat(bridge: Bridge, t: float, mu: float, s: float) -> tuple[float, float]:
    """E[x0 | x_t] as (gain, offset) of x_t."""
    alpha, _, sigma = (float(v) for v in bridge.marginal(t))
    if t == bridge.top and (sigma == 0 or bridge.deterministic):
        return 0.0, mu  # there the state is the source, and says nothing
    gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
    return gain, mu - gain * alpha * mu


def end_distribution(bridge: Bridge, table: StepTable, mu: float, s: float) -> tuple[float, float]:
    """Mean and standard deviation of a table's result with the ideal denoiser."""
    mean, covariance = np.zeros(2), np.diag([table.start[1] ** 2, 0.0])  # of (x, x0hat before)
    for t, (c_x, _, c_0, c_h, c_z) in zip(
        table.timesteps.tolist(), table.coefficients, strict=True
    ):
        gain, offset = ideal_x0hat(bridge, t, mu, s)
        step = np.array([[c_x + c_0 * gain, c_h], [gain, 0.0]])
        mean = step @ mean + np.array([c_0 * offset, offset])
        covariance = step @ covariance @ step.T + np.diag([c_z**2, 0.0])
    return float(mean[0]), float(np.sqrt(covariance[0, 0]))


def w2(bridge: Bridge, table: StepTable, mu: float, s: float) -> float:
    """2-Wasserstein distance to N(mu, s^2)."""
    mean, std = end_distribution(bridge, table, mu, s)
    return float(np.hypot(mean - mu, std - s))


class Ideal(nn.Module):
    """The ideal denoiser of pixels x0 ~ N(mean(y), spread(y)^2), as a network that sees the source y."""

    def __init__(
        self, bridge: Bridge, mean: Callable[..., torch.Tensor], spread: Callable[..., torch.Tensor]
    ) -> None:
        super().__init__()
        self.bridge, self.mean, self.spread = bridge, mean, spread
        self.weight = nn.Parameter(torch.zeros(1))  # a network has some

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the network of the bridge's objective would predict; one time for all."""
        time = float(t[0])
        p_x, p_y, p_f = self.bridge.prediction(time).tolist()
        return (self.estimate(x, time, y) - p_x * x - p_y * y) / p_f

    def estimate(self, x: torch.Tensor, time: float, y: torch.Tensor) -> torch.Tensor:
        """E[x0 | x, y]."""
        alpha, beta, sigma = (float(v) for v in self.bridge.marginal(time))
        mean, spread = self.mean(y), self.spread(y)
        if time == self.bridge.top:
            return mean
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (x - alpha * mean - beta * y)


class IdealOfMixture(Ideal):
    """The ideal denoiser of pixels of which x0 - y / 4 is of a mixture of Gaussians."""

    def __init__(self, bridge: Bridge, weights: Array, means: Array, spreads: Array) -> None:
        self.parts = [torch.from_numpy(each).float() for each in (weights, means, spreads)]
        super().__init__(bridge, lambda y: y / 4 + float(weights @ means), torch.zeros_like)

    def estimate(self, x: torch.Tensor, time: float, y: torch.Tensor) -> torch.Tensor:
        """The mean of the parts' own estimates, each as likely as its Gaussian makes x."""
        if time == self.bridge.top:
            return self.mean(y)
        weights, means, spreads = self.parts
        alpha, beta, sigma = (float(v) for v in self.bridge.marginal(time))
        off = x[..., None] - beta * y[..., None] - alpha * (y[..., None] / 4 + means)
        variance = alpha**2 * spreads**2 + sigma**2
        likely = (weights.log() - variance.log() / 2 - off**2 / variance / 2).softmax(-1)
        return y / 4 + (likely * (means + alpha * spreads**2 / variance * off)).sum(-1)


def mean_w2(bridge: Bridge, table: StepTable, pixels: int = 1) -> float:
    """The mean distance over the cases, of the mean of so many pixels of one colour.

    In units in which its noise is 1 it is a single pixel with mu and s larger by the root of their number.
    """
    unit = pixels**0.5
    return float(np.mean([w2(bridge, table, unit * mu, unit * s) / unit for mu, s in CASES]))
