"""The UNet of guided diffusion (ADM, Dhariwal and Nichol 2021), with the released weights' state-dict keys.

A-Bridge, BBDM, DDBM and I2SB all use it; for volumes it has one axis more. Attention has the legacy order of
q, k and v: importers sort the weights of another. channels_last throughout. It knows no bridge: it maps
(x, t, conditions) to a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.kernels.upsample_conv import upsample, upsample_conv3x3
from bbdm.networks.base import Conditions
from bbdm.networks.config import UNETS, UNetConfig
from bbdm.networks.layers import (
    CONVOLUTIONS,
    ConditionedNetwork,
    Context,
    CrossAttention,
    Embed,
    conv3x3,
    norm_silu,
    pooled,
    zeroed,
)


def _norm(channels: int, config: UNetConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels)


class ResBlock(nn.Module):
    """Residual block, modulated by the time; ``up`` multiplies and ``down`` divides each side, if given."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        config: UNetConfig,
        *,
        up: Sequence[int] = (),
        down: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.up = up
        self.down = down
        conv = conv3x3(channels, out_channels, axes=config.axes)
        self.in_layers = nn.Sequential(_norm(channels, config), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(4 * config.model_channels, 2 * out_channels)
        )
        self.out_layers = nn.Sequential(
            _norm(out_channels, config),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zeroed(conv3x3(out_channels, out_channels, axes=config.axes)),
        )
        if channels == out_channels:
            self.skip_connection = nn.Identity()
        else:
            self.skip_connection = CONVOLUTIONS[config.axes](channels, out_channels, 1)
        self.modulated = slice(0, 0)  # this block's columns of the modulation; the UNet sets it

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) and the modulation of all blocks to the next (B, C', H', W')."""
        norm, _, module = self.in_layers
        conv = cast(nn.Conv2d, module)
        h = norm_silu(norm, x)
        if self.up:
            h = upsample_conv3x3(h, conv.weight, conv.bias, self.up)
            x = upsample(x, self.up)
        elif self.down:
            h = conv(pooled(h, self.down))
            x = pooled(x, self.down)
        else:
            h = conv(h)
        residual = self.skip_connection(x)
        norm, _, dropout, conv = self.out_layers
        h = norm_silu(norm, h, modulation[:, self.modulated])
        return residual + conv(dropout(h))


class AttentionBlock(nn.Module):
    """Self-attention over positions, then attention to tokens, where there are any.

    The channels of qkv are in the released weights' order: head, then q/k/v.
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = channels // config.head_channels
        self.norm = _norm(channels, config)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))
        if config.tokens:
            self.norm_cross = _norm(channels, config)
            self.cross = CrossAttention(channels, self.heads)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """Map (B, C, H, W), and keys and values of tokens, to the next (B, C, H, W)."""
        b, c, *sides = x.shape
        count = math.prod(sides)
        positions = norm_silu(self.norm, x, activation=False).movedim(1, -1).reshape(b, count, c)
        qkv = F.linear(positions, self.qkv.weight.squeeze(-1), self.qkv.bias)
        q, k, v = qkv.view(b, count, self.heads, 3, c // self.heads).permute(3, 0, 2, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, count, c)
        h = F.linear(h, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        x = x + h.view(b, *sides, c).movedim(-1, 1)
        if context is None:
            return x
        positions = norm_silu(self.norm_cross, x, activation=False).movedim(1, -1).flatten(1, -2)
        h = self.cross(positions, *context)
        return x + h.unflatten(1, sides).movedim(-1, 1)


class Stage(nn.Sequential):
    """Layers in a row; residual blocks take the modulation, and attention conditions that are tokens."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (a Sequential takes one)
        self, x: torch.Tensor, modulation: torch.Tensor, context: Context = None
    ) -> torch.Tensor:
        """Map (B, C, H, W) and the modulation of all blocks to the next (B, C', H', W')."""
        for layer in self:
            if isinstance(layer, AttentionBlock):
                x = layer(x, context)
            elif isinstance(layer, ResBlock):
                x = layer(x, modulation)
            else:
                x = layer(x)
        return x


