"""Files for the tests of this folder, written by Pillow, NumPy, nibabel, SimpleITK and rasterio alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.pictures.values import Values

Array = npt.NDArray[Any]
SIZE = 8
# of :func:`located`, and 1 more
SOURCE, TARGET = Values(0, 4000, dtype="int16"), Values(1, 4001, "u", "int16")


def pixels(number: int, height: int = SIZE, width: int = SIZE, channels: int = 3) -> Array:
    """(H, W, C) of random 8-bit colours; (H, W) of one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def located(number: int, shape: Sequence[int], dtype: str = "int16") -> Array:
    """A picture in which each pixel says where it is: 1000 times the number, and its index."""
    return (1000 * number + np.arange(np.prod(shape))).reshape(shape).astype(dtype)


def save(path: Path, array: Array, **options: Any) -> Path:
    """Write an array: (H, W) or (H, W, 3) of pictures, (D, H, W) of volumes, any of .npy; make the folder.

    ``affine`` of NIfTI is of (x, y, z), ``nodata`` of GeoTIFF.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        affine = options.get("affine", np.eye(4))
        nibabel.Nifti1Image(array.transpose(), affine).to_filename(path)
    elif path.suffix == ".mha":
        import SimpleITK as sitk  # noqa: N813

        image = sitk.GetImageFromArray(array)
        image.SetSpacing(options.get("spacing", (1.0, 1.0, 1.0)))
        sitk.WriteImage(image, str(path), useCompression=True)
    elif "nodata" in options:
        import rasterio

        shape = {
            "height": array.shape[0],
            "width": array.shape[1],
            "count": 1,
            "dtype": array.dtype.name,
        }
        place = rasterio.transform.from_origin(options.pop("west", 5), 9, 1, 1)  # pyright: ignore
        with rasterio.open(
            path, "w", "GTiff", **shape, transform=place, crs="EPSG:32632", **options
        ) as file:
            file.write(array, 1)
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **options)
    return path


def folders(
    root: Path, suffix: str = ".npy", count: int = 3, size: tuple[int, ...] = (20, 24)
) -> str:
    """A and B of :func:`located`, as SOURCES,TARGETS: a target is 1 more than its source."""
    for number in range(count):
        array = located(number, size)
        array = array[None] if suffix == ".npy" else array
        for side, name in enumerate("AB"):
            save(root / name / f"{number}{suffix}", array + array.dtype.type(side))
    return f"{root}/A,{root}/B"


def pictures(root: Path, count: int = 5, height: int = SIZE + 3) -> str:
    """The same of photographs: a source is noise, its target the negative."""
    for number in range(count):
        array = pixels(number, height)
        save(root / "A" / f"{number}.png", array)
        save(root / "B" / f"{number}.png", 255 - array)
    return f"{root}/A,{root}/B"


def load(data_dir: str | Path, dataset: str = "paired", **settings: Any) -> Pairs:
    """The pairs of a layout; settings of :class:`Pairs` by their names, all others are the spec's."""
    how = {
        name: settings.pop(name) for name in ("cache", "prepare", "skip_bad") if name in settings
    }
    return Pairs(
        read_rows(dataset, str(data_dir), settings.pop("split", "train")), Spec(**settings), **how
    )


def valued(data_dir: str | Path, **settings: Any) -> Pairs:
    """Those of :func:`folders`."""
    return load(data_dir, **{"source": SOURCE, "target": TARGET, **settings})


def numbers(tensor: Any) -> Array:
    """(*S) of stored numbers, of a source's first channel."""
    return np.rint((tensor.numpy()[0].astype(np.float64) + 1) * 2000).astype(int)


def damage(path: Path) -> None:
    """Cut off the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
