"""Scores of translated pictures, on torchmetrics: FID, LPIPS, PSNR, SSIM and diversity.

Pictures have 8 bits, as in their files, and the size at which they were made. mIoU is in
:mod:`bbdm.evaluation.segmentation`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights

from bbdm.evaluation.config import LPIPSNet, MetricName
from bbdm.execution.processes import Processes
from bbdm.files import torchfile
from bbdm.files.weights import readable

HIGHER_IS_BETTER = {"fid": False, "lpips": False, "psnr": True, "ssim": True, "diversity": True}
Counted = torch.Tensor | list[torch.Tensor]  # a list has a tensor for each batch
State = tuple[int, dict[str, dict[str, Counted]]]  # the number of sources, and the states of the metrics
BACKBONES: dict[LPIPSNet, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # in torchvision
_ALONE: dict[str, Any] = {"sync_on_compute": False, "compute_with_cache": False}  # Scores.add sums over processes
_CONSTANT = ("data_range",)  # a state of PSNR


class Inception(nn.Module):
    """The Inception V3 that FID is defined with, (B, 3, H, W) uint8 to (B, 2048).

    torch-fidelity's, whose features and resizing are those of the original TensorFlow program.

    Args:
        weights: file of the weights that torch-fidelity publishes; None downloads them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no Inception of torch-fidelity, or the download failed.
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
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the network, or the download failed.
    """
    if net not in BACKBONES:
        raise ValueError(f"net must be one of {get_args(LPIPSNet)}, got {net!r}")
    url = get_model_weights(BACKBONES[net]).DEFAULT.url  # pyright: ignore[reportAttributeAccessIssue]
    build = partial(LearnedPerceptualImagePatchSimilarity, net, normalize=True, **_ALONE)
    return _with_weights(build, weights, url, "lpips_weights", BACKBONES[net])


def _moved(value: Counted, device: str | torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else [item.to(device) for item in value]


def _with_weights(build: Callable[[], Any], weights: Path | None, url: str, argument: str, name: str) -> Any:
    """``build()``, in which torch.hub finds a local file or downloads; errors say what to do."""
    if weights is None:
        try:
            return build()
        except OSError as error:
            raise ValueError(
                f"the {name} weights could not be downloaded ({error}): fetch {url} elsewhere and give it as {argument}"
            ) from error
    if not weights.is_file():
        raise FileNotFoundError(f"there is no file {weights} of {name} weights")
    before = torch.hub.get_dir()
    with readable(weights, f"file of {name} weights, as of {url}"), tempfile.TemporaryDirectory() as folder:
        with torchfile.opened(weights) as content:
            state = torchfile.plain(content)
        # The libraries run the pickle that they load: they get a copy with nothing but tensors
        place = Path(folder) / "checkpoints" / url.rpartition("/")[2]
        place.parent.mkdir()
        torch.save(state, place)
        torch.hub.set_dir(folder)
        try:
            return build()
        finally:
            torch.hub.set_dir(before)


class Scores:
    """Several metrics over one data set.

    FID compares all results with all targets; its statistics are float64. LPIPS, PSNR and SSIM compare each
    result with its source's target, and are means over results. Diversity (Li et al., BBDM, CVPR 2023) is the
    standard deviation over a source's results, without Bessel's correction, on a scale of 0 to 255, averaged
    over pixels, channels and sources.

    :meth:`collect` adds the pictures of other processes. (The synchronisation of torchmetrics hangs or fails
    when processes have different numbers of batches.)

    Args:
        names: of ``fid``, ``lpips``, ``psnr``, ``ssim``, ``diversity``.
        samples: results of each source. Diversity needs at least 2.
        features: the network of FID, (B, 3, H, W) uint8 to (B, D); None for Inception.
        fid_weights: file of the weights that torch-fidelity publishes; None downloads them.
        lpips_net: the network of LPIPS.
        lpips_weights: file of torchvision's ImageNet weights for that network; None downloads them.
        device: where the metrics are computed.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: an unknown name, too few samples, damaged weights, or a failed download.
    """

    def __init__(
        self,
        names: Sequence[str],
        samples: int = 1,
        *,
        features: nn.Module | None = None,
        fid_weights: Path | None = None,
        lpips_net: LPIPSNet = "alex",
        lpips_weights: Path | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        unknown = [name for name in names if name not in get_args(MetricName)]
        if unknown or not names:
            raise ValueError(
                f"metrics must be among {', '.join(get_args(MetricName))}, got {', '.join(unknown) or 'none'}"
            )
        if "diversity" in names and samples < 2:
            raise ValueError(f"diversity needs at least 2 results of each source, got {samples}")
        build: dict[str, Callable[[], Metric]] = {
            "fid": lambda: FrechetInceptionDistance(features or Inception(fid_weights), **_ALONE),
            "lpips": lambda: lpips(lpips_net, lpips_weights),
            "psnr": lambda: PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), **_ALONE),
            "ssim": lambda: StructuralSimilarityIndexMeasure(data_range=1.0, **_ALONE),
            "diversity": lambda: MeanMetric("disable", **_ALONE),
        }
        self.samples = samples
        self.device = torch.device(device)
        self.metrics = {name: build[name]().to(self.device) for name in names}
        if "diversity" in names:
            self.metrics["diversity"].set_dtype(torch.float64)  # which Metric.to forgets
        self._pictures = 0

    @torch.inference_mode()
    def update(self, results: torch.Tensor, targets: torch.Tensor) -> None:
        """Add (B, S, 3, H, W) uint8 results, and their (B, 3, H, W) uint8 targets.

        Raises:
            ValueError: other shapes or types.
        """
        fits = results.ndim == 5 and results.shape[0] == len(targets) and results.shape[2:] == targets.shape[1:]
        if not fits or results.shape[1:3] != (self.samples, 3):
            raise ValueError(
                f"results must be (B, {self.samples}, 3, H, W) and targets (B, 3, H, W), "
                f"got {tuple(results.shape)} and {tuple(targets.shape)}"
            )
        if results.dtype != torch.uint8 or targets.dtype != torch.uint8:
            raise ValueError(f"pictures must be uint8, got {results.dtype} and {targets.dtype}")
        results, targets = results.to(self.device), targets.to(self.device)
        flat = results.flatten(0, 1)
        one, other = flat / 255, targets.repeat_interleave(self.samples, dim=0) / 255
        self._pictures += len(targets)
        for name, metric in self.metrics.items():
            if name == "fid":
                metric.update(flat, real=False)
                metric.update(targets, real=True)
            elif name == "diversity":
                metric.update(results.double().std(dim=1, correction=0).mean((1, 2, 3)))
            else:
                metric.update(one, other)

    def reset(self) -> None:
        """Forget all pictures."""
        self._pictures = 0
        for metric in self.metrics.values():
            metric.reset()

    def state(self) -> State:
        """The argument of :meth:`add` in another process, on the CPU."""
        counted = {
            name: {key: _moved(value, "cpu") for key, value in metric.metric_state.items() if key not in _CONSTANT}
            for name, metric in self.metrics.items()
        }
        return self._pictures, counted

    @torch.inference_mode()
    def add(self, state: State) -> None:
        """Add the pictures of other scores with the same metrics.

        Raises:
            ValueError: these scores have no pictures yet, which FID cannot start from.
        """
        pictures, counted = state
        if not pictures:
            return
        if not self._pictures:
            raise ValueError("scores need pictures of their own before those of others are added, got none")
        self._pictures += pictures
        for name, metric in self.metrics.items():
            for key, value in counted[name].items():  # Metric.merge_state reverses lists: other last bits of means
                setattr(metric, key, getattr(metric, key) + _moved(value, self.device))

    def collect(self, processes: Processes) -> None:
        """Add the pictures of all other processes to the first's; every process calls it."""
        _, *others = processes.gather(self.state())
        for state in others if processes.first else []:
            self.add(state)

    def compute(self) -> dict[str, float]:
        """The scores of all pictures so far.

        Raises:
            ValueError: there are none, or too few for FID.
        """
        if self._pictures < (2 if "fid" in self.metrics else 1):
            raise ValueError(f"scores need pictures, FID at least 2; got {self._pictures}")
        return {name: metric.compute().item() for name, metric in self.metrics.items()}
