"""PNG, JPEG, WebP and BMP: upright, alpha over white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from bbdm.pictures import formats, images
from bbdm.pictures.picture import OF_PHOTOGRAPH, Header, Picture

SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height
GREY_16 = ("I", "I;16")  # modes of 16-bit grey in a PNG


def header(path: Path) -> Header:
    """The header of 1 or 3 channels of 8 bits, or of 16-bit grey in a PNG.

    Raises:
        ValueError: it cannot be read, or has more bits in another format.
    """
    with images.open_image(path, decode=False) as image:
        wide = image.format == "PNG" and image.mode in GREY_16
        if image.mode not in images.EIGHT_BIT and not wide:
            raise ValueError(
                f"its mode {image.mode} in {image.format} has more than 8 bits: save it as TIFF"
            )
        width, height = image.size
        if _is_sideways(image):
            width, height = height, width
        channels = 1 if image.mode in images.GREY else 3
        dtype = np.dtype(np.uint16 if wide else np.uint8)
        return Header(path, (channels, height, width), dtype, OF_PHOTOGRAPH)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the decoded picture, a view of pixels whose channels are interleaved."""
    part = (slice(None), *window)
    image = images.open_image(header.path)
    if header.dtype == np.uint8:
        return images.pixels(image)[part]
    return np.asarray(image).astype(np.uint16)[None][part]


def write(path: Path, picture: Picture) -> None:
    """Write (1 or 3, H, W) of uint8, or (1, H, W) of uint16 as PNG."""
    options = images.described(formats.suffix_of(path), picture.geometry.derivation)
    images.image_of(np.asarray(picture)).save(path, **options)


def _is_sideways(image: Image.Image) -> bool:
    """Whether EXIF says that width and height change places."""
    if image.format == "PNG" and "exif" not in image.info:  # getexif would decode it to look behind
        return False
    return image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
