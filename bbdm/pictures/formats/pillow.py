"""PNG, JPEG, WebP, BMP, and TIFF that needs conversion to colours: upright, alpha over white."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from bbdm.base import optional
from bbdm.pictures import checks, images
from bbdm.pictures.picture import PHOTOGRAPH, Geometry, Header, Picture

SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height
RESOLUTION = (282, 283, 296)  # tags of a TIFF


def header(path: Path) -> Header:
    """The header of 1 or 3 channels of 8 bits, or of 16 bits in a PNG; ``stored`` is the opened image.

    Raises:
        ValueError: it cannot be read, or has more bits in another format.
    """
    image = Image.open(path)
    narrowed = image.mode in images.EIGHT_BIT and images.WIDE in str(image.tile)
    wide = narrowed or (image.format == "PNG" and image.mode in ("I", "I;16"))
    if image.mode not in images.EIGHT_BIT and not wide:
        image.close()
        raise ValueError(f"its mode {image.mode} in {image.format} has more than 8 bits: save it as TIFF")
    if narrowed:
        _imagecodecs()
    unknown = image.format == "PNG" and "exif" not in image.info  # getexif would decode it to look behind
    sideways = not unknown and image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
    sides = image.size if sideways else image.size[::-1]
    most = checks.RATIO * path.stat().st_size if wide else math.inf
    dtype, channels = np.dtype(np.uint16 if wide else np.uint8), 1 if image.mode in images.GREY else 3
    return Header(path, (channels, *sides), dtype, _geometry(image), most=most, stored=image)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the decoded picture, a view of pixels whose channels are interleaved."""
    image = header.stored or Image.open(header.path)
    if header.dtype == np.uint16 and image.mode in images.EIGHT_BIT:
        return _wide_colours(header.path, image)[(slice(None), *window)]
    image = images.open_image(image, str(header.path))
    array = images.pixels(image) if header.dtype == np.uint8 else np.asarray(image).astype(np.uint16)[None]
    return array[(slice(None), *window)]


def write(path: Path, picture: Picture) -> None:
    """Write (1 or 3, H, W) of uint8, or of uint16 as PNG, with the resolution."""
    suffix, geometry = path.suffix.lower(), picture.geometry
    checks.check_held(suffix, picture, ("uint8", "uint16") if suffix == ".png" else ("uint8",), (2,))
    if len(picture) not in (1, 3):
        raise ValueError(f"{suffix} holds 1 or 3 channels, got {len(picture)}")
    array = np.asarray(picture)
    pixels = np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
    options: dict[str, Any] = {"dpi": geometry.kept["dpi"]} if "dpi" in geometry.kept else {}
    if geometry.format == "tiff" and "resolution" in geometry.kept and suffix in (".tif", ".tiff"):
        x, y = (IFDRational(*each) for each in geometry.kept["resolution"])
        options = {"x_resolution": x, "y_resolution": y, "resolution_unit": geometry.kept["resolutionunit"]}
    if pixels.ndim == 3 and array.dtype == np.uint16:
        path.write_bytes(_imagecodecs().png_encode(pixels))
    else:
        Image.fromarray(pixels).save(path, **options)


def _geometry(image: Image.Image) -> Geometry:
    if image.format != "TIFF":
        return Geometry(None, PHOTOGRAPH, {"dpi": image.info["dpi"]} if "dpi" in image.info else {})
    tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    x, y, unit = (tags.get(tag) for tag in RESOLUTION)
    if not x or not y:
        return Geometry(None, "tiff")
    ratios = tuple((each.numerator, each.denominator) for each in (x, y))
    return Geometry(None, "tiff", {"resolution": ratios, "resolutionunit": unit or 2})


def _wide_colours(path: Path, image: Image.Image) -> npt.NDArray[np.uint16]:
    """16-bit colours, alpha blended with white, upright."""
    with image:
        turn = images.TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1)) if "exif" in image.info else None
    pixels = _imagecodecs().png_decode(path.read_bytes())
    if pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError(f"its colours are {pixels.shape} of {pixels.dtype}, and 16 bits are in its header")
    if pixels.shape[2] in (2, 4):
        colours, alpha = pixels[:, :, :-1].astype(np.uint64), pixels[:, :, -1:].astype(np.uint64)
        pixels = ((colours * alpha + (65535 - alpha) * 65535 + 32767) // 65535).astype(np.uint16)
    planes = pixels.transpose(2, 0, 1)
    if turn is None:
        return planes
    return np.stack([np.asarray(Image.fromarray(plane.copy()).transpose(turn)) for plane in planes])


def _imagecodecs() -> Any:
    return optional.package("imagecodecs", "a PNG of 16-bit colours")
