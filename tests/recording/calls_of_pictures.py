"""Cases of ``bbdm.pictures``: each format read, in windows, saved as each other, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bbdm import Values
from bbdm.pictures import Geometry, Picture, header, read, write
from tests.recording.running import Case, tried
from tests.recording.world import HEIGHT, VOLUME, WIDTH, numbers

FORMATS = Path("formats")
PHOTOGRAPHS = (
    *(
        "rgb.png",
        "grey.png",
        "rgba.png",
        "grey_alpha.png",
        "palette.png",
        "palette_clear.png",
        "one_bit.png",
    ),
    *(
        "grey16.png",
        "rgb16.png",
        "turned2.jpg",
        "turned6.jpg",
        "grey.jpg",
        "inks.jpeg",
        "rgb.webp",
        "rgba.webp",
    ),
    *("rgb.bmp", "palette.bmp", "rgb.GIF"),
)
TIFFS = (
    *(
        "rgb8.tif",
        "uint8.tif",
        "uint16.tif",
        "int16.tif",
        "int32.tif",
        "float16.tif",
        "float32.tif",
        "float64.tif",
    ),
    *(
        "strips.tif",
        "tiles.tif",
        "plain_tiles.tif",
        "predictor.tif",
        "big_endian.tif",
        "planes.tif",
        "pages.tiff",
    ),
    *(
        "stack.ome.tif",
        "imagej.tif",
        "nodata.tif",
        "geo.tif",
        "geo_float.tif",
        "geo_turned.tif",
        "geo_tiles.tif",
    ),
)
MEDICAL = (
    *(
        "volume.nii",
        "volume.nii.gz",
        "flat.nii",
        "two.nii",
        "scaled.nii",
        "vectors.nii",
        "times.nii",
        "volume.mha",
    ),
    *(
        "flat.mha",
        "vectors.mha",
        "volume.nrrd",
        "flat.nrrd",
        "vectors.nrrd",
        "other.mhd",
        "dicom",
        "dicom_gap",
    ),
    *("dicom_one", "slice.dcm"),
)
ARRAYS = (
    *(
        "two.npy",
        "three.npy",
        "four.npy",
        "five.npy",
        "float16.npy",
        "float64.npy",
        "int64.npy",
        "uint8.npy",
    ),
    *("bool.npy", "complex64.npy", "objects.npy", "columns.npy", "several.npz", "tensor.pth"),
)
SAVED = (
    *(
        "rgb.png",
        "grey16.png",
        "palette_clear.png",
        "turned6.jpg",
        "rgb8.tif",
        "float32.tif",
        "tiles.tif",
        "nodata.tif",
    ),
    *(
        "stack.ome.tif",
        "imagej.tif",
        "geo.tif",
        "geo_float.tif",
        "volume.nii",
        "vectors.nii",
        "volume.mha",
    ),
    *(
        "vectors.nrrd",
        "dicom",
        "two.npy",
        "three.npy",
        "four.npy",
        "float16.npy",
        "int64.npy",
        "bool.npy",
    ),
)
SUFFIXES = (
    "png",
    "jpg",
    "webp",
    "bmp",
    "tif",
    "tiff",
    "nii",
    "nii.gz",
    "mha",
    "nrrd",
    "npy",
    "npz",
    "txt",
)


def windows(axes: int) -> list[tuple[slice, ...]]:
    """Windows of a picture of 2 or 3 axes: inside, of one pixel, too large, in steps, and of other axes."""
    inside = (slice(1, 3), slice(2, 9), slice(3, 5))[-axes:]
    one = (slice(0, 1),) * axes
    large = (slice(0, 1000),) * axes
    steps = (slice(0, 2, 2),) * axes
    return [inside, one, large, steps, (slice(None),) * axes, (slice(0, 1),)]


def reading(path: Path) -> Any:
    """The header of a file, its picture, and windows of it."""
    found: dict[str, Any] = {
        "header": tried(lambda: header(path)),
        "whole": tried(lambda: read(path)),
    }
    try:
        axes = len(header(path).sides)
    except (ValueError, OSError):
        return found
    for window in windows(axes):
        found[str(window)] = tried(lambda window=window: read(path, window))
    found["by its header"] = tried(lambda: read(header(path)))
    return found


def saving(path: Path) -> Any:
    """A picture saved in each format, and read again."""
    picture = read(path)
    found: dict[str, Any] = {}
    for suffix in SUFFIXES:
        output = Path(f"out/saved.{suffix}")
        output.parent.mkdir(exist_ok=True)
        found[suffix] = tried(lambda output=output: (picture.save(output), read(output))[1])
    return found


def writing(array: Any, geometry: Geometry | None = None) -> Any:
    """An array written in each format, of which some refuse it."""
    picture = array if geometry is None else Picture(array, geometry, "HU", "made")
    return {
        suffix: tried(lambda suffix=suffix: write(f"made.{suffix}", picture)) for suffix in SUFFIXES
    }


def attributes() -> Any:
    """What a picture says of itself, and what slices and arithmetic keep."""
    affine = ((0, 0, 1, 0), (0, 2, 0, 0), (3, 0, 0, 5), (0, 0, 0, 1))
    array = numbers(1, (1, *VOLUME), np.int16)
    picture = Picture(array, Geometry(affine, nodata=7), unit="HU", name="a")
    changed = [picture[:, 1:], picture + 1, picture.astype(np.float32), picture.copy()]
    return [picture, *changed, picture.geometry.spacing, picture.nodata, picture.absent()]


def flawed_names() -> Any:
    """Names that are read or refused: upper case, spaces, several dots, a folder, a missing folder."""
    names = ("A B.PNG", "a.b.c.Tif", "a.NII.GZ", "noending", "missing/a.png")
    array = numbers(2, (1, HEIGHT, WIDTH))
    return {name: tried(lambda name=name: (write(name, array), read(name))[1]) for name in names}


def ranges_of_values() -> Any:
    """Values that are made or refused."""
    settings: tuple[Any, ...] = (
        ((0, 255), {}),
        ((0, 4000, "HU", "int16"), {}),
        (((0, 1), (2, 3)), {"dtype": "float32"}),
        ((5, 5), {}),
        ((3, 1), {}),
        ((0, 300), {}),
        ((0, float("nan")), {"dtype": "float32"}),
        (("a", 1), {}),
        (((0, 1), (2, 3, 4)), {"dtype": "float32"}),
        ((0, 2**30), {"dtype": "int32"}),
        ((0, 1), {"dtype": "complex64"}),
    )
    return [
        tried(lambda words=words, more=more: Values(*words, **more)) for words, more in settings
    ]


def cases_of_files() -> dict[str, Case]:
    """A case for each file."""
    cases: dict[str, Case] = {}
    for name in (*PHOTOGRAPHS, *TIFFS, *MEDICAL, *ARRAYS):
        cases[f"pictures: read {name}"] = lambda name=name: reading(FORMATS / name)
    for name in SAVED:
        cases[f"pictures: save {name} in each format"] = lambda name=name: saving(FORMATS / name)
    return cases


def bad_files() -> Any:
    """All damaged files, and what is no file."""
    paths = [
        *sorted(Path("bad").iterdir()),
        Path("missing.png"),
        Path("missing.tif"),
        Path("missing"),
        Path(""),
    ]
    return {
        str(path): [tried(lambda path=path: header(path)), tried(lambda path=path: read(path))]
        for path in paths
    }


def geometry_of(axes: int) -> Geometry:
    """An affine of so many axes, and a value for none."""
    return Geometry(
        tuple(
            tuple(2.0 * (row == column) for column in range(axes + 1)) for row in range(axes + 1)
        ),
        nodata=3,
    )


MADE: dict[str, Callable[[], Any]] = {
    "8-bit colours": lambda: writing(numbers(3, (3, HEIGHT, WIDTH))),
    "16-bit grey": lambda: writing(numbers(4, (1, HEIGHT, WIDTH), np.uint16)),
    "two bands": lambda: writing(numbers(5, (2, HEIGHT, WIDTH), np.float32)),
    "a volume": lambda: writing(numbers(6, (1, *VOLUME), np.int16), geometry_of(3)),
    "a volume of 8 bits": lambda: writing(numbers(6, (1, *VOLUME))),
    "a located picture": lambda: writing(numbers(7, (1, HEIGHT, WIDTH), np.int16), geometry_of(2)),
    "truth values": lambda: writing(numbers(8, (1, HEIGHT, WIDTH), bool, 0, 2)),
    "64-bit integers": lambda: writing(numbers(8, (1, HEIGHT, WIDTH), np.int64)),
    "complex numbers": lambda: writing(numbers(9, (1, HEIGHT, WIDTH), np.complex64)),
    "two axes": lambda: writing(numbers(10, (HEIGHT, WIDTH))),
    "five axes": lambda: writing(numbers(11, (1, 1, *VOLUME))),
    "nothing": lambda: writing(np.zeros((1, 0, WIDTH), np.uint8)),
}
CASES: dict[str, Case] = {
    **cases_of_files(),
    **{f"pictures: write {name}": call for name, call in MADE.items()},
    "pictures: damaged files": bad_files,
    "pictures: attributes": attributes,
    "pictures: names of files": flawed_names,
    "pictures: ranges of values": ranges_of_values,
}
