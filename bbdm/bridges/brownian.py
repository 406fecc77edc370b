"""The Brownian bridges: A-Bridge's, BBDM's, and flows between two images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bbdm.bridges.base import Bridge, register
from bbdm.bridges.path import Array, Marginal, Objective, check_steps


@register("abridge")
@dataclass(frozen=True)
class ABridge(Bridge):
    """Score-based Brownian bridge (ACM MM 2024): sigma = c_lambda (1 - m) sqrt(ln(1 / (1 - m))), m = t / T.

    Args:
        num_steps: T, at least 2.
        c_lambda: noise scale, above 0.
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    positive = ("c_lambda",)

    num_steps: int = 1000
    c_lambda: float = 2.0
    objective: Objective = "residual"

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        m = self._time(t) / self.num_steps
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = np.where(m < 1, self.c_lambda * (1 - m) * np.sqrt(-np.log1p(-m)), 0.0)
        return Marginal(1 - m, m, sigma)

    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise level in pinned coordinates."""
        m = self._time(t) / self.num_steps
        with np.errstate(divide="ignore"):
            return self.c_lambda * np.sqrt(-np.log1p(-m))

    def ancestral(self, times: npt.NDArray[Any]) -> Array:
        """The public code's sampling: the reverse SDE at every time (A-Bridge paper, algorithm 2).

        Semi-implicit Euler, with drift and score evaluated at t - 1.

        Raises:
            ValueError: times are not consecutive, or do not end at 1.
        """
        if times[-1] != 1 or np.any(np.diff(times) != -1):
            raise ValueError(
                f"solver 'ancestral' needs consecutive timesteps down to 1, got {times.tolist()}"
            )
        return np.array([self._ancestral_row(t) for t in times.tolist()])

    def _ancestral_row(self, t: int) -> tuple[float, float, float, float, float]:
        T = self.num_steps
        if t == T:
            pull = 1 / (T * np.log(T))
            return 1 - pull, 0.0, pull, 0.0, np.sqrt(2) / T
        if t == 1:
            return 0.0, 0.0, 1.0, 0.0, 0.0
        b = T - t + 1
        g = np.log(T / b)
        c = 1 - 1 / b + 1 / (b * g)
        noise = self.c_lambda * np.sqrt(b) / T if t > 2 else 0.0
        return 1 / c, -(1 / b - (t - 1) / (T * b * g)) / c, 1 / (T * g * c), 0.0, noise / c


@register("brownian")
@dataclass(frozen=True)
class BrownianBridge(Bridge):
    """Brownian bridge (BBDM, Li et al., CVPR 2023): sigma = sqrt(2 (m - m^2) max_variance).

    With s^2 / 2 as ``max_variance``, sigma is s sqrt(m (1 - m)): s = 0 is a flow, s = 0.005 the bridge of
    LBM (Chadebec et al. 2025), s = 1 that of ViBT, and s = 2 gamma_max the linear path of ECSI, whose network
    sees another time: see :class:`~bbdm.bridges.ECSI`.

    Args:
        num_steps: T, at least 2.
        max_variance: twice the variance at the middle of the bridge; 0 for a flow.
        objective: the quantity that the network predicts.
        schedule: ``exact`` is m = t / T on 1..T. ``linear`` and ``sin`` are the original BBDM code's, on the
            indices 0..T-1, which stop just short of both endpoints: m from 0.001 (linear) to 0.999.

    Raises:
        ValueError: an argument is out of range.
    """

    learns_top = False  # BBDM trains up to T - 1

    num_steps: int = 1000
    max_variance: float = 1.0
    objective: Objective = "residual"
    schedule: Literal["exact", "linear", "sin"] = "exact"

    def __post_init__(self) -> None:
        exact = self.schedule == "exact"  # the original code's schedules stop short of both ends
        self._assign(deterministic=self.max_variance == 0, closed=exact, low=int(exact))
        super().__post_init__()
        if not (np.isfinite(self.max_variance) and self.max_variance >= 0):
            raise ValueError(
                f"max_variance must be 0 or a positive number, got {self.max_variance!r}"
            )
        if self.schedule not in ("exact", "linear", "sin"):
            raise ValueError(f"schedule must be 'exact', 'linear' or 'sin', got {self.schedule!r}")

    @cached_property
    def _knots(self) -> Array:
        """The m at the indices 0..T-1 of the original code's schedules."""
        if self.schedule == "linear":
            return np.linspace(0.001, 0.999, self.num_steps)
        exponents = np.linspace(0, self.num_steps, self.num_steps)
        m = 1.0075 ** (exponents - exponents[-1])  # divided by the last value, without overflow
        m[-1] = 0.999
        return m

    def _m(self, t: npt.ArrayLike) -> Array:
        time = self._time(t)
        if self.closed:
            return time / self.num_steps
        return np.interp(time, np.arange(self.num_steps), self._knots)

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        m = self._m(t)
        return Marginal(1 - m, m, np.sqrt(2 * (m - m * m) * self.max_variance))

    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise level in pinned coordinates; m / (1 - m) without noise."""
        m = self._m(t)
        with np.errstate(divide="ignore"):
            return (
                m / (1 - m) if self.deterministic else np.sqrt(2 * self.max_variance * m / (1 - m))
            )

    def ancestral_times(self, steps: int | None) -> npt.NDArray[np.int64]:
        """Every time, or T (1 - i / steps)^2, whose steps are as the root of the time.

        Raises:
            ValueError: of the original BBDM's schedules, or steps out of range.
        """
        if not self.closed:
            raise ValueError(
                "solver 'ancestral' does not exist for the original BBDM's schedules; use 'posterior'"
            )
        if steps is None:
            return super().ancestral_times(None)
        # so many times are still to come
        steps = check_steps(steps, self.num_steps)
        left = steps - np.arange(steps)
        return np.maximum(np.rint(self.num_steps * (left / steps) ** 2), left).astype(np.int64)

    def ancestral(self, times: npt.NDArray[Any]) -> Array:
        """Euler-Maruyama of the reverse SDE with diffusion sqrt(2 max_variance); sde-bbdm at every time."""
        step = -np.diff(times, append=0).astype(np.float64)
        zero = np.zeros(len(times))
        noise = np.sqrt(2 * self.max_variance / self.num_steps * step)
        noise[-1] = 0  # the last step ends in the estimate
        return np.stack([1 - step / times, zero, step / times, zero, noise], axis=1)
