"""DeepLabs in files: our own, and those of VainF's DeepLabV3Plus-Pytorch, told by the names of their weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, get_args

from bbdm import torchfile, weights
from bbdm.importers import states
from bbdm.networks.deeplab import Backbone, DeepLab, DeepLabConfig, Head
from bbdm.networks.restore import restore
from bbdm.records import Record
from bbdm.weights import State

FORMAT = "bbdm deeplab"
RESNET_OF_BLOCKS: dict[int, Backbone] = {6: "resnet50", 23: "resnet101"}  # by the number of blocks of layer3


def save_deeplab(path: str | os.PathLike[str], model: DeepLab) -> None:
    """Write a network, atomically.

    Raises:
        ValueError: the name does not end in ``.pt`` or ``.safetensors``.
    """
    weights.write(path, FORMAT, {"config": asdict(model.config)}, {"weights": model.state_dict()})


def load_deeplab(path: str | os.PathLike[str], output_stride: int | None = None) -> DeepLab:
    """Read a network, frozen: of :func:`save_deeplab`, of DeepLabV3Plus-Pytorch, or pickled as a whole.

    Runs no code from the file.

    Args:
        path: the file; ``.safetensors``, or anything else for torch.save.
        output_stride: 8 or 16 in place of the file's. Only :func:`save_deeplab` writes it, and others are taken for 16.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no DeepLab, is damaged, or is of a newer version.
    """
    with weights.opened(path, FORMAT, "segmentation network") as (content, own):
        config, state = (DeepLabConfig(**content["config"]), content["weights"]) if own else _read(content)
        return from_state(state, config if output_stride is None else replace(config, output_stride=output_stride))


def from_state(state: State, config: DeepLabConfig) -> DeepLab:
    """The network with these weights, in float32, frozen, in evaluation mode.

    Raises:
        ValueError: a weight is missing, unknown, of another shape, or not floating point; see
            :func:`bbdm.networks.restore.fitting`.
    """
    return restore(DeepLab, config, state).requires_grad_(False)


def _read(content: Any) -> tuple[DeepLabConfig, State]:
    if isinstance(content, Record):  # as the public A-Bridge code's converter saves it
        content = torchfile.state_dict(content)
    state = content.get("model_state", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"it is {states.nature(content)}; wanted: a state dict, or one under 'model_state'")
    # some files hold weights of the criterion as well
    state = {key: value for key, value in states.tensors(state).items() if "loss" not in key}
    config = recognise(state)
    return config, states.load(DeepLab, config, state)


def recognise(state: Mapping[str, Any], output_stride: int = 16) -> DeepLabConfig:
    """The shape of the network that a state dict is of.

    Raises:
        ValueError: it is of none that is known here.
    """
    if not any(key.startswith("backbone.") for key in state) or not any(".convs." in key for key in state):
        raise ValueError(f"its weights are not a DeepLab's: they begin with {', '.join(list(state)[:3]) or 'nothing'}")
    if any(".body." in key for key in state):
        raise ValueError("its head has separable convolutions, which none of the published weights have")
    head: Head = "deeplabv3plus" if "classifier.aspp.convs.0.0.weight" in state else "deeplabv3"
    last = "classifier.classifier.3.weight" if head == "deeplabv3plus" else "classifier.classifier.4.weight"
    if last not in state:
        raise ValueError(f"it has no {last!r}, a DeepLab's last layer in the layout of VainF's DeepLabV3Plus-Pytorch")
    if any(key.startswith("backbone.high_level_features.") for key in state):
        backbone: Backbone | None = "mobilenet"
    else:
        blocks = {match[1] for key in state if (match := re.match(r"backbone\.layer3\.(\d+)\.conv3\.", key))}
        backbone = RESNET_OF_BLOCKS.get(len(blocks))
    shape = state[last].shape
    if not shape:
        raise ValueError(f"{last} has no shape of a layer")
    if backbone is None:
        raise ValueError(f"its backbone is none of {', '.join(get_args(Backbone))}")
    return DeepLabConfig(head, backbone, shape[0], output_stride)
