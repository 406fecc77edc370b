"""Pictures of further formats that are mutated: a row for each kind. Their libraries are optional."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bbdm import pictures
from bbdm.pictures import Geometry, Picture, write
from tests.hardening.mutations import Mutate, Subject, of_bytes
from tests.pictures.formats import numbers, write_dicom

Make = Callable[[Path], Any]


def _subject(name: str, make: Make, mutate: Mutate = of_bytes) -> Callable[[Path], Subject]:
    """``make`` writes a file of that ``name``, which is read in part and whole."""

    def made(folder: Path) -> Subject:
        make(path := folder / name)
        whole = path.parent if path.suffix == ".dcm" else path

        def read() -> bytes:
            window = tuple(slice(0, -(-length // 2)) for length in pictures.header(whole).sides)
            return pictures.read(whole, window).tobytes() + pictures.read(whole).tobytes()

        return Subject(path, read, mutate, exact=False)

    return made


def _written(shape: tuple[int, ...], kind: str) -> Make:
    return lambda path: write(path, numbers(shape, kind))


def _tiff(shape: tuple[int, ...], kind: str, **options: Any) -> Make:
    def make(path: Path) -> None:
        import tifffile

        tifffile.imwrite(path, numbers(shape, kind), photometric="minisblack", **options)

    return make


def _geotiff(path: Path) -> None:
    affine = ((0.0, 10.0, 5e5), (-10.0, 0.0, 4e6), (0.0, 0.0, 1.0))
    write(path, Picture(numbers((5, 24, 24), "uint16"), Geometry(affine, "geotiff", {"crs": "EPSG:32632"}, 7.0)))


def _nrrd(path: Path) -> None:
    import SimpleITK as sitk  # noqa: N813

    sitk.WriteImage(sitk.GetImageFromArray(numbers((5, 7, 9), "int16")), str(path), useCompression=True)


def _dicom(path: Path) -> None:
    write_dicom(path.parent, numbers((3, 8, 8), "uint8").astype(np.int16), [0, 2, 4])


def _zipped(data: bytes, rng: random.Random) -> bytes:
    """A gzip with other bytes or, as often, with other bytes inside and the checksum that fits them."""
    return of_bytes(data, rng) if rng.random() < 0.5 else gzip.compress(of_bytes(gzip.decompress(data), rng))


_SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "PNG of 16-bit grey": _subject("a.png", _written((1, 16, 24), "uint16")),
    "TIFF of bands": _subject("a.tif", _written((5, 16, 24), "uint16")),
    "TIFF in tiles": _subject("a.tif", _tiff((40, 40), "float32", tile=(16, 16), compression="zlib", predictor=True)),
    "TIFF of pages, LZW": _subject("a.tif", _tiff((4, 16, 24), "uint16", rowsperstrip=8, compression="lzw")),
    "OME-TIFF": _subject("a.tif", _written((2, 3, 16, 24), "uint16")),
    "GeoTIFF": _subject("a.tif", _geotiff),
    "NIfTI": _subject("a.nii", _written((1, 5, 7, 9), "int16")),
    "NIfTI, compressed": _subject("a.nii.gz", _written((1, 5, 7, 9), "int16"), _zipped),
    "NIfTI of vectors": _subject("a.nii", _written((3, 5, 7, 9), "float32")),
    "MetaImage": _subject("a.mha", _written((1, 5, 7, 9), "int16")),
    "NRRD": _subject("a.nrrd", _written((2, 5, 7, 9), "int16")),
    "NRRD, compressed": _subject("a.nrrd", _nrrd),
    "DICOM": _subject("07.dcm", _dicom),
    "npy": _subject("a.npy", _written((2, 5, 7, 9), "float32")),
}
FORMATS = {kind: (made, 5_000) for kind, made in _SUBJECTS.items()}
