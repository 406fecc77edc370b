"""Small things that several test files build: pictures on disk, and networks small enough for a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

from bbdm.networks.unet import UNet

ROOT = Path(__file__).parent.parent
OPENMOJI64 = Path(os.environ.get("OPENMOJI64", ROOT.parent / "shared" / "data" / "openmoji64"))  # train/, val/

settings.register_profile("shared machine", deadline=None)  # a busy machine is no failure
settings.load_profile("shared machine")
torch.set_num_threads(1)  # tensors here are too small for more

TINY: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "head_channels": 8,
    "num_groups": 4,
    "num_res_blocks": 1,
}

MakeUNet = Callable[..., UNet]
SavePicture = Callable[..., Path]


def tiny_unet(seed: int = 0, **settings: Any) -> UNet:
    """A tiny network whose zero-initialised layers are random too."""
    torch.manual_seed(seed)
    unet = UNet(**{**TINY, **settings})
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return unet


@pytest.fixture(scope="session")
def make_unet() -> MakeUNet:
    """make_unet(seed=0, **settings): see :func:`tiny_unet`."""
    return tiny_unet


@pytest.fixture(scope="session")
def save_picture() -> SavePicture:
    """save_picture(path, image, **options): writes the picture, nearly without loss, and makes its folder."""

    def save(path: Path, image: Image.Image, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lossless = {".jpg": {"quality": 98, "subsampling": 0}, ".webp": {"lossless": True}}.get(path.suffix, {})
        image.save(path, **lossless, **options)
        return path

    return save
