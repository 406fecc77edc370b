"""Pillow's pictures to arrays in [-1, 1] and back, sizes, and grids of pictures. Nothing here needs torch."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, UnidentifiedImageError
from PIL import WebPImagePlugin as WebPImagePlugin  # which Image.preinit leaves out
from PIL.PngImagePlugin import PngInfo

from bbdm.base import sizes
from bbdm.base.scripts import StoppedError, warn
from bbdm.pictures.derivation import Derivation
from bbdm.pictures.formats import UnknownFormatError
from bbdm.pictures.windows import DEFLATE, check_cost

MODES = {1: "L", 3: "RGB"}  # by the number of channels
GREY = {"1", "L", "LA", "I;16", "I"}  # modes of one channel, the last two of 16-bit PNG
EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"}
WIDE = ";16"  # what Pillow calls the stored values of 16 bits, of which it makes 8 in colours
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DESCRIPTION = "Description"  # the registered keyword of a PNG's text
NAME_HEIGHT = 12  # of the names above a grid's columns, in pixels
ITK_ERROR = "Exception thrown in SimpleITK"  # what the first line of its errors begins with
LONGEST_REASON = 300  # letters of a library's error
# refuses images in [0, 255] and standardised ones, accepts an overshooting filter
RANGE_LIMIT = 1.5
Image.preinit()  # fills Image.OPEN
PHOTOGRAPHS = ("PNG", "JPEG", "WEBP", "BMP")  # what Pillow calls the formats that are read
SIGNATURE = 16  # bytes by which Pillow knows a format
LARGE = 2**26  # pixels from which on a picture's cost is checked before it is decoded
PIXELS_OF_A_BYTE = 8  # at most, in a PNG
# a side, (height, width), or (depth, height, width)
Size = int | tuple[int, int] | tuple[int, int, int]
Resize = Literal["stretch", "fit"]  # what a size means: exactly this, or at most this


def sides(size: Size, axes: int = 2) -> tuple[int, ...]:
    """The length of each axis: of a side, as many as there are ``axes``."""
    return (size,) * axes if isinstance(size, int) else size


def warning_of_scale(trained: Size, *size: int) -> str | None:
    """What is said where a side of pictures is at least twice, or at most half, that of training; or None."""
    wanted = sides(trained, len(size))
    if any(max(pair) >= 2 * min(pair) for pair in zip(size, wanted, strict=True)):
        return (
            f"the network was trained on pictures of {sizes.shown(trained)}, and is given {sizes.shown(size)}: "
            "it may know nothing of them, so resize them"
        )
    return None


def warn_of_scale(trained: Size, *size: int) -> None:
    """Warn of :func:`warning_of_scale`."""
    warning = warning_of_scale(trained, *size)
    if warning is not None:
        warn(warning)


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
    if axes == 3:
        depth, height, width = whole
        return depth, height, width
    height, width = whole
    if height == width:
        return height
    return height, width


def read_size(text: str) -> Size:
    """A size from text: ``256``, ``256x512`` for height x width, or ``64x96x96`` of volumes.

    Raises:
        ValueError: the text has another form.
    """
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(part.isdecimal() for part in parts):
        form = f"a size is written as 256, or as 256x512 for height x width, got {text!r}"
        raise ValueError(f"{form}; that of a volume as 64x96x96")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        return numbers[0]
    *depth, height, width = numbers
    if depth:
        return depth[0], height, width
    return height, width


def resized(image: Image.Image, size: Size, resize: Resize = "stretch") -> Image.Image:
    """A picture with antialiased bilinear filtering at a size, or inside it with its own shape."""
    height, width = sides(size)
    if resize == "fit":
        factor = min(height / image.height, width / image.width)
        height = max(1, round(image.height * factor))
        width = max(1, round(image.width * factor))
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def fitted(
    array: npt.NDArray[Any], size: Size | None, resize: Resize = "stretch"
) -> npt.NDArray[Any]:
    """(C, H, W) at a size, each channel for itself, or (C, *S) where it is None; see :func:`resized`.

    The array is contiguous and writable; it is copied unless it is that already.
    """
    if size is None or array.shape[1:] in (size, (size,) * (array.ndim - 1)):
        return np.require(array, requirements=["C", "W"])
    if array.ndim != 3:
        raise ValueError(f"it has {array.ndim - 1} axes, and pictures have 2")
    # as one picture, whose channels decoders interleave: faster
    if array.dtype == np.uint8 and len(array) == 3:
        image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
        return np.asarray(resized(image, size, resize)).transpose(2, 0, 1).copy()
    return np.stack(
        [np.asarray(resized(Image.fromarray(channel), size, resize)) for channel in array]
    )


def ranges(array: npt.NDArray[Any]) -> tuple[str, str]:
    """The values of a picture for messages, such as ``5 to 7``, and a range that holds them, ``0:255``.

    NaN, infinity and a picture's nodata do not count. The range of integers from 0 on is that of 8, 10, 12,
    14, 16 or 32 bits.
    """
    picture: Any = array  # of which some pixels may have no value
    values = np.asarray(array)
    if hasattr(array, "absent") and array.ndim > 2:
        values = values[:, ~picture.absent()]
    values = values[np.isfinite(values)]
    if not values.size:
        return "none", "0:1"
    low = values.min()
    high = values.max()
    shown = f"{low:g} to {high:g}"
    if array.dtype.kind in "iub" and low >= 0:
        bits = next(bits for bits in (8, 10, 12, 14, 16, 32, 64) if high < 2**bits)
        return shown, f"0:{2**bits - 1}"
    first = np.floor(low) + 0.0  # which is no -0
    last = max(np.ceil(high), first + 1) + 0.0
    return shown, f"{first:g}:{last:g}"


@contextmanager
def named(action: Literal["read", "write"], path: Path | str, unknown: str = "") -> Iterator[None]:
    """A library's error on a picture becomes a ValueError with the file's name, in one line.

    Missing packages, errors of the disk on writing, and errors that name the file stay as they are.
    ``unknown`` is said of a file of no format.
    """
    try:
        yield
    except Exception as error:
        if action == "read" and isinstance(error, FileNotFoundError):
            raise FileNotFoundError(no_picture(path)) from error
        if isinstance(error, ModuleNotFoundError | StoppedError):
            raise
        if action == "write" and isinstance(error, OSError):
            raise
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        if not isinstance(error, UnknownFormatError | UnidentifiedImageError):
            raise ValueError(f"cannot {action} the picture {path}: {_reason(error)}") from error
        raise UnknownFormatError(
            f"cannot {action} the picture {path}: {unknown or _reason(error)}"
        ) from error


def no_picture(path: Path | str) -> str:
    """What is said of a file that is not there; of a link, also where it leads and what fetches the file."""
    if os.path.islink(path):
        target = os.readlink(path)
        advice = "a data set of git-annex or DataLad fetches it by git annex get, or datalad get"
        return f"there is no picture {path}: it is a link to {target}, which is not there; {advice}"
    return f"there is no picture {path}"


def _reason(error: Exception) -> str:
    """The text of a library's error, in one line."""
    lines = str(error).strip().split("\n")
    if ITK_ERROR in lines[0]:  # where in its code it was
        lines = lines[-1:]
    text = " ".join(" ".join(lines).split()) or type(error).__name__
    if len(text) > LONGEST_REASON:
        return f"{text[:LONGEST_REASON]} ..."
    return text


