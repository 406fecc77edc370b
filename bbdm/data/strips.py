"""A source that is larger than memory, of which rows of pixels are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.data.reading import Reader
from bbdm.data.rows import Row
from bbdm.pictures import Geometry, Header
from bbdm.pictures.values import Values

DECODING = 4  # times the bytes of a picture that decoding it whole takes
Array = npt.NDArray[Any]


class Strips(NamedTuple):
    """A source in stored values."""

    shape: tuple[int, ...]  # (C, H, W)
    dtype: np.dtype[Any]
    decoded: int  # bytes that decoding takes of files of which no part can be read alone
    masked: bool  # whether a pixel may have no value
    geometry: Geometry  # of the first file
    values: Callable[[], Values]  # of the whole picture
    read: Callable[[slice], tuple[Array, Array]]  # (C, rows, W), and (rows, W) where a pixel has no value
    forget: Callable[[], Any]  # what is decoded

    @classmethod
    def of(cls, reader: Reader, row: Row) -> Strips:
        """The source of a row; one that is resized or prepared is read as a whole."""
        cells, spec = reader.columns(row)["source"], reader.spec
        heads = [reader.header(each) for each in cells]
        decoded = [head for head in heads if not (isinstance(head, Header) and head.windowed)]
        array = reader.whole(row)["source"].array if spec.size is not None or reader.prepare is not None else None

        def read(rows: slice) -> tuple[Array, Any]:
            if array is not None:
                return array[:, rows], np.zeros((rows.stop - rows.start, array.shape[2]), bool)
            found = reader.column("source", cells, (rows, slice(0, heads[0].sides[1])))
            return found.array, np.broadcast_to(found.absent, found.array.shape[1:])

        return cls(
            shape=(sum(map(reader.channels, heads)), *heads[0].sides) if array is None else array.shape,
            dtype=np.result_type(*(head.dtype for head in heads)),
            decoded=DECODING * sum(int(np.prod(head.shape)) * head.dtype.itemsize for head in decoded),
            masked=any(head.nodata is not None for head in heads),
            geometry=heads[0].geometry,
            values=lambda: reader.values(spec.source, cells),
            read=read,
            forget=reader.forget,
        )
