"""Bridges whose schedule is a table at integer times: I2SB and GOUB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from bbdm.bridges.base import Bridge, register
from bbdm.bridges.objectives import OBJECTIVES, Function, Objective, Weights
from bbdm.bridges.path import Array, Marginal

LEFT = 0.005  # of the target at the end of GOUB, before the bridge pulls it to the source: exp(-theta_T)
OFFSET = 0.008  # of its cosine schedule


def scaled(bridge: I2SB, t: npt.ArrayLike) -> Weights:
    """F = (x_t - x0) / sqrt(S)."""
    return Weights(1.0, 0.0, 1.0, 0.0, -np.sqrt(bridge._at(t)[0]))


@register("i2sb")
@dataclass(frozen=True)
class I2SB(Bridge):
    """Image-to-image Schroedinger bridge (Liu et al., ICML 2023), stochastic or as an optimal-transport ODE.

    With S_n and R_n the variances that the forward and the backward diffusion have added at index n: alpha =
    R / (S + R), beta = S / (S + R), sigma^2 = S R / (S + R). Times are the indices 0..N-1.

    Args:
        num_steps: N, at least 2.
        beta_max: the largest increment of variance, times N.
        deterministic: the ODE, without noise.
        objective: ``scaled`` is the paper's, (x_t - x0) / sqrt(S).

    Raises:
        ValueError: an argument is out of range.
    """

    objectives: ClassVar[Mapping[str, Function]] = {**OBJECTIVES, "scaled": scaled}

    positive = ("beta_max",)

    num_steps: int = 1000
    beta_max: float = 0.3
    deterministic: bool = False
    objective: Objective | Literal["scaled"] = "scaled"

    closed, low = False, 0  # a little of the other end is left at both

    @property
    def top(self) -> int:
        """N - 1, where a little of the target is left."""
        return self.num_steps - 1

    @cached_property
    def _variances(self) -> tuple[Array, Array]:
        """S_n and R_n at all indices."""
        roots = np.linspace(np.sqrt(1e-4), np.sqrt(self.beta_max / self.num_steps), self.num_steps)
        half = roots[: self.num_steps // 2] ** 2
        increments = np.concatenate([half, roots[len(half) : self.num_steps - len(half)] ** 2, half[::-1]])
        return np.cumsum(increments), np.cumsum(increments[::-1])[::-1]

    def _at(self, t: npt.ArrayLike) -> tuple[Array, Array]:
        time, indices = self._time(t), np.arange(self.num_steps)
        forward, backward = (np.interp(time, indices, values) for values in self._variances)
        return forward, backward

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, N - 1]."""
        forward, backward = self._at(t)
        total = forward + backward
        sigma = np.sqrt(forward * backward / total)
        return Marginal(backward / total, forward / total, 0 * sigma if self.deterministic else sigma)

    def network_time(self, t: npt.ArrayLike) -> Array:
        """The noise level that the paper's network sees, from N 1e-4 at index 0 to N at N - 1."""
        return (
            np.interp(np.asarray(t), np.arange(self.num_steps), np.linspace(1e-4, 1, self.num_steps)) * self.num_steps
        )

    def ancestral_times(self, steps: int | None) -> npt.NDArray[np.int64]:
        """``steps`` equally spaced indices from N - 1, rounded, the last above 0; all of them by default.

        Raises:
            ValueError: another number of steps than 1..N-1.
        """
        steps = self.top if steps is None else steps
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= self.top:
            raise ValueError(f"steps must be an integer in [1, {self.top}] for this sampler, got {steps!r}")
        return np.rint(np.linspace(self.top, 0, steps + 1)[:-1]).astype(np.int64)

    def ancestral(self, times: npt.NDArray[Any]) -> Array:
        """The published sampler: the posterior of the forward diffusion, which does not use the source.

        The last row goes to index 0, without noise.
        """
        forward = self._variances[0]
        rows = np.zeros((len(times), 5))
        for row, n, m in zip(rows, times.tolist(), [*times.tolist()[1:], 0], strict=True):
            if n == 0:
                row[2] = 1.0
                continue
            share = forward[m] / forward[n]
            noise = 0.0 if m == 0 or self.deterministic else np.sqrt(share * (forward[n] - forward[m]))
            row[:] = share, 0.0, 1 - share, 0.0, noise
        return rows


@register("goub")
@dataclass(frozen=True)
class GOUB(Bridge):
    """Generalised Ornstein-Uhlenbeck bridge (Yue et al., ICML 2024).

    theta_t is the cumulated pull to the source, by a cosine schedule. V_t = noise_scale^2 (1 - exp(-2
    theta_t)) is the variance that it leaves, and V_tT the same from t to T. alpha = exp(-theta_t) V_tT / V_T,
    beta = 1 - alpha, sigma^2 = V_t V_tT / V_T.

    Args:
        num_steps: T, at least 2.
        noise_scale: lambda, in units of pictures in [-1, 1].
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    positive = ("noise_scale",)
    learns_top = False

    num_steps: int = 100
    noise_scale: float = 30 / 255
    objective: Objective = "noise"

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
        alpha = np.exp(-pulled) * after / whole
        return Marginal(alpha, 1 - alpha, self.noise_scale * np.sqrt(before * after / whole))