def open_image(
    source: Path | bytes,
    name: str = "",
    formats: tuple[str, ...] | None = None,
    check_size: Callable[[int, int], None] | None = None,
    decode: bool = True,
) -> Image.Image:
    """A fully read, upright picture, of any size that :func:`check_cost` allows.

    Args:
        source: a file, or its bytes.
        name: what messages call it; "" for the path.
        formats: Pillow's names of those that are read, None for all.
        check_size: is called with width and height before pixels are decoded; what it raises is raised.
        decode: whether pixels are read; otherwise the picture lies as the file has it.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownFormatError: it is not a picture of these formats.
        ValueError: it cannot be decoded, has colours of 16 bits, or more values than are read at once.
    """
    name = name or str(source)
    with named("read", name, f"it is not {', '.join(formats or ['a picture'])}"):
        image = None
        if isinstance(source, bytes):
            file: Any = io.BytesIO(source)
            start = source[:SIGNATURE]
        else:
            file = source
            with source.open("rb") as opened:
                start = opened.read(SIGNATURE)
        # as Image.open does, which warns of large pictures
        for name_of_format in formats or PHOTOGRAPHS:
            factory, accepts = Image.OPEN[name_of_format]
            if accepts is not None and accepts(start) is True:
                # Image.open says what is wrong
                with suppress(SyntaxError, IndexError, TypeError, struct.error):
                    image = factory(file, "")
        if image is None:
            image = Image.open(file, formats=formats)
    if check_size is not None:
        check_size(*image.size)
    width, height = image.size
    if width * height > LARGE:
        most = math.inf
        if image.format == "PNG":
            count = len(source) if isinstance(source, bytes) else source.stat().st_size
            most = count * DEFLATE * PIXELS_OF_A_BYTE
        with named("read", name):
            check_cost((len(image.getbands()), height, width), np.dtype(np.uint8), most)
    if not decode:
        return image
    with named("read", name), image:
        if image.mode in EIGHT_BIT and WIDE in str(getattr(image, "tile", "")):
            raise ValueError(
                "it has 16 bits in each colour, of which 8 would be read: save it as TIFF"
            )
        image.load()
        # other EXIF often has wrong types
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is None:
            return image
        return image.transpose(turn)


