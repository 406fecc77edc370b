"""One step of a translation, as streams and callbacks get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a translation, in the space of the bridge. Without a codec, sizes are the source's.

    It unpacks to ``index, t, x, x0hat``.
    """

    index: int  # row of the table
    t: float  # the time of the row
    x: Any  # (B, C, H, W) the state after the step, in the sampler's arrays; with a codec, a padded latent
    x0hat: Any  # the estimate of the target that the step was made with; shape and kind of x
    images: list[int]  # which of the call's images these are
    _pictures: Callable[[Any], list[Image.Image]] = field(repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.index, self.t, self.x, self.x0hat))

    def preview(self) -> list[Image.Image]:
        """The estimates of the target as pictures, of the source's size."""
        return self._pictures(self.x0hat)


Callback = Callable[[Step], Any]
