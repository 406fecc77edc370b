"""What is written is read again; a window is the same part of the whole; other libraries agree."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bbdm.pictures import formats, images
from bbdm.pictures.lazy import Geometry
from bbdm.pictures.picture import Picture
from tests.pictures.formats import OBLIQUE, affine_of, bytes_read, numbers

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")
sitk = pytest.importorskip("SimpleITK")
rasterio = pytest.importorskip("rasterio")

TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
FLAT = [(1, 7, 9), (3, 7, 9)]
BANDS = [(2, 7, 9), (13, 7, 9)]
DEEP = [(1, 5, 7, 9), (2, 5, 7, 9)]
HELD = {  # of each suffix: the types and the shapes that it can hold
    **dict.fromkeys([".nii", ".mha", ".nrrd"], (TYPES, [*FLAT, *DEEP])),
    **dict.fromkeys([".nii.gz", ".mhd"], (["int16", "float64"], [*FLAT, *DEEP])),  # other places of the same values
    **dict.fromkeys([".npy", ".npz"], ([*TYPES, "float16", "int64", "uint64"], [*FLAT, *DEEP])),
    **dict.fromkeys([".tif"], (TYPES, [*FLAT, *BANDS, *DEEP])),
    ".png": (["uint8", "uint16"], FLAT),
    ".bmp": (["uint8"], FLAT),
}
CASES = [(suffix, kind) for suffix, (kinds, _) in HELD.items() for kind in kinds]
NO_PLACE = Geometry()


def matrix(geometry: Geometry) -> npt.NDArray[np.float64]:
    return np.array(geometry.affine, dtype=np.float64)


def part(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Some inner window."""
    return tuple(slice(1, length - 1) for length in shape[1:])


def read_back(path: Path, array: np.ndarray[Any, Any], geometry: Geometry = NO_PLACE) -> Any:
    formats.write(path, array, geometry)
    picture = formats.open(path)
    assert picture.shape == array.shape
    assert picture.dtype == array.dtype
    whole, window = picture[()], part(array.shape)
    assert whole.dtype == array.dtype
    assert whole.flags.c_contiguous
    assert whole.tobytes() == array.tobytes()
    assert picture[window].tobytes() == array[(slice(None), *window)].tobytes()
    assert pickle.loads(pickle.dumps(picture))[window].tobytes() == picture[window].tobytes()
    return picture


@pytest.mark.parametrize(("suffix", "kind"), CASES)
def test_round_trip(suffix: str, kind: str, tmp_path: Path) -> None:
    for shape in HELD[suffix][1]:
        read_back(tmp_path / f"a{suffix}", numbers(shape, kind))
    assert {path.name for path in tmp_path.iterdir()} <= {f"a{suffix}", "a.raw"}


