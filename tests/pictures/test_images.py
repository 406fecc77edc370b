"""Pillow's pictures as arrays and back, sizes, ranges for messages, and grids."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.pictures import Geometry, Picture, header, images
from bbdm.pictures.picture import scale


def pixel(mode: str, colour: int | tuple[int, ...], transparency: int | bytes | None = None) -> Image.Image:
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
    assert array.ravel().tolist() == pytest.approx([2 * level / 255 - 1 for level in levels], abs=1e-6)
    assert (image.mode, image.getpixel((0, 0))) == before


@pytest.mark.parametrize(
    ("mode", "channels", "message"),
    [
        *(
            (mode, 3, f"pictures of {kind} .* this one has 7 to 1096: give the range.*source_values=")
            for mode, kind in (("I", "int32"), ("F", "float32"), ("I;16", "uint16"), ("I;16B", ">u2"))
        ),
        ("RGB", 2, "1 or 3 channels, not 2"),
    ],
)
def test_more_than_8_bits_and_other_channels_are_refused(mode: str, channels: int, message: str) -> None:
    image = Image.new(mode, (2, 2), 7)
    image.putpixel((1, 1), 1096)
    with pytest.raises(ValueError, match=message):
        images.to_array(image, channels)


def test_scaling_is_that_of_tensors_bit_for_bit_and_back() -> None:
    """Both are the nearest floats to the quotient and its difference from 1; results are clipped."""
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    wanted = [float(np.float32(float(np.float32(value / 127.5)) - 1)) for value in range(256)]
    for scaled in (scale(torch.from_numpy(grey)).numpy(), images.to_array(Image.fromarray(grey[0]), channels=1)):
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
    assert images.as_size(images.read_size("4x8x16"), axes=3) == images.as_size([4, 8, 16], axes=3) == (4, 8, 16)
    for wrong in ((8, 8), (0, 8, 8), "8"):
        with pytest.raises(ValueError, match="image_size must be"):
            images.as_size(wrong, axes=3)
    for text in ("", "8x", "8x8x8x8", "-8", "8.5"):
        with pytest.raises(ValueError, match=f"written as 256, or as 256x512 for height x width, got '{text}'"):
            images.read_size(text)


def test_ranges_of_messages_leave_nodata_out() -> None:
    picture = Picture(np.array([[[5, 7, 60000, np.nan]]], np.float32), Geometry(nodata=60000))
    assert images.ranges(picture) == ("5 to 7", "5:7")
    assert images.ranges(np.array([[0, 300]], np.uint16)) == ("0 to 300", "0:1023")
    assert images.ranges(np.full((1, 2, 2), 90.0)) == ("90 to 90", "90:91")
    assert images.ranges(np.full((1, 2, 2), -0.5)) == ("-0.5 to -0.5", "-1:0")


def test_other_channels_are_grey_tiles_as_many_across_as_down() -> None:
    planes = np.broadcast_to(np.array([-1.0, 1.0, 0.0, 1.0, -1.0])[:, None, None], (5, 2, 3))
    for count, wanted in ((2, [[0, 255]]), (4, [[0, 255], [128, 255]]), (5, [[0, 255, 128], [255, 0, 255]])):
        assert np.asarray(images.from_array(planes[:count])).tolist() == np.kron(wanted, np.ones((2, 3))).tolist()


def test_grids_have_names_above_their_columns() -> None:
    """Cells have the size of the largest picture, 30 x 4, and gaps of 2. Names are cut off at their width."""
    red, green, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (30, 4), "lime"), Image.new("L", (1, 1))
    expected = np.full((14, 66, 3), 255)
    expected[2:4, 2:5] = 255, 0, 0
    expected[2:6, 34:64] = 0, 255, 0
    expected[8, 2] = 0
    plain = np.asarray(images.grid([[red, green], [blue]]))
    np.testing.assert_array_equal(plain, expected)
    sheet = np.asarray(images.grid([[red, green], [blue]], names=("source", "a result of a long name")))
    assert (sheet[images.NAME_HEIGHT :] == plain).all()
    dark = np.any(sheet[: images.NAME_HEIGHT].max(axis=2) < 128, axis=0)
    assert dark[2:32].any()
    assert dark[34:64].any()
    assert not dark[[0, 1, 32, 33, 64, 65]].any()
    with pytest.raises(ValueError, match="at least one picture"):
        images.grid([[]])


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
