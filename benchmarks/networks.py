"""The networks that are measured, and how far a result is from another."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bbdm import ABridge, UNet

BRIDGE = ABridge(num_steps=1000, c_lambda=2.0)
IMAGE = (3, 64, 64)
STEPS = 10  # of our sampler
# For --quick: narrow as the demo's, without its condition, and in 32 groups as sde-bbdm's norms always are.
DEMO: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "head_channels": 32,
    "num_res_blocks": 1,
}


def build(device: str | torch.device, quick: bool) -> UNet:
    """The paper's network, or the small one, the same in every process.

    Layers that are initialised to 0 are filled at the scale of the others: they would hide every error before them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(3, 3, **(DEMO if quick else {}))
        for parameter in unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=(3 * parameter[0].numel()) ** -0.5 if parameter.ndim > 1 else 0.02)
    return unet.to(device).eval()


def images(batch: int, device: str | torch.device) -> torch.Tensor:
    """(B, 3, 64, 64) in [-1, 1], the same in every process."""
    return torch.rand(batch, *IMAGE, generator=torch.Generator().manual_seed(1)).mul(2).sub(1).to(device)


@cache
@torch.no_grad()
def gflop(unet: UNet) -> float:
    """Multiplications and additions of one call for one image, in 10^9.

    In the call's plain form: work that a trick saves counts as if it were done.
    """
    device = next(unet.parameters()).device
    with FlopCounterMode(display=False) as counter:
        unet(images(1, device), torch.full((1,), 500, device=device))
    return counter.get_total_flops() / 1e9


def relative_error(value: Any, reference: torch.Tensor) -> float:
    """Norm of the difference by norm of the reference."""
    difference = torch.as_tensor(value).to(reference.device, torch.float32) - reference
    return (difference.norm() / reference.norm()).item()
