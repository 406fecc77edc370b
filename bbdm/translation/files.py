"""What a translation reads of a data set's rows, and the files that it writes of their results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm import pictures
from bbdm.data import provenance
from bbdm.data.cells import ROLES, Cell
from bbdm.data.examples import stacked
from bbdm.data.pairs import Pairs
from bbdm.data.reading import Column
from bbdm.data.rows import first, named, shown, values_of
from bbdm.data.scaling import present_values, share_outside
from bbdm.data.spec import AXES
from bbdm.pictures import Derivation, Header, Picture, images
from bbdm.pictures.picture import scale
from bbdm.pictures.values import EIGHT_BIT, Values, check_finite, holds

# kinds of results: one that is no map, and the map of standard deviations
SAMPLE = "sample"
SPREAD = "std"
SHOWN = 512  # pixels of the longest side in a grid
LOOKED_AT = 8  # sources whose values are compared with those of training
MOST_LOOKED_AT = 2**26  # values of them that are read
CLIPPED = 0.001  # share of values outside of the range of training that is said
Array = npt.NDArray[Any]
Scored = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # results, target and mask


class Files:
    """The pictures of a data set by row, and the files of their results.

    Args:
        pairs: the pictures of a data set.
        channels: the number that results have.
        outside: the stored value of results where the mask of their row is 0; None to use no mask.

    Attributes:
        names: of the rows, below which results are written.
        photographs: whether all are grey or colour of 8 bits.
        volumes: whether rows are volumes, whose slices are translated in batches.
        alone: whether sources are translated one at a time.

    Raises:
        ValueError: the type of results does not hold ``outside``.
    """

    ALONE: ClassVar[bool] = False

    def __init__(self, pairs: Pairs, channels: int, outside: float | None = None) -> None:
        spec = pairs.spec
        kept = np.dtype(spec.target_values.dtype)
        if outside is not None and not holds(kept, outside):
            raise ValueError(
                f"--outside must be a value of {kept}, which results have; got {outside:g}"
            )
        self.pairs = pairs
        self.channels = channels
        self.names = [row["name"] for row in pairs.rows]
        self.photographs = are_photographs(pairs)
        self.volumes = spec.slices is not None or spec.axes == 3
        self.alone = self.ALONE or self.volumes
        self._contents: dict[int, str] = {}  # by row
        self._outside = outside
        # of slices, in an array (C, *S)
        self._axis = None if spec.slices is None else 1 + AXES[spec.slices]

    def _cells(self, index: int) -> Sequence[Cell]:
        """The cells of a row's source."""
        return self.pairs.reader.columns(self.pairs.rows[index])["source"]

    def _heads(self, index: int) -> list[Header]:
        """The headers of a row's source."""
        return [self.pairs.reader.header(cell) for cell in self._cells(index)]

    def conditions(self, indices: Sequence[int]) -> dict[str, Any]:
        """What the network sees besides some sources, by name.

        Of a volume that is translated by slices, images are (D, K, H, W).

        Raises:
            ValueError: something cannot be read, or does not fit; the message names it.
        """
        rows: list[dict[str, torch.Tensor]] = []
        for index in indices:
            row = self.pairs.rows[index]
            try:
                rows.append(self.pairs.conditions(row))
            except ValueError as error:
                raise ValueError(named(row, error)) from error
        conditions: dict[str, Any] = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name not in self.pairs.further.images:
                conditions[name] = stacked(values)
            elif self._axis is None:
                conditions[name] = scale(stacked(values))
            else:
                (volume,) = values
                conditions[name] = scale(volume.movedim(self._axis, 0))
        return conditions

    def suffix(self, index: int, kind: str = SAMPLE) -> str:
        """The suffix of a result of a kind: the source's where its format holds the values.

        It is ``.nii.gz`` of a folder of DICOM.
        """
        target = self.pairs.spec.target_values
        if kind == SPREAD and self._has_nodata(index):
            target = replace(target, dtype="float32")
        return self._cells(index)[0].result_suffix(self.channels, target)

    def _has_nodata(self, index: int) -> bool:
        """Whether a result has a stored value of pixels without a value."""
        stored = [head.nodata for head in self._heads(index) if head.nodata is not None]
        return self.pairs.spec.result_nodata(stored[0] if stored else None) is not None

    def source(self, index: int) -> tuple[Any, Any]:
        """The source of a row as the sampler takes it, and what :meth:`save` needs besides its result.

        Raises:
            ValueError: it cannot be read; or ``outside`` is wanted of a row without a mask.
        """
        row = self.pairs.rows[index]
        columns = self.pairs.reader.whole(row)
        source = columns["source"]
        array = source.array
        geometry = source.pictures[0].geometry
        if len(source.pictures) == 1:
            picture = Picture(array, geometry, name=shown(row))
        else:
            picture = _of_several_files(source, shown(row))
        if self._outside is None:
            return picture, None
        if "mask" not in columns:
            raise ValueError(
                f"{shown(row)} has no mask, and --outside needs one, as in DATA,mask=FOLDER"
            )
        return picture, inside_mask(columns["mask"], array.shape[1:])

    def content(self, index: int) -> str:
        """SHA-256 of what of a row decides its results: source, conditions, and the mask where it is used.

        It is kept, for all results of the row.

        Raises:
            FileNotFoundError: there is no such file.
            PermissionError: a file may not be read.
        """
        if index not in self._contents:
            self._contents[index] = self._content(index)
        return self._contents[index]

    def _content(self, index: int) -> str:
        pairs = self.pairs
        if pairs.stream is not None:  # of which a row is not looked up by its index
            return provenance.digest_of([pairs.stream.digest, *pairs.stream.stamps, str(index)])
        row = pairs.rows[index]
        columns = {"source": pairs.reader.columns(row)["source"]}
        for name in pairs.spec.conditions:
            columns[name] = values_of(row, name)
        if self._outside is not None:  # else masks decide scores alone
            columns["mask"] = values_of(row, "mask")
        return provenance.columns_digest(columns)

    def slices(self, index: int) -> int:
        """The number of pictures that a source is translated as: its slices, where it is cut into them."""
        if self._axis is None:
            return 1
        return self._heads(index)[0].sides[self._axis - 1]

    def size(self, index: int) -> tuple[int, int] | None:
        """About the (height, width) of a source; None of volumes."""
        if self.volumes:
            return None
        size = self.pairs.spec.size
        height, width = self._heads(index)[0].sides if size is None else images.sides(size)
        return height, width

    def save(
        self,
        result: Any,
        details: Any,
        path: Path,
        kind: str = SAMPLE,
        derivation: Derivation | None = None,
    ) -> None:
        """Write a result, which has its source's place and nodata.

        Args:
            result: a picture (C, *S) of stored values.
            details: (*S) where the mask is not 0; None without a mask. Elsewhere the result is ``outside``,
                and the map of standard deviations 0. Pixels without a value stay so.
            path: the file that is written.
            kind: of the result: a sample, or the name of a map.
            derivation: what made the result, which the file says; None to say nothing.
        """
        if details is not None:
            value = 0 if kind == SPREAD else self._outside
            stays = details | result.absent()
            array = np.where(stays, np.asarray(result), result.dtype.type(value))
            result = Picture(array, result.geometry, result.unit, result.name)
        geometry = replace(result.geometry, derivation=derivation)
        pictures.write(path, Picture(result, geometry, result.unit, result.name))

    def compared(self, index: int, paths: Sequence[Path]) -> Scored:
        """(S, C, *S) results and (C, *S) target of a row for scores, and (1, *S) mask.

        8-bit pictures are uint8, photographs as RGB; others are float32. A volume's slices come first.

        Raises:
            ValueError: there is no target, or one of its pixels is not finite.
        """
        row = self.pairs.rows[index]
        columns = self.pairs.reader.whole(row)
        if "target" not in columns:
            raise ValueError(f"{shown(row)} has no target to compare with")
        target = columns["target"]
        try:
            check_finite(target.array, target.absent)
        except ValueError as error:
            raise ValueError(f"the target of {shown(row)}: {error}") from error
        return self._results(paths), self._scored(target.array), self._counted(columns, target)

    def beside_source(self, index: int, paths: Sequence[Path]) -> Scored:
        """(S, C, *S) results and (K, *S) source of a row, and (1, *S) mask, as :meth:`compared` has them."""
        columns = self.pairs.reader.whole(self.pairs.rows[index])
        source = columns["source"]
        frame = self.pairs.spec.own_frame(source.array)
        own = torch.from_numpy(self._planes(frame.astype(np.float32)))
        return self._results(paths), own, self._counted(columns, source)

    def source_range(self, index: int) -> float:
        """The range of a source's stored values; of several channels, the least."""
        reader = self.pairs.reader
        values = reader.values(self.pairs.spec.source_values, self._cells(index))
        return float(np.subtract(values.high, values.low).min())

    def _results(self, paths: Sequence[Path]) -> torch.Tensor:
        """(S, C, *S) results as scores take them."""
        return torch.stack([self._scored(np.asarray(pictures.read(path))) for path in paths])

    def _counted(self, columns: Mapping[str, Column], picture: Column) -> torch.Tensor | None:
        """(1, *S) where scores of a picture count pixels of a row; None where they count all."""
        if not self.pairs.masked:
            return None
        counted = np.ones(picture.array.shape[1:], bool)
        for role in ROLES:
            if role in columns:
                counted &= ~np.broadcast_to(columns[role].absent, counted.shape)
        if "mask" in columns:
            counted &= inside_mask(columns["mask"], counted.shape)
        return torch.from_numpy(self._planes(counted[None]))

    def _scored(self, array: Array) -> torch.Tensor:
        """A picture as scores take it."""
        if self.photographs and len(array) == 1:
            array = images.recoloured(array, 3)
        if self.pairs.spec.target_values != EIGHT_BIT:
            array = array.astype(np.float32)
        return torch.from_numpy(np.array(self._planes(array)))

    def _planes(self, array: Array) -> Array:
        """(C, D, H, W) of a volume whose slices come first; other arrays as they are."""
        return np.ascontiguousarray(
            array if self._axis is None else np.moveaxis(array, self._axis, 1)
        )

    def pictures(self, index: int, paths: Sequence[Path]) -> list[Image.Image]:
        """Source, results and target, if there is one, for a grid: their ranges as black to white.

        Of slices, that in the middle is shown, of a volume three planes; of a frame no neighbours are.
        """
        spec = self.pairs.spec
        columns = self.pairs.reader.whole(self.pairs.rows[index])
        source = columns["source"]
        values = self.pairs.reader.values(spec.source_values, source.cells)
        shown_pictures = [self._shown(spec.own_frame(source.array), values)]
        for path in paths:
            shown_pictures.append(self._shown(np.asarray(pictures.read(path)), spec.target_values))
        if "target" in columns:
            shown_pictures.append(self._shown(columns["target"].array, spec.target_values))
        return shown_pictures

    def _shown(self, array: Array, values: Values) -> Image.Image:
        """A picture (C, *S) of stored values for a grid."""
        if self._axis is not None:
            middle = array.shape[self._axis] // 2
            array = array.take(middle, self._axis)
        scaled = values.scaled(np.nan_to_num(array), axes=array.ndim - 1)
        image = images.from_array(scaled)
        if not self.photographs:
            image.thumbnail((SHOWN, SHOWN))
        return image

    def first_look(self) -> list[str]:
        """What the first sources show of values that are not those of training."""
        values = self.pairs.spec.source
        if not isinstance(values, Values):
            return []
        notes: list[str] = []
        shares: list[float] = []
        left = MOST_LOOKED_AT
        for index in range(min(LOOKED_AT, len(self.names))):
            try:
                heads = self._heads(index)
                left -= sum(math.prod(head.shape) for head in heads)
                if left < 0:
                    break
                source = self.pairs.reader.whole(self.pairs.rows[index])["source"]
                shares.append(share_outside(present_values(source), values))
            except (ValueError, FileNotFoundError):  # which is said where the source is translated
                continue
            note = self.pairs.spec.note_of_bits(shown(self.pairs.rows[index]), heads[0].dtype)
            if note is not None and not notes:
                notes.append(note)
        if shares and np.mean(shares) > CLIPPED:
            percent = f"{100 * np.mean(shares):.2g} %"
            notes.append(
                f"{percent} of the values of the first {len(shares)} sources are outside of the range of training, "
                f"{values}, and clipped to it"
            )
        return notes


