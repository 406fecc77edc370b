"""What is written is read again; a window is the same part of the whole; other libraries agree."""

import sys
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import nibabel.nifti1
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image, ImageOps

from bbdm.pictures import Geometry, Picture, header, read, write
from bbdm.pictures.formats import LIBRARIES, stem_of, suffix_of, suffix_of_result
from bbdm.pictures.formats.libraries import REAL, SUFFIXES
from bbdm.pictures.picture import Header, as_affine, check_grid
from bbdm.pictures.values import EIGHT_BIT, Values
from tests.pictures.formats import OBLIQUE, matrix, nifti, numbers, read_back

MORE = {".tif": [(2, 7, 9), (13, 7, 9)]}  # shapes that this suffix holds too
LOSSY = (".jpg", ".jpeg", ".webp", ".tiff")  # or other names of the same
# formats of packages for later Pythons
NEWER = () if sys.version_info >= (3, 11) else (".ome.zarr", ".zarr")
MEDICAL = [".nii", ".nii.gz", ".mha", ".nrrd"]
SPACING, ORIGIN = (0.7, 1.3, 2.5), (-100.25, 33.0, 4.125)
GEOMETRY = Geometry(as_affine(OBLIQUE * SPACING, ORIGIN))


def oblique(stored: Any) -> sitk.Image:
    """An image of SimpleITK that lies as ``GEOMETRY`` says."""
    image = sitk.GetImageFromArray(stored)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(OBLIQUE.ravel().tolist())
    return image


@pytest.mark.parametrize(
    "suffix", [suffix for suffix in SUFFIXES if suffix not in (*LOSSY, *NEWER)]
)
def test_round_trip(suffix: str, tmp_path: Path) -> None:
    """Every type, and every number of axes and channels, that a format holds."""
    library = LIBRARIES[SUFFIXES[suffix][-1]]
    if not library.types:
        pytest.skip("it is only read, see the tests of its format")
    shapes = [
        (1, 7, 9),
        *([(1, 5, 7, 9), (2, 5, 7, 9)] if 3 in library.axes else []),
        *MORE.get(suffix, []),
    ]
    for kind, shape in [
        *((kind, (3, 7, 9)) for kind in library.types),
        *(("uint8", shape) for shape in shapes),
    ]:
        read_back(tmp_path / f"a{suffix}", numbers(shape, kind))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_suffixes() -> None:
    assert (suffix_of("A.b.NII.GZ"), suffix_of("a.gz"), stem_of(Path("A.b.NII.GZ"))) == (
        ".nii.gz",
        "",
        "A.b",
    )
    results = {
        (Path("a.jpg"), 3, EIGHT_BIT): ".png",
        (Path("a.png"), 4, EIGHT_BIT): ".tif",
        (Path("a.png"), 1, Values(0, 65535, dtype="uint16")): ".png",
        (None, 3, Values(0, 65535, dtype="uint16")): ".tif",
        (Path("a.tif"), 3, EIGHT_BIT): ".tif",
        (Path("a.nii.gz"), 1, EIGHT_BIT): ".nii.gz",
    }
    assert {case: suffix_of_result(*case) for case in results} == results


def test_grids() -> None:
    def head(name: str, x: float = 0.0, width: int = 9, **kept: Any) -> Header:
        affine = ((0.0, 10.0, x), (-10.0, 0.0, 0.0), (0.0, 0.0, 1.0))
        return Header(
            Path(name), (1, 7, width), np.dtype(np.uint8), Geometry(affine, "geotiff", kept)
        )

    one = head("one", crs="EPSG:1")
    check_grid(one, head("two", 0.005), "ab")
    check_grid(one, Header(Path("two"), (3, 7, 9), np.dtype(np.uint8)), "ab")
    check_grid(one, head("two", 0.02), "ab", paired=False)
    for other in (head("two", 0.02), head("two", width=8)):
        with pytest.raises(
            ValueError,
            match=r"^a and b lie on different grids, 7 x 9 at \(\(0\.0, 10\.0, 0\.0\), \(",
        ):
            check_grid(one, other, "ab")
    wkt = 'PROJCS["WGS 84 / UTM zone 33N",GEOGCS["WGS 84",...]]'
    with pytest.raises(
        ValueError,
        match=r"^a and b have different coordinate .*, EPSG:1 and WGS 84 / UTM zone 33N: ",
    ):
        check_grid(one, head("two", crs=wkt), "ab")