def test_suffixes_have_tests() -> None:
    assert {*HELD, ".tiff", ".jpg", ".jpeg", ".webp"} == set(formats.SUFFIXES)
    assert not images.SUFFIXES - set(formats.SUFFIXES)
    assert sorted(formats.SUFFIXES, key=len, reverse=True) == list(formats.SUFFIXES)
    assert formats.suffix_of("A.b.NII.GZ") == ".nii.gz"
    assert formats.suffix_of("a.gz") == ""


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"])
class TestMedical:
    PLACE = affine_of((0.7, 1.3, 2.5), (-100.25, 33.0, 4.125), OBLIQUE)

    def test_place_is_kept(self, suffix: str, tmp_path: Path) -> None:
        """What SimpleITK reads is what it was told, and what it wrote is read and written again as it was."""
        image = sitk.GetImageFromArray(numbers((5, 7, 9), "int16"))
        image.SetSpacing((0.7, 1.3, 2.5))
        image.SetOrigin((-100.25, 33.0, 4.125))
        image.SetDirection(OBLIQUE.ravel().tolist())
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        first = formats.open(tmp_path / f"a{suffix}")
        assert first.shape == (1, 5, 7, 9)
        np.testing.assert_allclose(matrix(first.geometry), matrix(self.PLACE), atol=1e-5)  # of NIfTI: float32
        w, h, d = 3, 2, 4
        index = matrix(first.geometry) @ (d, h, w, 1)
        np.testing.assert_allclose(index[:3], image.TransformIndexToPhysicalPoint((w, h, d)), atol=1e-4)
        again = read_back(tmp_path / f"b{suffix}", first[()], first.geometry)
        if suffix.startswith(".nii"):  # a float32 quaternion, which SimpleITK computes at each writing
            np.testing.assert_allclose(matrix(again.geometry), matrix(first.geometry), atol=1e-6)
        else:
            assert again.geometry == first.geometry
        found = sitk.ReadImage(str(tmp_path / f"b{suffix}"))
        assert (sitk.GetArrayViewFromImage(found) == sitk.GetArrayViewFromImage(image)).all()

    def test_place_of_another_format(self, suffix: str, tmp_path: Path) -> None:
        picture = read_back(tmp_path / f"a{suffix}", numbers((1, 5, 7, 9), "int16"), self.PLACE)
        np.testing.assert_allclose(matrix(picture.geometry), matrix(self.PLACE), atol=1e-5)
        turned = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
        np.testing.assert_allclose(turned.GetSpacing(), (0.7, 1.3, 2.5), rtol=1e-6)
        np.testing.assert_allclose(turned.GetDirection(), OBLIQUE.ravel(), atol=1e-6)

    def test_components_are_channels(self, suffix: str, tmp_path: Path) -> None:
        array = numbers((5, 7, 9, 2), "float32")
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"a{suffix}"))
        found = formats.open(tmp_path / f"a{suffix}")
        assert not found.windowed
        assert (found[1:3, :, 4:] == np.moveaxis(array, -1, 0)[:, 1:3, :, 4:]).all()