def described(suffix: str, derivation: Derivation | None) -> dict[str, Any]:
    """Options of Pillow that write what made a picture: a text of PNG, EXIF of JPEG and WebP, none of BMP."""
    if derivation is None or suffix == ".bmp":
        return {}
    if suffix == ".png":
        information = PngInfo()
        information.add_text(DESCRIPTION, derivation.text)
        return {"pnginfo": information}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = derivation.text
    return {"exif": exif}


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
    transparent = "transparency" in image.info
    if image.mode == MODES.get(channels) and not transparent:
        return image
    if channels not in MODES:
        raise ValueError(
            f"a picture can become 1 or 3 channels, not {channels}: pass a tensor to this network"
        )
    if image.mode not in EIGHT_BIT:
        raise more_than_8_bits(np.asarray(image))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(MODES[channels])


def more_than_8_bits(array: npt.NDArray[Any]) -> ValueError:
    """The error for pictures of more than 8 bits of which nobody said what black and white are."""
    limits, usual = ranges(array)
    return ValueError(
        f"pictures of {array.dtype} have no agreed range of values, and this one has {limits}: give the range to a "
        f"call in Python, such as source_values='{usual}', or store it in 8 bits"
    )


def has_nan(name: str, dtype: str) -> ValueError:
    """The error for a result with NaN, which integers cannot hold; ``name`` is that of its source, or ""."""
    result = f"the result of {name}" if name else "the result"
    remedy = "take dtype float32 in place of 16 bits, or other weights if these have NaN"
    return ValueError(f"{result} has NaN, which {dtype} cannot hold: {remedy}")


def pixels(image: Image.Image, channels: int | None = None) -> npt.NDArray[np.uint8]:
    """(C, H, W) uint8 of a picture, a view of its interleaved pixels, not writable; see :func:`convert`.

    ``channels`` are 1 or 3, None for 1 of grey and 3 of others.
    """
    if channels is not None:
        image = convert(image, channels)
    elif image.mode not in ("L", "RGB") or "transparency" in image.info:
        image = convert(image, 1 if image.mode in GREY else 3)
    stored = np.asarray(image)
    if stored.ndim == 2:
        return stored[None]
    return stored.transpose(2, 0, 1)