@pytest.mark.parametrize("suffix", MEDICAL)
class TestMedical:
    def test_a_geometry_is_kept(self, suffix: str, tmp_path: Path) -> None:
        """What SimpleITK wrote is where it says, and lies there again after reading and writing."""
        image = oblique(numbers((5, 7, 9), "int16"))
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        first = read(tmp_path / f"a{suffix}")
        for window, at in (((), (0, 0, 0)), ((slice(1, 3), slice(2, 7), slice(4, 5)), (4, 2, 1))):
            found = read(tmp_path / f"a{suffix}", window)
            expected = image.TransformIndexToPhysicalPoint(at)
            np.testing.assert_allclose(matrix(found.geometry)[:3, 3], expected, atol=1e-4)
        assert first.geometry.spacing == pytest.approx((2.5, 1.3, 0.7))
        again = read_back(tmp_path / f"b{suffix}", np.asarray(first), first.geometry)
        precision = 1e-5 if suffix.startswith(".nii") else 1e-12  # of float32
        np.testing.assert_allclose(matrix(again.geometry), matrix(first.geometry), atol=precision)
        check_grid(first, again, "ab")
        # which is of another format
        read_back(tmp_path / f"c{suffix}", np.asarray(first), GEOMETRY)
        for name in "bc":
            found = sitk.ReadImage(str(tmp_path / f"{name}{suffix}"))
            assert (sitk.GetArrayFromImage(found) == np.asarray(first)[0]).all()
            for get in ("GetSpacing", "GetOrigin", "GetDirection"):
                np.testing.assert_allclose(
                    getattr(found, get)(), getattr(image, get)(), rtol=1e-6, atol=1e-6
                )

    def test_components_are_channels(self, suffix: str, tmp_path: Path) -> None:
        for stored in (numbers((5, 7, 9, 2), "float32"), numbers((5, 7, 9, 3), "uint8")):
            sitk.WriteImage(
                sitk.GetImageFromArray(stored, isVector=True), str(tmp_path / f"a{suffix}")
            )
            window = (slice(1, 3), slice(0, 7), slice(4, 9))
            assert (
                read(tmp_path / f"a{suffix}", window) == np.moveaxis(stored, -1, 0)[:, 1:3, :, 4:]
            ).all()


