"""Files that are damaged, too large or of another kind: a ValueError with their name, and no memory spent."""

from __future__ import annotations

import gzip
import locale
import pickle
import struct
import sys
import zipfile
import zlib
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import SimpleITK as sitk  # noqa: N813
import tifffile

from bbdm.base import optional
from bbdm.pictures import formats
from bbdm.pictures.formats import common
from bbdm.pictures.images import UnknownFormatError
from bbdm.pictures.lazy import Geometry
from tests.hardening.watch import forget_peak, memory
from tests.pictures.formats import NO_PLACE, numbers, write_dicom


def refused(path: Path, message: str) -> None:
    """Opening a picture, or reading it, is an error with its name."""
    with pytest.raises(ValueError, match=message) as caught:
        formats.open(path)[()]
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, FileNotFoundError)


class TestNames:
    def test_missing(self, tmp_path: Path) -> None:
        for suffix in formats.SUFFIXES:
            with pytest.raises(FileNotFoundError, match="there is no picture"):
                formats.open(tmp_path / f"a{suffix}")

    def test_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "folder").mkdir()
        for name in ("a.txt", "folder"):
            assert not formats.is_picture(tmp_path / name)
            with pytest.raises(UnknownFormatError, match=name):
                formats.open(tmp_path / name)
        with pytest.raises(ValueError, match=r"must end in one of \.nii\.gz"):
            formats.write(tmp_path / "a.dcm", np.zeros((1, 4, 4)), NO_PLACE)

    @pytest.mark.parametrize("suffix", formats.SUFFIXES)
    def test_another_content(self, suffix: str, tmp_path: Path) -> None:
        for content in (b"", b"no picture at all", bytes(1000)):
            (tmp_path / f"a{suffix}").write_bytes(content)
            refused(tmp_path / f"a{suffix}", "cannot read")

    @pytest.mark.parametrize(
        ("name", "extra", "missing"),
        [
            ("a.nii", "medical", "SimpleITK"),
            ("a.tif", "tiff", "tifffile"),
            ("b.tif", "geo", "rasterio"),
            ("a.png", "tiff", "imagecodecs"),
        ],
    )
    def test_missing_packages(
        self, name: str, extra: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind = Geometry(((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), "geotiff" if name == "b.tif" else "")
        array = numbers((3, 8, 8), "uint16")
        formats.write(tmp_path / name, array, kind)

        def without(name: str) -> Any:
            if name == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return sys.modules[name]

        monkeypatch.setattr(optional, "import_module", without)
        for act in (lambda: formats.open(tmp_path / name), lambda: formats.write(tmp_path / name, array, kind)):
            with pytest.raises(ModuleNotFoundError, match=rf"pip install 'bbdm\[{extra}\]'"):
                act()


class TestValuesThatAreNotHeld:
    @pytest.mark.parametrize(
        ("name", "shape", "kind", "message"),
        [
            ("a.jpg", (1, 8, 8), "uint16", r"\.jpg cannot hold uint16, but uint8"),
            ("a.png", (1, 8, 8), "float32", r"\.png cannot hold float32, but uint8, uint16"),
            ("a.png", (2, 8, 8), "uint8", "holds 1 or 3 channels, got 2"),
            ("a.png", (1, 4, 8, 8), "uint8", "2 axes besides the channels"),
            ("a.nii", (1, 8, 8), "float16", "cannot hold float16"),
            ("a.npy", (1, 8, 8), "complex64", "cannot hold complex64"),
            ("a.tif", (1, 8, 8), "complex64", "cannot hold complex64"),
            ("a.npy", (8, 8), "uint8", "got .8, 8."),
        ],
    )
    def test_written(self, name: str, shape: tuple[int, ...], kind: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            formats.write(tmp_path / name, np.zeros(shape, kind), NO_PLACE)
        assert list(tmp_path.iterdir()) == []

    def test_complex(self, tmp_path: Path) -> None:
        array = np.ones((8, 8), np.complex64)
        np.save(tmp_path / "a.npy", array)
        np.savez(tmp_path / "a.npz", array)
        tifffile.imwrite(tmp_path / "a.tif", array)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii"))
        with rasterio.open(
            tmp_path / "b.tif", "w", "GTiff", 8, 8, 1, "EPSG:4326", rasterio.Affine(1, 0, 5, 0, 1, 5), "complex64"
        ) as file:
            file.write(array[None])
        for name in ("a.npy", "a.npz", "a.tif", "b.tif", "a.nii"):
            refused(tmp_path / name, "real numbers|complex")


class TestMedical:
    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    @pytest.mark.parametrize("kind", ["float32", "float64"])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_what_itk_reads_as_0(self, suffix: str, kind: str, value: float, tmp_path: Path) -> None:
        """NIfTI's library replaces NaN and infinity; more values than are decompressed at once."""
        array = np.zeros((1, 70, 80, 90), kind)
        formats.write(tmp_path / "a.nii", array, Geometry())
        data = bytearray((tmp_path / "a.nii").read_bytes())
        width = array.dtype.itemsize
        at = (len(data) - array.nbytes) + ((65 * 80 + 7) * 90 + 8) * width
        data[at : at + width] = np.array(value, kind).tobytes()
        path = tmp_path / f"b{suffix}"
        path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
        with pytest.raises(ValueError, match=rf"{value} stands in channel 0 at \(65, 7, 8\), where a finite number"):
            formats.open(path)[()]
        if suffix == ".nii":
            assert (formats.open(path)[slice(0, 65), slice(None), slice(None)] == 0).all()

    def test_times(self, tmp_path: Path) -> None:
        image = sitk.JoinSeries([sitk.GetImageFromArray(numbers((3, 4, 5), "int16"))] * 2)
        sitk.WriteImage(image, str(tmp_path / "a.nii"))
        refused(tmp_path / "a.nii", "4 axes, 5 x 4 x 3 x 2, such as times: save each volume")
        sitk.WriteImage(image[:, :, :, :1], str(tmp_path / "a.nii"))
        assert formats.open(tmp_path / "a.nii")[()].shape == (1, 3, 4, 5)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_truncated_or_changed(self, suffix: str, packed: bool, tmp_path: Path) -> None:
        image = sitk.GetImageFromArray(numbers((5, 17, 19), "int16"))
        sitk.WriteImage(image, str(path := tmp_path / f"a{suffix}"), useCompression=packed)
        (data_file,) = tmp_path.glob("*raw") if suffix == ".mhd" else [path]
        data = data_file.read_bytes()
        for share in (0.1, 0.5, 0.99):
            data_file.write_bytes(data[: int(share * len(data))])
            refused(path, "cannot read")
        if b"gz" in suffix.encode() or (packed and suffix != ".nii"):
            changed = bytearray(data)
            changed[-20:-18] = bytes(2)  # checksums tell
            data_file.write_bytes(changed)
            refused(path, "cannot read")

    def test_an_mhd_reads_no_other_folder(self, tmp_path: Path) -> None:
        formats.write(tmp_path / "sub" / "a.mhd", numbers((1, 5, 7, 9), "int16"), NO_PLACE)
        header = (tmp_path / "sub" / "a.mhd").read_text()
        for name in ("../a.raw", str(tmp_path / "sub" / "a.raw"), "LIST", "%d.raw 1 5 1", "b.raw"):
            (tmp_path / "sub" / "a.mhd").write_text(header.replace("a.raw", name))
            refused(tmp_path / "sub" / "a.mhd", "one file beside it is wanted|Invalid name")


class TestDicom:
    ARRAY = numbers((5, 8, 8), "uint8").astype(np.int16) - 1000
    HEIGHTS = (-4.0, -1.5, 1.0, 3.5, 6.0)

    def test_a_series(self, tmp_path: Path) -> None:
        """Slices by position, of whatever name; values in HU; the place as DICOM says it."""
        write_dicom(tmp_path / "ct", self.ARRAY[[3, 0, 4, 1, 2]], [self.HEIGHTS[i] for i in (3, 0, 4, 1, 2)])
        assert formats.is_picture(tmp_path / "ct")
        before = locale.setlocale(locale.LC_ALL)
        found = formats.open(tmp_path / "ct")
        assert (found.shape, found.dtype.kind) == ((1, 5, 8, 8), "i")
        assert (found[()] == self.ARRAY).all()
        assert locale.setlocale(locale.LC_ALL) == before  # text files would be read in another encoding
        assert (found[1:2, 3:5, 6:] == self.ARRAY[None, 1:2, 3:5, 6:]).all()
        assert found.geometry.affine == ((0, 0, 0.5, -10), (0, 0.25, 0, 5), (2.5, 0, 0, -4), (0, 0, 0, 1))
        formats.write(tmp_path / "a.nii", found[()], found.geometry)
        np.testing.assert_allclose(
            np.asarray(formats.open(tmp_path / "a.nii").geometry.affine, float), found.geometry.affine or ()
        )

    def test_a_window_reads_its_slices(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, self.ARRAY, list(self.HEIGHTS))
        found = formats.open(tmp_path)
        assert found.windowed
        for path in sorted(tmp_path.iterdir())[2:]:
            path.unlink()
        assert (found[0:2, :, :] == self.ARRAY[None, :2]).all()
        with pytest.raises(ValueError, match=str(tmp_path)):
            found[()]

    def test_two_series(self, tmp_path: Path) -> None:
        write_dicom(tmp_path, self.ARRAY, list(self.HEIGHTS), "1.2.3")
        write_dicom(tmp_path, self.ARRAY, list(self.HEIGHTS), "1.2.4", first=50)
        refused(tmp_path, r"2 series, 1\.2\.3, 1\.2\.4")

    @pytest.mark.parametrize(
        ("heights", "message"),
        [
            ([0, 2, 4, 8, 10], r"1 slice is missing between slices 3 and 4, at \(-10, 5, 4\) and \(-10, 5, 8\) mm"),
            ([0, 2, 8, 10, 12], "2 slices are missing between slices 2 and 3"),
            ([0, 2, 4, 7, 9], r"slices are 2 mm apart, but 3 mm between slices 3 and 4"),
            ([0, 2, 2, 4, 6], r"two slices are at one place, \(-10, 5, 2\)"),
        ],
    )
    def test_distances(self, heights: list[float], message: str, tmp_path: Path) -> None:
        write_dicom(tmp_path, self.ARRAY, heights)
        refused(tmp_path, message)

    def test_a_damaged_slice(self, tmp_path: Path) -> None:
        """The last one, which no other distance shows."""
        write_dicom(tmp_path, self.ARRAY, list(self.HEIGHTS))
        (tmp_path / "28.dcm").write_bytes((tmp_path / "28.dcm").read_bytes()[:600])
        refused(tmp_path, r"28\.dcm")


class TestTiff:
    def test_times(self, tmp_path: Path) -> None:
        stored = numbers((2, 3, 8, 8), "uint16")
        tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata={"axes": "TZYX"})
        refused(tmp_path / "a.tif", "2 times: save each as a file of its own")

    def test_pages_of_several_sizes(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            for side in (8, 16):
                file.write(numbers((side, side), "uint16"), metadata=None)
        refused(tmp_path / "a.tif", r"several sizes or types, \(8, 8\), \(16, 16\)")

    def test_truncated(self, tmp_path: Path) -> None:
        for compression in (None, "zlib"):
            tifffile.imwrite(tmp_path / "a.tif", numbers((32, 32), "uint16"), metadata=None, compression=compression)
            data = (tmp_path / "a.tif").read_bytes()
            (tmp_path / "a.tif").write_bytes(data[:-100])
            refused(tmp_path / "a.tif", "truncated|shorter")

    def test_a_missing_half_of_a_set(self, tmp_path: Path) -> None:
        """OME can name other files, which are not read."""
        tifffile.imwrite(tmp_path / "a.ome.tif", numbers((2, 8, 8), "uint16"), metadata={"axes": "CYX"})
        data = (tmp_path / "a.ome.tif").read_bytes()
        (tmp_path / "a.ome.tif").write_bytes(data.replace(b'SizeC="2"', b'SizeC="9"'))
        refused(tmp_path / "a.ome.tif", "cannot read")


class TestNumpy:
    def test_pickles_are_not_loaded(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([print, None]), allow_pickle=True)
        np.savez(tmp_path / "a.npz", np.array([print, None]))
        (tmp_path / "b.npy").write_bytes(pickle.dumps(print))
        refused(tmp_path / "a.npy", "pickled objects, which are never loaded")
        refused(tmp_path / "a.npz", "pickled objects, which are never loaded")
        refused(tmp_path / "b.npy", "cannot read")

    def test_shapes(self, tmp_path: Path) -> None:
        for shape in ((3,), (1, 2, 3, 4, 5), (0, 3), ()):
            np.save(tmp_path / "a.npy", np.zeros(shape))
            refused(tmp_path / "a.npy", "must be|no pixels")

    def test_several_arrays(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", one=np.zeros((2, 2)), two=np.zeros((2, 2)))
        refused(tmp_path / "a.npz", 'named "array"; it has one, two')

    def test_damaged_member(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", np.zeros((8, 8)))
        data = bytearray((tmp_path / "a.npz").read_bytes())
        data[300] ^= 1
        (tmp_path / "a.npz").write_bytes(data)
        refused(tmp_path / "a.npz", "CRC")


SHAPE = (50_000, 60_000)  # 3 x 10^9 pixels


def large_npy(path: Path) -> None:
    header = f"{{'descr': '<u4', 'fortran_order': False, 'shape': {SHAPE}, }}".ljust(117) + "\n"
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        file.truncate(128 + 4 * SHAPE[0] * SHAPE[1])


def bomb_npz(path: Path) -> None:
    """32 MB of zeros in 32 KB, whose header says that they are many more."""
    header = f"{{'descr': '<u4', 'fortran_order': False, 'shape': {SHAPE}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("array.npy", "w") as member:
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        for _ in range(32):
            member.write(bytes(2**20))


def large_tiff(path: Path) -> None:
    """Tiles of which only the first is written."""
    count = -(-SHAPE[0] // 512) * -(-SHAPE[1] // 512)
    tiles = chain([np.zeros((512, 512), np.uint16)], repeat(None, count - 1))
    tifffile.imwrite(path, tiles, shape=SHAPE, dtype="uint16", tile=(512, 512), compression="zlib")


def large_geotiff(path: Path) -> None:
    profile = {"driver": "GTiff", "height": SHAPE[0], "width": SHAPE[1], "count": 1, "dtype": "uint16"}
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(1, 0, 5, 0, 1, 5)}
    with rasterio.open(path, "w", **profile, **place, tiled=True, sparse_ok=True, compress="deflate"):
        pass


def large_png(path: Path) -> None:
    formats.write(path, numbers((1, 4, 4), "uint16"), NO_PLACE)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", *SHAPE)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def large_nifti(path: Path) -> None:
    formats.write(path.with_suffix("") if path.suffix == ".gz" else path, numbers((1, 4, 4, 4), "int16"), NO_PLACE)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    data = bytearray(plain.read_bytes())
    data[42:48] = struct.pack("<3h", 4096, 4096, 100)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.npy", large_npy),
        ("a.npz", bomb_npz),
        ("a.tif", large_tiff),
        ("b.tif", large_geotiff),
        ("a.png", large_png),
        ("a.nii", large_nifti),
        ("a.nii.gz", large_nifti),
    ],
)
def test_no_memory_is_spent(name: str, make: Any, tmp_path: Path) -> None:
    make(tmp_path / name)
    formats.write(tmp_path / f"small{formats.suffix_of(name)}", numbers((1, 4, 4), "uint16"), NO_PLACE)
    formats.open(tmp_path / f"small{formats.suffix_of(name)}")[()]  # imports
    forget_peak()
    before = memory("VmRSS")
    refused(tmp_path / name, "truncated|bytes|GiB|pixels|limit")
    if name in ("a.npy", "a.tif", "b.tif"):  # formats of which a part is read alone
        found = formats.open(tmp_path / name)
        assert found.shape == (1, *SHAPE)
        assert (found[49_000:49_002, 59_000:] == 0).all()
    assert memory("VmHWM") - before < 2**27


def test_the_most_that_is_read_at_once() -> None:
    assert common.LARGEST == 8 * 2**30
    with pytest.raises(ValueError, match=r"9\.3 GiB, and at most 8 GiB are read at once"):
        common.check_cost((5, 10**9), np.dtype(np.uint16), 10**10)


def test_windows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 6)))
    picture = formats.open(tmp_path / "a.npy")
    for window, message in (
        ((slice(0, 2),), "a slice without steps for each of 2 axes"),
        ((slice(0, 4, 2), slice(None)), "without steps"),
        ((slice(5, 9), slice(None)), "holds nothing of a picture of 5 x 6"),
    ):
        with pytest.raises(ValueError, match=message):
            picture[window]
