"""Codecs: frozen autoencoders between image space and the space of the bridge.

Without a codec, the bridge's space is image space. Images are in [-1, 1]. Latents are those before
quantisation, or the mean of a posterior, and are normalised where the codec has statistics. Large images go
through a codec in tiles.
"""

from bbdm.codec.base import Codec as Codec
from bbdm.codec.base import LatentStatistics as LatentStatistics
from bbdm.codec.base import Role as Role
from bbdm.codec.base import Tiling as Tiling
from bbdm.codec.kinds import KINDS as KINDS
from bbdm.codec.kinds import WRAPPED as WRAPPED
from bbdm.codec.kinds import DiffusersCodec as DiffusersCodec
from bbdm.codec.kinds import VQGANCodec as VQGANCodec
from bbdm.codec.kinds import from_config as from_config
from bbdm.codec.kinds import wrap_codec as wrap_codec
