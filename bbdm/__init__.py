"""bbdm: image-to-image diffusion bridges. The public names are here and nothing else; torch loads when one is used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bbdm.bridges import ABridge as ABridge
    from bbdm.bridges import BrownianBridge as BrownianBridge
    from bbdm.callbacks import Callback as Callback
    from bbdm.checkpoint import load_checkpoint as load_checkpoint
    from bbdm.checkpoint import load_vqgan as load_vqgan
    from bbdm.checkpoint import save_checkpoint as save_checkpoint
    from bbdm.checkpoint import save_vqgan as save_vqgan
    from bbdm.codec import VQGANCodec as VQGANCodec
    from bbdm.losses import bridge_loss as bridge_loss
    from bbdm.networks.unet import UNet as UNet
    from bbdm.networks.unet import UNetConfig as UNetConfig
    from bbdm.networks.vqgan import VQGAN as VQGAN
    from bbdm.networks.vqgan import VQGANConfig as VQGANConfig
    from bbdm.sampler import BridgeSampler as BridgeSampler
    from bbdm.train_config import TrainConfig as TrainConfig
    from bbdm.training import Trainer as Trainer

__version__ = "0.1.0"

_HOME = {
    "ABridge": "bbdm.bridges",
    "BrownianBridge": "bbdm.bridges",
    "BridgeSampler": "bbdm.sampler",
    "Callback": "bbdm.callbacks",
    "TrainConfig": "bbdm.train_config",
    "Trainer": "bbdm.training",
    "UNet": "bbdm.networks.unet",
    "UNetConfig": "bbdm.networks.unet",
    "VQGAN": "bbdm.networks.vqgan",
    "VQGANCodec": "bbdm.codec",
    "VQGANConfig": "bbdm.networks.vqgan",
    "bridge_loss": "bbdm.losses",
    "load_checkpoint": "bbdm.checkpoint",
    "load_vqgan": "bbdm.checkpoint",
    "save_checkpoint": "bbdm.checkpoint",
    "save_vqgan": "bbdm.checkpoint",
}
__all__ = [*sorted(_HOME), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            return getattr(import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                f"{name} needs PyTorch; without it there is bbdm.runtime", name="torch"
            ) from error
    if find_spec(f"{__name__}.{name}"):
        return import_module(f"bbdm.{name}")
    raise AttributeError(f"module 'bbdm' has no attribute {name!r}")


def __dir__() -> list[str]:
    from pkgutil import iter_modules  # which looks through the folder

    return sorted({*globals(), *_HOME, *(module.name for module in iter_modules(__path__))})
