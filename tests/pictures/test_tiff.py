"""TIFF in all layouts, with what OME, ImageJ and GeoTIFF say besides, compared with tifffile and rasterio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
import rasterio.transform
import tifffile

from bbdm.pictures import formats
from tests.pictures.formats import matrix, numbers, read_back

TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]


class TestTiff:
    @pytest.mark.parametrize("layout", ["strips", "tiles", "planes", "pages", "predictor", "big-endian"])
    @pytest.mark.parametrize("kind", ["uint16", "float32", "int8"])
    def test_layouts(self, layout: str, kind: str, tmp_path: Path) -> None:
        array = numbers((4, 70, 50), kind)
        options: dict[str, dict[str, Any]] = {
            "strips": {"rowsperstrip": 8, "compression": "zlib"},
            "tiles": {"tile": (16, 32), "compression": "lzw"},
            "planes": {"planarconfig": "separate", "rowsperstrip": 16, "compression": "zstd"},
            "pages": {"tile": (32, 16), "compression": "zlib"},
            "predictor": {"rowsperstrip": 32, "compression": "zlib", "predictor": True},
            "big-endian": {"byteorder": ">", "rowsperstrip": 16},
        }
        stored = array if layout in ("planes", "pages") else array.transpose(1, 2, 0)
        options["pages"]["planarconfig"] = None
        extra: dict[str, Any] = {} if layout == "pages" else {"extrasamples": ["unspecified"] * 3}
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **options[layout], **extra)
        found = formats.open(tmp_path / "a.tif")
        assert found.shape == array.shape
        assert found.dtype == array.dtype
        assert found.windowed
        assert found[()].tobytes() == array.tobytes()
        for window in ((slice(9, 41), slice(30, 33)), (slice(69, 70), slice(0, 50))):
            assert found[window].tobytes() == array[(slice(None), *window)].tobytes()

    def test_only_tiles_of_the_window_are_read(self, tmp_path: Path) -> None:
        """The last tile is damaged."""
        array = numbers((1, 64, 64), "uint16")
        tifffile.imwrite(tmp_path / "a.tif", array[0], tile=(32, 32), compression="zlib")
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            page = file.pages[0]
            place, count = page.dataoffsets[3], page.databytecounts[3]
        data = bytearray((tmp_path / "a.tif").read_bytes())
        data[place : place + count] = bytes(count)
        (tmp_path / "a.tif").write_bytes(data)
        found = formats.open(tmp_path / "a.tif")
        assert (found[:32, :] == array[:, :32]).all()
        with pytest.raises(ValueError, match=r"a\.tif"):
            found[()]

    def test_ome_axes(self, tmp_path: Path) -> None:
        """(C, Z, Y, X) in OME's other order, with sizes, units and names that come back."""
        array = numbers((2, 5, 7, 9), "uint16")
        about = {
            **{"axes": "ZCYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.2},
            **{"PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 0.5, "PhysicalSizeZUnit": "µm"},
            "Channel": {"Name": ["DAPI", "GFP"]},
        }
        stored = array.transpose(1, 0, 2, 3)
        tifffile.imwrite(tmp_path / "a.ome.tif", stored, metadata=about, compression="zlib")
        first = formats.open(tmp_path / "a.ome.tif")
        assert (first[()] == array).all()
        assert (first[2:4, 1:3, 8:] == array[:, 2:4, 1:3, 8:]).all()
        assert first.geometry.affine == ((0, 0, 0.1, 0), (0, 0.2, 0, 0), (0.5, 0, 0, 0), (0, 0, 0, 1))
        again = read_back(tmp_path / "b.tif", array, first.geometry)
        assert again.geometry == first.geometry
        with tifffile.TiffFile(tmp_path / "b.tif") as file:
            assert "DAPI" in file.ome_metadata
            assert file.series[0].axes == "CZYX"

    def test_imagej_slices(self, tmp_path: Path) -> None:
        array = numbers((2, 5, 7, 9), "uint16")
        about = {"axes": "ZCYX", "spacing": 3.0, "unit": "mm"}
        stored = array.transpose(1, 0, 2, 3)
        tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata=about, resolution=(4, 2))
        found = formats.open(tmp_path / "a.tif")
        assert (found[1:4, 2:3, :] == array[:, 1:4, 2:3]).all()
        assert found.geometry.affine == ((0, 0, 0.25, 0), (0, 0.5, 0, 0), (3, 0, 0, 0), (0, 0, 0, 1))

    def test_resolution(self, tmp_path: Path) -> None:
        array = numbers((1, 7, 9), "uint16")
        resolution = ((72, 7), (31, 3))
        tifffile.imwrite(tmp_path / "a.tif", array[0], resolution=resolution, resolutionunit="CENTIMETER")
        first = formats.open(tmp_path / "a.tif")
        assert read_back(tmp_path / "b.tif", array, first.geometry).geometry == first.geometry
        with tifffile.TiffFile(tmp_path / "b.tif") as file:
            assert (file.pages[0].tags["XResolution"].value, file.pages[0].resolutionunit) == ((72, 7), 3)

    def test_a_thumbnail_is_no_page(self, tmp_path: Path) -> None:
        array = numbers((1, 16, 16), "uint16")
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(array[0], metadata=None)
            file.write(array[0, ::2, ::2], subfiletype=1, metadata=None)
        assert (formats.open(tmp_path / "a.tif")[()] == array).all()

    def test_12_bits(self, tmp_path: Path) -> None:
        array = numbers((1, 16, 16), "uint16") & 4095
        data = imagecodecs.packints_encode(array.ravel(), 12)
        tifffile.imwrite(tmp_path / "a.tif", iter([bytes(data)]), shape=(16, 16), dtype="uint16", bitspersample=12)
        assert (formats.open(tmp_path / "a.tif")[()] == array).all()


class TestGeoTiff:
    CRS = "EPSG:32632"
    PLACE = (10.0, 0.5, 500000.25, -0.25, -10.0, 4649776.0)  # x of columns and rows, y of columns and rows

    def file(self, path: Path, array: np.ndarray[Any, Any], **options: Any) -> Path:
        profile = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
        with rasterio.open(
            path, "w", driver="GTiff", crs=self.CRS, transform=rasterio.Affine(*self.PLACE), **profile, **options
        ) as file:
            file.write(array)
            file.update_tags(SENSOR="S2")
            file.update_tags(2, WAVELENGTH="560")
            file.descriptions = [f"B{band:02d}" for band in range(1, len(array) + 1)]
            file.scales = [0.0001] * len(array)
        return path

    @pytest.mark.parametrize("kind", TYPES)
    def test_everything_is_kept(self, kind: str, tmp_path: Path) -> None:
        array = numbers((13, 40, 50), kind)
        first = formats.open(self.file(tmp_path / "a.tif", array, nodata=7))
        assert first.shape == array.shape
        assert first.dtype == array.dtype
        assert first.nodata == 7
        assert (first[()] == array).all()
        x, y, _ = matrix(first.geometry) @ (3, 4, 1)  # row 3, column 4
        with rasterio.open(tmp_path / "a.tif") as file:
            assert (x, y) == rasterio.transform.xy(file.transform, 3, 4, offset="ul")
        again = read_back(tmp_path / "b.tif", array, first.geometry)
        assert again.geometry == first.geometry
        assert again.nodata == 7
        with rasterio.open(tmp_path / "b.tif") as file:
            assert file.crs == rasterio.CRS.from_string(self.CRS)
            assert tuple(file.transform)[:6] == self.PLACE
            assert file.descriptions[1] == "B02"
            assert file.tags()["SENSOR"] == "S2"
            assert file.tags(2) == {"WAVELENGTH": "560"}
            assert file.scales[0] == 0.0001
            assert file.block_shapes[0] == (256, 256)

    def test_windows_read_only_tiles(self, tmp_path: Path) -> None:
        array = numbers((3, 512, 512), "uint16")
        self.file(tmp_path / "a.tif", array, tiled=True, blockxsize=256, blockysize=256, compress="deflate")
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            place = file.pages[0].dataoffsets[3]
        data = bytearray((tmp_path / "a.tif").read_bytes())
        data[place : place + 1000] = bytes(1000)
        (tmp_path / "a.tif").write_bytes(data)
        found = formats.open(tmp_path / "a.tif")
        assert found.windowed
        assert (found[5:90, 7:100] == array[:, 5:90, 7:100]).all()
        with pytest.raises(ValueError, match=r"a\.tif"):
            found[()]

    def test_without_rasterio_8_bits_are_read_as_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        array = numbers((3, 16, 16), "uint8")
        self.file(tmp_path / "a.tif", array)
        assert formats.open(tmp_path / "a.tif").geometry.format == "geotiff"
        monkeypatch.setattr(formats, "find_spec", lambda name: None)
        found = formats.open(tmp_path / "a.tif")
        assert found.geometry.format == "pillow"
        assert (found[()] == array).all()
