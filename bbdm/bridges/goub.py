"""Generalised Ornstein-Uhlenbeck bridge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.bridges.base import Bridge, register
from bbdm.bridges.densities import Density
from bbdm.bridges.objectives import Objective
from bbdm.bridges.path import Array, Marginal

LEFT = 0.005  # of the target at T, before the bridge pulls it to the source: exp(-theta_T)
OFFSET = 0.008  # of the cosine schedule


@register("goub")
@dataclass(frozen=True)
class GOUB(Bridge):
    """Generalised Ornstein-Uhlenbeck bridge (Yue et al., ICML 2024), with the penalty gamma of UniDB (2025).

    theta_t is the cumulated pull to the source, by a cosine schedule. V_t = noise_scale^2 (1 - exp(-2
    theta_t)) is the variance that it leaves, and V_tT the same from t to T. alpha = exp(-theta_t) (1 + gamma
    V_tT) / (1 + gamma V_T), beta = 1 - alpha, sigma^2 = V_t V_tT / V_T.

    Args:
        num_steps: T, at least 2.
        noise_scale: lambda, in units of pictures in [-1, 1].
        gamma: how hard the end is pulled to the source; infinite is the bridge of GOUB. None is infinite.
        objective: the quantity that the network predicts.
        density: the density of training times.

    Raises:
        ValueError: an argument is out of range.
    """

    num_steps: int = 100
    noise_scale: float = 30 / 255
    gamma: float | None = np.inf
    objective: Objective = "noise"
    density: Density = "uniform"

    def __post_init__(self) -> None:
        if self.gamma is None:
            object.__setattr__(self, "gamma", np.inf)
        super().__post_init__()
        self._check_positive("noise_scale", *(["gamma"] if self.gamma != np.inf else []))
        if np.any(np.diff(self.nu(np.arange(self.num_steps + 1))) <= 0):
            raise ValueError(f"gamma must be larger, such as 1e4: with gamma={self.gamma:g} noise levels do not rise")

    @property
    def train_range(self) -> tuple[float, float]:
        """1 to T - 1."""
        return self.low, self.num_steps - 1

    @cached_property
    def _pulled(self) -> Array:
        """Theta at the times 0..T."""
        x = np.arange(self.num_steps + 3) / (self.num_steps + 2)
        kept = np.cos((x + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2
        rates = 1 - kept[1:-1] / kept[0]
        cumulated = np.cumsum(rates) - rates[0]
        return cumulated * -np.log(LEFT) / cumulated[-1]

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        pulled, end = np.interp(self._time(t), np.arange(self.num_steps + 1), self._pulled), self._pulled[-1]
        # variances in units of noise_scale^2
        before, after, whole = -np.expm1(-2 * pulled), -np.expm1(-2 * (end - pulled)), -np.expm1(-2 * end)
        weight = 1 / (self.noise_scale**2 * float(self.gamma or np.inf))  # 0 for GOUB
        alpha = np.exp(-pulled) * (weight + after) / (weight + whole)
        return Marginal(alpha, 1 - alpha, self.noise_scale * np.sqrt(before * after / whole))

    @property
    def closed(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the path ends in the source: with a finite gamma, a little of the target is left at T."""
        return self.gamma is None or bool(np.isinf(self.gamma))

    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise level; infinite at T, where the state is the source also for a finite gamma."""
        return np.where(np.asarray(t) >= self.num_steps, np.inf, super().nu(t))

    def config(self) -> dict[str, Any]:
        """See :meth:`Bridge.config`; an infinite gamma is None, since JSON has no such number."""
        values = super().config()
        return {**values, "gamma": None if np.isinf(values["gamma"]) else values["gamma"]}