class UNet(ConditionedNetwork):
    """The network of a bridge: ``unet(x, t, conditions)`` predicts the bridge's objective.

    Args:
        in_channels: channels of the state x: the target's.
        out_channels: channels of the prediction.
        **settings: the other fields of :class:`UNetConfig`.

    ``UNet(3, 3)`` is the A-Bridge paper's network, and ``UNet(1, 1, axes=3)`` one of volumes (B, 1, D, H, W),
    see :class:`UNetConfig`. Attributes: ``config``; ``gradient_checkpointing``, off
    unless set, trades a third more compute in training for activations of one stage at a time.
    """

    presets = UNETS
    kind = "unet"
    first_layer = "input_blocks.0.0.weight"

    def __init__(self, in_channels: int = 3, out_channels: int = 3, **settings: Any) -> None:
        config = UNetConfig(in_channels, out_channels, **settings)
        super().__init__(config)
        self.config = config
        width = config.model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )

        cell = config.patch**config.axes  # pixels of a position
        shown = cell * sum(config.shown.values())
        self.input_blocks = nn.ModuleList([Stage(conv3x3(shown, width, axes=config.axes))])
        channels = width
        skips = [width]  # channels of each stage's output
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._stage(channels, width * mult, level))
                channels = width * mult
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(
                    Stage(ResBlock(channels, channels, config, down=config.level_strides[level]))
                )
                skips.append(channels)

        self.middle_block = Stage(
            ResBlock(channels, channels, config),
            AttentionBlock(channels, config),
            ResBlock(channels, channels, config),
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for block in range(config.num_res_blocks + 1):
                stage = self._stage(channels + skips.pop(), width * mult, level)
                channels = width * mult
                is_last_of_level = block == config.num_res_blocks
                if level > 0 and is_last_of_level:
                    stage.append(
                        ResBlock(channels, channels, config, up=config.level_strides[level - 1])
                    )
                self.output_blocks.append(stage)

        last = conv3x3(channels, cell * out_channels, axes=config.axes)
        self.out = nn.Sequential(_norm(channels, config), nn.SiLU(), zeroed(last))
        self.embed_conditions(4 * width)
        first = 0
        for block in self.res_blocks():
            block.modulated = slice(
                first, first + cast(nn.Linear, block.emb_layers[1]).out_features
            )
            first = block.modulated.stop
        self.to(memory_format=CHANNELS_LAST[2 + config.axes])  # pyright: ignore[reportCallIssue]  (torch has no overload for it)

    def _stage(self, channels: int, out_channels: int, level: int) -> Stage:
        stage = Stage(ResBlock(channels, out_channels, self.config))
        if 2**level in self.config.attention_resolutions:
            stage.append(AttentionBlock(out_channels, self.config))
        return stage

    def res_blocks(self) -> Iterator[ResBlock]:
        """The blocks that the time modulates, in the order of the modulation's columns."""
        return (module for module in self.modules() if isinstance(module, ResBlock))

    def modulation(self) -> Embed:
        """See :meth:`ConditionedNetwork.modulation`: the weights and biases of each block's second norm."""
        blocks: list[tuple[Any, nn.GroupNorm]] = []
        for block in self.res_blocks():
            blocks.append((block.emb_layers, cast(nn.GroupNorm, block.out_layers[0])))

        def modulated(embedding: torch.Tensor) -> torch.Tensor:
            parts: list[torch.Tensor] = []
            for layers, norm in blocks:
                weight = cast(nn.Linear, layers[1]).weight
                scale_and_shift = layers(embedding.to(weight.dtype)).to(norm.weight.dtype)
                scale, shift = scale_and_shift.chunk(2, dim=1)
                parts.append(norm.weight * (1 + scale))
                parts.append(norm.bias * (1 + scale) + shift)
            return torch.cat(parts, dim=1)

        return modulated

    def body(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """The network after :meth:`embed`."""
        h, modulation, context = self._conditioned(x, embedding, conditions)
        if self.config.patch > 1:
            h = F.pixel_unshuffle(h, self.config.patch)
        h = h.to(memory_format=CHANNELS_LAST[h.ndim])
        skips: list[torch.Tensor] = []
        for stage in self.input_blocks:
            h = self._run(stage, h, modulation, context)
            skips.append(h)
        h = self._run(self.middle_block, h, modulation, context)
        for stage in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(stage, h, modulation, context)
        norm, _, conv = self.out
        h = conv(norm_silu(norm, h))
        if self.config.patch > 1:
            h = F.pixel_shuffle(h, self.config.patch)
        return h
