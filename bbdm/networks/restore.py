"""Networks from their settings and weights, as files keep them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN

Network = TypeVar("Network", UNet, VQGAN)


def restore(kind: type[Network], config: Any, state: dict[str, torch.Tensor], whose: str) -> Network:
    """A network in float32 on the CPU, in evaluation mode.

    Raises:
        ValueError: the weights do not fit; it begins with ``whose``.
    """
    with torch.device("meta"):  # memory without values, which would take longer to draw than the file to read
        network = kind.from_config(config)
    network.to_empty(device="cpu")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{whose} weights do not fit its settings: {error}") from error
    return network.eval()
