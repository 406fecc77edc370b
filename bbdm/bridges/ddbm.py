"""Bridges in real time: DDBM's, a diffusion conditioned on its end, and ECSI's, a Brownian one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from bbdm.bridges import objectives
from bbdm.bridges.base import BRIDGES, Bridge, register
from bbdm.bridges.objectives import OBJECTIVES, Function, Objective, Weights
from bbdm.bridges.path import Array, Marginal

TIMES = {"ve": (0.002, 80.0), "vp": (1e-4, 1.0)}  # t_min and t_max


class RealTimeBridge(Bridge):
    """A bridge in real time from ``t_min`` to ``t_max``, as the code of DDBM has it."""

    continuous: ClassVar[bool] = True
    t_min: Any
    t_max: Any

    @property
    def low(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The smallest time."""
        return self.t_min

    @property
    def end(self) -> float:
        """T."""
        return self.t_max

    @property
    def top(self) -> float:
        """The end; for the noise objective, which has no x0hat there, just below it."""
        return self.end - (self.objective == "noise") * 1e-4 * (self.end - self.low)

    def network_time(self, t: npt.ArrayLike) -> Array:
        """250 ln t."""
        return 250 * np.log(np.asarray(t, dtype=np.float64) + 1e-44)


@dataclass(frozen=True)
class DDBM(RealTimeBridge):
    """Denoising diffusion bridge (Zhou et al., ICLR 2024), variance exploding or preserving.

    With a_t and rho_t of the diffusion, and q = rho_t^2 / rho_T^2: alpha = a_t (1 - q), beta = a_t / a_T q,
    sigma = a_t rho_t sqrt(1 - q). ``ve`` has a_t = 1 and rho_t = t; ``vp`` has a_t = exp(-beta_d t^2 / 4 -
    beta_min t / 2) and rho_t^2 = exp(beta_d t^2 / 2 + beta_min t) - 1. Times are real.

    Args:
        kind: ``ve`` explodes the variance, ``vp`` preserves it.
        t_min: the smallest time; None for the paper's, 0.002 or 1e-4.
        t_max: T; None for the paper's, 80 or 1.
        beta_d: the growth of beta in ``vp``.
        beta_min: the least beta in ``vp``.
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    positive = ("beta_d", "beta_min")

    kind: Literal["ve", "vp"] = "vp"
    t_min: float | None = None
    t_max: float | None = None
    beta_d: float = 2.0
    beta_min: float = 0.1
    objective: Objective = "preconditioned"

    def __post_init__(self) -> None:
        if self.kind not in TIMES:
            raise ValueError(f"kind must be one of {tuple(TIMES)}, got {self.kind!r}")
        for name, default in zip(("t_min", "t_max"), TIMES[self.kind], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        super().__post_init__()
        if not 0 < self.low < self.end < np.inf:
            raise ValueError(f"t_min and t_max must be 0 < t_min < t_max, got {self.t_min} and {self.t_max}")

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``ddbm-ve`` or ``ddbm-vp``."""
        return f"ddbm-{self.kind}"

    def _diffusion(self, t: Array) -> tuple[Array, Array]:
        """a_t and rho_t^2."""
        if self.kind == "ve":
            return np.ones_like(t), t**2
        grown = self.beta_d * t**2 / 2 + self.beta_min * t
        return np.exp(-grown / 2), np.expm1(grown)

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        a, rho2 = self._diffusion(self._time(t))
        a_end, rho2_end = self._diffusion(np.asarray(self.end))
        q = rho2 / rho2_end
        return Marginal(a * (1 - q), a / a_end * q, a * np.sqrt(rho2 * (1 - q)))


BRIDGES["ddbm-ve"] = partial(DDBM, "ve")
BRIDGES["ddbm-vp"] = partial(DDBM, "vp")


def preconditioned(bridge: ECSI, t: npt.ArrayLike) -> Weights:
    """As for other bridges, but c_skip has the square of the covariance where the formula has the covariance.

    So has the published code, on which the published networks were trained.
    """
    weights, (alpha, beta, _) = objectives.preconditioned(bridge, t), bridge.at(t)
    return weights._replace(p_x=(alpha * bridge.sigma_data**2 + beta * bridge.cov**2) * weights.i_x**2)


@register("ecsi")
@dataclass(frozen=True)
class ECSI(RealTimeBridge):
    """The linear path of endpoint-conditioned stochastic interpolants (Zhang et al. 2024), as in its code.

    alpha = 1 - t, beta = t, sigma = 2 gamma_max sqrt(t (1 - t)). Times are real, up to 1. The marginals are
    those of :class:`~bbdm.bridges.BrownianBridge` with max_variance 2 gamma_max^2; the network sees the time
    as DDBM's does.

    Args:
        gamma_max: the noise in the middle; the paper's are 0.125 (edges2handbags) and 0.25 (DIODE).
        t_min: the smallest time, above 0.
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    objectives: ClassVar[Mapping[str, Function]] = {**OBJECTIVES, "preconditioned": preconditioned}
    positive = ("gamma_max",)
    t_max: ClassVar[float] = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]

    gamma_max: float = 0.125
    t_min: float = 1e-4
    objective: Objective = "preconditioned"

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must be in (0, 1), got {self.t_min!r}")
        super().__post_init__()

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, 1]."""
        time = self._time(t)
        return Marginal(1 - time, time, 2 * self.gamma_max * np.sqrt(time * (1 - time)))
