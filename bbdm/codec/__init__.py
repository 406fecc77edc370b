"""Codecs: frozen autoencoders between image space and the space of the bridge.

Without a codec, the bridge's space is image space. Images are in [-1, 1]. Latents are those before
quantisation, or the mean of a posterior, and are normalised where the codec has statistics. Large images go
through a codec in tiles.
"""

from bbdm.codec.base import Codec, LatentStatistics, Network, Role
from bbdm.codec.diffusers import DiffusersCodec
from bbdm.codec.registry import CODECS, check, from_config
from bbdm.codec.tiles import Tiling
from bbdm.codec.vqgan import VQGANCodec
from bbdm.codec.wrapped import WrappedCodec, wrap_codec

__all__ = [
    "CODECS",
    "Codec",
    "DiffusersCodec",
    "LatentStatistics",
    "Network",
    "Role",
    "Tiling",
    "VQGANCodec",
    "WrappedCodec",
    "check",
    "from_config",
    "wrap_codec",
]
