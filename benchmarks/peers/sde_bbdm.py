"""sde-bbdm 1.1, the public code of A-Bridge, used as its README says: float32, eager."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusion import Manager
from sde_bbdm import networks
from sde_bbdm.nn import ABridgeModule
from torch import nn
from torchmanager import losses

from bbdm import UNet
from benchmarks.networks import BRIDGE


def network(unet: UNet) -> nn.Module:
    """Its UNet with our weights; for the paper's network this is its ``networks.build(3, 3)``."""
    config = unet.config
    public = networks.OpenAIUNet(
        config.in_channels,
        config.model_channels,
        config.out_channels,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        channel_mult=config.channel_mult,
        num_heads=8,
        num_head_channels=config.head_channels,
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    public.load_state_dict(unet.state_dict())
    return public.to(next(unet.parameters()).device).eval()


def translation(unet: UNet, source: torch.Tensor, times: list[int]) -> Callable[[], torch.Tensor]:
    """Its fast sampling over some times; its generation script has 199."""
    module = ABridgeModule(network(unet), BRIDGE.num_steps, c_lambda=BRIDGE.c_lambda)
    module.fast_sampling_steps = times
    manager = Manager(module)

    def translate() -> torch.Tensor:
        shape = tuple(source.shape[1:])
        results = manager.predict(
            len(source),
            shape,
            condition=source,
            noises=source,
            sampling_range=times,
            device=source.device,
            empty_cache=False,
        )
        return torch.stack(results)

    return translate


def train_step(unet: UNet, y: torch.Tensor, x0: torch.Tensor) -> Callable[[], object]:
    """One step of its manager: Adam and the mean absolute error, gradients clipped as it always does."""
    module = ABridgeModule(network(unet), BRIDGE.num_steps, c_lambda=BRIDGE.c_lambda)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    manager = Manager(module, optimizer=optimizer, loss_fn=losses.MAE())
    module.train()
    manager.current_batch = 0  # as its training loop begins
    return lambda: manager.train_step(y, x0)
