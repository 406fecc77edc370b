"""Photographs of any mode, whose results have their bits, greys, colour profile and transparency."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm.base.atomic import write_atomically
from bbdm.data.strips import Strips
from bbdm.pictures import Header, header, images, read, write
from bbdm.pictures.values import EIGHT_BIT
from bbdm.translation.files import Files

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


class Mode(NamedTuple):
    """What a photograph has besides colours."""

    bits: int = 8  # 8 or 16 of a value
    grey: bool = False  # whether it has one channel
    alpha: npt.NDArray[np.uint8] | None = None  # (H, W); None where all is opaque
    profile: bytes | None = None  # ICC, of the colours


def check_photograph(path: Path, head: Header) -> None:
    """Raise ValueError unless a file's picture is grey or colour of 8 or 16 bits, by its header."""
    if head.photograph or (len(head.sides) == 2 and head.shape[0] in (1, 3) and head.dtype in (np.uint8, np.uint16)):
        return
    found = f"{len(head.sides)} axes, {head.shape[0]} channels of {head.dtype}"
    raise ValueError(f"{path} has {found}, and a photograph is grey or colour of 8 or 16 bits")


def open_photograph(path: Path) -> tuple[torch.Tensor, Mode]:
    """The upright photograph of a file, (3, H, W) in [-1, 1]; colours under transparency are as it has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is not grey or colour of 8 or 16 bits.
    """
    head = header(path)
    check_photograph(path, head)
    if not head.photograph:
        bits = 8 * head.dtype.itemsize
        scaled = (np.asarray(read(head)).astype(np.float32) * np.float32(2 / (2**bits - 1)) - 1).clip(-1, 1)
        return torch.from_numpy(np.repeat(scaled, 3 // len(scaled), 0)), Mode(bits, len(scaled) == 1)
    image = images.open_image(path)
    alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    profile = None if image.mode == "CMYK" else image.info.get("icc_profile")  # of colours that are converted
    colours = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1
    return torch.from_numpy(colours), Mode(8, image.mode in ("1", "L", "LA", "La"), alpha, profile)


class Photographs(Files):
    """Photographs of files, and the PNG files of their results. Those larger than memory have 8 bits."""

    @property
    def alone(self) -> bool:
        """A result is written before the next photograph is read."""
        return True

    def suffix(self, index: int) -> str:
        """PNG loses nothing."""
        return ".png"

    def source(self, index: int) -> tuple[torch.Tensor, Mode]:
        """A photograph, and what it has besides colours."""
        return open_photograph(self.pairs.rows[index]["source"])

    def save(self, result: Any, about: Mode, path: Path) -> None:
        """Write colours (3, H, W) in [-1, 1] in a mode."""
        most = 2**about.bits - 1
        pixels = np.tensordot(GREY, result.cpu().numpy(), 1)[None] if about.grey else result.cpu().numpy()
        stored = np.rint((pixels.clip(-1, 1) + 1) * np.float32(most / 2)).astype(f"u{about.bits // 8}")
        if about.bits == 16:
            return write(path, stored)
        image = Image.fromarray(stored[0] if about.grey else np.ascontiguousarray(stored.transpose(1, 2, 0)))
        if about.alpha is not None:
            image.putalpha(Image.fromarray(about.alpha))
        write_atomically(path, lambda part: image.save(part, "png", icc_profile=about.profile))

    def strips(self, index: int) -> Strips:
        """A photograph of which rows of pixels are read; ValueError where it has other values than 8 bits."""
        strips = super().strips(index)
        if strips.dtype != EIGHT_BIT.dtype:
            found = f"{self.shown(index)} is larger than memory and has {strips.dtype} values"
            raise ValueError(f"{found}: give more memory")
        return strips