def recoloured(array: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    """(channels, *S) of (1 or 3, *S): grey as colour, or colour as grey; see :func:`convert`."""
    flat = array.reshape(len(array), -1, array.shape[-1])
    return pixels(image_of(flat), channels).copy().reshape(channels, *array.shape[1:])


def to_array(image: Image.Image, channels: int = 3) -> npt.NDArray[np.float32]:
    """(channels, H, W) float32 in [-1, 1] of a picture; see :func:`convert`."""
    return pixels(image, channels).astype(np.float32, order="C") / 127.5 - 1.0


def from_array(array: npt.NDArray[np.floating]) -> Image.Image:
    """A picture from a (C, H, W) or (C, D, H, W) array in [-1, 1]; values outside are clipped.

    One channel is grey and three are RGB. Of other counts, each channel is a grey tile, as many in a row as
    there are rows. Of a volume, the axial, coronal and sagittal slices through its middle stand in a row.

    Raises:
        ValueError: it is empty, or has other axes, or NaN.
    """
    if array.ndim not in (3, 4) or not array.size:
        raise ValueError(
            f"a picture needs a (C, H, W) or (C, D, H, W) tensor, got {tuple(array.shape)}"
        )
    if np.isnan(array).any():
        raise has_nan("", "uint8")
    if array.ndim == 4:
        middle = [array.take(side // 2, axis) for axis, side in enumerate(array.shape[1:], 1)]
        return grid([[from_array(plane) for plane in middle]], gap=0)
    stored = np.rint((array.astype(np.float32).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    if len(stored) in (1, 3):
        return image_of(stored)
    tiles = [Image.fromarray(channel) for channel in stored]
    across = math.ceil(math.sqrt(len(tiles)))
    return grid(
        [tiles[start : start + across] for start in range(0, len(tiles), across)], gap=0
    ).convert("L")


def image_of(array: npt.NDArray[Any]) -> Image.Image:
    """A picture of (1 or 3, H, W) of uint8, or of (1, H, W) of uint16."""
    if len(array) == 1:
        return Image.fromarray(array[0])
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))


def check(source: Any, channels: int, axes: int) -> None:
    """Raise ValueError unless an array or a tensor (B, channels, *S) is of finite floats near [-1, 1].

    ``axes`` is the number of those in S, of which none may be 0.
    """
    if source.ndim != 2 + axes or source.shape[1] != channels or 0 in source.shape:
        wanted = f"(B, {channels}, {sizes.SIDES[axes]})"
        raise ValueError(
            f"source must be a non-empty {wanted} batch, got shape {tuple(source.shape)}"
        )
    if "float" not in str(source.dtype):
        raise ValueError(f"source must be floats in [-1, 1], got {source.dtype}")
    largest = float(abs(source).max())
    if not math.isfinite(largest):
        raise ValueError("source must be finite, got NaN or infinity")
    if largest > RANGE_LIMIT:
        hint = "if white is 255, pass source_values=(0, 255), target_values=(0, 255)"
        raise ValueError(
            f"source must be in [-1, 1], got values up to {largest:.4g} in size: {hint}"
        )


def grid(
    rows: Sequence[Sequence[Image.Image]], gap: int = 2, names: Sequence[str] = ()
) -> Image.Image:
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
    columns = max(len(row) for row in rows)
    top = gap
    if names:
        top += NAME_HEIGHT
    sheet = Image.new("RGB", (gap + columns * width, top + len(rows) * height), "white")
    if names:
        for column in range(columns):
            title = Image.new("RGB", (width - gap, NAME_HEIGHT), "white")
            ImageDraw.Draw(title).text((0, 0), names[column % len(names)], fill="black")
            sheet.paste(title, (gap + column * width, 0))
    for i, row in enumerate(rows):
        for column, image in enumerate(row):
            sheet.paste(image, (gap + column * width, top + i * height))
    return sheet


def sheet(examples: Sequence[Sequence[Image.Image]], names: Sequence[str] = ()) -> Image.Image:
    """A grid of examples, each of as many pictures side by side, about as high as wide; see :func:`grid`."""
    across = max(1, round(math.sqrt(len(examples) / len(examples[0]))))
    rows: list[list[Image.Image]] = []
    for start in range(0, len(examples), across):
        rows.append([image for example in examples[start : start + across] for image in example])
    return grid(rows, names=names)
