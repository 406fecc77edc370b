"""The statistics of training pairs that a bridge is fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar, cast

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.cached import LatentDataset
from bbdm.data.examples import Example
from bbdm.data.loading import Batches
from bbdm.data.mapped import MapStyle, as_pairs
from bbdm.data.pairs import Pairs
from bbdm.networks.base import Network
from bbdm.training.bridge import encode

PAIRS = 256  # that are measured
AT_ONCE = 16
DIGITS = 6  # that are kept, so that all processes have the same
LEAST = 1e-4  # spread of a constant side
Fitted = TypeVar("Fitted", bound=Bridge)


def used(bridge: Bridge) -> bool:
    """Whether the network's weights or the density of training times depend on statistics of the data."""
    return bridge.objective in ("pinned", "preconditioned") or bridge.density != "uniform"


@torch.no_grad()
def fitted(
    bridge: Fitted,
    network: Network,
    dataset: Pairs | MapStyle,
    codec: Codec | None = None,
    device: torch.device | None = None,
) -> Fitted:
    """The bridge with the :class:`~bbdm.bridges.path.Statistics` of training pairs.

    They are of the first 256 examples of an epoch, in the space of the bridge, over the pixels of the masks.

    Args:
        bridge: the bridge of the run.
        network: the network of the run, whose endpoint the source becomes.
        dataset: the training pairs, or their latents.
        codec: encodes pictures into the space of the bridge; None in image space.
        device: where the codec is; the CPU if None.

    Raises:
        ValueError: sources equal targets in all pairs.
    """
    sums = torch.zeros(6, dtype=torch.float64)
    for batch in first_batches(dataset, codec, device):
        x, y = batch.target.double(), network.endpoint(batch.source).double()
        counted = torch.ones_like(x) if batch.mask is None else batch.mask.double().expand_as(x)
        moments = (torch.ones_like(x), x, y, x * x, y * y, x * y)
        sums += torch.stack([(counted * moment).sum() for moment in moments]).cpu()
    mean_x, mean_y, xx, yy, xy = (sums[1:] / sums[0]).tolist()
    found = {
        "spread": math.sqrt(max(0.0, xx + yy - 2 * xy)),
        "sigma_data": math.sqrt(max(LEAST**2, xx - mean_x**2)),
        "sigma_source": math.sqrt(max(LEAST**2, yy - mean_y**2)),
        "cov": xy - mean_x * mean_y,
    }
    if found["spread"] < LEAST:
        raise ValueError(f"sources equal targets in {len(dataset)} training pairs: there is nothing to learn")
    return cast(Fitted, replace(bridge, **{name: float(f"{value:.{DIGITS}g}") for name, value in found.items()}))


def first_batches(
    dataset: Pairs | MapStyle, codec: Codec | None = None, device: torch.device | None = None
) -> Iterator[Example]:
    """The first 256 training examples of an epoch, in the space of the bridge."""
    train = as_pairs(dataset)
    latents = isinstance(train, LatentDataset)
    batches = Batches(train, AT_ONCE, device or torch.device("cpu"))
    for stored in batches(train.order(0)(0, min(PAIRS, len(train)))):
        if latents and train.flip:
            stored = stored._replace(source=stored.source.flatten(0, 1), target=stored.target.flatten(0, 1))
        yield stored if codec is None else encode(stored, codec, latents)
