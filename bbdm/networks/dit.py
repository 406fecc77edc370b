"""A transformer on patches: DiT with adaLN-Zero (Peebles and Xie 2023).

The time enters by a shift, a scale and a gate for each layer, which the sampler computes once a table. The
source is shown as further channels. Any size that the patch divides is taken.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from bbdm.networks.base import Conditions
from bbdm.networks.config import DITS, DiTConfig
from bbdm.networks.layers import ConditionedNetwork, Context, CrossAttention, Embed

TIME_CHANNELS = 256  # of the sinusoids of a time


class Block(nn.Module):
    """Self-attention, attention to tokens and an MLP; the first and the last are modulated by the time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        if config.tokens:
            self.cross = CrossAttention(width, config.heads)

    def forward(
        self, x: torch.Tensor, modulation: torch.Tensor, context: Context = None
    ) -> torch.Tensor:
        """(B, N, W) patches, (B or 1, 6 W) modulation, and keys and values of tokens, to (B, N, W)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.to(x.dtype)[:, None].chunk(
            6, dim=-1
        )
        qkv = self.qkv(_norm(x, shift, scale))  # (B, N, 3 W)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, W / heads)
        x = x + gate * self.proj(attended.transpose(1, 2).flatten(2))
        if context is not None:
            x = x + self.cross(F.layer_norm(x, x.shape[-1:], eps=1e-6), *context)
        return x + mlp_gate * self.mlp(_norm(x, mlp_shift, mlp_scale))


class DiT(ConditionedNetwork):
    """The network of a bridge: ``dit(x, t, conditions)`` predicts the bridge's objective.

    Args:
        **settings: the fields of :class:`DiTConfig`.

    Attributes: ``config``; ``gradient_checkpointing``, off unless set, trades compute for memory in training.
    """

    presets = DITS
    kind = "dit"
    first_layer = "embed_patches.weight"

    def __init__(self, **settings: Any) -> None:
        config = DiTConfig(**settings)
        super().__init__(config)
        self.config = config
        width = config.width
        patch = config.patch
        shown = sum(config.shown.values())
        self.embed_patches = nn.Conv2d(shown, width, patch, stride=patch)
        self.time_embed = nn.Sequential(
            nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch * patch * config.channels)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(cast(nn.Parameter, module.bias))
                if name.endswith(("out", "modulation")):  # so that a network begins as no change
                    nn.init.zeros_(module.weight)
                else:  # as a matrix; a convolution of patches is one
                    nn.init.xavier_uniform_(module.weight.data.view(len(module.weight), -1))
        self.embed_conditions(width)

    def modulation(self) -> Embed:
        """See :meth:`ConditionedNetwork.modulation`: shifts, scales and gates."""
        layers = [cast(Block, block).modulation for block in self.blocks]
        layers.append(self.out_modulation)

        def modulated(embedding: torch.Tensor) -> torch.Tensor:
            h = F.silu(embedding.to(layers[0].weight.dtype))
            return torch.cat([layer(h) for layer in layers], dim=1)

        return modulated

    def body(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """The network after :meth:`embed`."""
        patch = self.config.patch
        height, width = (side // patch for side in x.shape[2:])  # in patches
        x, modulation, context = self._conditioned(x, embedding, conditions)
        patches = self.embed_patches(x).flatten(2).transpose(1, 2)  # (B, N, W)
        h = patches + _places(height, width, self.config.width, x)
        columns = [6 * self.config.width] * len(self.blocks)
        *parts, last = modulation.split([*columns, 2 * self.config.width], dim=1)
        for block, part in zip(self.blocks, parts, strict=True):
            h = self._run(block, h, part, context)
        shift, scale = last.to(h.dtype)[:, None].chunk(2, dim=-1)
        h = self.out(_norm(h, shift, scale))
        h = h.unflatten(1, (height, width)).unflatten(-1, (patch, patch, self.channels))
        h = h.permute(0, 5, 1, 3, 2, 4)  # (B, C, H / p, p, W / p, p)
        return h.reshape(x.shape[0], self.channels, height * patch, width * patch)


def _norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _places(height: int, width: int, channels: int, like: torch.Tensor) -> torch.Tensor:
    """(height width, channels) sines and cosines of each token's column and row."""
    count = channels // 4
    rates = 1 / 10000 ** (torch.arange(count, device=like.device, dtype=torch.float32) / count)
    rows = torch.arange(height, device=like.device, dtype=torch.float32)[:, None] * rates
    columns = torch.arange(width, device=like.device, dtype=torch.float32)[:, None] * rates
    across = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    down = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1).to(like.dtype)
