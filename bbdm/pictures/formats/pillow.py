"""PNG, JPEG, WebP, BMP, and TIFF that needs conversion to colours: upright, alpha over white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from bbdm.base import optional
from bbdm.pictures import checks, images
from bbdm.pictures.picture import PHOTOGRAPH, Geometry, Header, Picture

GREY = {"1", "L", "LA", "I;16", "I"}  # modes that become one channel, the last two of 16-bit PNG
PNG = b"\x89PNG\r\n\x1a\n"
BITS, COLOURS = 24, 25  # bytes of a PNG that say the bits of a value, and its colours: grey, grey and alpha, others
SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height
RESOLUTION = (282, 283, 296)  # tags of a TIFF


def header(path: Path) -> Header:
    """The header of a picture of 1 or 3 channels of 8 bits, or of 16 bits in a PNG.

    Raises:
        ModuleNotFoundError: imagecodecs is not installed, for a PNG of 16-bit colours.
        ValueError: it cannot be read, or has more bits in another format.
    """
    wide, colours = _wide(path)
    with Image.open(path) as image:
        if image.mode not in images.EIGHT_BIT and wide is None:
            raise ValueError(f"its mode {image.mode} in {image.format} has more than 8 bits: save it as TIFF")
        grey = image.mode in GREY if colours is None else colours == 4
        unknown = image.format == "PNG" and "exif" not in image.info  # getexif would decode it to look behind
        sideways = not unknown and image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
        sides = image.size if sideways else image.size[::-1]
        geometry = _geometry(image)
    if colours is not None:
        _imagecodecs()
    return Header(path, (1 if grey else 3, *sides), np.dtype(wide or np.uint8), geometry)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the decoded picture, a view of pixels whose channels are interleaved."""
    wide, colours = _wide(header.path)
    if colours is not None:
        array = _wide_colours(header)
    elif wide:
        array = np.asarray(images.open_image(header.path)).astype(np.uint16)[None]
    else:
        image = images.convert(images.open_image(header.path), header.shape[0])
        array = np.asarray(image).reshape(*header.sides, header.shape[0]).transpose(2, 0, 1)
    return array[(slice(None), *window)]


def write(path: Path, picture: Picture) -> None:
    """Write (1 or 3, H, W) of uint8, or of uint16 as PNG, with the resolution.

    Raises:
        ModuleNotFoundError: imagecodecs is not installed, for a PNG of 16-bit colours.
        ValueError: the format cannot hold the picture.
    """
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


def _wide(path: Path) -> tuple[type | None, int | None]:
    """Of a PNG of 16 bits, the type and, where Pillow would cut the values to 8 bits, the kind of colours."""
    with path.open("rb") as file:
        start = file.read(COLOURS + 1)
    if start[:8] != PNG or start[BITS : BITS + 1] != b"\x10":
        return None, None
    return np.uint16, start[COLOURS] if len(start) > COLOURS and start[COLOURS] else None


def _geometry(image: Image.Image) -> Geometry:
    if image.format != "TIFF":
        return Geometry(None, PHOTOGRAPH, {"dpi": image.info["dpi"]} if "dpi" in image.info else {})
    tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    x, y, unit = (tags.get(tag) for tag in RESOLUTION)
    if not x or not y:
        return Geometry(None, "tiff")
    ratios = tuple((each.numerator, each.denominator) for each in (x, y))
    return Geometry(None, "tiff", {"resolution": ratios, "resolutionunit": unit or 2})


def _wide_colours(header: Header) -> npt.NDArray[np.uint16]:
    """16-bit colours, alpha blended with white, upright."""
    checks.check_cost((4, *header.sides), header.dtype, header.path.stat().st_size)
    pixels = _imagecodecs().png_decode(header.path.read_bytes())
    if pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError(f"its colours are {pixels.shape} of {pixels.dtype}, and 16 bits are in its header")
    if pixels.shape[2] in (2, 4):
        colours, alpha = pixels[:, :, :-1].astype(np.uint64), pixels[:, :, -1:].astype(np.uint64)
        pixels = ((colours * alpha + (65535 - alpha) * 65535 + 32767) // 65535).astype(np.uint16)
    with Image.open(header.path) as image:
        turn = images.turn(image) if "exif" in image.info else None
    planes = pixels.transpose(2, 0, 1)
    if turn is None:
        return planes
    return np.stack([np.asarray(Image.fromarray(plane.copy()).transpose(turn)) for plane in planes])


def _imagecodecs() -> Any:
    return optional.package("imagecodecs", "a PNG of 16-bit colours")
