"""Pictures of 8 bits and of any values as arrays and back; sizes, ranges for messages, and grids."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.pictures import Geometry, Picture, header, images, read, values, write
from bbdm.pictures.formats import UnknownFormatError
from bbdm.pictures.picture import scale
from bbdm.pictures.values import (
    EIGHT_BIT,
    Percentiles,
    Values,
    check_finite,
    read_values,
    scaled_present,
)

TWO = Values((0, -10), (4, 10), dtype="float32")


def pixel(
    mode: str, colour: int | tuple[int, ...], transparency: int | bytes | None = None
) -> Image.Image:
    """One pixel; colour 0 of a palette is (10, 20, 30), colour 1 (200, 0, 0)."""
    image = Image.new(mode, (1, 1), colour)
    if mode == "P":
        image.putpalette([10, 20, 30, 200, 0, 0])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("image", "levels"),
    [
        (pixel("L", 51), [51, 51, 51]),
        (pixel("1", 1), [255, 255, 255]),
        (pixel("RGBA", (255, 0, 51, 0)), [255, 255, 255]),
        (pixel("RGBA", (0, 0, 255, 153)), [102, 102, 255]),  # 153 / 255 = 0.6 of blue on white
        (pixel("LA", (51, 0)), [255, 255, 255]),
        (pixel("P", 1), [200, 0, 0]),
        (pixel("P", 1, transparency=1), [255, 255, 255]),
        (pixel("P", 0, transparency=1), [10, 20, 30]),
        (pixel("P", 1, transparency=bytes([255, 51])), [244, 204, 204]),  # 0.2 of 200 on white
        (pixel("CMYK", (0, 0, 0, 0)), [255, 255, 255]),
        (pixel("RGB", (255, 0, 0)), [76]),  # ITU-R 601-2 luma: 0.299 of red
        (pixel("L", 7, transparency=7), [255]),
    ],
)
def test_pictures_become_grey_or_colours_on_white(image: Image.Image, levels: list[int]) -> None:
    before = image.mode, image.getpixel((0, 0))
    array = images.to_array(image, len(levels))
    assert (array.shape, array.dtype) == ((len(levels), 1, 1), np.float32)
    assert array.ravel().tolist() == pytest.approx(
        [2 * level / 255 - 1 for level in levels], abs=1e-6
    )
    assert (image.mode, image.getpixel((0, 0))) == before


@pytest.mark.parametrize(
    ("mode", "kind"), [("I", "int32"), ("F", "float32"), ("I;16", "uint16"), ("I;16B", ">u2")]
)
def test_more_than_8_bits_and_other_channels_are_refused(mode: str, kind: str) -> None:
    image = Image.new(mode, (2, 2), 7)
    image.putpixel((1, 1), 1096)
    with pytest.raises(
        ValueError,
        match=f"pictures of {kind} .* this one has 7 to 1096: give the range.*source_values=",
    ):
        images.to_array(image, 3)
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        images.to_array(pixel("RGB", 0), 2)


def test_scaling_is_that_of_tensors_bit_for_bit_and_back() -> None:
    """Both are the nearest floats to the quotient and its difference from 1; results are clipped."""
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    wanted = [float(np.float32(float(np.float32(value / 127.5)) - 1)) for value in range(256)]
    for scaled in (
        scale(torch.from_numpy(grey)).numpy(),
        images.to_array(Image.fromarray(grey[0]), channels=1),
    ):
        assert (scaled.dtype, scaled.ravel().tolist()) == (np.float32, wanted)
        assert (np.asarray(images.from_array(scaled)) == grey[0]).all()
    array = np.array([[[-3.0, -1.0, 0.5, 1.0, 2.0]]])
    assert np.asarray(images.from_array(array)).tolist() == [[0, 0, 191, 255, 255]]
    for shape in ((4, 4), (1, 0, 4)):
        with pytest.raises(ValueError, match=r"\(C, H, W\) or \(C, D, H, W\) tensor, got "):
            images.from_array(np.zeros(shape))


def test_sizes() -> None:
    """Height first; a square is always one integer, and three integers are of volumes, also of a cube."""
    for text, size, sides in (("8", 8, (8, 8)), ("8x8", 8, (8, 8)), ("8X16", (8, 16), (8, 16))):
        assert images.as_size(images.read_size(text)) == images.as_size(list(sides)) == size
        assert images.sides(images.as_size(sides)) == sides
    assert images.as_size(images.read_size("8"), axes=3) == images.sides(8, 3) == (8, 8, 8)
    assert (
        images.as_size(images.read_size("4x8x16"), axes=3)
        == images.as_size([4, 8, 16], axes=3)
        == (4, 8, 16)
    )
    for wrong in ((8, 8), (0, 8, 8), "8"):
        with pytest.raises(ValueError, match="image_size must be"):
            images.as_size(wrong, axes=3)
    for text in ("", "8x", "8x8x8x8", "-8", "8.5"):
        with pytest.raises(
            ValueError, match=f"written as 256, or as 256x512 for height x width, got '{text}'"
        ):
            images.read_size(text)


def test_ranges_of_messages_leave_nodata_out() -> None:
    picture = Picture(np.array([[[5, 7, 60000, np.nan]]], np.float32), Geometry(nodata=60000))
    assert images.ranges(picture) == ("5 to 7", "5:7")
    assert images.ranges(np.array([[0, 300]], np.uint16)) == ("0 to 300", "0:1023")
    assert images.ranges(np.full((1, 2, 2), 90.0)) == ("90 to 90", "90:91")
    assert images.ranges(np.full((1, 2, 2), -0.5)) == ("-0.5 to -0.5", "-1:0")


def test_other_channels_are_grey_tiles_as_many_across_as_down() -> None:
    planes = np.broadcast_to(np.array([-1.0, 1.0, 0.0, 1.0, -1.0])[:, None, None], (5, 2, 3))
    for count, wanted in (
        (2, [[0, 255]]),
        (4, [[0, 255], [128, 255]]),
        (5, [[0, 255, 128], [255, 0, 255]]),
    ):
        assert (
            np.asarray(images.from_array(planes[:count])).tolist()
            == np.kron(wanted, np.ones((2, 3))).tolist()
        )


def test_grids_have_names_above_their_columns() -> None:
    """Cells have the size of the largest picture, 30 x 4, and gaps of 2. Names are cut off at their width."""
    red = Image.new("RGB", (3, 2), "red")
    green = Image.new("RGB", (30, 4), "lime")
    blue = Image.new("L", (1, 1))
    expected = np.full((14, 66, 3), 255)
    expected[2:4, 2:5] = 255, 0, 0
    expected[2:6, 34:64] = 0, 255, 0
    expected[8, 2] = 0
    plain = np.asarray(images.grid([[red, green], [blue]]))
    np.testing.assert_array_equal(plain, expected)
    sheet = np.asarray(
        images.grid([[red, green], [blue]], names=("source", "a result of a long name"))
    )
    assert (sheet[images.NAME_HEIGHT :] == plain).all()
    dark = np.any(sheet[: images.NAME_HEIGHT].max(axis=2) < 128, axis=0)
    assert dark[2:32].any()
    assert dark[34:64].any()
    assert not dark[[0, 1, 32, 33, 64, 65]].any()
    with pytest.raises(ValueError, match="at least one picture"):
        images.grid([[]])


def test_bytes_of_no_picture_are_called_by_their_name() -> None:
    for accepted, wanted in ((None, "a picture"), (("PNG", "BMP"), "PNG, BMP")):
        with pytest.raises(
            UnknownFormatError, match=f"cannot read the picture of a request: it is not {wanted}$"
        ):
            images.open_image(b"text", "of a request", accepted)


@pytest.mark.parametrize("tag", [0x0128, 0x011A], ids=["unit", "resolution"])
def test_a_photo_whose_exif_has_values_of_wrong_types_is_upright(tag: int, tmp_path: Path) -> None:
    """ResolutionUnit or XResolution as text, which Pillow cannot write again."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHI4s", tag, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8))
    photo.save(path := tmp_path / "a.jpg", exif=exif)
    with Image.open(path) as stored:
        wanted = np.rot90(np.asarray(stored), -1)
    assert np.array_equal(np.asarray(images.open_image(path)), wanted)
    assert header(path).sides == (16, 8)


