"""DeepLabV3 and DeepLabV3+ for semantic segmentation, on torchvision's backbones.

For eval_miou.py and convert_deeplabv3.py.

Papers: Chen et al. 2017 (arXiv:1706.05587) and 2018 (arXiv:1802.02611). State-dict keys, paddings and
dilations are those of github.com/VainF/DeepLabV3Plus-Pytorch, so that its published Cityscapes weights load.
In order: the configuration, the network, its two heads, files of weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

from bbdm.base.settings import check
from bbdm.files import weights
from bbdm.files.importers import states
from bbdm.files.weights import Snapshot, State
from bbdm.networks.base import restore
from bbdm.networks.config import check_integers

FORMAT = "bbdm deeplab"
Head = Literal["deeplabv3", "deeplabv3plus"]
Backbone = Literal["resnet50", "resnet101", "mobilenet"]
# by the number of blocks of layer3
RESNET_OF_BLOCKS: dict[int, Backbone] = {6: "resnet50", 23: "resnet101"}
ASPP_CHANNELS = 256
LOW_CHANNELS = 48  # of DeepLabV3+'s reduced early features
# channels of the early features, and of the last ones
CHANNELS: dict[str, tuple[int, int]] = {
    "resnet50": (256, 2048),
    "resnet101": (256, 2048),
    "mobilenet": (24, 320),
}


@dataclass(frozen=True)
class DeepLabConfig:
    """A network's shape.

    Attributes:
        head: DeepLabV3, or DeepLabV3+ with its decoder.
        backbone: the network of the features; ``mobilenet`` is MobileNetV2.
        num_classes: the number of classes, 19 for Cityscapes.
        output_stride: of the last features, 8 or 16. The weights fit both; the published ones were trained
            and tested with 16.
    """

    head: Head
    backbone: Backbone
    num_classes: int = 19
    output_stride: Literal[8, 16] = 16

    def __post_init__(self) -> None:
        check(self)
        check_integers(self, "num_classes")


class DeepLab(nn.Module):
    """The network: (B, 3, H, W) floats, normalised as for ImageNet, to (B, num_classes, H, W) logits."""

    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__()
        self.config = config
        mobile = config.backbone == "mobilenet"
        self.backbone = (
            _mobilenet(config.output_stride)
            if mobile
            else _resnet(config.backbone, config.output_stride)
        )
        low, high = CHANNELS[config.backbone]
        rates = (6, 12, 18) if config.output_stride == 16 else (12, 24, 36)
        if config.head == "deeplabv3":
            self.classifier = nn.ModuleDict(
                {"classifier": DeepLabHead(high, config.num_classes, rates)}
            )
        else:
            self.classifier = _PlusHead(low, high, config.num_classes, rates)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, num_classes, H, W)."""
        features, head = self.backbone(image), self.classifier
        logits = (
            head(**features)
            if isinstance(head, _PlusHead)
            else head["classifier"](features["high"])
        )
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def _resnet(name: str, output_stride: int) -> nn.Module:
    """Features of strides 4 and ``output_stride``; the last stages have dilations in place of strides."""
    resnet = get_model(
        name, weights=None, replace_stride_with_dilation=[False, output_stride == 8, True]
    )
    return IntermediateLayerGetter(resnet, {"layer1": "low", "layer4": "high"})


