"""The networks that are measured, and the relative error of a result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bbdm import ABridge, UNet
from bbdm.networks.config import UNETS

BRIDGE = ABridge(num_steps=1000, c_lambda=2.0)
STEPS = 10  # of our sampler
# For --quick: compiled in seconds, and in 32 groups as sde-bbdm's norms always are.
SMALL: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": (1,),
    "head_channels": 32,
    "num_res_blocks": 1,
}


def build(device: str | torch.device, quick: bool) -> UNet:
    """The paper's network, or the small one, the same in every process.

    Layers that are initialised to 0 are filled at the scale of the others: zeros would hide errors.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(3, 3, **(SMALL if quick else {}))
        for parameter in unet.parameters():
            if not parameter.any():
                nn.init.normal_(
                    parameter,
                    std=(3 * parameter[0].numel()) ** -0.5 if parameter.ndim > 1 else 0.02,
                )
    return unet.to(device).eval()


def build_volume(device: str | torch.device, quick: bool, narrow: bool = False) -> UNet:
    """The preset ``volume``, the same with a quarter of its width, or a small one; alike in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changed: dict[str, Any] = {}
        if quick:
            changed = {"model_channels": 16, "channel_mult": (1, 1, 1, 1), "head_channels": 16}
        elif narrow:
            changed = {"model_channels": 8, "head_channels": 8}
        return UNet.from_config(replace(UNETS["volume"], **changed)).to(device)


def volumes(size: tuple[int, ...], device: str | torch.device) -> torch.Tensor:
    """(1, 1, D, H, W) in [-1, 1], the same in every process."""
    return (
        torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1)).mul(2).sub(1).to(device)
    )


def images(batch: int, device: str | torch.device, quick: bool) -> torch.Tensor:
    """(B, 3, 64, 64), or (B, 3, 32, 32) for the small network, in [-1, 1], the same in every process."""
    size = 32 if quick else 64
    return (
        torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
        .mul(2)
        .sub(1)
        .to(device)
    )


@torch.no_grad()
def gflop(unet: UNet, x: torch.Tensor) -> float:
    """Multiplications and additions of one call with (B, C, H, W) images, in 10^9.

    Counted for the call's plain form, with the work that a trick saves.
    """
    with FlopCounterMode(display=False) as counter:
        unet(x[:1], torch.full((1,), 500, device=x.device))
    return len(x) * counter.get_total_flops() / 1e9


def relative_error(value: Any, reference: torch.Tensor) -> float:
    """Norm of the difference by norm of the reference."""
    difference = torch.as_tensor(value).to(reference.device, torch.float32) - reference
    return (difference.norm() / reference.norm()).item()
