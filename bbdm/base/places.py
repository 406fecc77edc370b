"""Files and folders here, or at an address of fsspec such as s3://BUCKET/FOLDER. Nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bbdm.base.atomic import is_temporary, temporary_name, write_atomically


def file_system(address: str) -> tuple[Any, str]:
    """The file system of a path or an address, and the path there.

    pyarrow reads ``s3``, ``gs`` and ``hdfs`` where the package that fsspec needs for them is missing.

    Raises:
        ImportError: a package is missing; the message names it.
        ValueError: the address is of no known kind.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if "://" not in address:
        return LocalFileSystem(), Path(address).resolve().as_posix()
    try:
        return url_to_fs(address)
    except ImportError:
        with suppress(ImportError, ValueError):
            from fsspec.implementations.arrow import ArrowFSWrapper
            from pyarrow.fs import FileSystem

            files, path = FileSystem.from_uri(address)
            return ArrowFSWrapper(files), path
        raise


@dataclass(frozen=True)
class Place:
    """A folder: ``files`` holds it, and ``folder`` is its path there. Other processes may be sent it."""

    files: Any
    folder: str

    @classmethod
    def of(cls, address: str) -> Place:
        """The place of a path or an address.

        Raises:
            ValueError: the address cannot be opened.
        """
        try:
            files, folder = file_system(address)
        except (ImportError, ValueError) as error:
            raise ValueError(f"cannot open {address}: {error}") from error
        return cls(files, folder.rstrip("/"))

    @property
    def is_here(self) -> bool:
        """Whether it is a path, not an address."""
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self.files, LocalFileSystem)

    @property
    def is_file(self) -> bool:
        """Whether it is a file in place of a folder."""
        return self.files.isfile(self.folder)

    def overlaps(self, other: Place) -> bool:
        """Whether one of two places is inside the other, or they are the same."""
        a, b = (PurePosixPath(place.folder) for place in (self, other))
        return type(self.files) is type(other.files) and (a.is_relative_to(b) or b.is_relative_to(a))

    def path(self, name: str) -> str:
        """The path of a file of this folder."""
        return f"{self.folder}/{name}"

    def list(self) -> list[str]:
        """All files by their path below the folder, sorted; none if there is no folder.

        Raises:
            ValueError: it is a file.
        """
        if self.files.isfile(self.folder):
            raise ValueError(f"{self.folder} is a file, and a folder is needed there")
        self.files.invalidate_cache()  # others write there too
        if self.is_here:  # fsspec does not look behind links
            walk = os.walk(self.folder, followlinks=True)
            found = (Path(above, name).as_posix() for above, _, names in walk for name in names)
            found = filter(os.path.isfile, found)
        else:
            found = self.files.find(self.folder)
        return sorted(path[len(self.folder) + 1 :] for path in found)

    def existing(self, names: Iterable[str]) -> set[str]:
        """Those of some names of files that there are."""
        if self.is_here:
            return {name for name in names if os.path.isfile(self.path(name))}
        return set(names).intersection(self.list())

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.files.isfile(self.path(name))

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            OSError: it cannot be read.
        """
        return self.files.cat_file(self.path(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a file: it is there whole, or not at all.

        Raises:
            OSError: it cannot be written.
        """
        path = PurePosixPath(self.path(name))
        if self.is_here:
            write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))
            return
        temporary = str(path.with_name(temporary_name(path.name)))
        self.files.makedirs(str(path.parent), exist_ok=True)
        self.files.pipe_file(temporary, content)
        self.files.cp_file(temporary, str(path))  # mv would take brackets in a name for a pattern
        self.files.rm_file(temporary)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            self.files.rm_file(self.path(name))

    def remove_leftovers(self, names: Iterable[str]) -> None:
        """Delete the temporary files that killed processes left beside files. Nobody may be writing there."""
        for above in {"", *(name.rpartition("/")[0] for name in names)}:
            with suppress(FileNotFoundError):
                for path in self.files.ls(self.path(above).rstrip("/"), detail=False):
                    if is_temporary(path.rpartition("/")[2]):
                        folder = self.files.isdir(path)  # some formats are written in one
                        self.files.rm(path, recursive=True) if folder else self.files.rm_file(path)
