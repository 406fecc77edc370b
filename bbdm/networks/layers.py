"""What several networks have in common: layers, and how they take conditions besides the source in."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bbdm.kernels.group_norm_silu import group_norm_silu
from bbdm.networks.base import SOURCE, Conditions, Network
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.restore import ConfiguredNetwork

Conv = TypeVar("Conv", bound=nn.Module)
CONVOLUTIONS: dict[int, type[Any]] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of spatial axes
Modulation = Callable[[torch.Tensor], torch.Tensor]
Context = tuple[torch.Tensor, torch.Tensor] | None  # keys and values of tokens, and what is added to scores
ABSENT = 1e4  # subtracted from the scores of what is no token: its weight is 0 in every dtype


def frequencies(channels: int, device: torch.device | None = None) -> torch.Tensor:
    """(channels / 2,) angular frequencies from 1 down to 1 / 10000, float32."""
    steps = torch.arange(channels // 2, dtype=torch.float32, device=device) / (channels // 2)
    return torch.exp(-math.log(10000) * steps)


def sinusoids(t: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """(B, 2 F) cosines, then sines, of (B,) times at (F,) frequencies, float32.

    Float32 whatever the network's dtype: at t = 999 a bfloat16 angle is off by more than a radian.
    """
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def norm_silu(
    norm: nn.Module, x: torch.Tensor, modulation: torch.Tensor | None = None, activation: bool = True
) -> torch.Tensor:
    """GroupNorm and SiLU, with the (B, 2 C) weight and bias of a modulation instead of the norm's own."""
    norm = cast(nn.GroupNorm, norm)
    weight, bias = (norm.weight[None], norm.bias[None]) if modulation is None else modulation.chunk(2, dim=1)
    return group_norm_silu(x, norm.num_groups, weight, bias, norm.eps, activation)


def conv3x3(channels: int, out_channels: int, stride: int | Sequence[int] = 1, axes: int = 2) -> Any:
    """A convolution with a kernel of 3 along each axis that keeps the size, or divides it by ``stride``."""
    return CONVOLUTIONS[axes](channels, out_channels, 3, stride, padding=1)


def pooled(x: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """The means of x (B, C, *S) over cells of ``strides``.

    Of volumes, first within planes, then over planes: in 3-D, PyTorch has no such op in bfloat16 on a CPU,
    and none that keeps channels_last.
    """
    if x.ndim == 4:
        return F.avg_pool2d(x, tuple(strides))
    depth, *within = strides
    planes = F.avg_pool2d(x.movedim(2, 1).flatten(0, 1), within).unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)
    return planes if depth == 1 else F.avg_pool2d(planes.flatten(3), (depth, 1)).unflatten(3, planes.shape[3:])


