"""Files that are damaged, too large or of another kind: a ValueError with their name, and no memory spent."""

import gzip
import locale
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.uid
import pytest
import rasterio
import SimpleITK as sitk  # noqa: N813
import tifffile
from pydicom.data import get_testdata_file

from bbdm.pictures import Geometry, Picture, formats, header, read, write
from bbdm.pictures.formats.libraries import SUFFIXES
from tests.hardening.watch import forget_peak, memory
from tests.pictures.formats import nifti, numbers, write_dicom

EARTH = Geometry(((0, 1, 0), (1, 0, 0), (0, 0, 1)), "geotiff")


def refused(path: Path, fact: str) -> None:
    """Reading a picture is an error with its name."""
    with pytest.raises(ValueError, match=fact) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_and_other_content(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    for act in (header, read):
        with pytest.raises(FileNotFoundError, match=f"there is no picture {path}"):
            act(path)
    for content in (b"", b"no picture at all", bytes(1000)):
        path.write_bytes(content)
        refused(path, "cannot read")


def test_a_file_that_changed_since_its_header_was_read(tmp_path: Path) -> None:
    write(path := tmp_path / "a.tif", Picture(numbers((1, 8, 8), "uint16"), EARTH))
    head = header(path)
    write(path, Picture(numbers((1, 8, 8), "float32"), EARTH))
    with pytest.raises(
        ValueError,
        match=r"a\.tif: its header says \(1, 8, 8\) of uint16, and its values .* float32",
    ):
        read(head)


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    for name in ("a.txt", "folder"):
        assert not formats.is_picture(tmp_path / name)
        with pytest.raises(formats.UnknownFormatError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("extra", "missing", "name"),
    [
        ("medical", "nibabel", "a.nii"),
        ("medical", "SimpleITK", "a.mha"),
        ("tiff", "tifffile", "a.tif"),
        ("geo", "rasterio", "b.tif"),
    ],
)
def test_missing_packages(
    extra: str, missing: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path / name,
        picture := Picture(numbers((3, 8, 8), "uint16"), EARTH if extra == "geo" else None),
    )
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"bbdm.pictures.formats.{missing.lower()}")
    for act in (lambda: header(tmp_path / name), lambda: write(tmp_path / name, picture)):
        with pytest.raises(ModuleNotFoundError, match=rf"pip install 'bbdm\[{extra}\]'"):
            act()


@pytest.mark.parametrize(
    ("name", "shape", "kind", "fact"),
    [
        ("a.jpg", (1, 8, 8), "uint16", r"\.jpg cannot hold uint16"),
        ("a.png", (3, 8, 8), "uint16", r"\.png cannot hold uint16"),
        ("a.png", (2, 8, 8), "uint8", "1 or 3 channels, got 2"),
        ("a.png", (1, 4, 8, 8), "uint8", r"holds \(C, H, W\), got \(1, 4, 8, 8\)"),
        ("a.nii", (1, 8, 8), "float16", "cannot hold float16"),
        ("a.npy", (1, 8, 8), "complex64", "cannot hold complex64"),
        ("a.npy", (8, 8), "uint8", r"\(C, H, W\) or \(C, D, H, W\), got \(8, 8\)"),
        ("a.npy", (1, 0, 8), "uint8", r"got \(1, 0, 8\)"),
        ("a.dcm", (1, 8, 8), "uint8", r"must end in one of \.png"),
    ],
)
def test_what_a_format_does_not_hold(
    name: str, shape: tuple[int, ...], kind: str, fact: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"cannot write the picture .*{name}: .*{fact}"):
        write(tmp_path / name, np.zeros(shape, kind))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nii", "a.tif"])
