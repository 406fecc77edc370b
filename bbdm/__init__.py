"""bbdm: image-to-image diffusion bridges. The public names are here and nothing else; torch loads when one is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bbdm.bridges import ABridge as ABridge
    from bbdm.bridges import BrownianBridge as BrownianBridge
    from bbdm.checkpoint import load_checkpoint as load_checkpoint
    from bbdm.checkpoint import load_vqgan as load_vqgan
    from bbdm.checkpoint import save_checkpoint as save_checkpoint
    from bbdm.checkpoint import save_vqgan as save_vqgan
    from bbdm.codec import VQGANCodec as VQGANCodec
    from bbdm.networks.unet import UNet as UNet
    from bbdm.networks.unet import UNetConfig as UNetConfig
    from bbdm.networks.vqgan import VQGAN as VQGAN
    from bbdm.networks.vqgan import VQGANConfig as VQGANConfig
    from bbdm.sampler import BridgeSampler as BridgeSampler

__version__ = "0.1.0"

_HOME = {
    "ABridge": "bbdm.bridges",
    "BrownianBridge": "bbdm.bridges",
    "BridgeSampler": "bbdm.sampler",
    "UNet": "bbdm.networks.unet",
    "UNetConfig": "bbdm.networks.unet",
    "VQGAN": "bbdm.networks.vqgan",
    "VQGANCodec": "bbdm.codec",
    "VQGANConfig": "bbdm.networks.vqgan",
    "load_checkpoint": "bbdm.checkpoint",
    "load_vqgan": "bbdm.checkpoint",
    "save_checkpoint": "bbdm.checkpoint",
    "save_vqgan": "bbdm.checkpoint",
}
_MODULES = {
    "bridges",
    "checkpoint",
    "codec",
    "data",
    "ema",
    "execution",
    "files",
    "generation",
    "images",
    "importers",
    "kernels",
    "latents",
    "losses",
    "machine",
    "metrics",
    "networks",
    "onnx_session",
    "optimizers",
    "packages",
    "processes",
    "results",
    "run_checks",
    "run_folder",
    "runtime",
    "sampler",
    "scripts",
    "seeds",
    "segmentation",
    "solvers",
    "timesteps",
    "torchfile",
    "tracking",
    "train_config",
    "training",
    "unpickling",
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
    if name in _MODULES:
        return import_module(f"bbdm.{name}")
    raise AttributeError(f"module 'bbdm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