def zeroed(module: Conv) -> Conv:
    """The convolution, all of whose weights become 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def unshuffled(x: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, C, *S) with each cell of ``patch`` positions along an axis as channels of one."""
    if x.ndim == 4:
        return F.pixel_unshuffle(x, patch)
    b, c, *sides = x.shape
    cells = x.reshape(b, c, *(n for side in sides for n in (side // patch, patch)))
    axes = range(len(sides))
    cells = cells.permute(0, 1, *(3 + 2 * axis for axis in axes), *(2 + 2 * axis for axis in axes))
    return cells.flatten(1, 1 + len(sides))


def shuffled(x: torch.Tensor, patch: int) -> torch.Tensor:
    """The inverse of :func:`unshuffled`."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, patch)
    b, _, *sides = x.shape
    cells = x.reshape(b, -1, *[patch] * len(sides), *sides)
    order = [n for axis in range(len(sides)) for n in (2 + len(sides) + axis, 2 + axis)]
    return cells.permute(0, 1, *order).reshape(b, cells.shape[1], *(side * patch for side in sides))


class CrossAttention(nn.Module):
    """Attention of positions to conditions that are tokens; it begins as no change.

    Keys and values depend on the tokens alone. So a :class:`ConditionEmbedding` makes those of all layers
    once, and this layer takes its columns.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.proj_out = zeroed(nn.Linear(channels, channels))
        self.columns = slice(0, 0)  # of the keys and values of all layers; ConditionEmbedding sets it

    def forward(self, x: torch.Tensor, context: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(B, N, C) of positions; ``context`` (B, L, M) is of all layers, ``bias`` (B, 1, 1, L)."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = context[..., self.columns].to(q.dtype).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = bias.to(q.dtype).expand(-1, -1, q.shape[2], -1)  # ONNX Runtime does not broadcast it
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj_out(h.transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """Keys and values of all cross-attention layers, of the tokens of one condition.

    A learned token is put in front, so that attention to no token is defined.
    """

    def __init__(self, width: int, columns: int) -> None:
        super().__init__()
        self.none = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.to_kv = nn.Linear(width, columns, bias=False)  # so that a token of zeros stays zero

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, width) to (B, L + 1, M)."""
        tokens = tokens.to(self.none.dtype)
        return self.to_kv(torch.cat([self.none.expand(tokens.shape[0], -1, -1), tokens], dim=1))


class ConditionEmbedding(nn.Module):
    """The part of a network that depends on its conditions alone.

    Embeddings of classes begin at zero.

    Args:
        config: the conditions besides the source.
        width: of the time's embedding, to which those of classes are added.
        network: the rest, whose cross-attention layers get their columns.
    """

    def __init__(self, config: ConditionsConfig, width: int, network: nn.Module) -> None:
        super().__init__()
        each, columns = config.each, 0
        for layer in network.modules():
            if isinstance(layer, CrossAttention):
                layer.columns = slice(columns, columns + 2 * layer.q.out_features)
                columns = layer.columns.stop
        self.images = tuple(config.images)
        self.classes = nn.ModuleDict(
            {f"_{name}": zeroed(nn.Embedding(each[name].size + each[name].droppable, width)) for name in config.classes}
        )
        self.tokens = nn.ModuleDict({f"_{name}": Tokens(each[name].size, columns) for name in config.tokens})

    def prepared(self, conditions: Conditions, sides: Sequence[int]) -> dict[str, torch.Tensor]:
        """Images in the size of the state, embeddings, keys and values; other conditions stay.

        See :meth:`bbdm.networks.base.Network.prepared`.
        """
        prepared = {name: resized(value, sides) if name in self.images else value for name, value in conditions.items()}
        for parts in (self.classes, self.tokens):
            prepared |= {key[1:]: part(conditions[key[1:]]) for key, part in parts.items()}
        return prepared

    def context(self, prepared: Conditions) -> Context:
        """Keys and values of all tokens (B, L, M), and biases (B, 1, 1, L) of scores; None without tokens."""
        if not self.tokens:
            return None
        context = torch.cat([prepared[key[1:]] for key in self.tokens], dim=1)
        counts = (context != 0).any(dim=-1)[:, None, None].to(context.dtype)
        return context, (counts - 1) * ABSENT


def resized(image: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """(B, C, *S) images in another size, by antialiased bilinear filtering; of volumes, trilinear."""
    if tuple(image.shape[2:]) == tuple(sides):
        return image
    if image.ndim == 5:
        return F.interpolate(image, tuple(sides), mode="trilinear")
    outputs = F.interpolate(image.float(), tuple(sides), mode="bilinear", antialias=True)
    return outputs.to(image.dtype)


class TimeEmbedding:
    """What a network computes of the time alone. It holds the weights of that part, and no others.

    Args:
        mlp: from the sinusoids of a time to its embedding.
        width: the number of sinusoids.
        modulation: of an embedding (B, E), (B, M); None where embeddings of classes are added to it before.
    """

    def __init__(self, mlp: nn.Sequential, width: int, modulation: Modulation | None) -> None:
        self.mlp, self.width, self.modulation = mlp, width, modulation

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """(B, M) at (B,) integer or fractional times; with classes, the embedding (B, E)."""
        t = t.to(cast(nn.Linear, self.mlp[0]).weight.device)
        return self.of(sinusoids(t, frequencies(self.width, t.device)))

    def of(self, sinusoids: torch.Tensor) -> torch.Tensor:
        """The same from the times' (B, width) sinusoids."""
        embedding = self.mlp(sinusoids.to(cast(nn.Linear, self.mlp[0]).weight.dtype))
        return embedding if self.modulation is None else self.modulation(embedding)


class ConditionedNetwork(ConfiguredNetwork, Network):
    """What the networks of this library share: embeddings of the time and of conditions."""

    condition_embedding: ConditionEmbedding
    gradient_checkpointing = False

    @abstractmethod
    def time_mlp(self) -> tuple[nn.Sequential, int]:
        """The layers from a time's sinusoids to its embedding, and the number of sinusoids."""

    @abstractmethod
    def modulation(self) -> Modulation:
        """From embeddings to the modulation of all layers side by side; it holds no other weights."""

    def embedder(self) -> TimeEmbedding:
        """The part that :meth:`embed` calls, with its weights alone. The sampler calls it once a table."""
        return TimeEmbedding(*self.time_mlp(), None if self.classes else self.modulation())

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """(B, M) the modulation of all layers at (B,) integer or fractional times: t's only influence.

        With classes, the time's embedding, to which theirs are added.
        """
        return self.embedder()(t)

    def prepared(self, conditions: Conditions, sides: Sequence[int]) -> dict[str, torch.Tensor]:
        """See :meth:`Network.prepared`: images in the size of the state, embeddings, keys and values."""
        return self.condition_embedding.prepared(conditions, sides)

    def _conditioned(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> tuple[torch.Tensor, torch.Tensor, Context]:
        """The state with the source and images as channels, the modulation, and keys and values of tokens."""
        if self.classes:
            embedding = self.modulation()(sum((conditions[name] for name in self.classes), embedding))
        images = [conditions[name] for name in (SOURCE, *self.images) if name in conditions]
        x = torch.cat([x, *images], dim=1) if images else x
        return x, embedding, self.condition_embedding.context(conditions)

    def _run(self, module: nn.Module, h: torch.Tensor, *others: Any) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, h, *others, use_reentrant=False)
        return module(h, *others)
