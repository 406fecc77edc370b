"""PNG, JPEG, WebP and BMP: upright, alpha over white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from bbdm.pictures import images
from bbdm.pictures.picture import OF_PHOTOGRAPH, Header, Picture

SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height


def header(path: Path) -> Header:
    """The header of 1 or 3 channels of 8 bits, or of 16-bit grey in a PNG.

    Raises:
        ValueError: it cannot be read, or has more bits in another format.
    """
    with Image.open(path) as image:
        wide = image.format == "PNG" and image.mode in ("I", "I;16")
        if image.mode not in images.EIGHT_BIT and not wide:
            raise ValueError(f"its mode {image.mode} in {image.format} has more than 8 bits: save it as TIFF")
        unknown = image.format == "PNG" and "exif" not in image.info  # getexif would decode it to look behind
        sideways = not unknown and image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
        shape = 1 if image.mode in images.GREY else 3, *(image.size if sideways else image.size[::-1])
        return Header(path, shape, np.dtype(np.uint16 if wide else np.uint8), OF_PHOTOGRAPH)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the decoded picture, a view of pixels whose channels are interleaved."""
    image = images.open_image(header.path)
    array = images.pixels(image) if header.dtype == np.uint8 else np.asarray(image).astype(np.uint16)[None]
    return array[(slice(None), *window)]


def write(path: Path, picture: Picture) -> None:
    """Write (1 or 3, H, W) of uint8, or (1, H, W) of uint16 as PNG."""
    images.image_of(np.asarray(picture)).save(path)
