"""Whether a network, a codec and pairs fit each other, before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bbdm.base.sizes import shown
from bbdm.codec import Codec
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import Pairs
from bbdm.networks.arrays import check_pictures
from bbdm.networks.base import SOURCE, Network
from bbdm.pictures.images import sides
from bbdm.training.config import BridgeConfig


def check_start(network: Network, config: BridgeConfig, train: Pairs, codec: Codec | None) -> None:
    """Raise ValueError where a network cannot be trained on pairs or their latents."""
    if codec is not None:
        check_pictures(network.axes, "a codec")
    spec = train.spec
    size = sides(train.image_size, spec.axes)
    channels = (train.source_channels, train.channels)
    stride = 1
    if codec is not None:
        channels = (codec.channels, codec.channels)
        stride = codec.stride
    conditions = sorted({*network.inputs} - {SOURCE})
    two_way = network.network_config.two_way
    facts: dict[str, tuple[Any, Any]] = {  # what the network takes, and what the pairs have
        "axes": (network.axes, len(size)),
        "channels of sources and targets": ((network.source_channels, network.channels), channels),
        "both directions, the class 'direction'": (two_way, spec.direction == "both"),
        "conditions besides the source": (conditions, sorted(spec.conditions)),
    }
    for fact, (takes, has) in facts.items():
        if takes != has:
            kind = "pairs" if codec is None else "latents"
            raise ValueError(f"the network has {fact}: {takes}, and the {kind} have {has}")
    strides = tuple(network_stride * stride for network_stride in network.strides)
    if any(side % multiple for side, multiple in zip(size, strides, strict=True)):
        name = "image_size" if spec.crop is None else "crop"
        raise ValueError(
            f"{name} {train.image_size} is not a multiple of {strides}, strides of network and codec: "
            f"take {_multiples_near(size, strides)}"
        )
    if isinstance(train, LatentDataset):
        _check_latents(train, config, codec)


def _multiples_near(size: Sequence[int], strides: Sequence[int]) -> str:
    """The next sizes whose sides are multiples of strides, such as ``48 x 48 or 56 x 56``."""
    smaller: list[int] = []
    larger: list[int] = []
    for side, multiple in zip(size, strides, strict=True):
        smaller.append(side // multiple * multiple)
        larger.append(-(-side // multiple) * multiple)
    if 0 in smaller:
        return shown(larger)
    return f"{shown(smaller)} or {shown(larger)}"


def _check_latents(train: LatentDataset, config: BridgeConfig, codec: Codec | None) -> None:
    """Raise ValueError unless stored latents are those of a run's codec and flips."""
    if codec is None or train.codec != codec.description():
        kind = None if codec is None else codec.kind
        raise ValueError(f"codec must be that of the stored latents (cache_latents), got {kind}")
    if train.flip != config.flip:
        raise ValueError(
            f"flip must be that of the stored latents (cache_latents), {train.flip}; got {config.flip}"
        )
    for name in ("shift", "turn", "zoom"):
        value = getattr(config, name)
        if value:
            raise ValueError(f"{name} must be 0 with stored latents (cache_latents), got {value}")
