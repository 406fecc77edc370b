"""What the network is shown and what it predicts, as five weights.

The network sees i_x x_t + i_y y and predicts F; x0hat = p_x x_t + p_y y + p_f F. The training target follows
from these: see :meth:`bbdm.bridges.base.Bridge.training_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.bridges.path import Path

Objective = Literal["residual", "displacement", "noise", "preconditioned", "pinned"]


class Weights(NamedTuple):
    """The weights at some times; an objective's are numbers, or have the shape of the times."""

    i_x: Any
    i_y: Any
    p_x: Any
    p_y: Any
    p_f: Any


Function = Callable[[Any, npt.ArrayLike], Weights]  # of a path and times


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
    x0, y, both = path.sigma_data**2, path.sigma_source**2, path.cov
    total = alpha**2 * x0 + beta**2 * y + 2 * alpha * beta * both + sigma**2
    c_in = total**-0.5
    c_out = c_in * np.sqrt(beta**2 * (x0 * y - both**2) + x0 * sigma**2)
    return Weights(c_in, 0.0, (alpha * x0 + beta * both) / total, 0.0, c_out)


def pinned(path: Path, t: npt.ArrayLike) -> Weights:
    """Preconditioning of u = (x_t - beta y) / alpha - y = (x0 - y) + nu eps, in which the source is gone.

    Where nu is infinite the network is shown nothing of the state, and predicts x0 - y at unit variance.
    """
    alpha, beta, _ = path.at(t)
    spread, nu = path.spread, path.nu(t)
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


OBJECTIVES: dict[str, Function] = {
    objective.__name__: objective for objective in (residual, displacement, noise, preconditioned, pinned)
}