def test_other_entries_are_kept(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(numbers((5, 7, 9), "int16"))
    image.SetMetaData("ITK_FileNotes", "phantom 3")
    image.SetMetaData("Study", "phantom 3")
    for suffix, key in ((".nii", "ITK_FileNotes"), (".mha", "Study"), (".nrrd", "Study")):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        first = formats.open(tmp_path / f"a{suffix}")
        formats.write(tmp_path / f"b{suffix}", first[()], first.geometry)
        assert sitk.ReadImage(str(tmp_path / f"b{suffix}")).GetMetaData(key) == image.GetMetaData(key)


def test_nifti_with_a_slope_and_a_fourth_axis_of_one(tmp_path: Path) -> None:
    """Stored 16-bit values times the slope: SimpleITK's values, in its type."""
    array = numbers((1, 5, 7, 9), "int16")
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / "a.nii"))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[112:120] = np.array([0.5, -1024], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    found = formats.open(tmp_path / "a.nii")
    assert found.shape == (1, 5, 7, 9)
    assert found.dtype.kind == "f"
    assert (found[()] == array * 0.5 - 1024).all()
    assert (found[2:4, :, 1:3] == found[()][:, 2:4, :, 1:3]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted in /proc")
@pytest.mark.parametrize("suffix", [".nii", ".mha", ".mhd", ".npy", ".tif"])
def test_a_window_reads_little(suffix: str, tmp_path: Path) -> None:
    array = np.arange(64 * 128 * 128, dtype=np.int32).reshape(1, 64, 128, 128)
    formats.write(tmp_path / f"a{suffix}", array, NO_PLACE)
    assert formats.open(tmp_path / f"a{suffix}").windowed
    formats.open(tmp_path / f"a{suffix}")[:1, :1, :1]
    before = bytes_read()
    found = formats.open(tmp_path / f"a{suffix}")[30:32, 5:40, 7:9]
    assert bytes_read() - before < array.nbytes / 3  # ITK reads the header many times, and lines at once
    assert (found == array[:, 30:32, 5:40, 7:9]).all()


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
        extra = {} if layout == "pages" else {"extrasamples": ["unspecified"] * 3}
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
        import imagecodecs

        array = numbers((1, 16, 16), "uint16") & 4095
        data = imagecodecs.packints_encode(array.ravel(), 12)
        tifffile.imwrite(tmp_path / "a.tif", iter([data]), shape=(16, 16), dtype="uint16", bitspersample=12)
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


class TestPillow:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_8_bits_are_read_as_before(self, suffix: str, mode: str, tmp_path: Path) -> None:
        image = Image.frombytes(mode, (9, 7), numbers((9 * 7 * len(mode),), "uint8").tobytes())
        options: dict[str, Any] = {"exif": exif(6)} if suffix in (".jpg", ".png") else {}
        image.save(tmp_path / f"a{suffix}", **options)
        found = formats.open(tmp_path / f"a{suffix}")
        upright = images.open_image(tmp_path / f"a{suffix}")
        assert found.dtype == np.uint8
        assert found.shape == (3 if suffix == ".webp" else len(mode), upright.height, upright.width)
        assert (found[()] == images.to_pixels(upright, found.shape[0])).all()
        assert (found[1:3, 2:5] == found[()][:, 1:3, 2:5]).all()

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_written_as_by_pillow(self, suffix: str, mode: str, tmp_path: Path) -> None:
        image = Image.frombytes(mode, (9, 7), numbers((9 * 7 * len(mode),), "uint8").tobytes())
        image.save(tmp_path / f"a{suffix}")
        formats.write(tmp_path / f"b{suffix}", images.to_pixels(image, len(mode)), NO_PLACE)
        assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()

    def test_16_bit_colours_upright_over_white(self, tmp_path: Path) -> None:
        """(v alpha + white (1 - alpha)) in 16 bits, then turned to the right."""
        import imagecodecs

        rgba = numbers((7, 9, 4), "uint16")
        data = imagecodecs.png_encode(rgba)
        chunk = exif(6).tobytes()
        (tmp_path / "a.png").write_bytes(data[:33] + png_chunk(b"eXIf", chunk[6:]) + data[33:])
        found = formats.open(tmp_path / "a.png")
        share = rgba[:, :, 3:] / 65535
        wanted = np.rint(rgba[:, :, :3] * share + 65535 * (1 - share)).transpose(2, 0, 1)
        assert found.shape == (3, 9, 7)
        assert np.abs(found[()].astype(int) - np.rot90(wanted, -1, axes=(1, 2))).max() <= 1
        opaque = numbers((7, 9, 3), "uint16")
        (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(opaque))
        assert (formats.open(tmp_path / "b.png")[()] == opaque.transpose(2, 0, 1)).all()

    def test_resolution(self, tmp_path: Path) -> None:
        Image.new("L", (4, 4)).save(tmp_path / "a.tif", dpi=(300, 200))
        formats.write(tmp_path / "b.tif", np.zeros((1, 4, 4), np.uint8), formats.open(tmp_path / "a.tif").geometry)
        assert Image.open(tmp_path / "b.tif").info["dpi"] == (300, 200)


def exif(turn: int) -> Image.Exif:
    made = Image.Exif()
    made[274] = turn
    return made


def png_chunk(name: bytes, data: bytes) -> bytes:
    import zlib

    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


class TestNumpy:
    def test_layouts(self, tmp_path: Path) -> None:
        array = numbers((5, 7, 9), "float32")
        for stored, wanted in ((array[0], array[:1]), (array, array), (array[None], array[None])):
            for ordered in (np.ascontiguousarray(stored), np.asfortranarray(stored)):
                np.save(tmp_path / "a.npy", ordered)
                np.savez(tmp_path / "a.npz", anything=ordered)
                for name in ("a.npy", "a.npz"):
                    assert (formats.open(tmp_path / name)[()] == wanted).all()

    def test_the_key_array(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", array=np.ones((2, 3)), other=np.zeros(3))
        assert (formats.open(tmp_path / "a.npz")[()] == 1).all()

    def test_other_byte_orders(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.arange(6, dtype=">u2").reshape(2, 3))
        found = formats.open(tmp_path / "a.npy")
        assert found.dtype.isnative
        assert found[()].tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_picture_saves_itself(tmp_path: Path) -> None:
    first = TestMedical.PLACE
    Picture(numbers((1, 5, 7, 9), "int16"), first, "HU", "a").save(tmp_path / "sub" / "a.mha")
    assert formats.open(tmp_path / "sub" / "a.mha").geometry.affine == first.affine
