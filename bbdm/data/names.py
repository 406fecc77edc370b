"""Names of rows: the one gate between other people's files and the folders that results are written to."""

from __future__ import annotations

from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from bbdm.pictures import formats


class RowName(str):
    """A relative path below the folder of results, with ``/`` between its parts and without a suffix."""

    __slots__ = ()

    def __new__(cls, text: str) -> RowName:
        """The name of a text, checked.

        Args:
            text: the path; ``.`` as a part is left out.

        Raises:
            ValueError: it is empty or absolute, or has ``..`` as a part, a drive or NUL, on any system.
        """
        windows = PureWindowsPath(text)
        inside = not windows.drive and not windows.root and not PurePosixPath(text).is_absolute()
        safe = inside and ".." not in windows.parts and "\0" not in text
        path = PurePosixPath(text)
        if not safe or not path.parts:
            wanted = "a relative path below the folder of results, without '..', a drive or NUL"
            raise ValueError(f"the name of a row must be {wanted}; got {text!r}")
        return super().__new__(cls, path.as_posix())

    def __getnewargs__(self) -> tuple[str]:
        return (str(self),)

    @classmethod
    def of(cls, path: PurePath | str) -> RowName:
        """The name of a file by its relative path, without the suffix of its format, such as ``.nii.gz``."""
        text = PurePath(path).as_posix()
        return cls(text[: len(text) - len(formats.suffix_of(text))])

    def below(self, folder: Path, ending: str) -> Path:
        """The path of a file of this name in a folder.

        Args:
            folder: that results are in.
            ending: what follows the name, such as ``_0.png``.

        Raises:
            ValueError: a link in the folder, or the file itself, leads elsewhere.
        """
        path = folder / f"{self}{ending}"
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{path} leads out of {folder} by a link: remove the link, or give another folder"
            )
        return path
