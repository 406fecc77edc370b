"""The autoencoders of latent diffusion (Esser et al. 2021, Rombach et al. 2022), with its state-dict keys.

A VQGAN has a codebook: ``encode`` returns the latent before quantisation, the space of latent bridges, and
``decode`` replaces each of its vectors by the nearest code. A KL autoencoder has none: its encoder gives a
Gaussian, and ``encode`` returns the mean. :class:`PatchGAN` is what they are trained against.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from bbdm.kernels.upsample_conv import upsample_conv3x3
from bbdm.networks.arrays import check_images
from bbdm.networks.base import ConfiguredNetwork
from bbdm.networks.config import VQGANS, VQGANConfig
from bbdm.networks.layers import conv3x3, norm_silu

LOG_VARIANCES = (-30.0, 20.0)  # the range of a KL autoencoder's, as in latent diffusion
CHUNK = 256  # vectors that are compared with all codes at a time: their distances fit a cache


def _norm(channels: int, config: VQGANConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Residual block."""

    def __init__(self, channels: int, out_channels: int, config: VQGANConfig) -> None:
        super().__init__()
        self.norm1 = _norm(channels, config)
        self.conv1 = conv3x3(channels, out_channels)
        self.norm2 = _norm(out_channels, config)
        self.conv2 = conv3x3(out_channels, out_channels)
        if channels == out_channels:
            self.nin_shortcut = nn.Identity()
        else:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(norm_silu(self.norm2, h))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over positions, with one head."""

    def __init__(self, channels: int, config: VQGANConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to the same shape."""
        b, c, height, width = x.shape
        h = norm_silu(self.norm, x, activation=False)
        q, k, v = (
            conv(h).permute(0, 2, 3, 1).reshape(b, 1, height * width, c)
            for conv in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v).view(b, height, width, c).permute(0, 3, 1, 2)
        return x + self.proj_out(h)


def _middle(channels: int, config: VQGANConfig) -> nn.Sequential:
    """Residual, attention, residual, at the smallest size."""
    layers = OrderedDict[str, nn.Module]()
    layers["block_1"] = ResBlock(channels, channels, config)
    layers["attn_1"] = AttentionBlock(channels, config)
    layers["block_2"] = ResBlock(channels, channels, config)
    return nn.Sequential(layers)


class Level(nn.Module):
    """The blocks of one size, and the step to the next: ``downsample``, ``upsample`` or none."""

    def __init__(
        self, channels: int, level: int, blocks: int, config: VQGANConfig, resample: str
    ) -> None:
        super().__init__()
        width = config.model_channels * config.channel_mult[level]
        self.block = nn.ModuleList()
        for _ in range(blocks):
            self.block.append(ResBlock(channels, width, config))
            channels = width
        self.attn = nn.ModuleList()  # one for each block, or none
        if 2**level in config.attention_resolutions:
            self.attn.extend(AttentionBlock(width, config) for _ in range(blocks))
        self.resample = resample
        if resample == "upsample":
            self.upsample = nn.ModuleDict({"conv": conv3x3(width, width)})
        elif resample == "downsample":
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride=2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if self.resample == "upsample":
            conv = cast(nn.Conv2d, self.upsample["conv"])
            x = upsample_conv3x3(x, conv.weight, conv.bias, (2, 2))
        elif self.resample == "downsample":
            # zeros beyond the lower right edges
            x = self.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
        return x


