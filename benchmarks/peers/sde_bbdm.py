"""sde-bbdm 1.1, the public code of A-Bridge, used as in its README: float32, eager."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusion import Manager
from PIL import Image
from sde_bbdm import networks
from sde_bbdm.nn import ABridgeModule
from torch import nn
from torchmanager import callbacks, data, losses
from torchvision.transforms import v2 as transforms

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
    """One step of its manager: Adam, the mean absolute error, and clipped gradients."""
    module = ABridgeModule(network(unet), BRIDGE.num_steps, c_lambda=BRIDGE.c_lambda)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)
    manager = Manager(module, optimizer=optimizer, loss_fn=losses.MAE())
    module.train()
    manager.current_batch = 0  # as its training loop begins
    return lambda: manager.train_step(y, x0)


class SideBySide(data.Dataset):
    """Pairs in one file each, read and scaled as in its own scripts, by one process for each core."""

    def __init__(self, folder: Path, batch: int, size: int) -> None:
        super().__init__(batch, drop_last=True, shuffle=True)
        self.files = sorted(folder.iterdir())
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.ToImage(),
                transforms.ToDtype(torch.float32, scale=True),
            ]
        )

    @property
    def unbatched_len(self) -> int:
        """Pairs."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = Image.open(self.files[index]).convert("RGB")
        width, height = picture.width // 2, picture.height
        sides = (picture.crop((left, 0, left + width, height)) for left in (0, width))
        source, target = (2 * self.transform(side) - 1 for side in sides)
        return source, target


class Clock(callbacks.Callback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.began = 0.0

    def on_epoch_start(self, epoch: int) -> None:
        """Begin."""
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, *arguments: Any, **keywords: Any) -> None:
        """Note."""
        self.seconds.append(time.perf_counter() - self.began)


def train_epochs(unet: UNet, folder: Path, batch: int, epochs: int) -> list[float]:
    """Train as in its README, on pairs of 64 x 64; seconds a step in each epoch."""
    module = ABridgeModule(network(unet).train(), BRIDGE.num_steps, c_lambda=BRIDGE.c_lambda)
    manager = Manager(
        module, optimizer=torch.optim.Adam(module.parameters(), lr=1e-4), loss_fn=losses.MAE()
    )
    pairs, clock = SideBySide(folder, batch, 64), Clock()
    manager.fit(pairs, epochs=epochs, callbacks_list=[clock], device=next(unet.parameters()).device)
    return [seconds / (len(pairs) // batch) for seconds in clock.seconds]
