"""What a sampler has to compile before batches of a shape run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bbdm.codec import Codec
from bbdm.execution.compiled import Compiled
from bbdm.execution.loop import Loop
from bbdm.networks.windows import Windowing
from bbdm.sampling.batch import Batch
from bbdm.sampling.inputs import Inputs
from bbdm.sampling.shapes import Shapes


def due(loop: Loop, inputs: Inputs, batch: Batch, together: bool) -> list[Callable[[], Any]]:
    """Calls that compile what was not compiled for batches of a shape.

    Args:
        loop: the loop of the call's plan.
        inputs: what the sampler's network takes.
        batch: a batch of the shape.
        together: whether a guided step evaluates all in one batch.
    """
    calls = [] if inputs.codec is None else _of_codec(inputs.codec, inputs.shapes, batch)
    return [*_of_network(loop, inputs, batch, together), *calls]


def _of_network(loop: Loop, inputs: Inputs, batch: Batch, together: bool) -> list[Callable[[], Any]]:
    network, shapes = loop.network, inputs.shapes
    if not isinstance(network, Compiled):
        return []
    shape = tuple(batch.source.shape)
    if batch.windows is not None:
        shape = _window_shape(batch.windows, shapes, shapes.grid(shape[0], *shape[2:]))
    made: list[Callable[[], Any]] = []
    for evaluations in loop.over(guidance=batch.guidance, together=together).evaluations:
        count = shape[0] * (evaluations if batch.windows is None else 1)
        called = torch.Size(shapes.grid(count, *shape[2:]))
        told = inputs.blank(count, *shape[2:], like=batch.conditions)
        if network.lacks(called, told):
            made.append(partial(loop.warm_up, called, told))
    return made


def _window_shape(windows: Windowing, shapes: Shapes, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of pictures whose state is a call's windows."""
    sides = (side.length * shapes.latent_stride for side in windows.sides(grid[2:]))
    return windows.at_once, shapes.source_channels, *sides


def _of_codec(codec: Codec, shapes: Shapes, batch: Batch) -> list[Callable[[], Any]]:
    count, _, *size = batch.source.shape
    image = count, shapes.source_channels, *shapes.padded(*size)
    pictures = codec.tiling.part_shapes(image, stride=codec.stride)
    latents = codec.tiling.part_shapes(shapes.grid(count, *size), codec.stride, codec.stride)
    made: list[Callable[[], Any]] = []
    if isinstance(codec.encoder, Compiled) and any(map(codec.encoder.lacks, pictures)):
        made.append(lambda: [codec.latents(torch.zeros(part)) for part in {*pictures}])
    if isinstance(codec.decoder, Compiled) and any(map(codec.decoder.lacks, latents)):
        made.append(lambda: [codec.image(torch.zeros(part)) for part in {*latents}])
    return made