class TestNifti:
    @pytest.mark.parametrize("order", "<>")
    def test_scales_are_simpleitks(self, order: str, tmp_path: Path) -> None:
        """Every type, byte order, slope and intercept. A slope of 0 is no scale, as the standard says."""
        path = tmp_path / "a.nii"
        for kind in REAL:
            stored = numbers((3, 4, 5), kind)
            for scale in [
                (0, 0),
                (1, 0),
                (2.5, -7.3),
                (-1e-3, 0),
                (0, 5),
                (np.nan, 0),
                (1, np.inf),
            ]:
                nifti(path, stored, (112, "2f", scale), order=order)
                expected = (
                    stored if scale == (0, 5) else sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
                )
                found = read(path)
                assert (found.shape, found.dtype) == ((1, 3, 4, 5), expected.dtype)
                assert (found[0] == expected).all()
                assert (
                    read(path, (slice(1, 3), slice(0, 2), slice(2, 5)))[0] == expected[1:3, :2, 2:]
                ).all()

    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_versions_and_values_that_are_not_finite(
        self, kind: Any, suffix: str, tmp_path: Path
    ) -> None:
        stored, path = numbers((5, 4, 3), "float32"), tmp_path / f"a{suffix}"
        stored[1, 2, 0] = np.nan
        kind(stored, np.diag([2.0, 3.0, 4.0, 1.0])).to_filename(path)
        found = read(path)
        np.testing.assert_array_equal(found[0], stored.T)
        assert matrix(found.geometry).tolist() == [
            [0, 0, -2, 0],
            [0, -3, 0, 0],
            [4, 0, 0, 0],
            [0, 0, 0, 1],
        ]
        write(tmp_path / f"b{suffix}", found)
        assert isinstance(nibabel.load(tmp_path / f"b{suffix}"), kind)

    def test_forms_and_axes(self, tmp_path: Path) -> None:
        """Sform, qform, neither, and other units are ITK's; of two that differ the sform, with a warning."""
        stored, path = numbers((2, 1, 3, 4, 5), "int16"), tmp_path / "a.nii"
        rows = (-0.5, 0, 0, 7, 0, 2, 0, 8, 0, 0, 3, 9)
        quaternion, sform = (256, "6f", (0, 0, 1, -17, -8, 9)), (280, "12f", rows)
        for codes, units in (((1, 0), 2), ((0, 2), 2), ((0, 0), 2), ((1, 0), 1), ((0, 1), 3)):
            nifti(path, stored[0, 0], (252, "2h", codes), (123, "B", (units,)), quaternion, sform)
            image = sitk.ReadImage(str(path))
            index = matrix(header(path).geometry) @ (2, 1, 3, 1)
            np.testing.assert_allclose(
                index[:3], image.TransformIndexToPhysicalPoint((3, 1, 2)), rtol=1e-5, atol=1e-6
            )
        # channels in the fifth axis, and a fourth of one
        assert (read(nifti(path, stored)) == stored[:, 0]).all()
        assert (read(nifti(path, stored[0])) == stored[:1, 0]).all()
        nifti(path, stored[0, 0], (252, "2h", (1, 2)), quaternion, sform)
        with pytest.warns(UserWarning, match=r"a\.nii .*sform .*qform"):
            found = matrix(header(path).geometry)
        assert found[:3, 3].tolist() == [-7, -8, 9]

    @pytest.mark.parametrize("off", [0.001, 0.5])
    def test_a_place_half_a_voxel_off_is_said(
        self, off: float, tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        """Of two forms; rounding of what a program wrote is not."""
        stored = numbers((3, 4, 5), "int16")
        quaternion = (256, "6f", (0, 0, 0, 100, -80, 90))
        sform = (280, "12f", (1, 0, 0, 100 + off, 0, 1, 0, -80, 0, 0, 1, 90))
        spacing = (76, "4f", (1, 1, 1, 1))
        path = nifti(tmp_path / "a.nii", stored, (252, "2h", (1, 1)), spacing, quaternion, sform)
        header(path)
        said = ["sform" in str(warning.message) for warning in recwarn]
        assert said == ([True] if off == 0.5 else [])

    def test_fields_that_are_of_other_values_are_not_kept(self, tmp_path: Path) -> None:
        """Their scale, largest and least; lengths are in mm. Of one channel there is no vector."""
        stored, vector = numbers((2, 1, 3, 4, 5), "int16"), (68, "h", (1007,))
        # metres, and seconds
        fields = vector, (112, "2f", (2, 1)), (123, "B", (1 + 8,)), (124, "2f", (9, 1))
        first = read(nifti(tmp_path / "a.nii", stored, *fields))
        for count, intent in ((2, 1007), (1, 0)):
            write(tmp_path / "b.nii", Picture(np.asarray(first)[:count], first.geometry))
            found: Any = nibabel.load(tmp_path / "b.nii")
            names = ("intent_code", "xyzt_units", "cal_max", "cal_min")
            assert [int(found.header[name]) for name in names] == [intent, 2 + 8, 0, 0]
            assert (
                np.asarray(found.dataobj).T.reshape(count, 3, 4, 5)
                == 2 * stored[:count, 0].astype(float) + 1
            ).all()

    @pytest.mark.parametrize("turned", [False, True])
    def test_a_flat_picture_stays_where_it_lies_in_the_volume(
        self, turned: bool, tmp_path: Path
    ) -> None:
        """At z = 57 mm, and on edge: a sagittal plane, whose rows and columns run along z and y."""
        place = np.array([[2.0, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 57], [0, 0, 0, 1]])
        if turned:
            place = np.array([[0, 0, 4.0, 5], [2, 0, 0, 6], [0, 3, 0, 57], [0, 0, 0, 1]])
        nibabel.Nifti1Image(numbers((9, 7), "int16"), place).to_filename(tmp_path / "a.nii")
        read(tmp_path / "a.nii").save(tmp_path / "b.nii")
        read(tmp_path / "a.nii", (slice(2, 7), slice(3, 9))).save(tmp_path / "c.nii")
        for name, column, row in (("b", 0, 0), ("c", 3, 2)):
            found: Any = nibabel.load(tmp_path / f"{name}.nii")
            expected = place @ (column, row, 0, 1)
            np.testing.assert_allclose(found.affine[:, 3], expected, atol=1e-4)
            np.testing.assert_allclose(found.affine[:3, :2], place[:3, :2], atol=1e-5)

    def test_extensions_and_the_unit_come_back(self, tmp_path: Path) -> None:
        image = nibabel.Nifti1Image(numbers((5, 4, 3), "int16"), np.eye(4))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"of the scan"))
        image.to_filename(tmp_path / "a.nii.gz")
        source = read(tmp_path / "a.nii.gz")
        write(tmp_path / "b.nii.gz", Picture(source, source.geometry, "HU"))
        found: Any = nibabel.load(tmp_path / "b.nii.gz")
        comments = [
            (each.get_code(), each.get_content().rstrip(b"\0")) for each in found.header.extensions
        ]
        assert comments == [(6, b"of the scan"), (6, b"unit of values: HU")]
        assert (np.asarray(source)[0] == np.asarray(found.dataobj).T).all()
        again = read(tmp_path / "b.nii.gz")
        assert again.unit == "HU"
        write(tmp_path / "c.nii", Picture(again, again.geometry, "µg/cm³ of iodine"))
        assert read(tmp_path / "c.nii").unit == "µg/cm³ of iodine"

    @pytest.mark.parametrize("size", [0, 4096])
    def test_an_extension_of_an_impossible_size_is_left_out(
        self, size: int, tmp_path: Path
    ) -> None:
        """It is empty, or longer than what lies before the values."""
        image = nibabel.Nifti1Image(numbers((5, 4, 3), "int16"), np.eye(4))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"of the scan"))
        image.to_filename(tmp_path / "a.nii")
        content = bytearray((tmp_path / "a.nii").read_bytes())
        content[352:356] = size.to_bytes(4, "little")
        (tmp_path / "a.nii").write_bytes(content)
        source = read(tmp_path / "a.nii")
        write(tmp_path / "b.nii", Picture(source, source.geometry))
        found: Any = nibabel.load(tmp_path / "b.nii")
        assert len(found.header.extensions) == 0
        assert (np.asarray(source)[0] == np.asarray(image.dataobj).T).all()

    def test_a_flipped_bit_is_no_other_value(self, tmp_path: Path) -> None:
        """In compressed values, of which some become a longer stream; the checksum lies behind it."""
        stored = (np.arange(3000).reshape(10, 20, 15) % 97).astype("int16")
        nibabel.Nifti1Image(stored, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
        content = (tmp_path / "a.nii.gz").read_bytes()
        wrong = 0
        for at in np.random.default_rng(0).choice(8 * len(content), 120, replace=False).tolist():
            damaged = bytearray(content)
            damaged[at // 8] ^= 1 << at % 8
            (tmp_path / "b.nii.gz").write_bytes(damaged)
            try:
                wrong += not np.array_equal(np.asarray(read(tmp_path / "b.nii.gz"))[0], stored.T)
            except ValueError:
                continue
        assert wrong == 0


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted in /proc")
@pytest.mark.parametrize("suffix", [".nii", ".npy", ".tif"])
def test_a_window_reads_little(suffix: str, tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    array = np.arange(64 * 128 * 128, dtype=np.int32).reshape(1, 64, 128, 128)
    write(tmp_path / f"a{suffix}", array)
    assert header(tmp_path / f"a{suffix}").windowed
    read(tmp_path / f"a{suffix}", (slice(0, 1),) * 3)  # imports
    before = bytes_read()
    found = read(tmp_path / f"a{suffix}", (slice(30, 32), slice(5, 40), slice(7, 9)))
    assert bytes_read() - before < array.nbytes / 16
    assert (found == array[:, 30:32, 5:40, 7:9]).all()
    assert not found.flags.writeable


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_8_bits_are_pillows(suffix: str, mode: str, tmp_path: Path) -> None:
    """In each of the orientations that EXIF has."""
    image = Image.frombytes(mode, (9, 7), numbers((9 * 7 * len(mode),), "uint8").tobytes())
    found = upright = np.asarray(image)
    for turn in range(1, 9) if suffix in (".jpg", ".png") else (1,):
        (exif := Image.Exif())[274] = turn
        settings: dict[str, Any] = {} if turn == 1 else {"exif": exif}
        image.save(tmp_path / f"a{suffix}", **settings)
        found, head = read(tmp_path / f"a{suffix}"), header(tmp_path / f"a{suffix}")
        upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"a{suffix}")))
        assert (found.dtype, len(found)) == (np.uint8, 3 if suffix == ".webp" else len(mode))
        assert (found == upright.reshape(*upright.shape[:2], -1).transpose(2, 0, 1)).all()
        assert (head.shape, head.photograph) == (found.shape, suffix not in (".tif", ".tiff"))
    write(tmp_path / f"b{suffix}", np.asarray(found))  # with Pillow's own settings
    if suffix in (".jpg", ".webp"):
        Image.fromarray(upright).save(tmp_path / f"c{suffix}")
        assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"c{suffix}").read_bytes()


