"""The path of a bridge, three functions of time: x_t = alpha(t) x0 + beta(t) y + sigma(t) eps, in float64.

And its objectives, what the network is shown and predicts, as five weights; and the density of the times that
it learns from. The network sees i_x x_t + i_y y and predicts F; x0hat = p_x x_t + p_y y + p_f F. The training
target follows from these: see :meth:`bbdm.bridges.base.Bridge.training_weights`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Objective = Literal["residual", "displacement", "noise", "preconditioned", "pinned", "denoiser"]
# objectives whose network is shown nothing of the state where nu is infinite
HIDDEN = ("pinned", "denoiser")
Density = Literal["uniform", "log-normal", "wide", "high", "top"]
POINTS = 2**16  # quantiles; a drawn time is one of them
# mean, standard deviation of ln nu
LEVELS = {"log-normal": (-0.9, 1.2), "wide": (-0.4, 1.6), "high": (1.0, 1.4)}
UNIFORM = 0.05  # the share of these that is uniform
# the share of the top, where a network of these objectives is shown nothing of the state
TOP = 0.02
GRID = 4096  # times at which a continuous density is tabulated, of each kind
ENDS = 1e-6  # how near the ends of a path are to target and source; less is rounding
# the spread that levels of densities and timesteps are written for, of pictures in [-1, 1]
PICTURES = 0.5


class Marginal(NamedTuple):
    """Weights of x0, y and noise in x_t, each the shape of t."""

    alpha: Array
    beta: Array
    sigma: Array


class Path(ABC):
    """A Gaussian path from a target x0 to a source y.

    Times are the integers ``low``..``top``, or with ``continuous`` the reals from ``low`` to ``top``.
    Sampling starts at ``top``, where the state is the source.
    """

    continuous: ClassVar[bool] = False
    deterministic: bool = False  # sigma is 0 everywhere
    # the path ends in the target and in the source; published schedules stop short of them
    closed: bool = True
    learns_top: ClassVar[bool] = True  # training draws the time T too, where there is an x0hat
    low: float = 1  # the smallest time in training and sampling; of 0, times are the indices 0..T-1
    # of times, the (K, 5) rows of a published sampler of its own
    ancestral: Callable[..., Array] | None = None
    num_steps: int
    objective: Any  # a name in OBJECTIVES, or of the bridge's own
    spread: float  # this and the next three are statistics of pairs: see Bridge
    sigma_data: float
    sigma_source: float
    cov: float
    noise_range: tuple[float, float] | None  # of the objective ``denoiser``: see Bridge

    @abstractmethod
    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """alpha, beta and sigma at real times t in [0, ``end``], float64.

        Raises:
            ValueError: a time outside the bridge.
        """

    def at(self, t: npt.ArrayLike) -> Marginal:
        """:meth:`marginal`, whose end is the source exactly where only rounding is left of target and noise.

        Without it an alpha of 4e-33 would be a noise level of 1e16 in place of an infinite one.
        """
        alpha, beta, sigma = self.marginal(t)
        last = (np.asarray(t) == self.end) & (np.abs(alpha) < ENDS) & (np.abs(sigma) < ENDS)
        return Marginal(
            np.where(last, 0.0, alpha), np.where(last, 1.0, beta), np.where(last, 0.0, sigma)
        )

    @cached_property
    def end(self) -> float:
        """The largest time that the bridge has; sampling may start below it."""
        return self.num_steps if self.low else self.top

    @cached_property
    def top(self) -> float:
        """The time at which sampling starts: T; T - 1 of indices, and for ``noise`` (no x0hat at T)."""
        if self.low == 0 or self.objective == "noise":
            return self.num_steps - 1
        return self.num_steps

    @cached_property
    def train_range(self) -> tuple[float, float]:
        """The first and the last time that training draws, both included."""
        return self.low, self.top if self.learns_top else self.num_steps - 1

    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise level sigma / alpha of (x_t - beta y) / alpha; increasing, and infinite where alpha is 0.

        Without noise it is beta / alpha: the source is what is removed.
        """
        alpha, beta, sigma = self.at(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(alpha > 0, (beta if self.deterministic else sigma) / alpha, np.inf)

    def denoiser_level(self, t: npt.ArrayLike) -> Array:
        """nu, clipped to the noise levels that a pretrained denoiser knows."""
        if self.noise_range is None:
            raise ValueError(
                "the objective 'denoiser' needs noise_range, the levels that its network knows"
            )
        return np.clip(self.nu(t), *self.noise_range)

    @property
    def level_scale(self) -> float:
        """What noise levels of pictures are multiplied by for this data; 1 without noise."""
        return 1.0 if self.deterministic else self.spread / PICTURES

    def start(self, t: float) -> tuple[float, float]:
        """Weights of y and noise in the state that sampling starts with at a time.

        At ``top`` it is the source. Below, x_t is drawn as if x0 - y had mean 0 and its ``spread``: at a high
        noise level that is as good as an estimate of x0.

        Raises:
            ValueError: the time is below the top, and the noise level there is below twice the spread, or 0
                everywhere.
        """
        if t == self.top:
            return 1.0, 0.0
        if self.deterministic or not self.nu(t) >= self.level_scale:
            wanted = f"the bridge's top {self.top}"
            if not self.deterministic:
                wanted = f"{wanted}, or where the noise level is at least {self.level_scale:g}"
            raise ValueError(f"timesteps must start at {wanted}, got {t}")
        alpha, beta, sigma = (float(weight) for weight in self.at(t))
        return alpha + beta, float(np.hypot(sigma, alpha * self.spread))

    def network_time(self, t: npt.ArrayLike) -> Array:
        """What the network sees of a time, float64: the time itself unless a subclass says otherwise."""
        return np.asarray(t, dtype=np.float64)

    def _time(self, t: npt.ArrayLike) -> Array:
        """Times as float64; ValueError where one lies outside the bridge."""
        time = np.asarray(t, dtype=np.float64)
        if not np.all((time >= 0) & (time <= self.end)):
            raise ValueError(f"t must be in [0, {self.end}], got {t!r}")
        return time

    def time_at(self, nu: npt.ArrayLike) -> Array:
        """The real time in [``low``, ``top``] of noise level ``nu``, by bisection of the increasing nu(t)."""
        level = np.asarray(nu, dtype=np.float64)
        left = np.full_like(level, self.low)
        right = np.full_like(level, self.top)
        for _ in range(64):
            middle = (left + right) / 2
            below = self.nu(middle) < level
            left = np.where(below, middle, left)
            right = np.where(below, right, middle)
        return (left + right) / 2


def check_steps(steps: Any, most: int) -> int:
    """The number of steps; ValueError unless it is an integer from 1 to ``most``."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= most:
        raise ValueError(f"steps must be an integer in [1, {most}] for this bridge, got {steps!r}")
    return int(steps)


class Weights(NamedTuple):
    """The weights at some times; an objective's are numbers, or have the shape of the times."""

    i_x: Any
    i_y: Any
    p_x: Any
    p_y: Any
    p_f: Any


ObjectiveFunction = Callable[[Any, npt.ArrayLike], Weights]  # of a path and times


def residual(path: Path, t: npt.ArrayLike) -> Weights:
    """F = x_t - x0; BBDM's ``grad``."""
    return Weights(1.0, 0.0, 1.0, 0.0, -1.0)


def displacement(path: Path, t: npt.ArrayLike) -> Weights:
    """F = y - x0; BBDM's ``ysubx``, and the velocity of flows."""
    return Weights(1.0, 0.0, 0.0, 1.0, -1.0)


def noise(path: Path, t: npt.ArrayLike) -> Weights:
    """F = eps.

    Raises:
        ValueError: alpha is 0 at a time.
    """
    alpha, beta, sigma = path.at(t)
    if np.any(alpha == 0):
        raise ValueError(f"objective 'noise' has no x0hat at t = {path.end}; use t <= {path.top}")
    return Weights(1.0, 0.0, 1 / alpha, -beta / alpha, -sigma / alpha)


def preconditioned(path: Path, t: npt.ArrayLike) -> Weights:
    """Unit variance of input and target (Karras et al. 2022; for bridges Zhou et al. 2024, DDBM, eq. 13)."""
    alpha, beta, sigma = path.at(t)
    x0 = path.sigma_data**2
    y = path.sigma_source**2
    both = path.cov
    total = alpha**2 * x0 + beta**2 * y + 2 * alpha * beta * both + sigma**2
    c_in = total**-0.5
    c_out = c_in * np.sqrt(beta**2 * (x0 * y - both**2) + x0 * sigma**2)
    return Weights(c_in, 0.0, (alpha * x0 + beta * both) / total, 0.0, c_out)


def pinned(path: Path, t: npt.ArrayLike) -> Weights:
    """Preconditioning of u = (x_t - beta y) / alpha - y = (x0 - y) + nu eps, in which the source is gone.

    Where nu is infinite the network is shown nothing of the state, and predicts x0 - y at unit variance.
    """
    alpha, beta, _ = path.at(t)
    spread = path.spread
    nu = path.nu(t)
    finite = np.isfinite(nu)
    with np.errstate(divide="ignore", invalid="ignore"):
        c_in = 1 / np.hypot(nu, spread)
        c_skip = spread**2 * c_in**2
        shift = beta / alpha + 1
        state = np.where(finite, 1 / alpha, 0.0)
        i_y = np.where(finite, -c_in * shift, 0.0)
        p_y = np.where(finite, 1 - c_skip * shift, 1.0)
        c_out = np.where(finite, nu * spread * c_in, spread)
    return Weights(c_in * state, i_y, c_skip * state, p_y, c_out)


def denoiser(path: Path, t: npt.ArrayLike) -> Weights:
    """A pretrained denoiser of u = (x_t - beta y) / alpha = x0 + nu eps, which is shown u at unit variance.

    Its output F is the v of Salimans and Ho 2022, a eps - s x0 with a^2 + s^2 = 1 and s / a the noise level
    that the network is told, nu within its own range: x0hat = a c u - s F, with c = 1 / sqrt(1 + nu^2). Where
    nu is infinite it is shown zeros.
    """
    alpha, beta, _ = path.at(t)
    nu = path.nu(t)
    level = path.denoiser_level(t)
    finite = np.isfinite(nu)
    a = 1 / np.hypot(1.0, level)
    s = level * a
    with np.errstate(divide="ignore", invalid="ignore"):
        c = 1 / np.hypot(1.0, nu)
        i_x = np.where(finite, c / alpha, 0.0)
        i_y = np.where(finite, -c * beta / alpha, 0.0)
    return Weights(i_x, i_y, a * i_x, a * i_y, -s)


OBJECTIVES: dict[str, ObjectiveFunction] = {
    objective.__name__: objective
    for objective in (residual, displacement, noise, preconditioned, pinned, denoiser)
}


def quantiles(path: Path, density: Density) -> Array:
    """(POINTS,) increasing times that are equally likely under a density.

    ``log-normal`` is ln nu ~ N(-0.9, 1.2^2) carried over to t, ``wide`` N(-0.4, 1.6^2) and ``high``
    N(1.0, 1.4^2), with 5 % of it uniform (as Karras et al. 2022 for diffusion models). These are for pairs of
    spread 0.5: for a spread s the means are larger by ln(s / 0.5). A discrete time has the probability
    between the midpoints to its neighbours. Where nu is infinite at the top, 2 % of the times of the
    objectives ``pinned`` and ``denoiser`` are the top. ``top`` is no other time: the network learns to
    regress targets.
    """
    if density == "top":
        return np.full(POINTS, float(path.top))
    low, high = path.train_range
    if path.objective in HIDDEN and np.isinf(path.nu(path.top)):
        count = round(POINTS * TOP)
        below = high if path.continuous else min(high, path.top - 1)
        return np.concatenate(
            [_quantiles(path, density, low, below, POINTS - count), np.full(count, float(path.top))]
        )
    return _quantiles(path, density, low, high, POINTS)


def _quantiles(path: Path, density: Density, low: float, high: float, points: int) -> Array:
    shares = (np.arange(points) + 0.5) / points
    if path.continuous and density == "uniform":
        return low + shares * (high - low)
    if path.continuous:
        level, spread = LEVELS[density]
        levels = path.level_scale * np.exp(level + spread * np.linspace(-6, 6, GRID))
        inside = path.time_at(np.clip(levels, *path.nu([low, high])))
        edges = np.unique(np.concatenate([np.linspace(low, high, GRID), inside]).clip(low, high))
        return np.interp(shares, _cumulative(path, density, edges), edges)
    times = np.arange(low, high + 1)
    if density == "uniform":
        return times[(shares * len(times)).astype(int)].astype(np.float64)
    edges = np.concatenate([[low], times[:-1] + 0.5, [high]])
    return times[np.searchsorted(_cumulative(path, density, edges)[1:-1], shares)].astype(
        np.float64
    )


def _cumulative(path: Path, density: Density, times: Array) -> Array:
    """The probability of a time up to each of ``times``, from 0 at the first to 1 at the last."""
    level, spread = LEVELS[density]
    uniform = (times - times[0]) / (times[-1] - times[0])
    with np.errstate(divide="ignore"):
        scaled = (np.log(path.nu(times) / path.level_scale) - level) / spread
    normal = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in scaled])
    return UNIFORM * uniform + (1 - UNIFORM) * (normal - normal[0]) / (normal[-1] - normal[0])
