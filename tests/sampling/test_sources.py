"""What goes into a sampler comes out in its type: 8 bits, floats, and values of pictures' own."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler
from bbdm.data.spec import Spec
from bbdm.pictures import header
from bbdm.pictures.picture import Geometry, Picture
from bbdm.pictures.values import EIGHT_BIT, Percentiles, Values
from tests.conftest import noise, tiny_unet
from tests.serving.conftest import png_of

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
FLOATS = (COLOUR / 127.5 - 1).astype(np.float32)


@cache
def sampler_of(channels: int = 3) -> BridgeSampler:
    return BridgeSampler(tiny_unet(in_channels=channels, out_channels=channels), ABridge(), steps=1)


def echo(source: Any, channels: int = 3, **options: Any) -> Any:
    """The results with a mask of zeros, which are the sources."""
    return sampler_of(channels)(source, seed=0, mask=np.zeros((6, 8)), **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_an_array_comes_back(dtype: Any):
    colour = COLOUR if dtype == np.uint8 else FLOATS.astype(dtype)
    for array, channels in (
        (colour, 3),
        (colour[:, :, 0], 3),
        (colour[:, :, 0], 1),
        (colour[:, :, :1], 1),
    ):
        made = echo(array, channels)
        grey = array.ndim == 2 and channels == 3
        assert (type(made), made.dtype) == (np.ndarray, array.dtype)
        np.testing.assert_allclose(
            made, np.repeat(array[:, :, None], 3, axis=2) if grey else array, rtol=0, atol=1e-6
        )
    assert echo(COLOUR, 1).shape == (6, 8, 1)
    assert echo(Image.fromarray(COLOUR), 1)[0].mode == "L"
    clear = np.dstack([COLOUR, np.zeros((6, 8), np.uint8)])  # transparent pixels are white
    np.testing.assert_array_equal(echo(clear), np.full((6, 8, 3), 255))


def test_nan_of_weights_is_no_black_picture(tmp_path: Path):
    network = tiny_unet()
    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)
    sampler = BridgeSampler(network, ABridge(), steps=1)
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", Image.fromarray(COLOUR), COLOUR):
        with pytest.raises(
            ValueError, match="the result has NaN, which uint8 cannot hold: take dtype float32"
        ):
            sampler(source, seed=0)
    assert np.isnan(sampler(FLOATS, seed=0)).all()


def test_a_picture_that_a_call_has_no_memory_for_is_refused_by_its_header(tmp_path: Path):
    """A PNG of 1 KB that would be decoded to 36 GB, and need some 1.7 TB."""
    noise(0).save(tmp_path / "small.png")
    (tmp_path / "large.png").write_bytes(png_of(110_000, 110_000, bytes(1000)))
    assert sampler_of()(tmp_path / "small.png", seed=0)[0].size == (16, 16)
    advice = "bbdm restore and bbdm translate --window go by windows and files"
    with pytest.raises(
        ValueError, match=rf"large\.png of 110000 x 110000 needs at least .* of memory .*{advice}"
    ):
        sampler_of()(tmp_path / "large.png", seed=0)


def test_floats_of_other_values():
    values, both = 4 * FLOATS + 1, dict.fromkeys(("source_values", "target_values"), (-3, 5))
    first = values.transpose(2, 0, 1)
    for source in (values, first[None], torch.from_numpy(first)[None]):
        np.testing.assert_allclose(echo(source, **both), source, rtol=1e-5, atol=1e-4)
    tensor = torch.from_numpy(first)
    torch.testing.assert_close(echo([tensor], **both)[0], tensor, rtol=1e-5, atol=1e-4)
    wanted = 4 * sampler_of()(FLOATS, seed=0) + 1
    np.testing.assert_allclose(sampler_of()(values, seed=0, **both), wanted, rtol=1e-4, atol=1e-3)


def test_a_mixed_list_keeps_order_and_types(tmp_path: Path):
    picture, file = Image.fromarray(COLOUR), tmp_path / "a.png"
    picture.save(file)
    tensor = torch.from_numpy(FLOATS.transpose(2, 0, 1).copy()).double()
    made = echo([FLOATS, file, picture, tensor, str(file), COLOUR])
    types = [np.ndarray, Image.Image, Image.Image, torch.Tensor, Image.Image, np.ndarray]
    assert [type(result) for result in made] == types
    np.testing.assert_allclose(made[0], FLOATS, atol=1e-6)
    for result in (
        made[1],
        made[2],
        made[4],
        made[5],
        *(echo(source)[0] for source in (file, picture)),
    ):
        np.testing.assert_array_equal(np.asarray(result), COLOUR)
    assert made[3].dtype == torch.float64
    torch.testing.assert_close(made[3], tensor, rtol=0, atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*none\.png"):
        echo([COLOUR, tmp_path / "none.png"])
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"source\[1\]: cannot read the picture .*a\.png"):
        echo([COLOUR, file])


def test_floats_that_look_like_zero_to_one_are_warned_of():
    unit, paper = (FLOATS + 1) / 2, np.full((6, 8, 3), 0.97, np.float32)
    for source in (unit, unit.transpose(2, 0, 1)[None], [FLOATS, unit, unit]):
        with pytest.warns(UserWarning, match=r"pass source_values=\(0, 1\)") as record:
            echo(source)
        assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (FLOATS, paper, COLOUR, [FLOATS, Image.fromarray(COLOUR)]):
            echo(fine)
        echo(unit, source_values=(0, 1), target_values=(0, 1))


def test_an_8_bit_tiff_comes_out_as_it_was(tmp_path: Path):
    """With its geometry, and grey is not turned into colour."""
    affine = ((0.0, 10.0, 5.0), (-10.0, 0.0, 9.0), (0.0, 0.0, 1.0))
    picture = Picture(COLOUR.transpose(2, 0, 1), Geometry(affine, "geotiff", {"crs": "EPSG:32632"}))
    picture.save(tmp_path / "a.tif")
    (result,) = sampler_of()(tmp_path / "a.tif", seed=0)
    assert (
        result.transpose(1, 2, 0) == np.asarray(sampler_of()([Image.fromarray(COLOUR)], seed=0)[0])
    ).all()
    result.save(tmp_path / "b.tif")
    assert header(tmp_path / "b.tif").geometry == header(tmp_path / "a.tif").geometry
    Picture(picture[:1]).save(tmp_path / "grey.tif")
    with pytest.raises(ValueError, match=r"must be \(3, H, W\), .*grey\.tif has shape \(1, 6, 8\)"):
        sampler_of()(tmp_path / "grey.tif")


MR, HU = Values(0, 4095, dtype="uint16"), Values(-1024, 3071, "HU", "int16")
CALL: dict[str, Any] = {"seed": 5, "solver": "dpm2m", "steps": 2}
PLACE = ((0.0, 2.0, 5.0), (2.0, 0.0, 6.0), (0.0, 0.0, 1.0))
STORED = np.random.default_rng(0).integers(0, 4096, (1, 8, 10), dtype=np.uint16)
VOLUME = np.random.default_rng(1).integers(0, 4096, (1, 8, 10, 4), dtype=np.uint16)


GREY = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)


def valued(network: Any = GREY, **kind: Any) -> Any:
    """A sampler of pictures that have values."""
    sampler = BridgeSampler(network, ABridge())
    sampler.pictures = Spec(**{"source": MR, "target": HU, **kind})
    return sampler


def made_of(source: np.ndarray[Any, Any], network: Any = GREY) -> np.ndarray[Any, Any]:
    """What a sampler without values makes of the source in [-1, 1], in HU by the formula."""
    scaled = torch.from_numpy(source.astype(np.float32) / 2047.5 - 1)[None]
    plain = BridgeSampler(network, ABridge())(scaled, **CALL)[0]
    return np.rint((plain.double().numpy() + 1) / 2 * 4095 - 1024)


@pytest.mark.parametrize("suffix", [".npy", ".png", ".tif", ".nii"])
def test_a_file_gives_the_targets_values_at_its_place(suffix: str, tmp_path: Path) -> None:
    sampler, expected = valued(), made_of(STORED)
    path = tmp_path / f"a{suffix}"
    Picture(STORED, Geometry(PLACE) if suffix == ".nii" else None).save(path)
    (result,) = sampler(str(path), **CALL)
    assert (type(result), result.dtype, result.unit, result.shape) == (
        Picture,
        np.int16,
        "HU",
        STORED.shape,
    )
    # float32 at half a level, and ONNX Runtime's order of sums
    assert np.abs(result - expected).max() <= 1
    assert result.geometry.affine == (PLACE if suffix == ".nii" else None)
    np.testing.assert_array_equal(sampler(Picture(STORED), **CALL), result)


def test_a_picture_of_8_bits_may_have_its_own_values(tmp_path: Path) -> None:
    """It is what it would be in 12 bits."""
    sampler = valued()
    grey = (STORED[0] // 16).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (own,) = sampler(str(tmp_path / "a.png"), source_values=(0, 255), **CALL)
        wide = sampler(grey.astype(np.float32)[None, None] / 127.5 - 1, **CALL)
    assert np.abs(own - ((wide[0] + 1) / 2 * 4095 - 1024)).max() <= 1


def test_8_bits_for_a_network_of_more_are_warned_of(tmp_path: Path) -> None:
    Image.fromarray((STORED[0] // 16).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.warns(match=r"^a\.png has 8 bits, and the network was trained on values 0:4095$"):
        valued()(tmp_path / "a.png", **CALL)


def test_arrays_have_values_where_the_call_says_so() -> None:
    sampler, expected = valued(), made_of(STORED)
    grey = sampler(STORED[0], source_values=MR, **CALL)
    assert (grey.dtype, grey.shape) == (np.int16, STORED.shape[1:])
    assert np.abs(grey - expected[0]).max() <= 1
    batch = sampler(
        STORED[None].astype(np.float32), source_values="0:4095", target_values=(0, 1), **CALL
    )
    np.testing.assert_allclose(batch[0], (expected + 1024) / 4095, atol=1 / 4095)
    (tensor,) = sampler([torch.from_numpy(STORED.astype(np.int32))], source_values=MR, **CALL)
    assert (type(tensor), tensor.dtype) == (torch.Tensor, torch.int16)
    assert np.abs(tensor.numpy() - expected).max() <= 1


def test_percentiles_are_of_each_picture() -> None:
    sampler = valued(source=Percentiles(0, 100))
    first, second = sampler([Picture(STORED), Picture(STORED // 2)], **CALL | {"seed": [5, 5]})
    assert np.abs(first.astype(int) - second).max() <= 8  # // 2 rounds 1 in 4095
    with pytest.raises(ValueError, match="percentiles are of pictures: give"):
        sampler(STORED[None].astype(np.float32), source_values="p0:100", **CALL)


@pytest.mark.parametrize("neighbours", [0, 1])
def test_volumes_are_translated_by_slices_that_share_a_seed(
    neighbours: int, tmp_path: Path
) -> None:
    """With neighbours, the bridge begins at the slice itself."""
    kind = Spec(source=MR, target=HU, slices="sagittal", neighbours=neighbours)
    count = 1 + 2 * neighbours
    network = tiny_unet(
        in_channels=1, out_channels=1, condition_channels=count, endpoint=kind.endpoint(count, 1)
    )
    sampler: Any = BridgeSampler(network, ABridge())
    sampler.pictures = kind
    Picture(VOLUME).save(tmp_path / "v.npy")
    first, result = sampler([tmp_path / "v.npy"] * 2, **CALL | {"seed": 4}, batch_size=3)
    assert result.shape == VOLUME.shape
    assert not np.array_equal(first, result)
    padded = np.pad(VOLUME[0], ((0, 0), (0, 0), (neighbours, neighbours)), mode="edge")
    for index in range(4):
        stack = padded[:, :, index : index + count].transpose(2, 0, 1)
        assert np.abs(result[..., index] - made_of(stack, network)).max() <= 1
    with pytest.raises(
        ValueError, match=r"source must be \(1, D, H, W\), a volume, as in training; b has shape"
    ):
        sampler(Picture(np.concatenate([VOLUME] * 3), name="b"), **CALL)
    floats = VOLUME.astype("float32")
    floats[0, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="v: nan stands in channel 0"):
        sampler(Picture(floats, name="v"), **CALL)


def test_voxels_of_another_size_are_warned_of() -> None:
    sampler = valued(slices="axial", spacing=(3.0, 1.0, 1.0))
    affine = (
        (0.0, 0.0, 1.11, 0.0),
        (0.0, 1.0, 0.0, 0.0),
        (3.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )
    with pytest.warns(
        match=r"^v has voxels of 3 x 1 x 1.11, and .* trained on 3 x 1 x 1: it knows"
    ):
        sampler(Picture(VOLUME[:, :2], Geometry(affine), name="v"), **CALL)


def test_other_pictures_than_those_of_training_are_refused(tmp_path: Path) -> None:
    Picture(STORED).save(tmp_path / "a.png")
    Picture(STORED).save(tmp_path / "a.npy")
    ours, eight = valued(), sampler_of()
    two = Picture(np.concatenate([STORED] * 2), name="a")
    for sampler, source, message in (
        (ours, two, r"\(1, H, W\), as in training; a has shape \(2, 8, 10\)"),
        (eight, tmp_path / "a.png", r"uint16 have no agreed range.*source_values="),
        (eight, tmp_path / "a.npy", r"source must be \(3, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(source, **CALL)
    (result,) = valued(source=EIGHT_BIT)(Image.new("L", (10, 8), 200), **CALL)
    assert (result.dtype, result.unit, result.shape) == (np.int16, "HU", (1, 8, 10))
