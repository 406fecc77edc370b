"""The metrics: FID, LPIPS, PSNR, SSIM, MS-SSIM, Dice, MAE, RMSE, SAM, ERGAS, diversity, and those of a user.

They are rows of :data:`METRICS`, to which a statement adds one:

    METRICS["bias"] = Kind(mean_of(bias), higher_is_better=False, masks="pixels")

mIoU is in :mod:`bbdm.evaluation.segmentation`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torchmetrics import Metric
from torchmetrics.functional.image import (
    error_relative_global_dimensionless_synthesis,
    spectral_angle_mapper,
    structural_similarity_index_measure,
)
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights

from bbdm.evaluation.scores import Scores as Scores
from bbdm.evaluation.table import METRICS as METRICS
from bbdm.evaluation.table import Kind as Kind
from bbdm.evaluation.table import LPIPSNet, Setup
from bbdm.evaluation.volumes import dice as dice
from bbdm.evaluation.volumes import ms_ssim
from bbdm.evaluation.volumes import volume_scores as volume_scores
from bbdm.files import inert
from bbdm.files.importers import states
from bbdm.files.weights import readable

Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (N, C, H, W) results and targets to (N,) scores
BACKBONES: dict[LPIPSNet, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # in torchvision
SSIM_SIDE = 6  # at least, of pictures that its window is reflected in
SLICES = 32  # of a volume, whose similarity is computed at once
_ALONE: dict[str, Any] = {"sync_on_compute": False, "compute_with_cache": False}  # Scores.add sums over processes


class DownloadError(ValueError):
    """Weights of a metric's network cannot be downloaded."""


class Inception(nn.Module):
    """The Inception V3 that FID is defined with, (B, 3, H, W) uint8 to (B, 2048).

    torch-fidelity's, whose features and resizing are those of the original TensorFlow program.

    Args:
        weights: file of the weights that torch-fidelity publishes; None downloads them.

    Raises:
        DownloadError: weights could not be downloaded.
        FileNotFoundError: there is no such file.
        ValueError: the file is no Inception of torch-fidelity.
    """

    num_features = 2048  # torchmetrics reads it

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        build = partial(FeatureExtractorInceptionV3, "inception-v3-compat", ["2048"])
        self.extractor = _with_weights(build, weights, URL_INCEPTION_V3, "fid_weights", "Inception")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 to (B, 2048)."""
        return self.extractor(images)[0]


def lpips(net: LPIPSNet = "alex", weights: Path | None = None) -> LearnedPerceptualImagePatchSimilarity:
    """LPIPS (Zhang et al. 2018) of pictures in [0, 1].

    Args:
        net: the network whose features are compared.
        weights: file of torchvision's ImageNet weights for that network; None downloads them. The linear
            layers are part of torchmetrics.

    Raises:
        DownloadError: weights could not be downloaded.
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the network.
    """
    if net not in BACKBONES:
        raise ValueError(f"net must be one of {get_args(LPIPSNet)}, got {net!r}")
    url = get_model_weights(BACKBONES[net]).DEFAULT.url  # pyright: ignore[reportAttributeAccessIssue]
    build = partial(LearnedPerceptualImagePatchSimilarity, net, normalize=True, **_ALONE)
    return _with_weights(build, weights, url, "lpips_weights", BACKBONES[net])


def _with_weights(build: Callable[[], Any], weights: Path | None, url: str, argument: str, name: str) -> Any:
    """``build()``, in which torch.hub finds a local file or downloads; errors say what to do."""
    if weights is None:
        try:
            return build()
        except OSError as error:
            raise DownloadError(
                f"the {name} weights could not be downloaded ({error}): fetch {url} elsewhere and give it as {argument}"
            ) from error
    if not weights.is_file():
        raise FileNotFoundError(f"there is no file {weights} of {name} weights")
    before = torch.hub.get_dir()
    with readable(weights, f"file of {name} weights, as of {url}"), tempfile.TemporaryDirectory() as folder:
        content, _ = inert.load(weights)
        state = states.tensors(content)
        # The libraries run the pickle that they load: they get a copy with nothing but tensors
        place = Path(folder) / "checkpoints" / url.rpartition("/")[2]
        place.parent.mkdir()
        torch.save(state, place)
        torch.hub.set_dir(folder)
        try:
            return build()
        finally:
            torch.hub.set_dir(before)


class PictureMean(Metric):
    """The mean of a function's scores of pictures.

    A score of NaN is of a picture without one, and does not count.

    Args:
        compare: (N, C, H, W) results and targets to (N,) scores.
    """

    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, compare: Compare) -> None:
        super().__init__(**_ALONE)
        self._compare = compare
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), "sum")
        self.set_dtype(torch.float64)

    def update(self, results: torch.Tensor, targets: torch.Tensor) -> None:
        """Add pictures: (N, C, H, W), or what else the function takes."""
        scores = self._compare(results, targets).double()
        self.total += scores.nansum()
        self.count += (~scores.isnan()).sum()

    def compute(self) -> torch.Tensor:
        """The mean; NaN of no picture."""
        return self.total / self.count


def mean_of(compare: Compare) -> Callable[[Setup], PictureMean]:
    """What builds the metric that is the mean of a function's scores; see :class:`PictureMean`."""
    return lambda setup: PictureMean(compare)


