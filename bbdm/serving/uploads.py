"""Pictures that others send to the app and to the server: their formats, and a limit on their pixels.

A picture is refused by its header, before its pixels are decoded.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from bbdm.pictures import images

SUFFIXES = {"BMP": (".bmp",), "JPEG": (".jpeg", ".jpg"), "PNG": (".png",), "WEBP": (".webp",)}
FORMATS = tuple(SUFFIXES)  # Pillow's names of those that are read; it would run other programs for some others


def check_pixels(name: str, width: int, height: int, max_pixels: int, stride: int = 1) -> None:
    """Check the size of a picture.

    Args:
        name: of the picture, for the message.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        max_pixels: the most that a picture may have.
        stride: sides count as padded to multiples of it.

    Raises:
        ValueError: the picture has more pixels.
    """
    padded_height = height + -height % stride
    padded_width = width + -width % stride
    if padded_height * padded_width > max_pixels:
        raise _too_large(name, f"height x width {height} x {width}", max_pixels, stride)


def check_header(source: Path | bytes, name: str, max_pixels: int, stride: int = 1) -> None:
    """Check the format and the size of a picture without decoding its pixels.

    Args:
        source: a file, or its bytes.
        name: of the picture, for messages.
        max_pixels: the most that a picture may have.
        stride: sides count as padded to multiples of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of no format in ``FORMATS``, or has more pixels.
    """
    with images.named("read", name, f"it is not {', '.join(FORMATS)}"):
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            with Image.open(file, formats=FORMATS) as image:
                size = image.size
        except Image.DecompressionBombError:
            size = None  # which Pillow does not say of such a picture
    if size is not None:
        check_pixels(name, *size, max_pixels, stride)
        return
    limit = Image.MAX_IMAGE_PIXELS or 0
    pillows_limit = 2 * limit
    if max_pixels <= pillows_limit:
        raise _too_large(name, f"more than {pillows_limit}", max_pixels, stride)


def read(source: Path | bytes, name: str, max_pixels: int, stride: int = 1) -> Image.Image:
    """A fully read, upright picture.

    Args:
        source: a file, or its bytes.
        name: of the picture, for messages.
        max_pixels: the most that a picture may have.
        stride: sides count as padded to multiples of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of no format in ``FORMATS``, has more pixels, or cannot be decoded.
    """

    def check_size(width: int, height: int) -> None:
        check_pixels(name, width, height, max_pixels, stride)

    check_header(source, name, max_pixels, stride)
    return images.open_image(source, name, FORMATS, check_size)


def _too_large(name: str, got: str, max_pixels: int, stride: int) -> ValueError:
    padding = f", with sides padded to multiples of {stride}" if stride > 1 else ""
    return ValueError(f"the picture {name} may have at most {max_pixels} pixels (max_pixels){padding}; got {got}")
