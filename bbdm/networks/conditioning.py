"""How the networks of this library take in conditions besides the source."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bbdm.networks.base import Conditions, Network
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.layers import zeroed
from bbdm.networks.restore import ConfiguredNetwork

Context = tuple[torch.Tensor, torch.Tensor] | None  # keys and values of tokens, and what is added to scores
ABSENT = 1e4  # subtracted from the scores of what is no token: its weight is 0 in every dtype


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
            {_key(name): zeroed(nn.Embedding(each[name].size + each[name].droppable, width)) for name in config.classes}
        )
        self.tokens = nn.ModuleDict({_key(name): Tokens(each[name].size, columns) for name in config.tokens})

    def prepared(self, conditions: Conditions, sides: Sequence[int]) -> dict[str, torch.Tensor]:
        """Images in the size of the state, embeddings, keys and values; other conditions stay.

        See :meth:`bbdm.networks.base.Network.prepared`.
        """
        made = {name: resized(value, sides) if name in self.images else value for name, value in conditions.items()}
        for parts in (self.classes, self.tokens):
            made |= {_name(key): part(conditions[_name(key)]) for key, part in parts.items()}
        return made

    def shown(self, prepared: Conditions) -> list[torch.Tensor]:
        """(B, C, *S) the images."""
        return [prepared[name] for name in self.images]

    def embedding(self, prepared: Conditions, time: torch.Tensor) -> torch.Tensor:
        """The time's embedding (B or 1, width) with those of classes."""
        for key in self.classes:
            time = time + prepared[_name(key)]
        return time

    def context(self, prepared: Conditions) -> Context:
        """Keys and values of all tokens (B, L, M), and biases (B, 1, 1, L) of scores; None without tokens."""
        if not self.tokens:
            return None
        context = torch.cat([prepared[_name(key)] for key in self.tokens], dim=1)
        counts = (context != 0).any(dim=-1)[:, None, None].to(context.dtype)
        return context, (counts - 1) * ABSENT


def _key(name: str) -> str:
    """The key of a condition's weights, which is no attribute of a module."""
    return f"_{name}"


def _name(key: str) -> str:
    return key[1:]


def resized(image: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """(B, C, *S) images in another size, by antialiased bilinear filtering; of volumes, trilinear."""
    if tuple(image.shape[2:]) == tuple(sides):
        return image
    if image.ndim == 5:
        return F.interpolate(image, tuple(sides), mode="trilinear")
    made = F.interpolate(image.float(), tuple(sides), mode="bilinear", antialias=True)
    return made.to(image.dtype)


class ConditionedNetwork(ConfiguredNetwork, Network):
    """What the networks of this library share: embeddings of conditions, and one of the time alone."""

    condition_embedding: ConditionEmbedding
    gradient_checkpointing = False

    def description(self) -> dict[str, Any]:
        """Its settings."""
        return self.config.description()

    @abstractmethod
    def embedder(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The part that :meth:`embed` calls, with its weights alone. The sampler calls it once a table."""

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """(B, M) the modulation of all layers at (B,) integer or fractional times: t's only influence.

        With classes, the time's embedding, to which theirs are added.
        """
        return self.embedder()(t)

    def prepared(self, conditions: Conditions, sides: Sequence[int]) -> dict[str, torch.Tensor]:
        """See :meth:`Network.prepared`: images in the size of the state, embeddings, keys and values."""
        return self.condition_embedding.prepared(conditions, sides)

    def _run(self, module: nn.Module, h: torch.Tensor, *others: Any) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, h, *others, use_reentrant=False)
        return module(h, *others)
