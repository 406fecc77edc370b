"""Pairs in a table of the Hugging Face ``datasets`` library: two columns of pictures, or one.

The library fetches a table once, and maps its files into memory.
So a row is read by its index, and memory stays flat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

from bbdm.data.collection import EncodedPair, Pairs

SPLITS = {"val": ("val", "validation", "valid", "dev", "test")}  # other names of a split, the first is taken


class Table(Pairs):
    """The rows of a table.

    Args:
        table: a ``datasets.Dataset``.
        columns: of source and target, or of sources alone; None for the two columns of pictures.

    Raises:
        ValueError: there are no such columns, or they hold no pictures.
    """

    def __init__(self, table: Any, columns: tuple[str, ...] | None = None) -> None:
        from datasets import Image

        pictures = [name for name, kind in table.features.items() if isinstance(kind, Image)]
        self.columns = tuple(pictures) if columns is None else columns
        known = set(self.columns) <= set(pictures) and len(set(self.columns)) == len(self.columns)
        if not known or len(self.columns) not in (1, 2) or (columns is None and len(pictures) != 2):
            wanted = "two columns of pictures" if columns is None else f"columns of pictures {', '.join(columns)}"
            raise ValueError(f"a table with {wanted} is needed; its columns of pictures are {pictures}: name two")
        self._table = table.select_columns(list(self.columns))
        for column in self.columns:
            self._table = self._table.cast_column(column, Image(decode=False))

    @classmethod
    def open(cls, data_dir: str, split: str, columns: str | None = None) -> Table:
        """A split of a data set of the Hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, or of a folder.

        Raises:
            FileNotFoundError: there is no such data set or split.
            ValueError: see :class:`Table`.
            OSError: it cannot be fetched or read.
        """
        table = _load(data_dir.replace("{split}", split), split)
        return cls(table, None if columns is None else tuple(columns.split(",")))

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EncodedPair]: ...
    def __getitem__(self, index: int | slice) -> EncodedPair | Sequence[EncodedPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return EncodedPair(f"{index:08d}", f"row {index}", partial(self._read, index))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        return self.columns, self._table._fingerprint

    def _read(self, index: int) -> list[bytes]:
        row, parts = self._table[index], list[bytes]()
        for column in self.columns:
            cell = row[column]
            if cell is None or (cell["bytes"] is None and cell["path"] is None):
                raise ValueError(f"row {index} has no {column}")
            parts.append(Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"])
        return parts

    def names_digest(self) -> str:
        """SHA-256 of the number of rows and of the columns."""
        return hashlib.sha256(f"{len(self)} {','.join(self.columns)}".encode()).hexdigest()

    def with_target(self) -> str | None:
        """The first row, where rows have two columns."""
        return self[0].name if len(self.columns) > 1 else None


def _load(place: str, split: str) -> Any:
    """A split of a data set by name, or of a folder: a saved data set, or files that the library reads."""
    import datasets

    folder = Path(place)
    name, _, revision = (place, "", "") if folder.exists() else place.partition("@")
    if (folder / "state.json").exists():  # one split, by Dataset.save_to_disk
        return datasets.load_from_disk(place)
    saved = datasets.load_from_disk(place) if (folder / "dataset_dict.json").exists() else None
    names = list(saved or datasets.get_dataset_split_names(name, revision=revision or None))
    chosen = next((other for other in SPLITS.get(split, (split,)) if other in names), None)
    if chosen is None:
        raise FileNotFoundError(f"{place} has no split {split!r}, but {', '.join(map(str, names))}")
    return saved[chosen] if saved else datasets.load_dataset(name, split=chosen, revision=revision or None)