def test_png_of_16_bit_grey_is_kept_and_colours_are_refused(tmp_path: Path) -> None:
    read_back(tmp_path / "a.png", numbers((1, 7, 9), "uint16"))
    assert not header(tmp_path / "a.png").photograph
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(numbers((7, 9, 3), "uint16")))
    with pytest.raises(
        ValueError, match=r"b\.png: it has 16 bits in each colour.* save it as TIFF"
    ):
        read(tmp_path / "b.png")


def test_layouts_of_npy(tmp_path: Path) -> None:
    array = numbers((5, 7, 9), "float32")
    for stored, expected in ((array[0], array[:1]), (array, array), (array[None], array[None])):
        for ordered in (
            np.ascontiguousarray(stored),
            np.asfortranarray(stored),
            stored.astype(">f4"),
        ):
            np.save(tmp_path / "a.npy", ordered)
            found = read(tmp_path / "a.npy")
            assert found.dtype.isnative
            assert (found == expected).all()
    write(tmp_path / "b.npy", read(tmp_path / "a.npy"))  # which is mapped
    assert (read(tmp_path / "b.npy") == array).all()


def test_a_picture_saves_itself_and_knows_its_absent_pixels(tmp_path: Path) -> None:
    picture = Picture(numbers((2, 5, 7), "float32"), Geometry(nodata=float("nan")), "HU", "a")
    picture[1, 2, 3] = np.nan
    assert np.argwhere(picture.absent()).tolist() == [[2, 3]]
    assert not Picture(picture).absent().any()
    picture.save(tmp_path / "sub" / "a.npy")
    np.testing.assert_array_equal(read(tmp_path / "sub" / "a.npy"), picture)
