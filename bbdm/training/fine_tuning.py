"""Beginning a training run with the weights of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.content import Checkpoint
from bbdm.networks.base import SOURCE, Network

FIRST = "input_blocks.0.0.weight"  # of the first convolution, whose inputs are the state, then the condition


@torch.no_grad()
def copy_weights(unet: Network, checkpoint: Checkpoint) -> list[str]:
    """Copy a trained network's weights, the averaged ones where there are both, wherever their shapes fit.

    Other weights stay as initialised, except that the first convolution of a network that is shown more
    gets the trained weights for what was shown before, and zeros for the rest.

    Returns:
        A line for each weight that differs from the checkpoint's.

    Raises:
        ValueError: less than half of the weights fit; the network is unchanged.
    """
    trained = checkpoint.unet.weights if checkpoint.unet.ema is None else checkpoint.unet.ema
    assert trained is not None  # checked when the file was read
    own = unet.state_dict()
    fitting = [key for key, value in own.items() if key in trained and trained[key].shape == value.shape]
    if 2 * len(fitting) < len(own):
        raise ValueError(
            f"only {len(fitting)} of {len(own)} weights fit: they are of another network (preset), "
            f"{checkpoint.unet.config}"
        )
    for key in fitting:
        own[key].copy_(trained[key])
    others = [_copy_part(unet, checkpoint, key, own[key], trained.get(key)) for key in own.keys() - set(fitting)]
    return sorted(others) + [f"{key} has no place in this network" for key in sorted(trained.keys() - own.keys())]


def _copy_part(
    unet: Network, checkpoint: Checkpoint, key: str, value: torch.Tensor, trained: torch.Tensor | None
) -> str:
    """Copy the part of a weight that fits, if any; returns the line that reports it."""
    if trained is None:
        return f"{key} is left as initialised: the checkpoint has none"
    before = checkpoint.unet.config
    if key == FIRST and _grown(before, unet) and trained.shape[0] == value.shape[0]:
        channels = trained.shape[1]
        value.zero_()
        value[:, :channels].copy_(trained)
        return f"{key} begins at zero for {value.shape[1] - channels} new input channels"
    return f"{key} is left as initialised: its shape is {tuple(value.shape)}, the checkpoint's {tuple(trained.shape)}"


def _grown(before: Any, unet: Network) -> bool:
    """Whether what a network is shown is what one of settings ``before`` was, then more."""
    shown = {"x": before.channels, SOURCE: before.condition_channels, **before.images}
    now = {"x": unet.channels, SOURCE: unet.condition_channels, **dict(sorted(unet.images.items()))}
    first, following = ([*filter(lambda each: each[1], sizes.items())] for sizes in (shown, now))
    return len(first) < len(following) and following[: len(first)] == first


def load_trained(path: Path, num_steps: int, c_lambda: float, config: str | None = None) -> Checkpoint:
    """The checkpoint whose weights a run begins with; the settings are for files that leave them out."""
    try:
        return load_checkpoint(path, config=config)
    except ValueError:
        return load_checkpoint(path, num_steps, c_lambda, config=config)


def begin_from(trained: Checkpoint, path: Path, unet: Network, bridge: Bridge, codec: Codec | None) -> list[str]:
    """Copy the weights of ``trained``, the content of ``path``, into the network of a run.

    Returns:
        A line for each difference from its training.

    Raises:
        ValueError: the weights are of another network.
    """
    try:
        differences = copy_weights(unet, trained)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if trained.bridge != bridge:
        before, now = trained.bridge.settings(), bridge.settings()
        changed = [f"{name} {before.get(name)} is {now.get(name)}" for name in now if before.get(name) != now[name]]
        differences.append(f"it was trained as {trained.bridge}, and this run is {bridge}: {', '.join(changed)}")
    stored = trained.codec
    if (stored is None) != (codec is None) or (stored and codec and not stored.same_latents(codec)):
        differences.append("it was trained in another space: of pictures, or of another autoencoder's latents")
    return [f"{path}: {line}" for line in differences]