class Encoder(nn.Module):
    """Image to latent."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        channels = config.model_channels
        self.conv_in = conv3x3(config.image_channels, channels)
        self.down = nn.ModuleList()
        last = len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            resample = "downsample" if level < last else ""
            self.down.append(Level(channels, level, config.num_res_blocks, config, resample))
            channels = config.model_channels * mult
        self.mid = _middle(channels, config)
        self.norm_out = _norm(channels, config)
        self.conv_out = conv3x3(channels, config.encoded_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, image_channels, H, W) to (B, encoded_channels, H / stride, W / stride)."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(norm_silu(self.norm_out, self.mid(h)))


class Decoder(nn.Module):
    """Latent to image. ``up`` is in the encoder's order, and runs in reverse."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.model_channels * mult for mult in config.channel_mult]
        self.conv_in = conv3x3(config.latent_channels, widths[-1])
        self.mid = _middle(widths[-1], config)
        self.up = nn.ModuleList()
        for index, channels in enumerate([*widths[1:], widths[-1]]):
            resample = "upsample" if index else ""
            self.up.append(Level(channels, index, config.num_res_blocks + 1, config, resample))
        self.norm_out = _norm(widths[0], config)
        self.conv_out = conv3x3(widths[0], config.image_channels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map (B, latent_channels, H, W) to (B, image_channels, stride H, stride W)."""
        return self.conv_out(self.features(z))

    def features(self, z: torch.Tensor) -> torch.Tensor:
        """The input of the last layer, (B, model_channels * channel_mult[0], stride H, stride W)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return norm_silu(self.norm_out, h)


# one node to compilers, which would unroll the loop
@torch.library.custom_op("bbdm::nearest_code", mutates_args=())
def nearest_code(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(M,) int64, for (M, C) vectors the nearest of (N, C) codes, in one dtype; the lowest index of several.

    |z - e|^2 = |z|^2 + 2 (|e|^2 / 2 - z e), so the code with the least |e|^2 / 2 - z e is the nearest.
    """
    half_squares = codes.square().sum(1) / 2
    with torch.autocast(z.device.type, enabled=False):
        parts = [
            torch.addmm(half_squares, part, codes.T, alpha=-1).argmin(1) for part in z.split(CHUNK)
        ]
    return torch.cat(parts)


@nearest_code.register_fake
def _(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return z.new_empty(len(z), dtype=torch.int64)


class Codebook(nn.Module):
    """The codes, and the search for the nearest."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_codes, config.latent_channels)
        nn.init.uniform_(self.embedding.weight, -1 / config.num_codes, 1 / config.num_codes)

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """(B, H, W) indices of the codes nearest to the vectors of (B, latent_channels, H, W).

        Arithmetic is in float32, or in float64 where both are; autocast does not change it.
        """
        codes = self.embedding.weight
        dtype = torch.float32
        if z.dtype == codes.dtype == torch.float64:
            dtype = torch.float64
        vectors = z.permute(0, 2, 3, 1)  # (B, H, W, C)
        index = nearest_code(vectors.flatten(0, 2).to(dtype), codes.to(dtype))
        return index.view(vectors.shape[:3])

    def look_up(self, index: torch.Tensor) -> torch.Tensor:
        """The codes of (B, H, W) indices, (B, latent_channels, H, W)."""
        return self.embedding(index).permute(0, 3, 1, 2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Replace each vector of (B, latent_channels, H, W) by the nearest code, in the dtype of z."""
        return self.look_up(self.nearest(z)).to(z.dtype)


class VQGAN(ConfiguredNetwork, nn.Module):
    """An autoencoder with a codebook or, with ``num_codes=0``, a KL autoencoder.

    Args:
        **settings: the fields of :class:`VQGANConfig`.

    ``VQGAN()`` is LDM's VQ-f4, 55.3 M parameters. Attribute: ``config``.
    """

    presets = VQGANS
    kind = "vqgan"
    quantize: Codebook

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        config = VQGANConfig(**settings)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.num_codes:
            self.quantize = Codebook(config)
        else:
            self.quantize = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]  (what quantises is asked for by num_codes)
        self.quant_conv = nn.Conv2d(config.encoded_channels, config.encoded_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch has no overload for it)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The latent of an image: before quantisation, or the mean.

        Args:
            x: (B, image_channels, H, W) in [-1, 1].

        Returns:
            (B, latent_channels, H / stride, W / stride).

        Raises:
            ValueError: x has other channels, or a size that is not a multiple of ``config.stride``.
        """
        check_images(x, self.config.image_channels, (self.config.stride,) * 2)
        encoded = self.quant_conv(self.encoder(x.to(memory_format=torch.channels_last)))
        return encoded[:, : self.config.latent_channels]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The image (B, image_channels, H', W') of (B, latent_channels, H, W), by the nearest codes."""
        codes = self.quantize(z.to(memory_format=torch.channels_last)).to(
            self.post_quant_conv.weight.dtype
        )
        return self.decoder(self.post_quant_conv(codes))

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode, quantise or draw, and decode, as in training.

        The last layer, ``decoder.conv_out``, is left out: an adversarial loss looks at its gradients.
        Gradients pass the quantisation straight through.

        Args:
            x: (B, image_channels, H, W) in [-1, 1].
            noise: (B, latent_channels, H', W') standard normals, of a KL autoencoder.

        Returns:
            The input of the last layer; the latent (B, latent_channels, H', W'); and the (B, H', W') indices
            of its codes or, of a KL autoencoder, the log variance of the latent, whose mean the former is.
        """
        encoded = self.quant_conv(self.encoder(x.to(memory_format=torch.channels_last)))
        if noise is None:
            index = self.quantize.nearest(encoded)
            quantised = encoded + (self.quantize.look_up(index) - encoded).detach()
            return self.decoder.features(self.post_quant_conv(quantised)), encoded, index
        mean, log_variance = encoded.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCES)
        drawn = mean + (0.5 * log_variance).exp() * noise
        return self.decoder.features(self.post_quant_conv(drawn)), mean, log_variance


class PatchGAN(nn.Module):
    """The PatchGAN discriminator (Isola et al. 2017): real or made, for each patch of 70 x 70 pixels.

    It normalises each image alone (Wu and He 2018, GroupNorm), where the paper normalises a batch. So its
    result for an image is the same in any batch, and several processes compute what one does.

    Args:
        image_channels: the channels of an image.
        width: channels of the first layer, a multiple of 4; each of the next three has twice as many.

    Raises:
        ValueError: ``width`` is no such multiple.
    """

    least: ClassVar[int] = 24  # pixels along a side that leave one patch

    def __init__(self, image_channels: int, width: int = 64) -> None:
        super().__init__()
        if width < 1 or width % 4:
            raise ValueError(f"the discriminator's width must be a multiple of 4, got {width}")
        layers: list[nn.Module] = [nn.Conv2d(image_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for stride in (2, 2, 1):  # three that halve the size, as in Esser et al. 2021
            conv = nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False)
            layers += [conv, nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch has no overload for it)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, H / 8 - 2, W / 8 - 2) of images (B, C, H, W): large where they look real."""
        return self.layers(x)
