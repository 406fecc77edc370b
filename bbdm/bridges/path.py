"""What objectives and densities ask of a bridge."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Marginal(NamedTuple):
    """Weights of x0, y and noise in x_t, each the shape of t."""

    alpha: Array
    beta: Array
    sigma: Array


class Path(Protocol):
    """The part of a :class:`~bbdm.bridges.base.Bridge` that they use."""

    continuous: ClassVar[bool]  # whether times are real

    @property
    def objective(self) -> str:
        """A name in :data:`bbdm.bridges.objectives.OBJECTIVES`, or of the bridge's own."""
        ...

    @property
    def density(self) -> str:
        """Of training times."""
        ...

    @property
    def sigma_data(self) -> float:
        """The standard deviation of targets."""
        ...

    @property
    def sigma_source(self) -> float:
        """The standard deviation of sources."""
        ...

    @property
    def cov(self) -> float:
        """The covariance of targets and sources."""
        ...

    @property
    def end(self) -> float:
        """The largest time."""
        ...

    @property
    def top(self) -> float:
        """The time at which sampling starts."""
        ...

    @property
    def train_range(self) -> tuple[float, float]:
        """The first and the last time of training."""
        ...

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights of x0, y and noise."""
        ...

    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise levels."""
        ...

    def time_at(self, nu: npt.ArrayLike) -> Array:
        """Times of noise levels."""
        ...
