"""bbdm: image-to-image diffusion bridges. PyTorch is imported when a public name is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbdm.base.lazy import public

if TYPE_CHECKING:
    from bbdm.bridges import DDBM as DDBM
    from bbdm.bridges import ECSI as ECSI
    from bbdm.bridges import GOUB as GOUB
    from bbdm.bridges import I2SB as I2SB
    from bbdm.bridges import ABridge as ABridge
    from bbdm.bridges import BrownianBridge as BrownianBridge
    from bbdm.codec import DiffusersCodec as DiffusersCodec
    from bbdm.codec import VQGANCodec as VQGANCodec
    from bbdm.codec import wrap_codec as wrap_codec
    from bbdm.files.checkpoint import load_checkpoint as load_checkpoint
    from bbdm.files.checkpoint import load_codec as load_codec
    from bbdm.files.checkpoint import load_vqgan as load_vqgan
    from bbdm.files.checkpoint import save_checkpoint as save_checkpoint
    from bbdm.files.checkpoint import save_vqgan as save_vqgan
    from bbdm.networks.base import wrap as wrap
    from bbdm.networks.unet import UNet as UNet
    from bbdm.networks.unet_config import UNetConfig as UNetConfig
    from bbdm.networks.vqgan import VQGAN as VQGAN
    from bbdm.networks.vqgan_config import VQGANConfig as VQGANConfig
    from bbdm.sampling.sampler import BridgeSampler as BridgeSampler
    from bbdm.training.callback import Callback as Callback
    from bbdm.training.config import TrainConfig as TrainConfig
    from bbdm.training.losses import bridge_loss as bridge_loss
    from bbdm.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOMES = {
    "ABridge": "bbdm.bridges",
    "BridgeSampler": "bbdm.sampling.sampler",
    "BrownianBridge": "bbdm.bridges",
    "Callback": "bbdm.training.callback",
    "DDBM": "bbdm.bridges",
    "DiffusersCodec": "bbdm.codec",
    "ECSI": "bbdm.bridges",
    "GOUB": "bbdm.bridges",
    "I2SB": "bbdm.bridges",
    "TrainConfig": "bbdm.training.config",
    "Trainer": "bbdm.training.trainer",
    "UNet": "bbdm.networks.unet",
    "UNetConfig": "bbdm.networks.unet_config",
    "VQGAN": "bbdm.networks.vqgan",
    "VQGANCodec": "bbdm.codec",
    "VQGANConfig": "bbdm.networks.vqgan_config",
    "bridge_loss": "bbdm.training.losses",
    "load_checkpoint": "bbdm.files.checkpoint",
    "load_codec": "bbdm.files.checkpoint",
    "load_vqgan": "bbdm.files.checkpoint",
    "save_checkpoint": "bbdm.files.checkpoint",
    "save_vqgan": "bbdm.files.checkpoint",
    "wrap": "bbdm.networks.base",
    "wrap_codec": "bbdm.codec",
}
__all__ = [*sorted(_HOMES), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = public(__name__, _HOMES)
