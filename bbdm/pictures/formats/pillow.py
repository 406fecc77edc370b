"""PNG, JPEG, WebP and BMP: upright, alpha over white."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from bbdm.pictures import formats, images
from bbdm.pictures.picture import PHOTOGRAPH, Geometry, Header, Picture

SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height


def header(path: Path) -> Header:
    """The header of 1 or 3 channels of 8 bits, or of 16-bit grey in a PNG; ``stored`` is the opened image.

    Raises:
        ValueError: it cannot be read, or has more bits in another format.
    """
    image = Image.open(path)
    wide = image.format == "PNG" and image.mode in ("I", "I;16")
    if image.mode not in images.EIGHT_BIT and not wide:
        image.close()
        raise ValueError(f"its mode {image.mode} in {image.format} has more than 8 bits: save it as TIFF")
    unknown = image.format == "PNG" and "exif" not in image.info  # getexif would decode it to look behind
    sideways = not unknown and image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
    shape = 1 if image.mode in images.GREY else 3, *(image.size if sideways else image.size[::-1])
    most = formats.RATIO * path.stat().st_size if wide else math.inf
    dtype = np.dtype(np.uint16 if wide else np.uint8)
    return Header(path, shape, dtype, Geometry(format=PHOTOGRAPH), most=most, stored=image)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the decoded picture, a view of pixels whose channels are interleaved."""
    image = images.open_image(header.stored or Image.open(header.path), str(header.path))
    array = images.pixels(image) if header.dtype == np.uint8 else np.asarray(image).astype(np.uint16)[None]
    return array[(slice(None), *window)]


def write(path: Path, picture: Picture) -> None:
    """Write (1 or 3, H, W) of uint8, or (1, H, W) of uint16 as PNG."""
    suffix, array = path.suffix.lower(), np.asarray(picture)
    grey = suffix == ".png" and len(array) == 1
    formats.check_held(suffix, picture, ("uint8", "uint16") if grey else ("uint8",), (2,))
    if len(array) not in (1, 3):
        raise ValueError(f"{suffix} holds 1 or 3 channels, got {len(array)}")
    images.image_of(array).save(path)
