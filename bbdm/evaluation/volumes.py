"""Scores of volumes in units, within a mask, as the challenge SynthRAD 2025 defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

Volume = npt.NDArray[np.float64]
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of levels, the finest first (Wang et al. 2003)
SIDE = 97  # at least, of a volume whose levels are compared
WINDOW = 7  # side of the cube that means and variances are of
K1, K2 = 0.01, 0.03


def volume_scores(
    truth: npt.ArrayLike,
    result: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    low: float = -1024,
    high: float = 3071,
) -> dict[str, float]:
    """Scores of a volume against the true one: ``mae`` in the unit, ``psnr`` in dB, ``ms_ssim``.

    MAE is the mean over the mask, of values that are not clipped. PSNR is over the mask, of values in
    [low, high]; so is MS-SSIM, see :func:`ms_ssim`.

    Args:
        truth: (D, H, W) in the unit.
        result: (D, H, W) in the unit.
        mask: (D, H, W), not 0 where voxels count; None where all do.
        low: the least value of the unit.
        high: the largest value of the unit.

    Raises:
        ValueError: the arrays have other axes or different shapes, or no voxel counts.
    """
    x, y = (np.asarray(each, dtype=np.float64) for each in (truth, result))
    inside = np.ones(x.shape, dtype=bool) if mask is None else np.asarray(mask) != 0
    if x.ndim != 3 or not x.shape == y.shape == inside.shape:
        raise ValueError(f"truth, result and mask must be (D, H, W), got {x.shape}, {y.shape} and {inside.shape}")
    if not inside.any():
        raise ValueError("no voxel is in the mask")
    mae = float(np.abs(x - y)[inside].mean())
    x, y = ((each.clip(low, high) - low) / (high - low) for each in (x, y))
    error = np.square(x - y)[inside].mean()
    psnr = float(-10 * np.log10(error)) if error else float("inf")
    return {"mae": mae, "psnr": psnr, "ms_ssim": ms_ssim(x, y, inside)}


def dice(truth: npt.ArrayLike, result: npt.ArrayLike, above: float, mask: npt.ArrayLike | None = None) -> float:
    """Dice coefficient of voxels above a threshold, such as 200 HU for bone; NaN where neither has any."""
    inside: Any = True if mask is None else np.asarray(mask) != 0
    one, other = ((np.asarray(each) > above) & inside for each in (truth, result))
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else float("nan")


def ms_ssim(x: Volume, y: Volume, mask: npt.NDArray[np.bool_]) -> float:
    """The similarity of volumes (D, H, W) in [0, 1] at five scales, within a mask (D, H, W).

    It is the product over levels of the mean over the mask less 3 voxels at each edge. Outside the mask both
    are 0. Volumes of fewer than 97 voxels a side are padded with those at their edges.
    """
    x, y = (np.where(mask, each, 0.0) for each in (x, y))
    missing = [max(0, SIDE - side) for side in x.shape]
    pads = [(n // 2, n - n // 2) for n in missing]
    x, y = (np.pad(each, pads, mode="edge") for each in (x, y))
    mask = np.pad(mask, pads, mode="edge")
    product = 1.0
    for level, weight in enumerate(WEIGHTS):
        if level:
            x, y = (_halved(each) for each in (x, y))
            mask = mask[::2, ::2, ::2]
        inner = (slice(WINDOW // 2, -(WINDOW // 2)),) * 3
        product *= float(np.clip(_similarity(x, y, weight)[inner][mask[inner]].mean(), 0, 1))
    return product


def _similarity(x: Volume, y: Volume, weight: float) -> Volume:
    """Luminance, contrast and structure, each to the power of the level's weight, at each voxel."""

    def mean(values: Volume) -> Volume:
        return uniform_filter(values, WINDOW)

    count = WINDOW**3
    mean_x, mean_y = mean(x), mean(y)
    sample = count / (count - 1)
    var_x, var_y = sample * (mean(x * x) - mean_x**2), sample * (mean(y * y) - mean_y**2)
    cov = sample * (mean(x * y) - mean_x * mean_y)
    product = np.sqrt(var_x.clip(0)) * np.sqrt(var_y.clip(0))
    c1, c2 = K1**2, K2**2
    parts = (
        (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1),
        (2 * product + c2) / (var_x + var_y + c2),
        (cov + c2 / 2) / (product + c2 / 2),
    )
    return np.prod([part.clip(0) ** weight for part in parts], axis=0)


def _halved(volume: Volume) -> Volume:
    """Every second voxel of means of 2 x 2 x 2, each of a voxel and those before it; outside it is 0."""
    for axis in range(3):
        before = np.roll(volume, 1, axis)
        before[(slice(None),) * axis + (0,)] = 0
        volume = (volume + before) / 2
    return volume[::2, ::2, ::2]
