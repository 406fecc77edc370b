"""Pictures that others send to the app and to the server: their formats, and a limit on their pixels.

A picture is refused by its header, before its pixels are decoded.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bbdm.pictures import images

SUFFIXES = {"BMP": (".bmp",), "JPEG": (".jpeg", ".jpg"), "PNG": (".png",), "WEBP": (".webp",)}
# Pillow's names of those that are read; it would run other programs for some others
FORMATS = tuple(SUFFIXES)
# of a picture that is too large
ADVICE = "the commands bbdm restore and bbdm translate --window take larger ones"


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
        padding = f", with sides padded to multiples of {stride}" if stride > 1 else ""
        limit = f"the picture {name} may have at most {max_pixels} pixels (max_pixels){padding}"
        raise ValueError(f"{limit}; got height x width {height} x {width}: {ADVICE}")


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

    def check_size(width: int, height: int) -> None:
        check_pixels(name, width, height, max_pixels, stride)

    images.open_image(source, name, FORMATS, check_size, decode=False).close()


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

    return images.open_image(source, name, FORMATS, check_size)
