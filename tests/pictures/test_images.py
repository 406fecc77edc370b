"""Pillow's pictures as arrays and back, sizes, ranges for messages, and grids."""

import struct
import zlib
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


PIXELS = [  # 8-bit values of each channel
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
]


class TestToArray:
    @pytest.mark.parametrize(("image", "levels"), PIXELS)
    def test_values(self, image: Image.Image, levels: list[int]) -> None:
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
            *(("RGB", channels, f"1 or 3 channels, not {channels}") for channels in (0, 2, 4)),
        ],
    )
    def test_refuses_more_than_8_bits_and_other_channels(self, mode: str, channels: int, message: str) -> None:
        image = Image.new(mode, (2, 2), 7)
        image.putpixel((1, 1), 1096)
        with pytest.raises(ValueError, match=message):
            images.to_array(image, channels)

    def test_scaling_is_that_of_tensors_bit_for_bit(self) -> None:
        """Both are the nearest floats to the quotient and its difference from 1."""
        grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        wanted = [float(np.float32(float(np.float32(value / 127.5)) - 1)) for value in range(256)]
        for scaled in (scale(torch.from_numpy(grey)).numpy(), images.to_array(Image.fromarray(grey[0]), channels=1)):
            assert (scaled.dtype, scaled.ravel().tolist()) == (np.float32, wanted)


def test_sizes() -> None:
    """Height first; a square is always one integer, and three integers are of volumes, also of a cube."""
    for text, size, sides in (("8", 8, (8, 8)), ("8x8", 8, (8, 8)), ("8X16", (8, 16), (8, 16))):
        assert images.as_size(images.read_size(text)) == images.as_size(list(sides)) == size
        assert images.sides(images.as_size(sides)) == sides
    assert images.as_size(images.read_sides("8"), axes=3) == images.sides(8, 3) == (8, 8, 8)
    assert images.as_size(images.read_sides("4x8x16"), axes=3) == images.as_size([4, 8, 16], axes=3) == (4, 8, 16)
    for wrong in ((8, 8), (0, 8, 8), "8"):
        with pytest.raises(ValueError, match="image_size must be"):
            images.as_size(wrong, axes=3)
    for text in ("", "x", "8x", "8x8x8", "-8", "8.5", "wide"):
        with pytest.raises(ValueError, match=f"written as 256, or as 256x512 for height x width, got '{text}'"):
            images.read_size(text)
    with pytest.raises(ValueError, match="or as 64x96x96 for depth x height x width, got '8x8x8x8'"):
        images.read_sides("8x8x8x8")


def test_ranges_of_messages_leave_nodata_out() -> None:
    picture = Picture(np.array([[[5, 7, 60000, np.nan]]], np.float32), Geometry(nodata=60000))
    assert (images.found_range(picture), images.usual_range(picture)) == ("5 to 7", "5:7")
    assert images.usual_range(np.array([[0, 300]], np.uint16)) == "0:1023"
    assert images.usual_range(np.full((1, 2, 2), 90.0)) == "90:91"
    assert images.usual_range(np.full((1, 2, 2), -0.5)) == "-1:0"


class TestFromArray:
    def test_all_levels_come_back_and_others_are_clipped(self) -> None:
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        for pixels, channels in ((ramp, 1), (np.stack([ramp, ramp[::-1], ramp.T], axis=-1), 3)):
            image = images.from_array(images.to_array(Image.fromarray(pixels), channels))
            np.testing.assert_array_equal(np.asarray(image), pixels)
        for dtype in ("float64", "float32", "float16"):
            array = np.array([[[-3.0, -1.0, 0.5, 1.0, 2.0]]], dtype)
            assert np.asarray(images.from_array(array)).tolist() == [[0, 0, 191, 255, 255]]
        for shape in ((4, 4), (1, 3, 4, 4), (0, 4, 4)):
            with pytest.raises(ValueError, match=r"\(C, H, W\) tensor, got "):
                images.from_array(np.zeros(shape))

    def test_other_channels_are_grey_tiles(self) -> None:
        planes = np.broadcast_to(np.array([-1.0, 1.0, 0.0, 1.0, -1.0])[:, None, None], (5, 2, 3))
        for count in (2, 4):
            levels = np.repeat([0, 255, 128, 255][:count], 3)
            assert np.asarray(images.from_array(planes[:count])).tolist() == [levels.tolist()] * 2
        tiles = np.asarray(images.from_array(planes))  # three across, and the rest is white
        assert tiles[[0, 2], :].tolist() == np.repeat([[0, 255, 128], [255, 0, 255]], 3, axis=1).tolist()


class TestGrid:
    def test_geometry(self) -> None:
        """Cells have the size of the largest picture, 5 x 4, and gaps of 2, wider between groups."""
        red, green, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (5, 4), "lime"), Image.new("L", (1, 1))
        expected = np.full((14, 16, 3), 255)
        expected[2:4, 2:5] = 255, 0, 0
        expected[2:6, 9:14] = 0, 255, 0
        expected[8, 2] = 0
        np.testing.assert_array_equal(np.asarray(images.grid([[red, green], [blue]])), expected)
        cell = Image.new("RGB", (4, 4), "red")
        sheet = images.grid([[cell] * 5, [cell]], gap=1, group=2)
        columns = [x for x in range(sheet.width) if sheet.getpixel((x, 2)) == (255, 0, 0)]
        assert columns == [start + x for start in (1, 6, 16, 21, 31) for x in range(4)]

    def test_names_of_columns(self) -> None:
        """Dark text stands above each column alone, cut off at its width."""
        cell = Image.new("RGB", (30, 4), "red")
        sheet = np.asarray(images.grid([[cell] * 4], gap=2, group=2, names=("source", "a result of a long name")))
        plain = np.asarray(images.grid([[cell] * 4], gap=2, group=2))
        assert (sheet[images.NAME_HEIGHT :] == plain).all()
        dark = np.any(sheet[: images.NAME_HEIGHT].max(axis=2) < 128, axis=0)
        inside = np.array([tuple(pixel) == (255, 0, 0) for pixel in plain[4]])
        assert not dark[~inside].any()
        assert dark[inside].reshape(4, 30).any(axis=1).all()


def test_an_error_of_pillow_has_the_files_name(tmp_path: Path) -> None:
    """A chunk of PNG that is too short is a ValueError of Pillow's own, without a name."""
    pixel("L", 0).save(path := tmp_path / "a.png")
    content = path.read_bytes()
    data = b"IHDR" + content[16:20]
    path.write_bytes(content[:8] + struct.pack(">I", 4) + data + struct.pack(">I", zlib.crc32(data)) + content[33:])
    for source in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=rf"cannot read the picture {path}: Truncated IHDR chunk"):
            images.open_image(source, str(path))


@pytest.mark.parametrize("tag", [0x0128, 0x0213, 0x011A], ids=["unit", "positioning", "resolution"])
def test_a_photo_whose_exif_has_values_of_wrong_types_is_upright(tag: int, tmp_path: Path):
    """ResolutionUnit, YCbCrPositioning or XResolution as text, which Pillow cannot write again."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHI4s", tag, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8))
    photo.save(path := tmp_path / "a.jpg", exif=exif)
    with Image.open(path) as stored:
        wanted = np.rot90(np.asarray(stored), -1)
    assert np.array_equal(np.asarray(images.open_image(path)), wanted)
    assert header(path).sides == (16, 8)