class SeveralFiles(Picture):
    """A source of several files, each of which has its own nodata.

    Attributes:
        missing: (*S) where a pixel has no value in one of them.
    """

    missing: npt.NDArray[np.bool_]

    def absent(self) -> npt.NDArray[np.bool_]:
        """(*S), whether a pixel has no value in one of the files."""
        return self.missing


def _of_several_files(source: Column, name: str) -> SeveralFiles:
    """The source of a row with several files. A result has the first nodata of these."""
    picture = source.array.view(SeveralFiles)
    picture.missing = np.broadcast_to(source.absent, source.array.shape[1:])
    picture.geometry = source.pictures[0].geometry
    picture.name = name
    if picture.missing.any():
        stored = [picture.nodata for picture in source.pictures if picture.nodata is not None]
        picture.geometry = replace(picture.geometry, nodata=stored[0])
    return picture


def are_photographs(pairs: Pairs) -> bool:
    """Whether examples are of 8-bit pictures, and the first source that can be read is a photograph."""
    heads = first(pairs.rows, lambda row: pairs.reader.heads(row)["source"])
    return pairs.spec.eight_bit and all(head.photograph for head in heads)


def inside_mask(mask: Column, sides: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """(*S) where a mask is not 0, of pictures with some sides; the mask of resized photographs is resized."""
    counted = (mask.array != 0).any(axis=0)
    if counted.shape == sides:
        return counted
    height, width = sides
    return np.array(Image.fromarray(counted).resize((width, height), Image.Resampling.NEAREST))
