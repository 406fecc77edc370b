"""Restoring photographs: a translation of files and folders, each photograph at its own size, by windows.

Photographs are of any mode, and their results have their bits, greys, colour profile and transparency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm.base.atomic import write_atomically
from bbdm.data.pairs import Pairs
from bbdm.data.reading import Strips
from bbdm.data.rows import Row, named
from bbdm.data.spec import Spec
from bbdm.execution.device import best_dtype, find_device
from bbdm.pictures import formats, header, images, read, write
from bbdm.pictures.values import EIGHT_BIT
from bbdm.translation.config import TranslateConfig
from bbdm.translation.files import Files
from bbdm.translation.results import paths_of
from bbdm.translation.translator import Translator

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


class Mode(NamedTuple):
    """What a photograph has besides colours."""

    bits: int = 8  # 8 or 16 of a value
    grey: bool = False  # whether it has one channel
    alpha: npt.NDArray[np.uint8] | None = None  # (H, W); None where all is opaque
    profile: bytes | None = None  # ICC, of the colours


class Photographs(Files):
    """Photographs of files, and the files of their results. Those larger than memory have 8 bits."""

    def __init__(self, pairs: Pairs, channels: int) -> None:
        super().__init__(pairs, channels)
        self.alone = True  # a result is written before the next photograph is read

    def suffix(self, index: int) -> str:
        """PNG, or TIFF of colours of 16 bits: both lose nothing."""
        (head,) = self._heads(index)
        return ".tif" if head.dtype == np.uint16 and head.shape[0] == 3 else ".png"

    def source(self, index: int) -> tuple[torch.Tensor, Mode]:
        """An upright photograph (3, H, W) in [-1, 1], and what it has besides colours.

        Colours under transparency are as the file has them.
        """
        (head,), path = self._heads(index), self.pairs.rows[index]["source"]
        if not head.photograph:
            bits = 8 * head.dtype.itemsize
            scaled = (np.asarray(read(path)).astype(np.float32) * np.float32(2 / (2**bits - 1)) - 1).clip(-1, 1)
            return torch.from_numpy(np.repeat(scaled, 3 // len(scaled), 0)), Mode(bits, len(scaled) == 1)
        image = images.open_image(path)
        alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        profile = None if image.mode == "CMYK" else image.info.get("icc_profile")  # of colours that are converted
        colours = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1
        return torch.from_numpy(colours), Mode(8, image.mode in ("1", "L", "LA", "La"), alpha, profile)

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


class Outcome(NamedTuple):
    """What became of photographs."""

    results: list[Path]  # those that were made
    kept: list[Path]  # those that were there
    errors: list[str]  # why others have none; each names its file


def restore(photographs: Iterable[Path], config: TranslateConfig) -> Outcome:
    """Restore photographs, files or folders; what is wrong with one is named, and the others are done.

    The name of a photograph, of which its seeds are a function, is its path below the folder that was given,
    without suffix; of a file, its name.

    Raises:
        OSError: the disk is full.
        FileNotFoundError: there is no such network.
        ResultsError: the folder has results of other settings.
        ValueError: two results have one name, or a photograph's name; or a folder has no picture.
    """
    rows: dict[str, Row] = {}
    errors: list[str] = []
    for name, path in _files(photographs):
        try:
            head = header(path)
            colours = len(head.sides) == 2 and head.shape[0] in (1, 3) and head.dtype in (np.uint8, np.uint16)
            if not (head.photograph or colours):
                found = f"{len(head.sides)} axes, {head.shape[0]} channels of {head.dtype}"
                raise ValueError(f"{path} has {found}, and a photograph is grey or colour of 8 or 16 bits")
        except (ValueError, FileNotFoundError, PermissionError) as error:
            errors.append(named({"source": path}, error))
            continue
        if name in rows:
            raise ValueError(f"{rows[name]['source']} and {path} would both become {name}.png: rename one")
        rows[name] = {"name": name, "source": path}
    if not rows:
        return Outcome([], [], errors)
    device = find_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = "bf16" if best_dtype(device) == torch.bfloat16 else "fp32"
    config = replace(config, dtype=config.dtype or dtype)
    translator = Translator(config, [*rows.values()], Spec(channels=3), Photographs, independent=True)
    jobs, existing, _ = translator.run(config.solver, config.steps, config.folder)
    results, kept = ([p for p in paths_of(jobs) if (p in existing) == there] for there in (False, True))
    return Outcome(results, kept, [*errors, *translator.bad.values()])


def _files(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The names and paths of files, and of all pictures in folders, those of kinds that are not read too."""
    others = Image.registered_extensions().keys() - formats.SUFFIXES.keys()
    for path in paths:
        if not path.is_dir():
            yield formats.stem_of(path), path
            continue
        found = sorted(formats.pictures_in(path))
        found = [each for each in found if formats.is_picture(each) or each.suffix.lower() in others]
        found = [each for each in found if not any(part.startswith(".") for part in each.relative_to(path).parts)]
        if not any(map(formats.is_picture, found)):
            raise ValueError(f"there is no picture in {path}; suffixes are {', '.join(sorted(formats.SUFFIXES))}")
        for each in found:
            yield each.with_name(formats.stem_of(each)).relative_to(path).as_posix(), each
