"""First filters whose responses to training sources are white.

The spectrum of photographs falls so steeply that random filters respond to areas alone. A network that
restores detail first has to learn to see it. Filters that are random in coordinates where sources are white
respond to detail as to areas (LeCun et al. 1998, Efficient BackProp, section 4.3).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from bbdm.codec import Codec
from bbdm.data.mapped import MapStyle
from bbdm.data.pairs import Pairs
from bbdm.networks.base import Network
from bbdm.networks.layers import unshuffled
from bbdm.networks.unet import UNet
from bbdm.training.statistics import first_batches

FLOOR = 0.02  # in [-1, 1]: fainter detail is not raised to the same response
POSITIONS = 64  # along an axis, at most, of which patches are taken


@torch.no_grad()
def whiten(
    network: Network, dataset: Pairs | MapStyle, codec: Codec | None = None, device: torch.device | None = None
) -> None:
    """Make the responses of an untrained UNet's first filters to sources white, with a mean square of 1.

    Args:
        network: the UNet, whose first convolution is changed.
        dataset: the training pairs, or their latents.
        codec: encodes pictures into the space of the bridge; None in image space.
        device: where the codec is; the CPU if None.

    Raises:
        ValueError: the network is no UNet, or does not see the source.
    """
    if not isinstance(network, UNet) or not network.condition_channels:
        raise ValueError("filters are whitened of a UNet that sees the source")
    products, count = torch.zeros(()), 0
    for batch in first_batches(dataset, codec, device):
        found = _patches(unshuffled(batch.source.cpu(), network.config.patch)).double()
        products, count = products + found.T @ found, count + len(found)
    variances, directions = torch.linalg.eigh(products / count)
    whitening = (directions * (variances + FLOOR**2).rsqrt()) @ directions.T
    filters = cast(nn.Conv2d, cast(nn.Sequential, network.input_blocks[0])[0]).weight
    pixels = network.config.patch**network.axes
    first, channels = network.channels * pixels, network.condition_channels * pixels
    of_source = filters[:, first : first + channels]  # further images follow
    drawn = of_source.flatten(1).double().cpu() @ whitening
    power = (drawn @ (products / count) * drawn).sum(dim=1).mean()  # of the responses
    of_source.copy_((drawn / power.sqrt()).view_as(of_source))


def _patches(x: torch.Tensor) -> torch.Tensor:
    """(N, C K) what a kernel of 3 along each axis sees of (B, C, *S), at equal distances."""
    axes = range(2, x.ndim)
    for axis in axes:
        x = x.unfold(axis, 3, max(1, x.shape[axis] // POSITIONS))
    return x.movedim(1, len(axes) + 1).flatten(len(axes) + 1).flatten(0, len(axes))
