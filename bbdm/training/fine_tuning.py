"""Beginning a training run from the weights of a trained network."""

from __future__ import annotations

import torch

from bbdm.files.content import Checkpoint
from bbdm.networks.unet import UNet

FIRST = "input_blocks.0.0.weight"  # of the convolution that sees the state and, after it, the condition


@torch.no_grad()
def begin_from(unet: UNet, checkpoint: Checkpoint) -> list[str]:
    """Take over a trained network's weights, the averaged ones where there are both, as far as their shapes
    fit.

    What does not fit is left as initialised; but where the network has got a condition, its first convolution
    has the trained weights for the state, and zeros for the condition.

    Returns:
        What is not as in the checkpoint, a line for each weight.

    Raises:
        ValueError: less than half of the weights fit; the network is not changed then.
    """
    trained = checkpoint.unet.weights if checkpoint.unet.ema is None else checkpoint.unet.ema
    assert trained is not None  # checked when the file was read
    own = unet.state_dict()
    fitting = [key for key, value in own.items() if key in trained and trained[key].shape == value.shape]
    if 2 * len(fitting) < len(own):
        raise ValueError(
            f"only {len(fitting)} of {len(own)} weights fit: it is of another network, {checkpoint.unet.config}"
        )
    for key in fitting:
        own[key].copy_(trained[key])
    told = [_take_part(unet, checkpoint, key, own[key], trained.get(key)) for key in own.keys() - set(fitting)]
    return sorted(told) + [f"{key} has no place in this network" for key in sorted(trained.keys() - own.keys())]


def _take_part(unet: UNet, checkpoint: Checkpoint, key: str, value: torch.Tensor, trained: torch.Tensor | None) -> str:
    """What becomes of a weight that does not fit."""
    if trained is None:
        return f"{key} is left as initialised: there was none"
    before, now = checkpoint.unet.config, unet.config
    grown = before.in_channels == now.in_channels and before.condition_channels < now.condition_channels
    if key == FIRST and grown and trained.shape[0] == value.shape[0]:
        channels = trained.shape[1]
        value.zero_()
        value[:, :channels].copy_(trained)
        return f"{key} begins at zero for {value.shape[1] - channels} input channels that are new"
    return f"{key} is left as initialised: its shape is {tuple(value.shape)}, and was {tuple(trained.shape)}"
