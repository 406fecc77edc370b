"""The bridge of ECSI: a Brownian bridge in real time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bbdm.bridges import objectives
from bbdm.bridges.base import register
from bbdm.bridges.ddbm import RealTimeBridge
from bbdm.bridges.densities import Density
from bbdm.bridges.objectives import OBJECTIVES, Function, Objective, Weights
from bbdm.bridges.path import Marginal


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
        density: the density of training times.

    Raises:
        ValueError: an argument is out of range.
    """

    objectives: ClassVar[Mapping[str, Function]] = {**OBJECTIVES, "preconditioned": preconditioned}
    t_max: ClassVar[float] = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]

    gamma_max: float = 0.125
    t_min: float = 1e-4
    objective: Objective = "preconditioned"
    density: Density = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must be in (0, 1), got {self.t_min!r}")
        self._check_positive("gamma_max")
        super().__post_init__()

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, 1]."""
        time = self._time(t)
        return Marginal(1 - time, time, 2 * self.gamma_max * np.sqrt(time * (1 - time)))
