"""Pillow's pictures to arrays in [-1, 1] and back, sizes, and grids of pictures. Nothing here needs torch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, UnidentifiedImageError

from bbdm.base import sizes
from bbdm.base.scripts import StoppedError, warn
from bbdm.pictures.formats import UnknownFormatError

GREY = {"1", "L", "LA", "I;16", "I"}  # modes of one channel, the last two of 16-bit PNG
EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"}
WIDE = ";16"  # what Pillow calls the stored values of 16 bits, of which it makes 8 in colours
UPRIGHT = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
TURNS = {turn: Image.Transpose[name] for turn, name in enumerate(UPRIGHT, 2)}  # by EXIF's orientation
NAME_HEIGHT = 12  # of the names above a grid's columns, in pixels
RANGE_LIMIT = 1.5  # refuses images in [0, 255] and standardised ones, accepts an overshooting filter
Size = int | tuple[int, int] | tuple[int, int, int]  # a side, (height, width), or (depth, height, width)
Resize = Literal["stretch", "fit"]  # what a size means: exactly this, or at most this


def sides(size: Size, axes: int = 2) -> tuple[int, ...]:
    """The length of each axis: of a side, as many as there are ``axes``."""
    return (size,) * axes if isinstance(size, int) else size


def warn_of_scale(trained: Size, *size: int) -> None:
    """Warn where a side of pictures is at least twice, or at most half, that of the training pictures."""
    wanted = sides(trained, len(size))
    if any(max(pair) >= 2 * min(pair) for pair in zip(size, wanted, strict=True)):
        warn(
            f"the network was trained on pictures of {sizes.shown(trained)}, and is given {sizes.shown(size)}: "
            "it may know nothing of them, so resize them"
        )


def as_size(value: Any, axes: int = 2) -> Size:
    """A size in its one form: an integer for a square, (height, width) otherwise; of 3 axes, 3 integers.

    Raises:
        ValueError: it is neither an integer nor one for each axis, or below 1.
    """
    whole = sides(value, axes)
    fits = isinstance(whole, list | tuple) and len(whole) == axes
    if not fits or not all(isinstance(side, int) and side > 0 for side in whole):
        names = "(height, width)" if axes == 2 else "(depth, height, width)"
        raise ValueError(f"image_size must be an integer or {names}, at least 1, got {value!r}")
    return whole[0] if axes == 2 and whole[0] == whole[1] else tuple(whole)  # pyright: ignore[reportReturnType]


def read_size(text: str) -> Size:
    """A size from text: ``256``, ``256x512`` for height x width, or ``64x96x96`` of volumes.

    Raises:
        ValueError: the text has another form.
    """
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(part.isdecimal() for part in parts):
        form = f"a size is written as 256, or as 256x512 for height x width, got {text!r}"
        raise ValueError(f"{form}; that of a volume as 64x96x96")
    return int(parts[0]) if len(parts) == 1 else tuple(map(int, parts))  # pyright: ignore[reportReturnType]


def resized(image: Image.Image, size: Size, resize: Resize = "stretch") -> Image.Image:
    """A picture with antialiased bilinear filtering at a size, or inside it with its own shape."""
    height, width = sides(size)
    if resize == "fit":
        factor = min(height / image.height, width / image.width)
        height, width = max(1, round(image.height * factor)), max(1, round(image.width * factor))
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def fitted(array: npt.NDArray[Any], size: Size | None, resize: Resize = "stretch") -> npt.NDArray[Any]:
    """(C, H, W) at a size, each channel for itself, or (C, *S) where it is None; see :func:`resized`.

    The array is contiguous and writable; it is copied unless it is that already.
    """
    if size is None or array.shape[1:] in (size, (size,) * (array.ndim - 1)):
        return np.require(array, requirements=["C", "W"])
    if array.ndim != 3:
        raise ValueError(f"it has {array.ndim - 1} axes, and pictures have 2")
    if array.dtype == np.uint8 and len(array) == 3:  # as one picture, whose channels decoders interleave: faster
        image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
        return np.asarray(resized(image, size, resize)).transpose(2, 0, 1).copy()
    return np.stack([np.asarray(resized(Image.fromarray(channel), size, resize)) for channel in array])


def ranges(array: npt.NDArray[Any]) -> tuple[str, str]:
    """The values of a picture for messages, such as ``5 to 7``, and a range that holds them, ``0:255``.

    NaN, infinity and a picture's nodata do not count. The range of integers from 0 on is that of 8, 10, 12,
    14, 16 or 32 bits.
    """
    picture: Any = array  # of which some pixels may have no value
    values = np.asarray(array)[:, ~picture.absent()] if hasattr(array, "absent") and array.ndim > 2 else array
    values = values[np.isfinite(values)]
    if not values.size:
        return "none", "0:1"
    low, high = values.min(), values.max()
    found = f"{low:g} to {high:g}"
    if array.dtype.kind in "iub" and low >= 0:
        return found, f"0:{next(2**bits - 1 for bits in (8, 10, 12, 14, 16, 32, 64) if high < 2**bits)}"
    low = np.floor(low) + 0.0  # which is no -0
    return found, f"{low:g}:{max(np.ceil(high), low + 1) + 0.0:g}"


@contextmanager
def named(action: Literal["read", "write"], path: Path | str, unknown: str = "") -> Iterator[None]:
    """A library's error on a picture becomes a ValueError with the file's name.

    Missing packages, errors of the disk on writing, and errors that name the file stay as they are.
    ``unknown`` is said of a file of no format.
    """
    try:
        yield
    except Exception as error:
        if action == "read" and isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"there is no picture {path}") from error
        kept = (ModuleNotFoundError, StoppedError, *([OSError] if action == "write" else []))
        if isinstance(error, kept) or (isinstance(error, ValueError) and str(path) in str(error)):
            raise
        kind = UnknownFormatError if isinstance(error, UnknownFormatError | UnidentifiedImageError) else ValueError
        lines = str(error).strip().splitlines() or [type(error).__name__]  # ITK says first where in its code it was
        reason = unknown if unknown and kind is UnknownFormatError else lines[-1]
        raise kind(f"cannot {action} the picture {path}: {reason}") from error


def open_image(
    source: Path | bytes,
    name: str = "",
    formats: tuple[str, ...] | None = None,
    check_size: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """A fully read, upright picture.

    Args:
        source: a file, or its bytes.
        name: what messages call it; "" for the path.
        formats: Pillow's names of those that are read, None for all.
        check_size: is called with width and height before pixels are decoded; what it raises is raised.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownFormatError: it is not a picture of these formats.
        ValueError: it cannot be decoded, or has colours of 16 bits.
    """
    name = name or str(source)
    with named("read", name, f"it is not {', '.join(formats or ['a picture'])}"):
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    if check_size is not None:
        check_size(*image.size)
    with named("read", name), image:
        if image.mode in EIGHT_BIT and WIDE in str(getattr(image, "tile", "")):
            raise ValueError("it has 16 bits in each colour, of which 8 would be read: save it as TIFF")
        image.load()
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))  # other EXIF often has wrong types
        return image if turn is None else image.transpose(turn)


def to_png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def convert(image: Image.Image, channels: int = 3) -> Image.Image:
    """The picture as 8-bit grey (1 channel) or RGB (3 channels). Transparent pixels are blended with white.

    Raises:
        ValueError: the picture has more than 8 bits, which have no agreed range; or another number of
            channels.
    """
    if image.mode == {1: "L", 3: "RGB"}.get(channels) and "transparency" not in image.info:
        return image
    if channels not in (1, 3):
        raise ValueError(f"a picture can become 1 or 3 channels, not {channels}: pass a tensor to this network")
    if image.mode not in EIGHT_BIT:
        raise more_than_8_bits(np.asarray(image))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def more_than_8_bits(array: npt.NDArray[Any]) -> ValueError:
    """The error for pictures of more than 8 bits of which nobody said what black and white are."""
    found, usual = ranges(array)
    return ValueError(
        f"pictures of {array.dtype} have no agreed range of values, and this one has {found}: give the range to a "
        f"call in Python, such as source_values='{usual}', or store it in 8 bits"
    )


def pixels(image: Image.Image, channels: int | None = None) -> npt.NDArray[np.uint8]:
    """(C, H, W) uint8 of a picture, a view of its interleaved pixels, not writable; see :func:`convert`.

    ``channels`` are 1 or 3, None for 1 of grey and 3 of others.
    """
    if channels is not None or image.mode not in ("L", "RGB") or "transparency" in image.info:
        image = convert(image, (1 if image.mode in GREY else 3) if channels is None else channels)
    stored = np.asarray(image)
    return stored[None] if stored.ndim == 2 else stored.transpose(2, 0, 1)


def recoloured(array: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    """(channels, H, W) of (1 or 3, H, W): grey as colour, or colour as grey; see :func:`convert`."""
    return pixels(image_of(array), channels).copy()


def to_array(image: Image.Image, channels: int = 3) -> npt.NDArray[np.float32]:
    """(channels, H, W) float32 in [-1, 1] of a picture; see :func:`convert`."""
    return pixels(image, channels).astype(np.float32, order="C") / 127.5 - 1.0


def from_array(array: npt.NDArray[np.floating]) -> Image.Image:
    """A picture from a (C, H, W) or (C, D, H, W) array in [-1, 1]; values outside are clipped.

    One channel is grey and three are RGB. Of other counts, each channel is a grey tile, as many in a row as
    there are rows. Of a volume, the axial, coronal and sagittal slices through its middle stand in a row.

    Raises:
        ValueError: it is empty, or has other axes.
    """
    if array.ndim not in (3, 4) or not array.size:
        raise ValueError(f"a picture needs a (C, H, W) or (C, D, H, W) tensor, got {tuple(array.shape)}")
    if array.ndim == 4:
        middle = [array.take(side // 2, axis) for axis, side in enumerate(array.shape[1:], 1)]
        return grid([[from_array(plane) for plane in middle]], gap=0)
    stored = np.rint((array.astype(np.float32).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    if len(stored) in (1, 3):
        return image_of(stored)
    across, tiles = math.ceil(math.sqrt(len(stored))), [Image.fromarray(channel) for channel in stored]
    return grid([tiles[i : i + across] for i in range(0, len(tiles), across)], gap=0).convert("L")


def image_of(array: npt.NDArray[Any]) -> Image.Image:
    """A picture of (1 or 3, H, W) of uint8, or of (1, H, W) of uint16."""
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def check(source: Any, channels: int, axes: int) -> None:
    """Raise ValueError unless an array or a tensor (B, channels, *S) is of finite floats near [-1, 1].

    ``axes`` is the number of those in S, of which none may be 0.
    """
    if source.ndim != 2 + axes or source.shape[1] != channels or 0 in source.shape:
        wanted = f"(B, {channels}, {sizes.SIDES[axes]})"
        raise ValueError(f"source must be a non-empty {wanted} batch, got shape {tuple(source.shape)}")
    if "float" not in str(source.dtype):
        raise ValueError(f"source must be floats in [-1, 1], got {source.dtype}")
    largest = float(abs(source).max())
    if not np.isfinite(largest):
        raise ValueError("source must be finite, got NaN or infinity")
    if largest > RANGE_LIMIT:
        hint = "if white is 255, pass source_values=(0, 255), target_values=(0, 255)"
        raise ValueError(f"source must be in [-1, 1], got values up to {largest:.4g} in size: {hint}")


def grid(rows: Sequence[Sequence[Image.Image]], gap: int = 2, names: Sequence[str] = ()) -> Image.Image:
    """One picture of all pictures, row by row, on white; cells have the size of the largest.

    Args:
        rows: the pictures of each row.
        gap: the pixels between two pictures.
        names: of the columns, above them, cut off where a column is narrower; fewer names begin again.

    Raises:
        ValueError: there is no picture.
    """
    if not any(rows):
        raise ValueError("a grid needs at least one picture")
    width = gap + max(image.width for row in rows for image in row)
    height = gap + max(image.height for row in rows for image in row)
    columns, top = max(map(len, rows)), gap + (NAME_HEIGHT if names else 0)
    sheet = Image.new("RGB", (gap + columns * width, top + len(rows) * height), "white")
    for j in range(columns if names else 0):
        title = Image.new("RGB", (width - gap, NAME_HEIGHT), "white")
        ImageDraw.Draw(title).text((0, 0), names[j % len(names)], fill="black")
        sheet.paste(title, (gap + j * width, 0))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            sheet.paste(image, (gap + j * width, top + i * height))
    return sheet


def sheet(examples: Sequence[Sequence[Image.Image]], names: Sequence[str] = ()) -> Image.Image:
    """A grid of examples, each of as many pictures side by side, about as high as wide; see :func:`grid`."""
    across = max(1, round(math.sqrt(len(examples) / len(examples[0]))))
    return grid([[*chain(*examples[start : start + across])] for start in range(0, len(examples), across)], names=names)
