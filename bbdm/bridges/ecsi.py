"""The bridge of ECSI: a Brownian bridge in real time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bbdm.bridges.ddbm import RealTimeBridge
from bbdm.bridges.densities import Density
from bbdm.bridges.objectives import Objective, Weights
from bbdm.bridges.path import Marginal
from bbdm.bridges.registry import register


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

    gamma_max: float = 0.125
    t_min: float = 1e-4
    objective: Objective = "preconditioned"
    density: Density = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must be in (0, 1), got {self.t_min!r}")
        self._check_positive("gamma_max")
        self._check_common()

    @property
    def end(self) -> float:
        """1."""
        return 1.0

    @property
    def low(self) -> float:
        """The smallest time."""
        return self.t_min

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, 1]."""
        time = self._time(t)
        return Marginal(1 - time, time, 2 * self.gamma_max * np.sqrt(time * (1 - time)))

    def weights(self, t: npt.ArrayLike) -> Weights:
        """See :meth:`Bridge.weights`.

        With the objective ``preconditioned``, c_skip has the square of the covariance where the formula has
        the covariance. So has the published code, on which the published networks were trained.
        """
        found = super().weights(t)
        if self.objective != "preconditioned":
            return found
        alpha, beta, _ = self.marginal(t)
        c_skip = (alpha * self.sigma_data**2 + beta * self.cov**2) * found.i_x**2
        return found._replace(p_x=c_skip)