@pytest.mark.parametrize(
    ("step", "fact"),
    [
        ((0, 0, 0), "is singular, so that several pixels lie at one point"),
        ((2, 1, 0), "is singular, so that several pixels lie at one point"),  # beside (4, 2, 0)
        ((np.nan, 1, 0), "must be finite"),
    ],
)
def test_an_affine_that_is_none(
    name: str, step: tuple[float, ...], fact: str, tmp_path: Path
) -> None:
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = 4, 2, 0
    picture = Picture(numbers((1, 3, 4, 5), "int16"), Geometry(tuple(map(tuple, affine.tolist()))))
    with pytest.raises(ValueError, match=rf"cannot write the picture .*/{name}: its affine {fact}"):
        picture.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, *_: Any) -> Any:
        path.write_bytes(b"half")
        raise ValueError("no such row")

    monkeypatch.setattr(np, "save", broken)
    (tmp_path / "a.npy").write_bytes(b"before")
    with pytest.raises(ValueError, match=r"cannot write the picture .*a\.npy: no such row"):
        write(tmp_path / "a.npy", numbers((1, 30, 27), "uint8"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.npy", b"before")]


def test_other_numbers_shapes_and_pickles(tmp_path: Path) -> None:
    for stored in (
        np.zeros(3),
        np.zeros((1, 2, 3, 4, 5)),
        np.zeros((0, 3)),
        np.zeros(()),
        np.array([print, None]),
    ):
        np.save(tmp_path / "a.npy", stored, allow_pickle=True)
        refused(tmp_path / "a.npy", "must be|empty|objects")
    (tmp_path / "a.npy").write_bytes(pickle.dumps(print))
    refused(tmp_path / "a.npy", "cannot read")
    array = np.ones((8, 8), np.complex64)
    np.save(tmp_path / "a.npy", array)
    tifffile.imwrite(tmp_path / "a.tif", array)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii"))
    for suffix in (".npy", ".tif", ".nii"):
        refused(tmp_path / f"a{suffix}", "real numbers|complex")


def test_several_times_or_sizes(tmp_path: Path) -> None:
    refused(
        nifti(tmp_path / "a.nii", numbers((2, 3, 4, 5), "int16")),
        "4 axes, 5 x 4 x 3 x 2, such as times",
    )
    image = sitk.JoinSeries([sitk.GetImageFromArray(numbers((3, 4, 5), "int16"))] * 2)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    refused(tmp_path / "a.mha", "4 axes, 5 x 4 x 3 x 2, such as times")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers((2, 3, 8, 8), "uint16"), imagej=True, metadata={"axes": "TZYX"})
    refused(path, "several times of several planes, .*save each picture as a file of its own")
    with tifffile.TiffWriter(path) as file:
        for side in (8, 16):
            file.write(numbers((side, side), "uint16"), metadata=None)
    refused(path, r"several sizes or types, \(8, 8\), \(16, 16\)")
    tifffile.imwrite(path, numbers((2, 8, 8), "uint16"), ome=True, metadata={"axes": "CYX"})
    # OME can name other files
    path.write_bytes(path.read_bytes().replace(b'SizeC="2"', b'SizeC="9"'))
    refused(path, "cannot read")


class TestMedical:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_truncated_or_changed(self, suffix: str, packed: bool, tmp_path: Path) -> None:
        """Also where a MetaImage writes booleans in another case."""
        image = sitk.GetImageFromArray(numbers((5, 17, 19), "int16"))
        sitk.WriteImage(image, str(path := tmp_path / f"a{suffix}"), useCompression=packed)
        path.write_bytes(data := path.read_bytes().replace(b"Data = True", b"Data = true"))
        assert (read(path) == sitk.GetArrayFromImage(image)).all()
        for share in (0.01, 0.1, 0.5, 0.99):  # of the first, NRRD's library crashes
            path.write_bytes(data[: int(share * len(data))])
            refused(path, "cannot read")
        if packed and suffix in (".mha", ".nrrd"):
            path.write_bytes(data[: len(data) // 2])
            refused(path, "its compressed values end after .* bytes: it is truncated")
        if suffix == ".nii.gz" or (packed and suffix != ".nii"):
            for offset in (-1000, -20, -7):  # the last in the checksum
                changed = bytearray(data)
                changed[offset] ^= 1
                path.write_bytes(changed)
                refused(path, "cannot read")

    @pytest.mark.parametrize(
        ("suffix", "before", "after", "fact"),
        [
            (".nrrd", b"sizes: 19 17 5", b"sizes: 19 17 4", "more than the 2584 bytes"),
            (".nrrd", b"encoding: gzip", b"encoding: bzip2", "'encoding bzip2'"),
            (
                ".nrrd",
                b"encoding: gzip",
                b"encoding: raw\ndata file: b.raw",
                "another file, by 'data file b.raw'",
            ),
            (
                ".nrrd",
                b"encoding: gzip",
                b"encoding: gzip\nDataFile: b.raw",
                "another file, by 'data file b.raw'",
            ),
            (".mha", b"DimSize = 19 17 5", b"DimSize = 19 17 4", "more than the 2584 bytes"),
            (".mha", b"CompressedData = True", b"CompressedDaTTT = True", "its header is damaged"),
            (".mha", b"CompressedData = True", b"Compresseddata = True", "its header is damaged"),
            (".mha", b"CompressedDataSize", b"CompressedDataSiTe", "its header is damaged"),
            (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = b.raw", "another file"),
            (".mha", b"BinaryData = True", b"BinaryData = False", "are text"),
        ],
    )
    def test_headers_of_other_values(
        self, suffix: str, before: bytes, after: bytes, fact: str, tmp_path: Path
    ) -> None:
        image = sitk.GetImageFromArray(numbers((5, 17, 19), "int16"))
        sitk.WriteImage(image, str(path := tmp_path / f"a{suffix}"), useCompression=True)
        data = path.read_bytes()
        assert before in data
        path.write_bytes(data.replace(before, after))
        refused(path, fact)

    @pytest.mark.parametrize("layout", ["big", "planar", "members"])
    def test_compressed_values_in_another_order(self, layout: str, tmp_path: Path) -> None:
        """Their checksum is of the bytes of the file; gzip may have several members."""
        stored = numbers((2, 5, 7, 9), "int16")
        data = stored.astype(">i2" if layout == "big" else "<i2").tobytes()
        packed = (
            gzip.compress(data[:99]) + gzip.compress(data[99:])
            if layout == "members"
            else gzip.compress(data)
        )
        fields = {"type": "short", "dimension": "4", "sizes": "9 7 5 2", "encoding": "gzip"}
        fields |= {
            "endian": "big" if layout == "big" else "little",
            "kinds": "space space space vector",
        }
        text = "".join(f"{name}: {value}\n" for name, value in fields.items())
        (tmp_path / "a.nrrd").write_bytes(f"NRRD0004\n{text}\n".encode() + packed)
        assert (read(tmp_path / "a.nrrd") == stored).all()
        (tmp_path / "a.nrrd").write_bytes(
            f"NRRD0004\n{text}\n".encode() + packed[:-6] + b"\0" + packed[-5:]
        )
        refused(tmp_path / "a.nrrd", "cannot read")

    def test_values_in_another_file_are_not_read(self, tmp_path: Path) -> None:
        for suffix, detached in ((".mha", ".mhd"), (".nrrd", ".nhdr")):
            sitk.WriteImage(
                sitk.GetImageFromArray(numbers((5, 7, 9), "int16")), str(tmp_path / f"a{detached}")
            )
            (tmp_path / f"a{suffix}").write_bytes((tmp_path / f"a{detached}").read_bytes())
            refused(tmp_path / f"a{suffix}", "in another file|header does not end")


class TestDicom:
    ARRAY = numbers((5, 8, 8), "uint8").astype(np.int16) - 1000
    HEIGHTS = (-4.0, -1.5, 1.0, 3.5, 6.0)

    def test_a_series(self, tmp_path: Path) -> None:
        """Slices by position; values in HU; the position as DICOM says it."""
        write_dicom(
            tmp_path / "ct", self.ARRAY[[3, 0, 4, 1, 2]], [self.HEIGHTS[i] for i in (3, 0, 4, 1, 2)]
        )
        assert formats.is_picture(tmp_path / "ct")
        assert formats.pictures_in(tmp_path) == [tmp_path / "ct"]
        before = locale.setlocale(locale.LC_ALL)
        found = read(tmp_path / "ct")
        assert locale.setlocale(locale.LC_ALL) == before
        assert (found.dtype.kind, found.tolist()) == ("i", [self.ARRAY.tolist()])
        assert found.geometry.affine == (
            (0, 0, 0.5, -10),
            (0, 0.25, 0, 5),
            (2.5, 0, 0, -4),
            (0, 0, 0, 1),
        )
        write_dicom(tmp_path / "ct", self.ARRAY, list(self.HEIGHTS), "1.2.4", first=50)
        refused(tmp_path / "ct", r"2 series, 1\.2\.3, 1\.2\.4")

    @pytest.mark.parametrize(
        ("heights", "fact"),
        [
            (
                [0, 2, 4, 8, 10],
                r"2 mm apart, but 4 mm between slices 3 and 4, at \(-10, 5, 4\) and \(-10, 5, 8\) mm",
            ),
            ([0, 2, 4, 6.03, 8.03], r"2 mm apart, but 2\.03 mm between slices 3 and 4"),
            ([0, 2, 2, 4, 6], r"2 mm apart, but 0 mm between slices 2 and 3, at \(-10, 5, 2\)"),
            ([0, 0, 0, 0, 0], r"0 mm apart, but 0 mm between slices 1 and 2"),
        ],
    )
    def test_distances(self, heights: list[float], fact: str, tmp_path: Path) -> None:
        write_dicom(tmp_path, self.ARRAY, heights)
        refused(tmp_path, fact)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:600],
            lambda data: data[:-60],
            # rows: 60,000
            lambda data: data.replace(
                b"\x28\0\x10\0\2\0\0\0\x08\0", b"\x28\0\x10\0\2\0\0\0\x60\xea"
            ),
            # 4 GB of a version
            lambda data: data.replace(b"\2\0\1\0OB\0\0\2\0\0\0", b"\2\0\1\0OB\0\0\0\0\0\xf0"),
            lambda data: data.replace(b"\2\0\x13\0SH", b"\2\0\x13\0QH"),  # 1 GB, by an unknown type
        ],
    )
    def test_a_damaged_slice(self, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
        """The last one, which no other distance shows."""
        write_dicom(tmp_path, self.ARRAY, list(self.HEIGHTS))
        (tmp_path / "28.dcm").write_bytes(damage((tmp_path / "28.dcm").read_bytes()))
        forget_peak()
        before = memory("VmRSS")
        refused(tmp_path, r"28\.dcm|cannot read")
        assert memory("VmHWM") - before < 2**27

    @pytest.mark.parametrize(
        ("syntax", "bits", "refused_as"),
        [
            ("ImplicitVRLittleEndian", 16, ""),
            ("ExplicitVRBigEndian", 16, ""),
            ("ExplicitVRBigEndian", 32, "1.2.840.10008.1.2.2"),
            ("DeflatedExplicitVRLittleEndian", 16, "1.2.840.10008.1.2.1.99"),
        ],
    )
    def test_transfer_syntaxes(
        self, syntax: str, bits: int, refused_as: str, tmp_path: Path
    ) -> None:
        write_dicom(tmp_path, self.ARRAY[:1], [0])
        (path,) = tmp_path.glob("*.dcm")
        data, big = pydicom.dcmread(path), "Big" in syntax
        stored = np.arange(64).reshape(8, 8) * 1000
        data.BitsAllocated = bits
        data.BitsStored = bits
        data.HighBit = bits - 1
        data.PixelRepresentation = 0
        data.add_new(
            "PixelData", "OW", stored.astype(f"{'>' if big else '<'}u{bits // 8}").tobytes()
        )
        data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        pydicom.dcmwrite(path, data, implicit_vr=syntax[0] == "I", little_endian=not big)
        if refused_as:
            refused(tmp_path, f"{bits} bits in the transfer syntax '{re.escape(refused_as)}'")
        else:
            assert (read(tmp_path) == stored - 1024).all()


@pytest.mark.parametrize("name", ["SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm"])
def test_colours_of_dicom_that_are_read_wrongly(name: str, tmp_path: Path) -> None:
    """GDCM mixes up the planes of bytes: of (65535, 0, 0) it made (0, 65280, 255)."""
    shutil.copy(str(get_testdata_file(name, download=False)), tmp_path)
    refused(
        tmp_path, r"has colours of \d\d bits in the transfer syntax '1\.2\.840\.10008\.1\.2\.5'"
    )


@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "MR_small_RLE.dcm"])
def test_other_dicom_of_that_encoding(name: str, tmp_path: Path) -> None:
    source = get_testdata_file(name, download=False)
    shutil.copy(str(source), tmp_path)
    expected = pydicom.dcmread(str(source)).pixel_array
    assert (np.moveaxis(read(tmp_path), 0, -1).squeeze() == expected).all()


