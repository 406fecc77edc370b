"""The networks of FID and of LPIPS, whose weights torch.hub downloads at first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights

from bbdm.files import inert
from bbdm.files.weights import readable

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # in torchvision


class Inception(FeatureExtractorInceptionV3):
    """The Inception V3 that FID is defined with, (B, 3, H, W) uint8 to (B, 2048).

    torch-fidelity's, whose features and resizing are those of the original TensorFlow program.
    """

    def __init__(self) -> None:
        super().__init__("inception-v3-compat", ["2048"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  (one of the tuple)
        """(B, 3, H, W) uint8 to (B, 2048)."""
        return super().forward(x)[0]


def inception() -> nn.Module:
    """:class:`Inception` with the weights of torch-fidelity; errors are those of :func:`lpips_network`."""
    return pretrained(Inception, URL_INCEPTION_V3)


def lpips_network(net: str = "alex") -> nn.Module:
    """The network of LPIPS (Zhang et al. 2018): two (B, 3, H, W) in [-1, 1] to distances (B, 1, 1, 1).

    With ``normalize=True``, pictures are in [0, 1]. The linear layers are part of torchmetrics.

    Args:
        net: the network whose features are compared, with torchvision's ImageNet weights.

    Raises:
        ValueError: weights could not be downloaded, and the message says where to put their file; or the file
            that is there is damaged or another one.
    """
    if net not in BACKBONES:
        raise ValueError(f"net must be one of {tuple(BACKBONES)}, got {net!r}")
    url = get_model_weights(BACKBONES[net]).DEFAULT.url  # pyright: ignore[reportAttributeAccessIssue]  (each has one)
    build = partial(LearnedPerceptualImagePatchSimilarity, net)  # pyright: ignore[reportArgumentType]  (looked up above)
    return pretrained(build, url).net


def pretrained(build: Callable[[], Any], url: str) -> Any:
    """``build()``, in which torch.hub downloads weights, or finds their file in its folder."""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    try:
        with readable(path, f"file of weights, as of {url}"):
            if path.is_file():  # the libraries run the pickle that they load, and notice no damage
                inert.load(path)
                torch.load(path, map_location="cpu", weights_only=True)
            return build()
    except OSError as error:
        raise ValueError(
            f"weights cannot be downloaded ({error}): put the file of {url} at {path}, or take scores without "
            "weights, psnr and ssim"
        ) from error
