"""What a sampler's network takes: channels, sizes, windows of larger pictures. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.windows import Windowing, check_windows
from bbdm.pictures.images import Size

WINDOWS_AT_ONCE = 16  # in a network call, where no batch_size is given
PIXELS_AT_ONCE = 2**20  # of windows in a network call, but for one that is larger
Window = Size | Literal["auto"] | None


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a network takes.

    Args:
        source_channels: the channels of sources.
        image_channels: the channels of results.
        channels: the channels of the bridge's space.
        endpoint: the source channel for each channel of a result; see
            :attr:`bbdm.networks.base.Network.endpoint_channels`.
        further: the conditions besides the source.
        stride: of each axis; the sides of pictures are padded to multiples of it.
        latent_stride: pixels of a picture along one of the bridge's space.
        batch: the only number of images or windows that the network takes, or None.
        size: the only (height, width) of pictures or windows that the network takes, or None. Of volumes,
            here and below, (height, width) is (depth, height, width).
        fill: repeat the last image where a batch is short, so that all batches have one size.
    """

    source_channels: int
    image_channels: int
    channels: int
    endpoint: Sequence[int] | None
    further: ConditionsConfig
    stride: tuple[int, ...]
    latent_stride: int
    batch: int | None
    size: tuple[int, ...] | None
    fill: bool

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return len(self.stride)

    def padded(self, *size: int) -> tuple[int, ...]:
        """The size of pictures after padding."""
        return tuple(side + -side % step for side, step in zip(size, self.stride, strict=True))

    def lacking(self, size: Sequence[int]) -> list[int]:
        """What each side of pictures lacks."""
        return [side - before for side, before in zip(self.padded(*size), size, strict=True)]

    def grid(self, batch: int, *size: int) -> tuple[int, ...]:
        """(B, C, H, W) of the bridge's space for pictures of a size."""
        return batch, self.channels, *(side // self.latent_stride for side in self.padded(*size))

    def windows(
        self,
        size: Sequence[int],
        window: Window,
        overlap: float,
        margin: int,
        crop: Size | None,
        batch_size: int | None,
    ) -> Windowing | None:
        """The windows of pictures of a size (height, width); None where the network sees them whole.

        Args:
            size: the (height, width) of pictures.
            window: the side or (height, width) of windows; None for whole pictures; ``"auto"`` for ``crop``.
            overlap: of neighbouring windows at least, as a share of a window.
            margin: pixels at the edges of windows inside the picture that count for nothing.
            crop: the size of training crops, if any.
            batch_size: windows in a network call at most, which have no more than 2^20 pixels together; None
                for the network's number, or 16.

        Raises:
            ValueError: window, overlap or margin is out of range, or the network takes another size alone.
        """
        lengths = check_windows(crop if window == "auto" else window, overlap, margin, self.stride)
        if lengths is None or all(side <= length for side, length in zip(size, lengths, strict=True)):
            return None
        if self.size not in (None, lengths):
            raise ValueError(f"window must be {self.size}, which this network takes alone, got {window}")
        most = max(1, PIXELS_AT_ONCE // math.prod(lengths))
        cell, at_once = self.latent_stride, self.batch or min(batch_size or WINDOWS_AT_ONCE, most)
        sides = tuple(length // cell for length in lengths)
        unit = tuple(step // cell for step in self.stride)
        return Windowing(sides, overlap, -(-margin // cell), unit, at_once, self.fill)

    def check_batch_size(self, batch_size: int | None) -> None:
        """Raise ValueError where a batch size is below the least."""
        if batch_size is not None and batch_size < (self.batch or 1):
            which = f"{self.batch}, which the network takes alone" if self.batch else "1"
            raise ValueError(f"batch_size must be at least {which}, got {batch_size}")
