"""Pictures that are written by parts: other libraries read what was meant, and the geometry comes back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from bbdm.pictures import formats
from bbdm.pictures.formats import common, tiff
from bbdm.pictures.lazy import Geometry, LazyPicture, LoadedPicture, Window
from tests.pictures.formats import matrix, numbers

SIZE = 300, 271  # more than a tile
PLACE = ((0.0, 10.0, 500000.0), (-10.0, 0.0, 4e6), (0.0, 0.0, 1.0))


class Parts(LoadedPicture):
    """A picture that is never read whole."""

    def __getitem__(self, window: Window) -> Any:
        made = super().__getitem__(window)
        assert made.size < self._array.size
        return made


def write(path: Path, array: Any, geometry: Geometry | None = None) -> LazyPicture:
    """What was written by rows."""
    formats.write_rows(path, Parts(array, path, geometry))
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    made = formats.open(path)
    assert made.dtype == array.dtype
    assert made[()].tobytes() == array.tobytes()
    return made


@pytest.fixture(autouse=True)
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "STRIP", 20_000)


@pytest.mark.parametrize(("channels", "kind"), [(1, "uint8"), (3, "float32"), (5, "int16")])
def test_npy_has_the_bytes_of_numpys(channels: int, kind: str, tmp_path: Path):
    array = numbers((channels, *SIZE), kind)
    write(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(("channels", "kind"), [(1, "uint8"), (3, "uint8"), (1, "uint16"), (3, "uint16")])
def test_png_is_read_by_pillow_and_imagecodecs(channels: int, kind: str, tmp_path: Path):
    array = numbers((channels, *SIZE), kind)
    path = tmp_path / "a.png"
    write(path, array)
    pixels = array[0] if channels == 1 else array.transpose(1, 2, 0)
    if (channels, kind) == (3, "uint16"):
        import imagecodecs

        assert (imagecodecs.png_decode(path.read_bytes()) == pixels).all()
    else:
        assert (np.asarray(Image.open(path)) == pixels).all()


def test_png_of_a_smooth_picture_is_packed(tmp_path: Path):
    ramp = np.broadcast_to((np.arange(SIZE[1]) // 2).astype(np.uint8), (3, *SIZE))
    write(tmp_path / "a.png", ramp.copy())
    assert (tmp_path / "a.png").stat().st_size < ramp.size // 100


@pytest.mark.parametrize(
    ("channels", "kind", "nodata"),
    [(1, "float32", None), (3, "uint8", 0.0), (3, "float64", float("nan")), (4, "int16", -9.0)],
)
def test_tiff_is_tiled_and_keeps_resolution_and_nodata(channels: int, kind: str, nodata: float | None, tmp_path: Path):
    array = numbers((channels, *SIZE), kind)
    kept = {"resolution": ((300, 1), (150, 1)), "resolutionunit": 2, **({} if nodata is None else {"nodata": nodata})}
    made = write(tmp_path / "a.tif", array, Geometry(None, "tiff", kept))
    made = formats.open_parts(made.path)
    assert made.windowed
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].is_tiled  # pyright: ignore[reportAttributeAccessIssue]
        assert not file.is_bigtiff
        assert (file.asarray() == (array[0] if channels == 1 else array.transpose(1, 2, 0))).all()
    assert made.geometry.kept["resolution"] == kept["resolution"]
    assert made.nodata == nodata or (np.isnan(nodata or 0) and np.isnan(made.nodata or 0))


def test_ome_tiff_keeps_sizes_and_names_of_channels(tmp_path: Path):
    array = numbers((2, *SIZE), "uint16")
    ome = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeXUnit": "µm", "Channel": {"Name": ["a", "b"]}}
    made = write(tmp_path / "a.tif", array, Geometry(None, "tiff", {"ome": ome}))
    assert made.geometry.kept["ome"] | ome == made.geometry.kept["ome"]
    assert (tifffile.imread(tmp_path / "a.tif") == array).all()


def test_what_a_classic_tiff_cannot_hold_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiff, "CLASSIC", 100_000)
    write(tmp_path / "a.tif", numbers((1, *SIZE), "uint16"), Geometry(None, "tiff"))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff


@pytest.mark.parametrize(("channels", "kind"), [(1, "uint8"), (3, "uint16"), (13, "float32")])
def test_geotiff_keeps_place_system_nodata_and_bands(channels: int, kind: str, tmp_path: Path):
    array = numbers((channels, *SIZE), kind)
    kept = {"crs": "EPSG:32633", "nodata": 7.0, "tags": {"WHEN": "today"}}
    made = write(tmp_path / "a.tif", array, Geometry(PLACE, "geotiff", kept))
    assert (matrix(made.geometry) == PLACE).all()
    assert made.nodata == 7
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.crs.to_epsg() == 32633
        assert file.tags()["WHEN"] == "today"
        assert file.block_shapes == [(256, 256)] * channels
        assert (file.read() == array).all()
    again = write(tmp_path / "a.tif", array, made.geometry)
    assert again.geometry == made.geometry


@pytest.mark.parametrize("change", ["none", "white is 0", "turned", "alpha", "palette"])
def test_a_tiff_of_8_bits_is_read_by_parts_where_pillow_sees_the_same(change: str, tmp_path: Path):
    colours = numbers((3, *SIZE), "uint8").transpose(1, 2, 0).copy()
    path, options = tmp_path / "a.tif", dict[str, Any](photometric="rgb", tile=(64, 64))
    if change == "white is 0":
        tifffile.imwrite(path, colours[..., 0].copy(), photometric="miniswhite", tile=(64, 64))
    elif change == "alpha":
        tifffile.imwrite(path, numbers((*SIZE, 4), "uint8"), **options, extrasamples=["unassalpha"])
    elif change == "palette":
        Image.fromarray(colours).quantize(16).save(path)
    else:
        tifffile.imwrite(path, colours, **options, extratags=[(274, 3, 1, 3, True)] if change == "turned" else [])
    parts, whole = formats.open_parts(path), formats.open(path)
    assert parts.windowed == (change == "none")
    assert (parts[slice(3, 9), slice(70, 200)] == whole[()][:, 3:9, 70:200]).all()


def test_an_error_leaves_the_file_that_was_there(tmp_path: Path):
    class Broken(LoadedPicture):
        def __getitem__(self, window: Window) -> Any:
            if window[0].start > 0:
                raise ValueError("no such row")
            return super().__getitem__(window)

    array = numbers((1, *SIZE), "uint8")
    for name in ("a.npy", "a.png", "a.tif"):
        (tmp_path / name).write_bytes(b"before")
        with pytest.raises(ValueError, match=rf"cannot write the picture .*{name}: no such row"):
            formats.write_rows(tmp_path / name, Broken(array, tmp_path, Geometry(None, "tiff")))
        assert (tmp_path / name).read_bytes() == b"before"
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize(
    ("name", "shape", "kind", "message"),
    [
        ("a.jpg", (3, 9, 9), "uint8", r"by rows: \.npy, \.png, \.tif, \.tiff can be written so"),
        ("a.nii", (1, 9, 9), "uint8", r"by rows: \.npy"),
        ("a", (1, 9, 9), "uint8", "its name must end in one of"),
        ("a.png", (2, 9, 9), "uint8", r"\.png holds 1 or 3 channels, got 2"),
        ("a.png", (3, 9, 9), "float32", r"\.png cannot hold float32, but uint8, uint16"),
        ("a.npy", (1, 2, 9, 9), "uint8", r"\.npy holds pictures of 2 axes besides the channels"),
    ],
)
def test_refusals(name: str, shape: tuple[int, ...], kind: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        formats.write_rows(tmp_path / name, LoadedPicture(numbers(shape, kind), tmp_path / name))
    assert not [*tmp_path.iterdir()]
