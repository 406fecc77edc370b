"""The networks of FID and of LPIPS, whose weights are downloaded at first use, or are files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights

from bbdm.files import inert
from bbdm.files.importers import states
from bbdm.files.weights import readable

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # in torchvision


class DownloadError(ValueError):
    """Weights of a metric's network cannot be downloaded."""


class Inception(FeatureExtractorInceptionV3):
    """The Inception V3 that FID is defined with, (B, 3, H, W) uint8 to (B, 2048).

    torch-fidelity's, whose features and resizing are those of the original TensorFlow program.
    """

    def __init__(self) -> None:
        super().__init__("inception-v3-compat", ["2048"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, 3, H, W) uint8 to (B, 2048)."""
        return super().forward(x)[0]


def inception(weights: Path | None = None) -> nn.Module:
    """:class:`Inception` with the file of weights that torch-fidelity publishes; None downloads it.

    Raises:
        DownloadError: weights could not be downloaded.
        FileNotFoundError: there is no such file.
        ValueError: the file is no Inception of torch-fidelity.
    """
    return _with_weights(Inception, weights, URL_INCEPTION_V3, "fid_weights", "Inception")


def lpips_network(net: str = "alex", weights: Path | None = None) -> nn.Module:
    """The network of LPIPS (Zhang et al. 2018): two (B, 3, H, W) in [-1, 1] to distances (B, 1, 1, 1).

    With ``normalize=True``, pictures are in [0, 1].

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
        raise ValueError(f"net must be one of {tuple(BACKBONES)}, got {net!r}")
    url = get_model_weights(BACKBONES[net]).DEFAULT.url  # pyright: ignore[reportAttributeAccessIssue]
    build = partial(LearnedPerceptualImagePatchSimilarity, net)  # pyright: ignore[reportArgumentType]
    return _with_weights(build, weights, url, "lpips_weights", BACKBONES[net]).net


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
        path = Path(folder) / "checkpoints" / url.rpartition("/")[2]
        path.parent.mkdir()
        torch.save(state, path)
        torch.hub.set_dir(folder)
        try:
            return build()
        finally:
            torch.hub.set_dir(before)