def _mae(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (results - targets).abs().mean((1, 2, 3), dtype=torch.float64)


def _rmse(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (results - targets).square().mean((1, 2, 3), dtype=torch.float64).sqrt()


def _sam(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Radians. A pixel of zeros has no angle, and does not count."""
    return spectral_angle_mapper(results.double(), targets.double(), reduction="none").nanmean((1, 2))


def _ergas(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """With 4 pixels of the target along one of the source, torchmetrics' default."""
    return error_relative_global_dimensionless_synthesis(results.double(), targets.double(), reduction="none")


def _diversity(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return results.double().std(dim=1, correction=0).mean((1, 2, 3))


class _FID(FrechetInceptionDistance):
    def update(self, results: torch.Tensor, targets: torch.Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().update(results.flatten(0, 1), real=False)
        super().update(targets, real=True)


class _SSIM(StructuralSimilarityIndexMeasure):
    """In the plane of the last two axes; within a mask, the mean of the map over it."""

    def update(self, results: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if min(results.shape[-2:]) < SSIM_SIDE:
            raise ValueError(f"ssim needs at least {SSIM_SIDE} pixels a side, got {tuple(results.shape[-2:])}")
        if masks is None and results.ndim == 4:
            super().update(results, targets)
            return
        for number, pair in enumerate(zip(results, targets, strict=True)):
            self.similarity += _similarity(*pair, None if masks is None else masks[number])
            self.total += 1


class _MSSSIM(PictureMean):
    """Of volumes, within masks; see :func:`bbdm.evaluation.volumes.ms_ssim`."""

    def __init__(self) -> None:
        super().__init__(lambda results, targets: results.new_tensor([]))

    def update(self, results: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if results.ndim != 5:
            raise ValueError(f"ms_ssim is of volumes, got pictures of {tuple(results.shape[2:])}: take ssim")
        inside = torch.ones_like(targets[:, :1], dtype=torch.bool) if masks is None else masks
        for result, target, mask in zip(results, targets, inside, strict=True):
            for pair in zip(result, target, strict=True):  # channels
                x, y = (each.double().cpu().numpy() for each in pair)
                self.total += ms_ssim(x, y, mask[0].cpu().numpy()) / len(result)
            self.count += 1


def _similarity(result: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean of the map over the mask (1, *S) of a picture (C, *S)."""
    planes = [(v[:, None] if v.ndim == 3 else v).transpose(0, 1) for v in (result, target)]  # (D, C, H, W)
    weights = torch.ones_like(planes[0][:, :1]) if mask is None else mask.reshape(planes[0][:, :1].shape).float()
    total = planes[0].new_zeros(())
    for part in zip(*(v.split(SLICES) for v in (*planes, weights)), strict=True):
        _, found = structural_similarity_index_measure(part[0], part[1], data_range=1.0, return_full_image=True)
        total += (found.mean(1, keepdim=True) * part[2]).sum()
    return total / weights.sum()


def _sam_of(setup: Setup) -> Metric:
    if setup.channels < 2:
        raise ValueError("sam compares channels with each other, and there is one")
    return PictureMean(_sam)


def _dice_of(setup: Setup) -> Metric:
    def compare(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        one, other = results > setup.dice_above, targets > setup.dice_above
        both = (one & other).sum((1, 2, 3), dtype=torch.float64)
        return 2 * both / (one.sum((1, 2, 3)) + other.sum((1, 2, 3)))  # 0 / 0 is NaN, which has no score

    return PictureMean(compare)


BUILT_IN: dict[str, Callable[[Setup], Metric]] = {  # what builds each metric of METRICS
    "fid": lambda setup: _FID(setup.features or Inception(setup.fid_weights), **_ALONE),
    "lpips": lambda setup: lpips(setup.lpips_net, setup.lpips_weights),
    "psnr": lambda setup: PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), **_ALONE),
    "ssim": lambda setup: _SSIM(data_range=1.0, **_ALONE),  # Wang et al. 2004, a Gaussian window of 11 pixels
    "ms_ssim": lambda setup: _MSSSIM(),  # SynthRAD 2025
    "dice": _dice_of,
    "mae": mean_of(_mae),
    "rmse": mean_of(_rmse),
    "sam": _sam_of,  # the spectral angle, Yuhas et al. 1992
    "ergas": mean_of(_ergas),
    "diversity": mean_of(_diversity),
}