SHAPE = (50_000, 60_000)  # 3 x 10^9 pixels


def large_npy(path: Path) -> None:
    np.lib.format.open_memmap(path, "w+", np.uint32, SHAPE)  # all are holes


def large_tiff(path: Path) -> None:
    """Tiles of which only the first is written."""
    count = -(-SHAPE[0] // 512) * -(-SHAPE[1] // 512)
    tiles = chain([np.zeros((512, 512), np.uint16)], repeat(None, count - 1))
    tifffile.imwrite(path, tiles, shape=SHAPE, dtype="uint16", tile=(512, 512), compression="zlib")


def large_geotiff(path: Path) -> None:
    shape = {"height": SHAPE[0], "width": SHAPE[1], "count": 1, "dtype": "uint16"}
    place = {"crs": "EPSG:4326", "transform": rasterio.Affine(1, 0, 5, 0, 1, 5)}
    rasterio.open(
        path, "w", "GTiff", **shape, **place, tiled=True, sparse_ok=True, compress="deflate"
    ).close()


def large_nifti(path: Path) -> None:
    data = nifti(
        path.with_name("plain"), numbers((4, 4, 4), "int16"), (40, "4h", (3, 4096, 4096, 100))
    ).read_bytes()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def large_text(path: Path) -> None:
    write(path, numbers((1, 4, 4, 4), "int16"))
    path.write_bytes(re.sub(rb"(DimSize =|sizes:) 4 4 4", rb"\1 4096 4096 100", path.read_bytes()))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        *(
            ("a.npy", large_npy),
            ("a.tif", large_tiff),
            ("b.tif", large_geotiff),
            ("a.nii", large_nifti),
        ),
        *(("a.nii.gz", large_nifti), ("a.mha", large_text), ("a.nrrd", large_text)),
    ],
)
def test_no_memory_is_spent(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / name)
    write(tmp_path / f"small{formats.suffix_of(name)}", numbers((1, 4, 4), "uint16"))
    read(tmp_path / f"small{formats.suffix_of(name)}")  # imports
    forget_peak()
    before = memory("VmRSS")
    refused(tmp_path / name, "truncated|buffer is smaller|GB, and at most 8 GB are read at once")
    if name in ("a.npy", "a.tif", "b.tif"):  # formats of which a part is read alone
        assert header(tmp_path / name).shape == (1, *SHAPE)
        assert (read(tmp_path / name, (slice(49_000, 49_002), slice(59_000, 60_000))) == 0).all()
    assert memory("VmHWM") - before < 2**27


@pytest.mark.parametrize(
    "window", [(slice(0, 2),), (slice(0, 4, 2), slice(None)), (slice(5, 9), slice(None))]
)
def test_windows(window: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 6)))
    with pytest.raises(
        ValueError,
        match=r"a\.npy: a window is a part of 5 x 6, a slice for each without steps; got",
    ):
        read(tmp_path / "a.npy", window)
