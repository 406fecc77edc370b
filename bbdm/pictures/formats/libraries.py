"""The formats that are known, and what registers one: a row for each says its files and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbdm.base.registry import Registry
from bbdm.pictures.formats.detection import has_place, is_dicom, is_ome_zarr

REAL = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float32",
    "float64",
)


@dataclass(frozen=True)
class Library:
    """The files of a format: how they are known, and what is written to them.

    Args:
        module: of the functions ``header``, ``read`` and ``write``; or its name, to import it late.
        suffixes: of its files, in lower case with their dot.
        types: NumPy types that it writes; () where it only reads.
        axes: the numbers of spatial axes that it writes.
        channels: the numbers of channels that it writes; None for any.
        grey_types: further types that it writes of one channel.
        photographs: whether its 8-bit grey and colours become one another.
        holds_place: whether its files say where their pixels lie.
        format: the ``format`` of its geometries, which chooses among formats of one suffix on writing.
        claims: whether a file of these suffixes is its own, for a suffix of several formats; None for all
            files.
        is_folder: whether a folder is one picture of it; None where folders are none.
        results: the suffix of results of its pictures; "" for that of the picture.
        films: whether its files are films, which only the layout of sequences takes for pictures.
        is_tree: whether the folders below a folder that is one picture belong to it, and no other picture is
            looked for there.
        parts: whether a file may hold several pictures. Its module has ``parts(path)``, a list of
            :class:`Part`, and ``header(path, part)``, after which ``Header.path`` is an address.
        large: whether its ``write`` takes an array that is mapped into memory part by part, or its module has
            ``create``, so that a result may be larger than memory.

    Raises:
        ValueError: a suffix has no dot at its start, or capital letters.
    """

    module: Any
    suffixes: tuple[str, ...] = ()
    types: tuple[str, ...] = REAL
    axes: tuple[int, ...] = (2, 3)
    channels: tuple[int, ...] | None = None
    grey_types: tuple[str, ...] = ()
    photographs: bool = False
    holds_place: bool = True
    format: str = ""
    claims: Callable[[Path], bool] | None = None
    is_folder: Callable[[Path], bool] | None = None
    results: str = ""
    films: bool = False
    is_tree: bool = False
    parts: bool = False
    large: bool = False

    def __post_init__(self) -> None:
        for suffix in self.suffixes:
            if not suffix.startswith(".") or suffix != suffix.lower():
                raise ValueError(f"a suffix is written as .tif, got {suffix!r}")

    def types_of(self, channels: int) -> tuple[str, ...]:
        """The types that it writes of so many channels."""
        if channels == 1:
            return (*self.types, *self.grey_types)
        return self.types

    def holds(self, dtype: str, channels: int) -> bool:
        """Whether it writes values of a type in so many channels."""
        return dtype in self.types_of(channels) and (
            self.channels is None or channels in self.channels
        )


LIBRARIES: Registry[Library] = Registry("format")
# the names of the libraries of each suffix, those with ``claims`` first
SUFFIXES: dict[str, list[str]] = {}


def register(name: str, library: Library) -> None:
    """Add a format.

    Args:
        name: what errors call it.
        library: how its files are known, and the module that reads and writes them.

    Raises:
        ValueError: another format has the name, or one of the suffixes without ``claims`` in either.
    """
    if library.claims is None:
        for suffix in library.suffixes:
            others: list[str] = []
            for other in SUFFIXES.get(suffix, ()):
                if other != name and LIBRARIES[other].claims is None:
                    others.append(other)
            if others:
                raise ValueError(
                    f"the suffix {suffix} is read by {others[0]}: give claims, which tells its files"
                )
    LIBRARIES.register(name, library, source=library.module)
    SUFFIXES.clear()
    for known, row in LIBRARIES.items():
        for suffix in row.suffixes:
            names = SUFFIXES.setdefault(suffix, [])
            if row.claims is None:
                names.append(known)
            else:
                names.insert(0, known)


PHOTOGRAPHS = {
    "types": ("uint8",),
    "axes": (2,),
    "channels": (1, 3),
    "photographs": True,
    "holds_place": False,
}
register(
    "png",
    Library(f"{__package__}.pillow", (".png",), grey_types=("uint16",), large=True, **PHOTOGRAPHS),
)
register(
    "pillow", Library(f"{__package__}.pillow", (".jpg", ".jpeg", ".webp", ".bmp"), **PHOTOGRAPHS)
)
register(
    "tifffile",
    Library(
        f"{__package__}.tifffile", (".tif", ".tiff"), (*REAL, "float16"), format="tiff", large=True
    ),
)
register(
    "rasterio",
    Library(
        f"{__package__}.rasterio",
        (".tif", ".tiff"),
        axes=(2,),
        format="geotiff",
        claims=has_place,
        large=True,
    ),
)
register("nibabel", Library(f"{__package__}.nibabel", (".nii", ".nii.gz"), format="nifti"))
register("simpleitk", Library(f"{__package__}.simpleitk", (".mha", ".nrrd"), format="itk"))
register(
    "omezarr",
    Library(
        f"{__package__}.ome_zarr",
        (".ome.zarr", ".zarr"),
        (*REAL, "float16"),
        format="ome-zarr",
        is_folder=is_ome_zarr,
        results=".ome.zarr",
        is_tree=True,
        parts=True,
        large=True,
    ),
)
register("dicom", Library(f"{__package__}.dicom", types=(), is_folder=is_dicom, results=".nii.gz"))
register("czi", Library(f"{__package__}.czi", (".czi",), types=(), results=".tif", parts=True))
register(
    "bioio", Library(f"{__package__}.bioio", (".lif", ".nd2"), types=(), results=".tif", parts=True)
)
register(
    "numpy",
    Library(f"{__package__}.numpy", (".npy",), (*REAL, "float16"), holds_place=False, large=True),
)
register(
    "pyav",
    Library(
        f"{__package__}.pyav",
        (".mp4", ".mov", ".mkv", ".webm", ".avi"),
        types=(),
        axes=(3,),
        results=".tif",
        films=True,
    ),
)
