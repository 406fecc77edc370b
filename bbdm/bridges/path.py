"""The path of a bridge, three functions of time: x_t = alpha(t) x0 + beta(t) y + sigma(t) eps, in float64."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
ENDS = 1e-6  # how near the ends of a path are to target and source; less is rounding
PICTURES = 0.5  # the spread that levels of densities and timesteps are written for, of pictures in [-1, 1]


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
    closed: bool = True  # the path ends in the target and in the source; published schedules stop short of them
    learns_top: ClassVar[bool] = True  # training draws the time T too, where there is an x0hat
    low: ClassVar[float] = 1  # the smallest time in training and sampling
    num_steps: int
    objective: Any  # a name in OBJECTIVES, or of the bridge's own
    spread: float  # this and the next three are statistics of pairs: see Bridge
    sigma_data: float
    sigma_source: float
    cov: float

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
        return Marginal(np.where(last, 0.0, alpha), np.where(last, 1.0, beta), np.where(last, 0.0, sigma))

    @property
    def end(self) -> float:
        """The largest time that the bridge has; sampling may start below it."""
        return self.num_steps if self.low else self.top

    @property
    def top(self) -> float:
        """The time at which sampling starts: T, or T - 1 for the noise objective, which has no x0hat at T."""
        return self.num_steps - (self.objective == "noise")

    @property
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
            wanted = f"the bridge's top {self.top}, or where the noise level is at least {self.level_scale:g}"
            raise ValueError(f"timesteps must start at {wanted}, got {t}")
        alpha, beta, sigma = (float(weight) for weight in self.at(t))
        return alpha + beta, float(np.hypot(sigma, alpha * self.spread))

    def network_time(self, t: npt.ArrayLike) -> Array:
        """What the network sees of a time, float64: the time itself unless a subclass says otherwise."""
        return np.asarray(t, dtype=np.float64)

    @abstractmethod
    def check_settings(self) -> None:
        """Raise ValueError where a setting is out of range."""

    def check(self) -> None:
        """Check settings, and that times give a path from a target to a source, as samplers and trainings do.

        - alpha, beta and sigma are finite at all times.
        - The path is ``closed``: x0 at time 0, and y at ``end``, where alpha and sigma are 0, both to 1e-6. A
          bridge with ``closed = False`` stops short of one of them, as some published schedules do.
        - The noise level nu = sigma / alpha, without noise beta / alpha, increases from ``low`` to ``top``.
        - ``network_time`` is finite. Networks of this library embed times from 0 to about 1,000.
        - Densities but ``uniform`` are of nu, in units of ``spread``.

        Raises:
            ValueError: one of these does not hold; the message says which, and at what time.
        """
        self.check_settings()  # of a subclass whose __post_init__ is another, too
        name = type(self).__name__
        times = np.linspace(self.low, self.end, 1001) if self.continuous else np.arange(self.low, self.end + 1)
        for what, value in {**self.marginal(times)._asdict(), "network_time": self.network_time(times)}.items():
            if len(bad := times[~np.isfinite(np.broadcast_to(value, times.shape))]):
                raise ValueError(f"{what} of {name} must be finite, got NaN or infinity at t = {bad[0]:g}")
        for time, expected in ((0, (1, 0, 0)), (self.end, (0, 1, 0))) if self.closed else ():
            found = [float(weight) for weight in self.marginal(time)]
            if np.max(np.abs(np.subtract(found, expected))) > ENDS:
                raise ValueError(
                    f"alpha, beta and sigma of {name} must be {expected} at t = {time:g}, got {found}: mend "
                    "marginal, or set closed = False where the path stops short of its ends"
                )
        levels = self.nu(times := times[times <= self.top])
        if len(bad := np.flatnonzero(~(np.diff(levels) > 0))):
            found = " and ".join(f"{levels[i]:g} at t = {times[i]:g}" for i in (bad[0], bad[0] + 1))
            raise ValueError(f"the noise level of {name} must increase, got {found}")

    def _time(self, t: npt.ArrayLike) -> Array:
        """Times as float64; ValueError where one lies outside the bridge."""
        time = np.asarray(t, dtype=np.float64)
        if not np.all((time >= 0) & (time <= self.end)):
            raise ValueError(f"t must be in [0, {self.end}], got {t!r}")
        return time

    def time_at(self, nu: npt.ArrayLike) -> Array:
        """The real time in [``low``, ``top``] of noise level ``nu``, by bisection of the increasing nu(t)."""
        level = np.asarray(nu, dtype=np.float64)
        left, right = np.full_like(level, self.low), np.full_like(level, self.top)
        for _ in range(64):
            middle = (left + right) / 2
            below = self.nu(middle) < level
            left, right = np.where(below, middle, left), np.where(below, right, middle)
        return (left + right) / 2
