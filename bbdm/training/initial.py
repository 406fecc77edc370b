"""What a training run begins with: statistics and a record of its pairs, and trained weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.latents import LatentDataset
from bbdm.data.loading import Batches
from bbdm.data.mapped import as_pairs
from bbdm.data.pairs import Pairs
from bbdm.data.provenance import Record
from bbdm.data.tables import MapStyle
from bbdm.data.trained import Origin, Trained
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.content import Checkpoint
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.base import SOURCE, Network
from bbdm.networks.config import NetworkConfig
from bbdm.training.preparation import encode

log = logging.getLogger(__name__)
PAIRS = 256  # that are measured
AT_ONCE = 16
CODED = 10  # pairs whose targets are encoded and decoded
LEVELS = 127.5  # of 8 bits in a unit of [-1, 1]
DIGITS = 6  # that are kept, so that all processes have the same
LEAST = 1e-4  # spread of a constant side
# correlation of pairs that are linear but for rounding: a bridge needs less than 1
LINEAR = 1 - 1e-5
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
    """The bridge with the statistics of training pairs: see :class:`~bbdm.bridges.base.Bridge`.

    They are of the first 256 examples of an epoch, in the space of the bridge, over the pixels of the masks.

    Args:
        bridge: the bridge of the run.
        network: the network of the run, whose endpoint the source becomes.
        dataset: the training pairs, or their latents.
        codec: encodes pictures into the space of the bridge; None in image space.
        device: where the codec is; the CPU if None.

    Raises:
        ValueError: sources equal targets in all pairs, or no pixel counts.
    """
    train = as_pairs(dataset)
    sums = torch.zeros(6, dtype=torch.float64)
    count = min(PAIRS, len(train))
    batches = Batches(train, AT_ONCE, device or torch.device("cpu"))
    latents = isinstance(train, LatentDataset)
    for batch in batches(train.order(0)(0, count)):
        if latents and train.flip:
            batch = batch._replace(
                source=batch.source.flatten(0, 1), target=batch.target.flatten(0, 1)
            )
        batch = batch if codec is None else encode(batch, codec, latents)
        x = batch.target.double()
        y = network.endpoint(batch.source).double()
        counted = torch.ones_like(x) if batch.mask is None else batch.mask.double().expand_as(x)
        moments = (torch.ones_like(x), x, y, x * x, y * y, x * y)
        sums += torch.stack([(counted * moment).sum() for moment in moments]).cpu()
    if not sums[0]:
        raise ValueError(
            f"no pixel counts in {count} training pairs: masks must have pixels that are not 0, and source and target "
            "a value there; where pictures are resized, in all of a pixel"
        )
    mean_x, mean_y, xx, yy, xy = (sums[1:] / sums[0]).tolist()
    statistics = {
        "spread": math.sqrt(max(0.0, xx + yy - 2 * xy)),
        "sigma_data": math.sqrt(max(LEAST**2, xx - mean_x**2)),
        "sigma_source": math.sqrt(max(LEAST**2, yy - mean_y**2)),
        "cov": xy - mean_x * mean_y,
    }
    if statistics["spread"] < LEAST:
        raise ValueError(
            f"sources equal targets in {len(dataset)} training pairs: there is nothing to learn"
        )
    rounded = {name: float(f"{value:.{DIGITS}g}") for name, value in statistics.items()}
    largest = LINEAR * rounded["sigma_data"] * rounded["sigma_source"]
    rounded["cov"] = min(max(rounded["cov"], -largest), largest)
    return cast(Fitted, replace(bridge, **rounded))


@torch.no_grad()
def round_trip_error(dataset: Pairs, codec: Codec, device: torch.device) -> float:
    """What an autoencoder loses of targets: the RMSE in levels of [0, 255] over the first ten of an epoch."""
    batches = Batches(dataset, 1, device)
    errors: list[torch.Tensor] = []
    for batch in batches(dataset.order(0)(0, min(CODED, len(dataset)))):
        decoded = codec.decode(codec.encode(batch.target, "target")).clamp(-1, 1)
        errors.append((decoded - batch.target).square().mean())
    return LEVELS * float(torch.stack(errors).mean().sqrt())


class Copied(NamedTuple):
    """What :func:`copy_weights` did with weights that do not fit as they are."""

    initialised: list[str]  # their names: they stay so
    widened: str | None  # the first layer, if it is shown more than the trained one


@torch.no_grad()
def copy_weights(network: Network, checkpoint: Checkpoint) -> Copied:
    """Copy a trained network's weights, the averaged ones where there are both, wherever their shapes fit.

    The first layer also fits where it is shown more: neighbours of a frame or a slice, a source, images. Its
    weights for these begin as zeros, so that the network predicts what the trained one does.

    Raises:
        ValueError: less than half of the weights fit; the network is unchanged.
    """
    trained = checkpoint.unet.weights if checkpoint.unet.ema is None else checkpoint.unet.ema
    assert trained is not None  # checked when the file was read
    weights = network.state_dict()
    fitting = [
        key
        for key, value in weights.items()
        if key in trained and trained[key].shape == value.shape
    ]
    if 2 * len(fitting) < len(weights):
        raise ValueError(
            f"init_from: only {len(fitting)} of {len(weights)} weights fit: they are of another network (preset), "
            f"{checkpoint.unet.config}"
        )
    for key in fitting:
        weights[key].copy_(trained[key])
    others = {*weights} - {*fitting}
    key = network.first_layer
    if key not in others or key not in trained:
        return Copied(sorted(others), None)
    channels = _channels_of(network, checkpoint.unet.config)
    if channels is None:
        return Copied(sorted(others), None)
    count = sum(network.network_config.shown.values())
    known = trained[key].unflatten(1, (len(channels), -1))  # -1: pixels of a position
    weights[key].zero_().unflatten(1, (count, -1))[:, channels] = known.to(weights[key].dtype)
    return Copied(sorted(others - {key}), key)


def _channels_of(network: Network, trained: NetworkConfig) -> list[int] | None:
    """Of each channel that the trained network is shown, its index among those that this one is shown.

    None where it is not shown them all. Of a source with neighbours, the trained source is the endpoint.
    """
    starts: dict[str, int] = {}
    count = 0
    shown = network.network_config.shown
    for name, size in shown.items():
        starts[name] = count
        count += size
    channels: list[int] = []
    for name, size in trained.shown.items():
        if shown.get(name) == size:
            chosen: Sequence[int] = range(size)
        elif name == SOURCE and len(network.endpoint_channels or ()) == size:
            chosen = cast(Sequence[int], network.endpoint_channels)
        else:
            return None
        channels += [starts[name] + channel for channel in chosen]
    return channels


def load_trained(
    path: Path, num_steps: int, c_lambda: float, config: str | None = None
) -> Checkpoint:
    """The checkpoint whose weights a run begins with; the settings are for files that leave them out."""
    try:
        return load_checkpoint(path, config=config)
    except IncompleteFileError:
        return load_checkpoint(path, num_steps, c_lambda, config=config)


def record(
    train: Pairs, validation: Pairs | None, folder: Path, origin: Origin | None, resumed: bool
) -> Record:
    """What a run records of its pairs as it begins or resumes: all that its network has ever learned from.

    Warnings say of which weights that is not known, and name the validation pairs that are among them.

    Args:
        train: the pairs of the run.
        validation: those that it is judged by; None for none.
        folder: the folder of the run, which may hold a record already.
        origin: of the weights that it begins or resumes with; None where they came from no file.
        resumed: whether these are its own, so that files of the same size and time are not read again.
    """
    trained = None if origin is None else Trained.of_origin(origin, folder)
    known = trained.record if resumed and trained is not None else None
    recorded = train.provenance(known)
    if trained is not None:
        recorded = recorded.after(trained.record)
    elif origin is not None:
        recorded = replace(recorded, unknown=[origin.path.name])
    if validation is not None:
        overlap = Trained("this run", recorded).overlap(validation)
        if overlap.names:
            log.warning("validation: %s", overlap)
    return recorded
