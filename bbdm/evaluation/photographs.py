"""Photographs in files: of any mode, written with their bits, greys, colour profile and transparency."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base.atomic import write_atomically
from bbdm.pictures import header, images, read, write

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Photograph:
    """An upright photograph."""

    pixels: npt.NDArray[np.float32]  # (3, H, W) in [-1, 1]
    bits: int  # 8 or 16 of a value
    grey: bool  # whether it has one channel
    alpha: npt.NDArray[np.uint8] | None = None  # (H, W); None where all is opaque
    profile: bytes | None = None  # ICC, of the colours

    @classmethod
    def read(cls, path: Path) -> Photograph:
        """The photograph of a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or is not grey or colour of 8 or 16 bits.
        """
        if header(path).photograph:
            return cls._of_image(images.open_image(path))
        array = np.asarray(read(path))
        bits = 8 * array.dtype.itemsize
        if array.ndim != 3 or len(array) not in (1, 3) or array.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                f"{path} has {len(array)} channels of {array.dtype}, and a photograph is grey or colour of 8 or 16 bits"
            )
        scaled = (array.astype(np.float32) * np.float32(2 / (2**bits - 1)) - 1).clip(-1, 1)
        return cls(np.broadcast_to(scaled, (3, *scaled.shape[1:])), bits, len(array) == 1)

    @classmethod
    def _of_image(cls, image: Image.Image) -> Photograph:
        """Colours under transparency are as the file has them."""
        alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        grey = image.mode in ("1", "L", "LA", "La")
        profile = None if image.mode == "CMYK" else image.info.get("icc_profile")  # of colours that are converted
        colours = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
        return cls(colours / np.float32(127.5) - 1, 8, grey, alpha, profile)

    def with_pixels(self, pixels: npt.NDArray[np.float32]) -> Photograph:
        """Other pixels (3, H, W), with all that this one has besides."""
        return replace(self, pixels=pixels)

    def save(self, path: Path) -> None:
        """Write a PNG file, whole or not at all."""
        most = 2**self.bits - 1
        pixels = np.tensordot(GREY, self.pixels, 1)[None] if self.grey else self.pixels
        stored = np.rint((pixels.clip(-1, 1) + 1) * np.float32(most / 2)).astype(f"u{self.bits // 8}")
        if self.bits == 16:
            return write(path, stored)
        image = Image.fromarray(stored[0] if self.grey else np.ascontiguousarray(stored.transpose(1, 2, 0)))
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        write_atomically(path, lambda part: image.save(part, "png", icc_profile=self.profile))
