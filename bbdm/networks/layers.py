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
from bbdm.networks.base import SOURCE, Conditions, ConfiguredNetwork, Network

Conv = TypeVar("Conv", bound=nn.Module)
CONVOLUTIONS: dict[int, type[Any]] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of spatial axes
Embed = Callable[[torch.Tensor], torch.Tensor]
# keys and values of tokens, and what is added to scores
Context = tuple[torch.Tensor, torch.Tensor] | None
ABSENT = 1e4  # subtracted from the scores of what is no token: its weight is 0 in every dtype


def norm_silu(
    norm: nn.Module,
    x: torch.Tensor,
    modulation: torch.Tensor | None = None,
    activation: bool = True,
) -> torch.Tensor:
    """GroupNorm and SiLU, with the (B, 2 C) weight and bias of a modulation instead of the norm's own."""
    norm = cast(nn.GroupNorm, norm)
    if modulation is None:
        weight = norm.weight[None]
        bias = norm.bias[None]
    else:
        weight, bias = modulation.chunk(2, dim=1)
    return group_norm_silu(x, norm.num_groups, weight, bias, norm.eps, activation)


def conv3x3(channels: int, out_channels: int, axes: int = 2) -> Any:
    """A convolution with a kernel of 3 along each axis that keeps the size."""
    return CONVOLUTIONS[axes](channels, out_channels, 3, padding=1)


def pooled(x: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """The means of x (B, C, *S) over cells of ``strides``.

    Of volumes, first within planes, then over planes: in 3-D, PyTorch has no such op in bfloat16 on a CPU,
    and none that keeps channels_last.
    """
    if x.ndim == 4:
        return F.avg_pool2d(x, tuple(strides))
    depth, *within = strides
    planes = x.movedim(2, 1).flatten(0, 1)  # (B D, C, H, W)
    # (B, C, D, H', W')
    means = F.avg_pool2d(planes, within).unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)
    if depth == 1:
        return means
    columns = means.flatten(3)  # (B, C, D, H' W')
    return F.avg_pool2d(columns, (depth, 1)).unflatten(3, means.shape[3:])


def zeroed(module: Conv) -> Conv:
    """The convolution, all of whose weights become 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class CrossAttention(nn.Module):
    """Attention of positions to conditions that are tokens; it begins as no change.

    Keys and values depend on the tokens alone. So :class:`Tokens` makes those of all layers once, and this
    layer takes its columns.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.proj_out = zeroed(nn.Linear(channels, channels))
        self.columns = slice(0, 0)  # of the keys and values of all layers; the network sets it

    def forward(self, x: torch.Tensor, context: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(B, N, C) of positions; ``context`` (B, L, M) is of all layers, ``bias`` (B, 1, 1, L)."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = context[..., self.columns].to(q.dtype)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
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


def resized(image: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """(B, C, *S) images in another size, by antialiased bilinear filtering; of volumes, trilinear."""
    if tuple(image.shape[2:]) == tuple(sides):
        return image
    if image.ndim == 5:
        return F.interpolate(image, tuple(sides), mode="trilinear")
    outputs = F.interpolate(image.float(), tuple(sides), mode="bilinear", antialias=True)
    return outputs.to(image.dtype)


class ConditionedNetwork(ConfiguredNetwork, Network):
    """What the networks of this library share: embeddings of the time and of conditions."""

    time_embed: nn.Sequential  # from the sinusoids of a time to its embedding
    condition_embedding: nn.ModuleDict  # of classes and of tokens, by their names behind a _
    gradient_checkpointing = False

    @abstractmethod
    def modulation(self) -> Embed:
        """From embeddings (B, E) to the modulation of all layers, (B, M); it holds no other weights."""

    def embed_conditions(self, width: int) -> None:
        """Add what depends on conditions alone, once all layers are there.

        Embeddings of classes begin at zero; they are of the ``width`` of the time's, to which they are added.
        """
        columns = 0
        for layer in self.modules():
            if isinstance(layer, CrossAttention):
                layer.columns = slice(columns, columns + 2 * layer.q.out_features)
                columns = layer.columns.stop
        parts: dict[str, dict[str, nn.Module]] = {"classes": {}, "tokens": {}}
        for name in self.classes:
            count = self.inputs[name].size + self.inputs[name].droppable
            parts["classes"][f"_{name}"] = zeroed(nn.Embedding(count, width))
        for name, size in self.tokens.items():
            parts["tokens"][f"_{name}"] = Tokens(size, columns)
        self.condition_embedding = nn.ModuleDict(
            {setting: nn.ModuleDict(part) for setting, part in parts.items()}
        )

    def embedder(self) -> Embed:
        """See :meth:`Network.embedder`: it holds the weights of the time's part, and no others.

        Angles are float32 whatever the network's dtype: at t = 999 one in bfloat16 is off by over a radian.
        """
        mlp = self.time_embed
        modulation = None
        if not self.classes:  # their embeddings are added to the time's before
            modulation = self.modulation()
        first = cast(nn.Linear, mlp[0])
        device = first.weight.device
        count = first.in_features // 2
        steps = torch.arange(count, dtype=torch.float32, device=device) / count
        frequencies = torch.exp(-math.log(10000) * steps)  # from 1 down to 1 / 10000

        def embed(t: torch.Tensor) -> torch.Tensor:
            angles = t.to(device).float()[:, None] * frequencies
            sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
            embedding = mlp(sinusoids.to(first.weight.dtype))
            if modulation is None:
                return embedding
            return modulation(embedding)

        return embed

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """(B, M) the modulation of all layers at (B,) times; with classes, the time's embedding."""
        return self.embedder()(t)

    def prepared(self, conditions: Conditions, sides: Sequence[int]) -> dict[str, torch.Tensor]:
        """See :meth:`Network.prepared`: images in the size of the state, embeddings, keys and values."""
        prepared = dict(conditions)
        for name in self.images:
            prepared[name] = resized(conditions[name], sides)
        for parts in self.condition_embedding.values():
            for key, part in cast(nn.ModuleDict, parts).items():
                name = key[1:]
                prepared[name] = part(conditions[name])
        return prepared

    def _conditioned(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> tuple[torch.Tensor, torch.Tensor, Context]:
        """The state with the source and images as channels, the modulation, and keys and values of tokens."""
        if self.classes:
            for name in self.classes:
                embedding = embedding + conditions[name]
            embedding = self.modulation()(embedding)
        images = [conditions[name] for name in (SOURCE, *self.images) if name in conditions]
        if images:
            x = torch.cat([x, *images], dim=1)
        if not self.tokens:
            return x, embedding, None
        context = torch.cat([conditions[name] for name in self.tokens], dim=1)  # (B, L, M)
        is_token = (context != 0).any(dim=-1)[:, None, None].to(context.dtype)  # (B, 1, 1, L)
        bias = (is_token - 1) * ABSENT
        return x, embedding, (context, bias)

    def _run(self, module: nn.Module, h: torch.Tensor, *others: Any) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, h, *others, use_reentrant=False)
        return module(h, *others)