class _PaddedResidual(InvertedResidual):
    """MobileNetV2's block, with the padding before the expansion, as the published weights were trained.

    The expansion's bias acts on the padding too, so the depthwise convolution reads it around the picture,
    and not zeros as in torchvision's block.
    """

    @property
    def depthwise(self) -> nn.Conv2d:
        return cast(nn.Conv2d, cast(nn.Sequential, self.conv[-3])[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = self.depthwise.dilation[0]
        y = self.conv(F.pad(x, (side, side, side, side)))
        return x + y if self.use_res_connect else y


def _mobilenet(output_stride: int) -> nn.Module:
    """Features of strides 4 and ``output_stride``; the stem does not pad."""
    features = MobileNetV2(block=_PaddedResidual).features
    cast(nn.Conv2d, cast(nn.Sequential, features[0])[0]).padding = (0, 0)
    stride, dilation = 2, 1
    for block in list(features)[1:-1]:
        depthwise = cast(_PaddedResidual, block).depthwise
        depthwise.padding = (0, 0)
        depthwise.dilation = (dilation, dilation)
        step = depthwise.stride[0]
        if stride == output_stride:  # later blocks have dilations in place of strides
            depthwise.stride = (1, 1)
            dilation *= step
        else:
            stride *= step
    parts = nn.ModuleDict(
        {"low_level_features": features[:4], "high_level_features": features[4:-1]}
    )
    return IntermediateLayerGetter(
        parts, {"low_level_features": "low", "high_level_features": "high"}
    )


class _PlusHead(nn.Module):
    def __init__(self, low: int, high: int, num_classes: int, rates: tuple[int, int, int]) -> None:
        super().__init__()
        reduced = nn.Conv2d(low, LOW_CHANNELS, 1, bias=False)
        self.project = nn.Sequential(reduced, nn.BatchNorm2d(LOW_CHANNELS), nn.ReLU())
        self.aspp = ASPP(high, rates)
        self.classifier = nn.Sequential(
            nn.Conv2d(LOW_CHANNELS + ASPP_CHANNELS, ASPP_CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(ASPP_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(ASPP_CHANNELS, num_classes, 1),
        )

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        low, high = self.project(low), self.aspp(high)
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(torch.cat([low, high], dim=1))


def save_deeplab(path: str | os.PathLike[str], model: DeepLab) -> None:
    """Write a network, atomically.

    Raises:
        ValueError: the name does not end in ``.pt`` or ``.safetensors``.
    """
    content = {"config": asdict(model.config)}, {"weights": model.state_dict()}
    weights.write(path, Snapshot(FORMAT, *content))


def load_deeplab(
    path: str | os.PathLike[str], output_stride: Literal[8, 16] | None = None
) -> DeepLab:
    """Read a network, frozen; no code of the file runs.

    The file is of :func:`save_deeplab`, of DeepLabV3Plus-Pytorch, or a whole pickled network of its classes.
    ``output_stride`` is 8 or 16, in place of the file's; None for 16 where the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no DeepLab, is damaged, or is of a newer version.
    """
    with weights.opened(path, FORMAT, "segmentation network") as content:
        if isinstance(content, Snapshot):
            config, state = DeepLabConfig(**content.settings["config"]), content.states["weights"]
        else:
            config, state = _read(content)
        config = config if output_stride is None else replace(config, output_stride=output_stride)
        return restore(DeepLab, config, state).requires_grad_(False)


def _read(content: Any) -> tuple[DeepLabConfig, State]:
    file = states.File(content)  # the public A-Bridge code's converter pickles the whole network
    state = file.below("model_state.") or file.tensors
    if not state:
        raise ValueError(
            f"it is {states.summary(content)}; wanted: a state dict, or one under 'model_state'"
        )
    # some files hold weights of the criterion as well
    state = {key: value for key, value in state.items() if "loss" not in key}
    config = recognise(state)
    return config, states.load(DeepLab, config, state)


def recognise(state: Mapping[str, Any]) -> DeepLabConfig:
    """The configuration of the network with these weights.

    Raises:
        ValueError: it is no such network.
    """
    if not any(key.startswith("backbone.") for key in state) or not any(
        ".convs." in key for key in state
    ):
        raise ValueError(
            f"its weights are not a DeepLab's: they begin with {', '.join(list(state)[:3]) or 'nothing'}"
        )
    if any(".body." in key for key in state):
        raise ValueError(
            "its head has separable convolutions, which none of the published weights have"
        )
    head: Head = "deeplabv3plus" if "classifier.aspp.convs.0.0.weight" in state else "deeplabv3"
    last = (
        "classifier.classifier.3.weight"
        if head == "deeplabv3plus"
        else "classifier.classifier.4.weight"
    )
    if last not in state:
        raise ValueError(
            f"it has no {last!r}, a DeepLab's last layer in the layout of VainF's DeepLabV3Plus-Pytorch"
        )
    if any(key.startswith("backbone.high_level_features.") for key in state):
        backbone: Backbone | None = "mobilenet"
    else:
        blocks = {
            match[1]
            for key in state
            if (match := re.match(r"backbone\.layer3\.(\d+)\.conv3\.", key))
        }
        backbone = RESNET_OF_BLOCKS.get(len(blocks))
    shape = state[last].shape
    if not shape:
        raise ValueError(f"{last} has no shape of a layer")
    if backbone is None:
        raise ValueError(f"its backbone is none of {', '.join(get_args(Backbone))}")
    return DeepLabConfig(head, backbone, shape[0])
