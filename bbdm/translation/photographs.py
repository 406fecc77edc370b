"""Photographs that are restored: any mode of 8 bits, whose greys, profile and transparency results have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm import pictures
from bbdm.base.atomic import write_atomically
from bbdm.data.names import RowName
from bbdm.data.rows import Row, named
from bbdm.pictures import Derivation, Header, formats, images
from bbdm.translation.files import SAMPLE, Files

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


class Mode(NamedTuple):
    """What a photograph has besides colours."""

    grey: bool  # whether it has one channel
    alpha: npt.NDArray[np.uint8] | None  # (H, W); None where all is opaque
    profile: bytes | None  # ICC, of the colours


class Photographs(Files):
    """Photographs of files, and the PNG files of their results, which lose nothing."""

    ALONE = True  # a result is written before the next photograph is read

    def suffix(self, index: int, kind: str = SAMPLE) -> str:
        """That of PNG."""
        return ".png"

    def source(self, index: int) -> tuple[torch.Tensor, Mode]:
        """An upright photograph (3, H, W) in [-1, 1], and what it has besides colours.

        Colours under transparency are as the file has them.
        """
        (cell,) = self._cells(index)
        image = (
            cell.image() if cell.header().photograph else images.image_of(np.asarray(cell.read()))
        )
        alpha = (
            np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        )
        # of colours that are converted
        profile = None if image.mode == "CMYK" else image.info.get("icc_profile")
        levels = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
        colours = levels / np.float32(127.5) - 1
        return torch.from_numpy(colours), Mode(image.mode in ("1", "L", "LA", "La"), alpha, profile)

    def save(
        self,
        result: Any,
        details: Mode,
        path: Path,
        kind: str = SAMPLE,
        derivation: Derivation | None = None,
    ) -> None:
        """Write colours (3, H, W) in [-1, 1] in a mode."""
        colours = result.cpu().numpy()
        pixels = np.tensordot(GREY, colours, 1) if details.grey else colours.transpose(1, 2, 0)
        levels = np.rint((pixels.clip(-1, 1) + 1) * np.float32(127.5))
        image = Image.fromarray(levels.astype(np.uint8))
        if details.alpha is not None:
            image.putalpha(Image.fromarray(details.alpha))
        options = images.described(".png", derivation)
        write_atomically(
            path, lambda part: image.save(part, "png", icc_profile=details.profile, **options)
        )


def read_photographs(paths: Iterable[Path]) -> tuple[list[Row], list[str]]:
    """The rows of photographs, files or those of folders, and why others are none; a reason names its file.

    The name of a photograph, of which its seeds are a function, is its path below the folder that was given,
    without suffix; of a file, its name.

    Raises:
        ValueError: two results have one name, or a folder has no picture.
    """
    rows: dict[str, Row] = {}
    errors: list[str] = []
    for text, path in _files(paths):
        try:
            name = RowName(text)
            _check(pictures.header(path))
        except (ValueError, FileNotFoundError, PermissionError) as error:
            errors.append(named({"name": text, "source": path}, error))
            continue
        if name in rows:
            raise ValueError(
                f"{rows[name]['source']} and {path} would both become {name}.png: rename one"
            )
        rows[name] = {"name": name, "source": path}
    return list(rows.values()), errors


def _check(head: Header) -> None:
    """Raise ValueError unless a file holds a photograph, or a flat picture of 8 bits that could be one."""
    flat = len(head.sides) == 2 and head.shape[0] in (1, 3) and head.dtype == np.uint8
    if not (head.photograph or flat):
        kind = f"{len(head.sides)} axes, {head.shape[0]} channels of {head.dtype}"
        raise ValueError(f"{head.path} has {kind}, and a photograph is grey or colour of 8 bits")


def _files(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The names and paths of files, and of all pictures in folders, those of kinds that are not read too."""
    for path in paths:
        if not path.is_dir():
            yield formats.stem_of(path), path
            continue
        files = [file for file in sorted(formats.pictures_in(path)) if _may_be_picture(file, path)]
        if not any(formats.is_picture(file) for file in files):
            suffixes = ", ".join(formats.suffixes_of_pictures())
            raise ValueError(f"there is no picture in {path}; suffixes are {suffixes}")
        for each in files:
            below = each.relative_to(path)
            yield below.with_name(formats.stem_of(each)).as_posix(), each


def _may_be_picture(path: Path, folder: Path) -> bool:
    """Whether a file below a folder is not hidden and has a suffix of pictures, also of those not read."""
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    return formats.is_picture(path) or path.suffix.lower() in Image.registered_extensions()
