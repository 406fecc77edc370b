"""What a sampler's batches are on its device: tensors of the bridge's space, padded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from bbdm.codec import Codec
from bbdm.execution.package import PackagedNetwork
from bbdm.kernels.elementwise import layout
from bbdm.networks.base import SOURCE, Network
from bbdm.networks.checks import check_pictures
from bbdm.sampling.batch import Batch
from bbdm.sampling.engine import Given
from bbdm.sampling.shapes import Shapes


@dataclass(frozen=True)
class Inputs:
    """What a network and its loop take, of batches."""

    unet: Network
    codec: Codec | None
    shapes: Shapes
    device: torch.device
    dtype: torch.dtype  # of the state

    def seeds(self, batch: Batch) -> torch.Tensor:
        """(B,) int64 the seeds."""
        return torch.tensor(batch.seeds, dtype=torch.int64, device=self.device)

    def mask(self, batch: Batch) -> torch.Tensor | None:
        """The batch's mask on the grid that the network sees: of a latent, whatever it covers is made."""
        if batch.mask is None:
            return None
        mask = F.pad(batch.mask.to(self.device, self.dtype), self._padding(batch.mask))
        cell = self.shapes.latent_stride
        return (mask if cell == 1 else F.max_pool2d(mask, cell)).contiguous()

    @torch.inference_mode()
    def given(self, batch: Batch) -> Given:
        """See :meth:`bbdm.sampling.engine.Engine._given`."""
        if batch.encoded is not None:
            return batch.encoded
        source = self._to_device(batch.source)
        y, images = self.unet.endpoint(source), self.unet.images
        others = {
            name: self._picture(value) if name in images else value.to(self.device)
            for name, value in batch.conditions.items()
        }
        given = self.unet.given(source, others)
        told = self.unet.prepared(given, y.shape[2:])
        if batch.guidance is None:
            return y, [told]
        return y, batch.guidance.told(
            told, lambda names: self.unet.prepared(self.unet.without(given, names), y.shape[2:])
        )

    @torch.inference_mode()
    def repeated(self, given: Given, places: list[int]) -> Given:
        """See :meth:`bbdm.sampling.engine.Engine._repeated`."""
        index = torch.tensor(places, device=self.device)

        def at(value: torch.Tensor) -> torch.Tensor:
            return value.index_select(0, index).contiguous(memory_format=layout(value.ndim))

        y = at(given[0])
        told = [{name: y if v is given[0] else at(v) for name, v in each.items()} for each in given[1]]
        return y, told

    @torch.inference_mode()
    def blank(self, batch: int, *size: int, like: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
        """Conditions as the network's body takes them, of zeros, for sources of a size.

        With a codec, further images stay pictures. Tokens are as many as of ``like``, conditions of a batch.
        """
        padded, grid = self.shapes.padded(*size), self.shapes.grid(batch, *size)[2:]
        made: dict[str, torch.Tensor] = {}
        for name, count in self.unet.conditions.items():
            kind = self.unet.kind_of(name)
            if kind == "class":
                made[name] = torch.zeros(batch, dtype=torch.int64, device=self.device)
                continue
            places = (count, *(grid if name == SOURCE else padded))
            shape = (like[name].shape[1] if like else 1, count) if kind == "tokens" else places
            made[name] = torch.zeros(batch, *shape, dtype=self.dtype, device=self.device)
        return self.unet.prepared(made, grid)

    def _to_device(self, source: torch.Tensor) -> torch.Tensor:
        """The source in the space of the bridge, padded, in memory of its own."""
        if self.codec is None:
            return self._picture(source)
        y = self.codec.encode(self._padded(source, torch.float32), "source")
        return y.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _picture(self, image: torch.Tensor) -> torch.Tensor:
        """Pictures on the device in the state's dtype, padded, in memory of their own."""
        return self._padded(image, self.dtype).clone(memory_format=layout(image.ndim))

    def _padded(self, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Pictures on the device, padded below and to the right, where the edge is repeated."""
        return F.pad(image.to(self.device, dtype), self._padding(image), mode="replicate")

    def _padding(self, image: torch.Tensor) -> list[int]:
        """What pads images, as F.pad takes it: the last side first."""
        return [n for lacking in reversed(self.shapes.lacking(image.shape[2:])) for n in (0, lacking)]


def check_codec(unet: Network, codec: Codec | None) -> None:
    """Raise ValueError unless a network is of a codec's latents."""
    if codec is None:
        return
    check_pictures(unet.axes, "a codec")
    if codec.channels != unet.channels:
        raise ValueError(f"codec must have the network's {unet.channels} channels, got {codec.channels}")
    if unet.source_channels != unet.channels or unet.endpoint_channels is not None:
        raise ValueError(
            f"with a codec, source and target have the same channels; the network takes {unet.source_channels} "
            f"channels for {unet.channels}, endpoint={unet.endpoint_channels}"
        )


def shapes_of(unet: Network, codec: Codec | None, package: PackagedNetwork | None, fill: bool) -> Shapes:
    """What a network takes, with a codec or as a package; ``fill`` is whether short batches are filled up."""
    cell = 1 if codec is None else codec.stride
    return Shapes(
        source_channels=unet.source_channels if codec is None else codec.image_channels,
        image_channels=unet.channels if codec is None else codec.image_channels,
        channels=unet.channels,
        endpoint=unet.endpoint_channels,
        further=unet.further,
        stride=tuple(step * cell for step in unet.strides),
        latent_stride=cell,
        batch=None if package is None else package.shape[0],
        size=None if package is None else tuple(side * cell for side in package.shape[2:]),
        fill=fill or package is not None,  # cheaper than to compile for a short batch
    )
