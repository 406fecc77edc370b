"""Scores of volumes, against the definitions written out with scikit-image, SciPy and loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from skimage.metrics import peak_signal_noise_ratio

from bbdm.evaluation.metrics import MS_SSIM_WEIGHTS, dice, volume_scores
from bbdm.evaluation.scores import Scores
from bbdm.pictures.values import Values

Array = npt.NDArray[np.float64]
RANDOM = np.random.default_rng(0)
HU = Values(-1024, 3071, "HU", "int16")


def volume(shape: tuple[int, ...], contrast: float = 600) -> Array:
    smooth = gaussian_filter(RANDOM.standard_normal(shape), 2)
    return smooth / smooth.std() * contrast


def ball(shape: tuple[int, ...], radius: float = 0.95) -> npt.NDArray[np.bool_]:
    points = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    return np.square(points).sum(axis=0) < radius**2


def test_mae_and_psnr_are_of_the_mask() -> None:
    truth, mask = volume((20, 24, 28)), ball((20, 24, 28))
    result = truth + 50 * RANDOM.standard_normal(truth.shape)
    truth[10, 10, 10] = 5000  # MAE is not clipped, PSNR is
    found = volume_scores(truth, result, mask)
    assert found["mae"] == pytest.approx(np.abs(truth - result)[mask].mean(), rel=1e-12)
    clipped = (each.clip(-1024, 3071)[mask] for each in (truth, result))
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(*clipped, data_range=4095), abs=1e-9)
    result[~mask] = 1e6
    assert volume_scores(truth, result, mask) == found


def test_all_levels() -> None:
    """The definition once more: SSIM's three factors by scikit-image's filter, levels by a convolution."""
    shape = (30, 98, 101)  # of which one side is padded
    x, mask = volume(shape), ball(shape, 0.2)
    y = x + 100 * RANDOM.standard_normal(shape)
    wanted = 1.0
    a, b = (np.where(mask, each.clip(-1024, 3071), -1024) + 1024 for each in (x, y))
    missing = [max(0, 97 - side) for side in shape]
    pads = [(n // 2, n - n // 2) for n in missing]
    a, b, inside = (np.pad(each, pads, mode="edge") for each in (a, b, mask))
    for weight in MS_SSIM_WEIGHTS:
        windows = [
            np.lib.stride_tricks.sliding_window_view(each, (7, 7, 7))[inside[3:-3, 3:-3, 3:-3]] for each in (a, b)
        ]
        of_a, of_b = (each.reshape(len(each), -1) for each in windows)
        mean_a, mean_b = of_a.mean(1), of_b.mean(1)
        std_a, std_b = of_a.std(1, ddof=1), of_b.std(1, ddof=1)
        cov = ((of_a - mean_a[:, None]) * (of_b - mean_b[:, None])).sum(1) / 342
        c1, c2 = (0.01 * 4095) ** 2, (0.03 * 4095) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        contrast = (2 * std_a * std_b + c2) / (std_a**2 + std_b**2 + c2)
        structure = ((cov + c2 / 2) / (std_a * std_b + c2 / 2)).clip(0)
        wanted *= ((luminance * contrast * structure) ** weight).mean()
        a, b = (fftconvolve(each, np.full((2, 2, 2), 1 / 8), mode="same")[::2, ::2, ::2] for each in (a, b))
        inside = inside[::2, ::2, ::2]
    assert volume_scores(x, y, mask)["ms_ssim"] == pytest.approx(wanted, abs=1e-6)


def test_the_metrics_are_the_functions() -> None:
    """Of volumes; the last has no bone, and no Dice coefficient."""
    truth, mask = volume((12, 40, 36)), ball((12, 40, 36))
    pairs = [(truth + 80 * RANDOM.standard_normal(truth.shape), truth), (np.zeros_like(truth), np.zeros_like(truth))]
    about = {"values": HU, "channels": 1, "masked": True, "dice_above": 450.5}
    scores = Scores(["mae", "psnr", "ms_ssim", "dice"], **about)  # pyright: ignore[reportArgumentType]
    for pair in pairs:
        result, target = (torch.from_numpy(each).float()[None, None] for each in pair)
        scores.update(result[None], target, torch.from_numpy(mask)[None, None])
    wanted = [volume_scores(y, x, mask) | {"dice": dice(y, x, 450.5, mask)} for x, y in pairs]
    assert np.isnan(wanted[1]["dice"])
    for name, found in scores.compute().items():
        assert found == pytest.approx(np.nanmean([each[name] for each in wanted]), rel=1e-4)


def test_dice_of_a_threshold() -> None:
    truth, result = np.array([300.0, 300, 0, 0]), np.array([300.0, 0, 300, 0])
    assert dice(truth, result, 200) == 0.5
    assert dice(truth, result, 200, mask=[1, 1, 0, 1]) == pytest.approx(2 / 3)
    assert np.isnan(dice(truth, result, 1000))


def test_bad_volumes() -> None:
    with pytest.raises(ValueError, match="must be"):
        volume_scores(np.zeros((4, 4)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="no voxel is in the mask"):
        volume_scores(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))
    scores = Scores(["ms_ssim"], values=HU, channels=1)
    with pytest.raises(ValueError, match="ms_ssim is of volumes"):
        scores.update(torch.zeros(1, 1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
