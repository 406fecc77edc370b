"""What is written is read again; a window is the same part of the whole; other libraries agree."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from bbdm.pictures import formats, images
from bbdm.pictures.formats import medical
from bbdm.pictures.picture import Picture
from tests.pictures.formats import NO_PLACE, OBLIQUE, affine_of, bytes_read, matrix, numbers, read_back

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


NIFTI = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", NIFTI)
def test_nifti_is_as_simpleitk_reads_it(code: int, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every type, byte order, slope and intercept; what is plain is read without SimpleITK."""
    array = numbers((3, 4, 5), np.dtype(NIFTI[code]).name).astype(order + NIFTI[code])
    head = bytearray(352)
    for at, form, *values in [
        (0, "i", 348),
        (40, "8h", 3, 5, 4, 3, 1, 1, 1, 1),
        (70, "2h", code, 8 * array.itemsize),
        (76, "8f", 1, 0.5, 2, 3, 0, 0, 0, 0),
        (108, "f", 352),
        (344, "4s", b"n+1"),
    ]:
        struct.pack_into(order + form, head, at, *values)
    path, within = tmp_path / "a.nii", (slice(1, 3), slice(0, 2), slice(2, 5))
    for scale in [(0, 0), (1, 0), (2.5, -7.3), (1, -1024), (-1e-3, 0), (0, 5), (np.nan, 0), (1, np.inf)]:
        struct.pack_into(f"{order}2f", head, 112, *scale)
        path.write_bytes(head + array.tobytes())
        wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        found = formats.open(path)
        with monkeypatch.context() as patch:
            if scale[0] and np.isfinite(scale).all():
                patch.setattr(medical, "simpleitk", None)
            whole, part = found[()], found[within]
        assert (whole.dtype, whole.shape) == (wanted.dtype, (1, *wanted.shape))
        assert (whole[0] == wanted).all()
        assert (part[0] == wanted[within]).all()


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
