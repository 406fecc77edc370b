"""PNG, JPEG, WebP, BMP and 8-bit TIFF: upright, alpha over white; PNG of 16 bits too."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base import optional
from bbdm.pictures import images
from bbdm.pictures.formats import common
from bbdm.pictures.lazy import Geometry, LazyPicture

NAME = "pillow"
GREY = {"1", "L", "LA", "I;16", "I"}  # modes that become one channel, the last two of 16-bit PNG
PNG = b"\x89PNG\r\n\x1a\n"
LEVEL = 6  # of compression, zlib's own
WIDE = 16  # bits of a PNG's values that Pillow would cut to 8 in colour


def open(path: Path) -> LazyPicture:
    """A picture that Pillow reads, 8-bit grey or RGB, or 16-bit in a PNG: 1 or 3 channels.

    Raises:
        ModuleNotFoundError: imagecodecs is not installed, for a PNG of 16-bit colours.
        ValueError: it cannot be read, or has values of more bits in another format.
    """
    with common.reading(path):
        return _Picture(path)


def write(path: Path, array: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write a (1 or 3, H, W) array of uint8, or of uint16 as PNG, with the resolution.

    Raises:
        ModuleNotFoundError: imagecodecs is not installed, for a PNG of 16-bit colours.
        ValueError: the format cannot hold the array.
    """
    suffix = path.suffix.lower()
    common.check_held(suffix, array, ("uint8", "uint16") if suffix == ".png" else ("uint8",), (2,))
    if len(array) not in (1, 3):
        raise ValueError(f"{suffix} holds 1 or 3 channels, got {len(array)}")
    pixels = np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
    if pixels.ndim == 3 and array.dtype == np.uint16:
        path.write_bytes(_imagecodecs().png_encode(pixels))
    else:
        dpi = {"dpi": geometry.kept["dpi"]} if geometry.format == NAME and "dpi" in geometry.kept else {}
        Image.fromarray(pixels).save(path, **dpi)


def write_rows(path: Path, picture: LazyPicture) -> None:
    """Write a picture (1 or 3, H, W) of uint8 or uint16 as PNG, some rows after the other.

    Raises:
        ValueError: PNG cannot hold the picture.
    """
    suffix = path.suffix.lower()
    common.check_held(suffix, picture, ("uint8", "uint16"), (2,))
    channels, height, width = picture.shape
    if channels not in (1, 3):
        raise ValueError(f"{suffix} holds 1 or 3 channels, got {channels}")
    size = picture.dtype.itemsize
    with path.open("wb") as file:

        def chunk(kind: bytes, data: bytes) -> None:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

        file.write(PNG)
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * size, 0 if channels == 1 else 2, 0, 0, 0))
        packer = zlib.compressobj(LEVEL)
        for rows, columns in common.strips((height, width), channels):
            pixels = picture[rows, columns].transpose(1, 2, 0).astype(f">u{size}", order="C")
            lines = pixels.reshape(len(pixels), -1).view(np.uint8)
            coded = np.ones((len(lines), 1 + lines.shape[1]), np.uint8)  # each line begins with 1, for the filter Sub
            coded[:, 1:] = lines
            coded[:, 1 + channels * size :] -= lines[:, : -channels * size]
            chunk(b"IDAT", packer.compress(coded.data))
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")


class _Picture(common.FilePicture):
    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(26)
        self._wide = start[:8] == PNG and start[24:25] == bytes([WIDE])
        with Image.open(path) as image:
            grey = image.mode in GREY
            if image.mode not in images.EIGHT_BIT and not self._wide:
                raise ValueError(f"its mode {image.mode} in {image.format} has more than 8 bits: save it as TIFF")
            dpi = image.info.get("dpi")
        width, height = images.open_size(path)
        self._colours = self._wide and start[25:26] != b"\0"
        if self._colours:
            grey = start[25:26] == b"\x04"
            _imagecodecs()
        self.shape = (1 if grey else 3, height, width)
        self.dtype = np.dtype(np.uint16 if self._wide else np.uint8)
        self.geometry = Geometry(None, NAME, {"dpi": dpi} if dpi else {})

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        if not self._wide:
            whole = images.to_pixels(images.open_image(self.path), self.shape[0])
        elif self._colours:
            whole = self._wide_colours()
        else:
            whole = np.asarray(images.open_image(self.path)).astype(np.uint16)[None]
        return np.ascontiguousarray(whole[(slice(None), *window)])

    def _wide_colours(self) -> npt.NDArray[np.uint16]:
        """16-bit colours, alpha blended with white, upright."""
        common.check_cost((4, *self.size), self.dtype, self.path.stat().st_size)
        pixels = _imagecodecs().png_decode(self.path.read_bytes())
        if pixels.dtype != np.uint16 or pixels.ndim != 3:
            raise ValueError(f"its colours are {pixels.shape} of {pixels.dtype}, and 16 bits are in its header")
        if pixels.shape[2] in (2, 4):
            colours, alpha = pixels[:, :, :-1].astype(np.uint64), pixels[:, :, -1:].astype(np.uint64)
            pixels = ((colours * alpha + (65535 - alpha) * 65535 + 32767) // 65535).astype(np.uint16)
        with Image.open(self.path) as image:
            turn = images.turn(image) if "exif" in image.info else None
        planes = pixels.transpose(2, 0, 1)
        if turn is not None:
            planes = np.stack([np.asarray(Image.fromarray(plane.copy()).transpose(turn)) for plane in planes])
        return planes


def _imagecodecs() -> Any:
    return optional.package("imagecodecs", "a PNG of 16-bit colours")
