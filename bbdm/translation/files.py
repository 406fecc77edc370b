"""What a translation reads of a data set's rows, and the files that it writes of their results.

Photographs that are restored are of any mode of 8 bits, and their results have their greys, colour profile
and transparency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm import pictures
from bbdm.base.atomic import write_atomically
from bbdm.data.examples import known_conditions, stacked
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row, first, named, shown
from bbdm.data.spec import AXES, Spec
from bbdm.files.content import Checkpoint
from bbdm.networks.conditions import DIRECTION
from bbdm.pictures import Header, Picture, formats, images
from bbdm.pictures.picture import scale
from bbdm.pictures.values import EIGHT_BIT, Values, check_finite
from bbdm.translation.config import TranslateConfig

SHOWN = 512  # pixels of the longest side in a grid
DEFAULT_SIZE = 256  # for checkpoints without the size of their pictures
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
Array = npt.NDArray[Any]
Compared = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Files:
    """The pictures of a data set by row, and the files of their results.

    Args:
        pairs: the pictures of a data set.
        channels: the number that results have.

    Attributes:
        names: of the rows, below which results are written.
        photographs: whether all are grey or colour of 8 bits.
        volumes: whether rows are volumes, whose slices are translated in batches.
        alone: whether sources are translated one at a time.
    """

    ALONE: ClassVar[bool] = False

    def __init__(self, pairs: Pairs, channels: int) -> None:
        self.pairs, self.channels = pairs, channels
        self.names: list[str] = getattr(pairs.rows, "names", None) or [row["name"] for row in pairs.rows]
        heads = first(pairs.rows, lambda row: pairs.reader.heads(row)["source"])
        self.photographs = pairs.spec.eight_bit and all(head.photograph for head in heads)
        self._axis = None if pairs.spec.slices is None else 1 + AXES[pairs.spec.slices]
        self.volumes = self._axis is not None or pairs.spec.axes == 3
        self.alone = self.ALONE or self.volumes

    def _heads(self, index: int) -> list[Header | Picture]:
        """The headers of a row's source."""
        return [*map(self.pairs.reader.header, self.pairs.reader.columns(self.pairs.rows[index])["source"])]

    def conditions(self, indices: Sequence[int]) -> dict[str, Any]:
        """What the network sees besides some sources, by name.

        Of a volume that is translated by slices, images are (D, K, H, W).

        Raises:
            ValueError: something cannot be read, or does not fit; the message names it.
        """
        rows = [self.pairs.conditions(self.pairs.rows[index]) for index in indices]
        found: dict[str, Any] = {}
        for name in rows[0]:
            values = [each[name] for each in rows]
            is_image = name in self.pairs.further.images
            if is_image and self._axis is not None:
                (volume,) = values
                found[name] = scale(volume.movedim(self._axis, 0))
            else:
                found[name] = scale(stacked(values)) if is_image else stacked(values)
        return found

    def suffix(self, index: int) -> str:
        """The suffix of a result: the source's where its format holds it; of a folder of DICOM .nii.gz."""
        cell = self.pairs.reader.columns(self.pairs.rows[index])["source"][0]
        return cell.result_suffix(self.channels, self.pairs.spec.target_values)

    def source(self, index: int) -> tuple[Any, Any]:
        """The source of a row as the sampler takes it, and what :meth:`save` needs besides its result."""
        part = self.pairs.reader.whole(self.pairs.rows[index])["source"]
        array, geometry = part.array, part.pictures[0].geometry
        if len(part.pictures) > 1 and np.any(part.absent):  # in any of several files
            nodata = next(each.geometry.nodata for each in part.pictures if each.geometry.nodata is not None)
            array, geometry = np.where(part.absent, array.dtype.type(nodata), array), replace(geometry, nodata=nodata)
        return Picture(array, geometry, name=shown(self.pairs.rows[index])), None

    def size(self, index: int) -> tuple[int, int] | None:
        """About the (height, width) of a source; None of volumes."""
        if self.volumes:
            return None
        height, width = images.sides(self.pairs.spec.size) if self.pairs.spec.size else self._heads(index)[0].sides
        return height, width

    def save(self, result: Any, about: Any, path: Path) -> None:
        """Write a result, which has its source's place and nodata."""
        pictures.write(path, result)

    def compared(self, index: int, paths: Sequence[Path]) -> Compared:
        """(S, C, *S) results and (C, *S) target of a row for scores, and (1, *S) mask.

        8-bit pictures are uint8, photographs as RGB; others are float32. A volume's slices come first.

        Raises:
            ValueError: there is no target, or one of its pixels is not finite.
        """
        parts = self.pairs.reader.whole(self.pairs.rows[index])
        if "target" not in parts:
            raise ValueError(f"{shown(self.pairs.rows[index])} has no target to compare with")
        target = parts["target"]
        try:
            check_finite(target.array, target.absent)
        except ValueError as error:
            raise ValueError(f"the target of {shown(self.pairs.rows[index])}: {error}") from error
        results = [self._scored(np.asarray(pictures.read(path))) for path in paths]
        mask: Any = None
        if self.pairs.masked:
            mask = np.ones(target.array.shape[1:], bool)
            for role in ("source", "target"):
                mask = mask & ~np.broadcast_to(parts[role].absent, mask.shape)
            if "mask" in parts:
                inside = (parts["mask"].array != 0).any(axis=0)
                if inside.shape != mask.shape:  # of photographs that were resized
                    image = Image.fromarray(inside).resize(mask.shape[::-1], Image.Resampling.NEAREST)
                    inside = np.array(image)
                mask = mask & inside
            mask = torch.from_numpy(self._planes(mask[None]))
        return torch.stack(results), self._scored(target.array), mask

    def _scored(self, array: Array) -> torch.Tensor:
        """A picture as scores take it."""
        if self.photographs and len(array) in (1, 3):
            array = images.recoloured(array, 3) if len(array) == 1 else array
        array = array if self.pairs.spec.target_values == EIGHT_BIT else array.astype(np.float32)
        return torch.from_numpy(np.array(self._planes(array)))

    def _planes(self, array: Array) -> Array:
        return np.ascontiguousarray(array if self._axis is None else np.moveaxis(array, self._axis, 1))

    def pictures(self, index: int, paths: Sequence[Path]) -> list[Image.Image]:
        """Source, results and target, if there is one, for a grid: their ranges as black to white.

        Of slices, that in the middle is shown, and of a volume three planes.
        """
        parts, spec = self.pairs.reader.whole(self.pairs.rows[index]), self.pairs.spec
        sides = [(parts["source"].array, self.pairs.reader.values(spec.source_values, parts["source"].cells))]
        sides += [(np.asarray(pictures.read(path)), spec.target_values) for path in paths]
        sides += [(parts["target"].array, spec.target_values)] if "target" in parts else []
        return [self._picture(*side) for side in sides]

    def _picture(self, array: Array, values: Values) -> Image.Image:
        if self._axis is not None:
            array = array.take(array.shape[self._axis] // 2, self._axis)
        image = images.from_array(values.scaled(np.nan_to_num(array), axes=array.ndim - 1))
        if not self.photographs:
            image.thumbnail((SHOWN, SHOWN))
        return image


def spec_of(config: TranslateConfig, checkpoint: Checkpoint, rows: Sequence[Row]) -> tuple[Spec, Any, list[str]]:
    """What the pictures of rows are, their size for people and manifests, and what a user should know.

    Pictures keep their own size where the network was trained on crops, or they are no photographs.

    Raises:
        ValueError: other values are given than the network was trained on, or conditions are missing.
    """
    trained, known, codec = checkpoint.pictures, checkpoint.unet.config, checkpoint.build_codec()
    channels = checkpoint.unet.config.source_channels if codec is None else codec.image_channels
    labels = dict(config.conditions or {})
    if known.two_way:
        if DIRECTION in labels:
            raise ValueError(
                f"direction is a setting of its own, and no condition; got {DIRECTION}={labels[DIRECTION]}"
            )
        labels[DIRECTION] = config.direction
        trained = trained.turned if config.direction == "BtoA" else trained
    seen = known_conditions(known, trained.conditions, rows, labels)
    about: dict[str, Any] = {"learned": trained, "channels": channels, "axes": known.axes, "conditions": seen}
    spec = config.spec(config.dataset, rows, **about)
    if known.two_way and rows[0].get("target") is None:  # sources alone are of the direction already
        spec = replace(spec, direction="AtoB")
    chosen, notes = config.usual_size if config.image_size is None else config.image_size, list[str]()
    if isinstance(chosen, str) and (trained.crop is not None or not spec.eight_bit):
        chosen = "keep"
    if checkpoint.image_size is None and chosen in ("train", "fit"):
        notes.append(f"{config.model} does not hold the size of its pictures: image_size is {DEFAULT_SIZE}")
    if chosen == "keep" or not Files(Pairs(rows, spec, skip_bad=True), channels).photographs:
        return spec, "keep", notes
    size = (checkpoint.image_size or DEFAULT_SIZE) if isinstance(chosen, str) else chosen
    if chosen == "fit":
        return replace(spec, size=size, resize="fit"), f"fit {size}", notes
    return replace(spec, size=size, resize="stretch"), size, notes


class Mode(NamedTuple):
    """What a photograph has besides colours."""

    grey: bool  # whether it has one channel
    alpha: Array | None  # (H, W); None where all is opaque
    profile: bytes | None  # ICC, of the colours


class Photographs(Files):
    """Photographs of files, and the PNG files of their results, which lose nothing."""

    ALONE = True  # a result is written before the next photograph is read

    def suffix(self, index: int) -> str:
        """That of PNG."""
        return ".png"

    def source(self, index: int) -> tuple[torch.Tensor, Mode]:
        """An upright photograph (3, H, W) in [-1, 1], and what it has besides colours.

        Colours under transparency are as the file has them.
        """
        path = self.pairs.rows[index]["source"]
        if self._heads(index)[0].photograph:
            image = images.open_image(path)
        else:
            array = np.asarray(pictures.read(path))
            image = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
        alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        profile = None if image.mode == "CMYK" else image.info.get("icc_profile")  # of colours that are converted
        colours = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1
        return torch.from_numpy(colours), Mode(image.mode in ("1", "L", "LA", "La"), alpha, profile)

    def save(self, result: Any, about: Mode, path: Path) -> None:
        """Write colours (3, H, W) in [-1, 1] in a mode."""
        pixels = result.cpu().numpy()
        pixels = np.tensordot(GREY, pixels, 1) if about.grey else pixels.transpose(1, 2, 0)
        image = Image.fromarray(np.rint((pixels.clip(-1, 1) + 1) * np.float32(127.5)).astype(np.uint8))
        if about.alpha is not None:
            image.putalpha(Image.fromarray(about.alpha))
        write_atomically(path, lambda part: image.save(part, "png", icc_profile=about.profile))


def read_photographs(paths: Iterable[Path]) -> tuple[list[Row], list[str]]:
    """The rows of photographs, files or those of folders, and why others are none; a reason names its file.

    The name of a photograph, of which its seeds are a function, is its path below the folder that was given,
    without suffix; of a file, its name.

    Raises:
        ValueError: two results have one name, or a folder has no picture.
    """
    rows: dict[str, Row] = {}
    errors: list[str] = []
    for name, path in _files(paths):
        try:
            head = pictures.header(path)
            if not (head.photograph or (len(head.sides) == 2 and head.shape[0] in (1, 3) and head.dtype == np.uint8)):
                found = f"{len(head.sides)} axes, {head.shape[0]} channels of {head.dtype}"
                raise ValueError(f"{path} has {found}, and a photograph is grey or colour of 8 bits")
        except (ValueError, FileNotFoundError, PermissionError) as error:
            errors.append(named({"source": path}, error))
            continue
        if name in rows:
            raise ValueError(f"{rows[name]['source']} and {path} would both become {name}.png: rename one")
        rows[name] = {"name": name, "source": path}
    return [*rows.values()], errors


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
