"""What made a picture stands in its file, where each format's own library finds it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import rasterio
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import ExifTags, Image

from bbdm.pictures import Derivation, Geometry, Picture, read, write
from bbdm.pictures.formats import tifffile as module_of_tiff
from tests.pictures.formats import numbers

FIRST = Derivation("0123456789abcdef" * 4, "dpm2m", 5, (7,))
SECOND = Derivation("fedcba9876543210" * 4, "mean", 1, (2**63 - 1,))
TEXTS = {
    FIRST: "made by bbdm: model 0123456789, seed 7, 5 steps, dpm2m",
    SECOND: "made by bbdm: model fedcba9876, seed 9223372036854775807, 1 step, mean",
}


def of_png(path: Path) -> str:
    return str(Image.open(path).info.get("Description", ""))


def of_exif(path: Path) -> str:
    return str(Image.open(path).getexif().get(ExifTags.Base.ImageDescription, ""))


def of_tiff(path: Path) -> str:
    with tifffile.TiffFile(path) as file:
        return file.pages.first.description


def of_ome(path: Path) -> str:
    with tifffile.TiffFile(path) as file:
        image: Any = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]
    return str(image.get("Description", ""))


def of_nifti(path: Path) -> str:
    header: Any = nibabel.load(path).header
    return header["descrip"].item().decode()


def of_itk(path: Path) -> str:
    image = sitk.ReadImage(str(path))
    name = "DerivationDescription"
    return image.GetMetaData(name) if image.HasMetaDataKey(name) else ""


def of_geotiff(path: Path) -> str:
    with rasterio.open(path) as file:
        assert file.tags()["TIFFTAG_IMAGEDESCRIPTION"] == "a scene"
        return file.tags().get("DerivationDescription", "")


SCENE = {"tags": {"TIFFTAG_IMAGEDESCRIPTION": "a scene"}}
PLACED = Geometry(((0.0, 10.0, 5.0), (-10.0, 0.0, 9.0), (0.0, 0.0, 1.0)), "geotiff", SCENE)
FORMATS: dict[str, tuple[str, tuple[int, ...], Geometry, Any]] = {
    "png": (".png", (3, 7, 9), Geometry(), of_png),
    "jpeg": (".jpg", (3, 7, 9), Geometry(), of_exif),
    "webp": (".webp", (3, 7, 9), Geometry(), of_exif),
    "tiff": (".tif", (3, 7, 9), Geometry(), of_tiff),
    "ome": (".tif", (2, 5, 7, 9), Geometry(), of_ome),
    "nifti": (".nii", (1, 5, 7, 9), Geometry(), of_nifti),
    "nifti, packed": (".nii.gz", (1, 5, 7, 9), Geometry(), of_nifti),
    "metaimage": (".mha", (1, 5, 7, 9), Geometry(), of_itk),
    "nrrd": (".nrrd", (1, 5, 7, 9), Geometry(), of_itk),
    "geotiff": (".tif", (3, 7, 9), PLACED, of_geotiff),
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_say_what_made_them(name: str, tmp_path: Path) -> None:
    """A result of a result says what made it. A picture that is read and written again says nothing."""
    suffix, shape, geometry, text_of = FORMATS[name]
    path = tmp_path / f"a{suffix}"
    array = numbers(shape, "uint8")
    write(path, Picture(array, geometry))
    assert not text_of(path).startswith("made by")
    plain = read(path)
    write(path, Picture(array, replace(geometry, derivation=FIRST)))
    assert text_of(path) == TEXTS[FIRST]
    again = read(path)
    np.testing.assert_array_equal(again, plain)
    assert again.geometry.derivation is None
    write(path, again)
    assert not text_of(path).startswith("made by")
    write(path, Picture(again, replace(again.geometry, derivation=SECOND)))
    assert text_of(path) == TEXTS[SECOND]


@pytest.mark.parametrize("suffix", [".bmp", ".npy"])
def test_formats_without_an_entry_say_nothing(suffix: str, tmp_path: Path) -> None:
    array = numbers((3, 7, 9), "uint8")
    write(tmp_path / f"a{suffix}", Picture(array, Geometry(derivation=FIRST)))
    np.testing.assert_array_equal(read(tmp_path / f"a{suffix}"), array)


@pytest.mark.parametrize("name", ["tiff", "ome"])
@pytest.mark.parametrize("tiled", [False, True])
def test_the_unit_of_a_tiff_is_read_beside_it(
    name: str, tiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiled:
        monkeypatch.setattr(module_of_tiff, "TILED", 1)
    suffix, shape, geometry, text_of = FORMATS[name]
    path = tmp_path / f"a{suffix}"
    write(path, Picture(numbers(shape, "int16"), replace(geometry, derivation=FIRST), "HU"))
    assert read(path).unit == "HU"
    assert text_of(path) == f"unit of values: HU\n{TEXTS[FIRST]}"


def test_a_description_of_nifti_is_kept_where_nothing_replaces_it_and_has_80_letters(
    tmp_path: Path,
) -> None:
    """The text of a map of several samples is cut off."""
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    image.header["descrip"] = b"of a scanner"
    image.to_filename(tmp_path / "a.nii")
    scan = read(tmp_path / "a.nii")
    write(tmp_path / "b.nii", scan)
    assert of_nifti(tmp_path / "b.nii") == "of a scanner"
    of_map = replace(SECOND, solver="sde-dpm2m", seeds=(2**63 - 1, 1, 2))
    write(tmp_path / "c.nii", Picture(scan, replace(scan.geometry, derivation=of_map)))
    text = "made by bbdm: model fedcba9876, seed 9223372036854775807 and 2 more, 1 step, sde-dpm2m"
    assert of_map.text == text
    assert of_nifti(tmp_path / "c.nii") == text[:80]
