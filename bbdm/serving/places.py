"""Folders of files that all machines reach: on a shared disk, or in an object store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from bbdm.base.atomic import temporary_name, write_atomically

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class Place:
    """A folder: ``files`` holds it, and ``folder`` is its path there. Other processes may be sent it."""

    files: FileSystem
    folder: str

    @classmethod
    def of(cls, address: str) -> Place:
        """The place of a path, or of an address such as ``s3://BUCKET/FOLDER``.

        pyarrow reads ``s3``, ``gs``, ``hdfs`` and others, and fsspec the rest, with its own packages.

        Raises:
            ValueError: neither knows the address.
        """
        from pyarrow import ArrowInvalid, fs

        if "://" not in address:
            return cls(fs.LocalFileSystem(), Path(address).resolve().as_posix())
        try:
            files, folder = fs.FileSystem.from_uri(address)
        except ArrowInvalid:
            import fsspec

            try:
                files, folder = fsspec.core.url_to_fs(address)
            except (ImportError, ValueError) as error:
                raise ValueError(f"cannot open {address}: {error}") from error
            files = fs.PyFileSystem(fs.FSSpecHandler(files))
        return cls(files, folder.rstrip("/"))

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
        from pyarrow import fs

        selector = fs.FileSelector(self.folder, recursive=True, allow_not_found=True)
        try:
            found = self.files.get_file_info(selector)
        except NotADirectoryError as error:
            raise ValueError(f"{self.folder} is a file, and a folder is needed there") from error
        below = len(self.folder) + 1
        return sorted(info.path[below:] for info in found if info.type == fs.FileType.File)

    def exist(self, names: Iterable[str]) -> list[bool]:
        """For each name, whether there is such a file."""
        from pyarrow import fs

        found = self.files.get_file_info([self.path(name) for name in names])
        return [info.type == fs.FileType.File for info in found]

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            OSError: it cannot be read.
        """
        with self.files.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file: it is there whole, or not at all.

        Raises:
            OSError: it cannot be written.
        """
        from pyarrow import fs

        path = PurePosixPath(self.path(name))
        if isinstance(self.files, fs.LocalFileSystem):
            write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))
            return
        temporary = str(path.with_name(temporary_name(path.name)))
        self.files.create_dir(str(path.parent))
        with self.files.open_output_stream(temporary) as stream:
            stream.write(content)
        self.files.move(temporary, str(path))

    def remove(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            self.files.delete_file(self.path(name))