def test_arrays_are_stretched_or_fit_and_are_copied_where_they_must() -> None:
    array = np.arange(96, dtype=np.float32).reshape(2, 6, 8)
    assert images.fitted(array, (3, 8)).shape == (2, 3, 8)
    assert images.fitted(array, 4, "fit").shape == (2, 3, 4)
    assert images.fitted(array, None) is array
    copied = images.fitted(np.broadcast_to(array[:, :1], array.shape), (6, 8))
    assert copied.flags.writeable
    assert (copied == array[:, :1]).all()
    with pytest.raises(ValueError, match="it has 3 axes, and pictures have 2"):
        images.fitted(array[None], 4)


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [
        ((0, 255), "uint8"),
        ((0, 65535), "uint16"),
        ((-1024, 3071), "int16"),
        ((-(2**23), 2**23), "int32"),
    ],
    ids=str,
)
def test_every_level_of_an_integer_type_comes_back(levels: tuple[int, int], dtype: str) -> None:
    made = Values(*levels, dtype=dtype)
    step = max(1, (levels[1] - levels[0]) // 100_000)
    stored = np.arange(levels[0], levels[1] + 1, step, dtype=dtype).reshape(1, 1, -1)
    scaled = made.scaled(stored)
    assert (scaled.dtype, scaled[0, 0, 0]) == (np.float32, -1)
    np.testing.assert_allclose(
        scaled, 2 * (stored.astype(float) - levels[0]) / (levels[1] - levels[0]) - 1, atol=1e-6
    )
    np.testing.assert_array_equal(made.stored(scaled), stored)
    np.testing.assert_array_equal(made.stored(torch.from_numpy(scaled)), stored)
    assert torch.equal(
        made.scaled(torch.from_numpy(stored.astype(np.int32))), torch.from_numpy(scaled)
    )


@pytest.mark.parametrize("axes", [2, 3])
def test_each_channel_has_its_own_range_and_values_outside_are_clipped(axes: int) -> None:
    array = np.array([2.0, 5.0], np.float32).reshape(2, *[1] * axes)
    assert TWO.scaled(np.stack([array, array]), axes).flatten().tolist() == [0, 0.5] * 2
    assert TWO.stored(TWO.scaled(array, axes), axes).flatten().tolist() == [2, 5]
    assert Values(0, 4).scaled(np.array([[[-9, 0, 2, 4, 9]]])).tolist() == [[[-1, -1, 0, 1, 1]]]
    assert Values(0, 4).stored(np.array([[[-3.0, 0.5, 3.0]]], np.float32)).tolist() == [[[0, 3, 4]]]


def test_percentiles_are_those_of_numpy_and_one_value_is_the_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array = np.random.default_rng(0).normal(size=(2, 30, 40)) * [[[1]], [[50]]]
    made, flat = Percentiles(1, 90).of(array), np.full((1, 4, 4), 7.0)
    np.testing.assert_allclose(made.low, np.percentile(array.reshape(2, -1), 1, axis=1))
    np.testing.assert_allclose(made.high, np.percentile(array.reshape(2, -1), 90, axis=1))
    assert (Percentiles().of(flat).scaled(flat) == 0).all()
    # of a larger picture every second value, or third
    monkeypatch.setattr(values, "LARGEST_SAMPLE", 8)
    assert Percentiles(0, 100).of(np.arange(16).reshape(1, 4, 4)).high == (14,)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0:4095", Values(0, 4095, dtype="int16")),
        ("0:65535", Values(0, 65535, dtype="uint16")),
        ("-1024:3071:HU", Values(-1024, 3071, "HU", "int16")),
        ("0:255", EIGHT_BIT),
        ("0:0.5", Values(0, 0.5, dtype="float32")),
        ("0:3000,-1:1:reflectance", Values((0, -1), (3000, 1), "reflectance", "int16")),
        ("p0.5:99.5", Percentiles(0.5, 99.5)),
    ],
)
def test_values_of_text_and_of_plain_values(text: str, wanted: Any) -> None:
    assert read_values(text) == read_values(str(wanted)) == wanted
    assert values.from_config(json.loads(json.dumps(wanted.config()))) == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: read_values("4095"),
            "written as LOW:HIGH, LOW:HIGH:UNIT, log:LOW:HIGH, .* or pLOW:HIGH",
        ),
        (lambda: read_values("p5"), "written as LOW:HIGH"),
        (lambda: read_values("5:5"), "must have low below high, got 5:5"),
        (lambda: read_values("0:inf"), "high must be finite"),
        (lambda: read_values("p-1:50"), "0 <= low < high <= 100, got -1 and 50"),
        (lambda: read_values("0:100000000"), "more than 16777216 levels"),
        (lambda: Values((0, 1), (2, 3, 4)), "as many low as high levels, got 2 and 3"),
        (lambda: Values(-1, 255), "do not fit into uint8, which ends at 0 and 255"),
        (lambda: Values(0, 1, dtype="complex64"), "stored as real numbers, got complex64"),
        (lambda: Values("a", 1), "low must be a number, or one for each channel, got 'a'"),  # pyright: ignore
        (lambda: TWO.scaled(np.zeros((3, 1, 1))), "has 3 channels, and there are values of 2"),
        (lambda: TWO.scaled(torch.zeros(1, 1, 1)), "has 1 channels, and there are values of 2"),
        (
            lambda: values.from_config({"low": 0}),
            "values must have low, high, unit and dtype, or percentiles",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named_with_its_channel_where_it_has_a_value(bad: float) -> None:
    array, absent = np.zeros((2, 3, 4)), np.zeros((3, 4), bool)
    array[1, 2, 3] = bad
    with pytest.raises(ValueError, match=f"{bad} stands in channel 1, where"):
        check_finite(array, absent)
    absent[2, 3] = True
    array[0, 2, 3], array[1, 0, 0] = 2, 1
    scaled = scaled_present(Values(-2, 2, dtype="float32"), array, absent)
    assert scaled.dtype == np.float32
    assert scaled[:, [2, 0], [3, 0]].tolist() == [[-1, 0], [-1, 0.5]]


@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_integers_hold_no_nan(dtype: str) -> None:
    """It was 0, which is water in HU."""
    array = np.array([[[np.nan, 0.0, 1.0]]], np.float32)
    for result in (array, torch.from_numpy(array)):
        with pytest.raises(
            ValueError, match=f"NaN is among the values of a result, and {dtype} cannot hold it"
        ):
            Values(0, 100, dtype=dtype).stored(result)
    np.testing.assert_array_equal(
        Values(0, 100, dtype="float32").stored(array), [[[np.nan, 50, 100]]]
    )


class TestLargePictures:
    @pytest.fixture(autouse=True)
    def limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "LARGE", 100)
        # Pillow refuses more than twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    def test_ones_own_are_read_whatever_pillow_says(self, tmp_path: Path) -> None:
        array = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
        for name in ("a.png", "a.bmp"):
            write(tmp_path / name, array)
            with pytest.raises(Image.DecompressionBombError):
                Image.open(tmp_path / name)
            assert header(tmp_path / name).shape == array.shape
            assert (read(tmp_path / name) == array).all()
            assert images.open_image((tmp_path / name).read_bytes()).size == (30, 20)
        assert Image.MAX_IMAGE_PIXELS == 100

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
    def test_pillow_warns_of_none(self, suffix: str, tmp_path: Path) -> None:
        """Of more pixels than its limit, and not twice as many."""
        write(path := tmp_path / f"a{suffix}", np.full((3, 12, 10), 90, np.uint8))
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(path)
        assert header(path).shape == (3, 12, 10)
        assert abs(read(path).astype(int) - 90).max() <= 1
        assert images.open_image(path.read_bytes()).size == (10, 12)

    def test_a_small_file_of_many_equal_pixels(self, tmp_path: Path) -> None:
        """WebP has no least number of bytes, and a byte of a PNG up to 8 pixels before it is compressed."""
        blank = Image.new("RGB", (4000, 4000))
        blank.save(tmp_path / "a.webp", lossless=True)
        assert (tmp_path / "a.webp").stat().st_size < 3 * 4000 * 4000 / 4096
        Image.new("1", (4000, 4000)).save(tmp_path / "a.png")
        for name, channels in (("a.webp", 3), ("a.png", 1)):
            assert read(tmp_path / name).shape == (channels, 4000, 4000)

    def test_a_limit_of_values_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(path := tmp_path / "a.png", np.zeros((3, 1000, 1000), np.uint8))
        monkeypatch.setenv("BBDM_LARGEST", "2M")
        for act in (header, read, images.open_image):
            with pytest.raises(
                ValueError, match=r"a\.png: .* are 2\.86 MB, and at most 2 MB .*BBDM_LARGEST"
            ):
                act(path)
        monkeypatch.setenv("BBDM_LARGEST", "3M")
        assert read(path).shape == (3, 1000, 1000)
        monkeypatch.setenv("BBDM_LARGEST", "much")
        with pytest.raises(
            ValueError, match=r"a\.png: the environment variable BBDM_LARGEST: .* got 'much'"
        ):
            read(path)

    def test_more_than_the_file_can_hold_is_refused(self, tmp_path: Path) -> None:
        """A small file that says it is large."""
        write(path := tmp_path / "a.png", np.zeros((1, 40, 40), np.uint8))
        data = bytearray(path.read_bytes())
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        path.write_bytes(data)
        for act in (header, read):
            with pytest.raises(
                ValueError,
                match=r"a\.png: 1 x 60000 x 60000 values of uint8 cannot be in a file of",
            ):
                act(path)


def test_errors_of_several_lines_are_told_in_one() -> None:
    """NumPy shows arrays in several, and SimpleITK says first where in its code it was."""
    cases = {
        f"affine is wrong:\n{np.eye(2)}": r"a\.nii: affine is wrong: \[\[1\. 0\.\] \[0\. 1\.\]\]$",
        "Exception thrown in SimpleITK Read: a.cxx:91:\nsitk::ERROR: no size.": r"a\.nii: sitk::ERROR: no size\.$",
        "": r"a\.nii: RuntimeError$",
        "x" * 999: r"a\.nii: x{300} \.\.\.$",
    }
    for text, message in cases.items():
        with pytest.raises(ValueError, match=message), images.named("write", "a.nii"):
            raise RuntimeError(text)
