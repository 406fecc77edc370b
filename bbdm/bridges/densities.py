"""From which times a network learns: quantiles of the density of training times."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from bbdm.bridges.path import Array, Path

Density = Literal["uniform", "log-normal", "wide", "high", "top"]
POINTS = 2**16  # quantiles; a drawn time is one of them
LEVELS = {"log-normal": (-0.9, 1.2), "wide": (-0.4, 1.6), "high": (1.0, 1.4)}  # mean, standard deviation of ln nu
UNIFORM = 0.05  # the share of these that is uniform
TOP = 0.02  # the share of the top, where a network of the pinned objective is shown nothing of the state
GRID = 4096  # times at which a continuous density is tabulated, of each kind


def quantiles(path: Path, density: Density) -> Array:
    """(POINTS,) increasing times that are equally likely under a density.

    ``log-normal`` is ln nu ~ N(-0.9, 1.2^2) carried over to t, ``wide`` N(-0.4, 1.6^2) and ``high``
    N(1.0, 1.4^2), with 5 % of it uniform (as Karras et al. 2022 for diffusion models). These are for pairs of
    spread 0.5: for a spread s the means are larger by ln(s / 0.5). A discrete time has the probability
    between the midpoints to its neighbours. Where nu is infinite at the top, 2 % of the times of the
    objective ``pinned`` are the top. ``top`` is no other time: the network learns to regress targets.
    """
    if density == "top":
        return np.full(POINTS, float(path.top))
    low, high = path.train_range
    if path.objective == "pinned" and np.isinf(path.nu(path.top)):
        count, below = round(POINTS * TOP), high if path.continuous else min(high, path.top - 1)
        return np.concatenate([_quantiles(path, density, low, below, POINTS - count), np.full(count, float(path.top))])
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
    return times[np.searchsorted(_cumulative(path, density, edges)[1:-1], shares)].astype(np.float64)


def _cumulative(path: Path, density: Density, times: Array) -> Array:
    """The probability of a time up to each of ``times``, from 0 at the first to 1 at the last."""
    level, spread = LEVELS[density]
    uniform = (times - times[0]) / (times[-1] - times[0])
    with np.errstate(divide="ignore"):
        scaled = (np.log(path.nu(times) / path.level_scale) - level) / spread
    normal = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in scaled])
    return UNIFORM * uniform + (1 - UNIFORM) * (normal - normal[0]) / (normal[-1] - normal[0])
