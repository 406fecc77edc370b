"""Batches as a bridge's network sees them: of latents, turned the other way, without some conditions."""

from __future__ import annotations

import torch

from bbdm.codec import Codec
from bbdm.data.examples import Example
from bbdm.kernels import philox
from bbdm.networks.base import Network
from bbdm.networks.conditions import DIRECTION
from bbdm.training.augmentation import broadcast
from bbdm.training.task import sample_numbers


def both_ways(batch: Example) -> dict[str, Example]:
    """A whole batch in each direction, by its name."""
    back = torch.ones(len(batch.source), dtype=torch.bool, device=batch.source.device)
    return {"AtoB": turned(batch, ~back), "BtoA": turned(batch, back)}


def encode(batch: Example, codec: Codec, latents: bool = False) -> Example:
    """A batch of pictures, or of latents from a cache, as the codec has it; its mask, of pixels, goes."""
    coded = codec.normalize if latents else codec.encode
    source = coded(batch.source, "source").contiguous(memory_format=torch.channels_last)
    target = coded(batch.target, "target").contiguous(memory_format=torch.channels_last)
    return batch._replace(source=source, target=target, mask=None)


def drawn_back(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """(B,) whether examples of a run of both directions go back: of two neighbours in a batch one, drawn."""
    odd = sample_numbers(seeds) & 1
    drawn = philox.uniforms(seeds - (odd << 32), step, 1, philox.DIRECTION_LANE)[:, 0]
    return (drawn < 0.5) ^ (odd == 1)


def turned(batch: Example, back: torch.Tensor) -> Example:
    """A batch of AtoB in which source and target change places where ``back`` (B,) says so."""
    where = broadcast(back, batch.source)
    source = torch.where(where, batch.target, batch.source)
    target = torch.where(where, batch.source, batch.target)
    return batch._replace(
        source=source, target=target, conditions={**batch.conditions, DIRECTION: back.long()}
    )


def dropped(batch: Example, seeds: torch.Tensor, step: int, network: Network) -> Example:
    """A batch in which each condition is "none" for the share of examples that ``network.drop`` says."""
    drawn = philox.uniforms(seeds, step, len(network.drop), philox.DROP_LANE)
    none = network.without(batch.conditions, network.drop)
    conditions = dict(batch.conditions)
    for column, (name, share) in enumerate(network.drop.items()):
        value = conditions[name]
        conditions[name] = torch.where(
            broadcast(drawn[:, column] < share, value), none[name], value
        )
    return batch._replace(conditions=conditions)
