"""Sources and results in values of their own, whatever runs the network."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.cli.files import Export
from bbdm.data.spec import Spec
from bbdm.pictures import read
from bbdm.pictures.picture import Geometry, Picture
from bbdm.pictures.values import Percentiles, Values
from bbdm.runtime import OnnxBridgeSampler
from tests.conftest import tiny_unet

MR, HU = Values(0, 4095, dtype="uint16"), Values(-1024, 3071, "HU", "int16")
CALL: dict[str, Any] = {"seed": 5, "solver": "dpm2m", "steps": 2}
PLACE = ((0.0, 2.0, 5.0), (2.0, 0.0, 6.0), (0.0, 0.0, 1.0))
STORED = np.random.default_rng(0).integers(0, 4096, (1, 8, 10), dtype=np.uint16)


def made_of(source: np.ndarray[Any, Any], network: Any) -> np.ndarray[Any, Any]:
    """What a sampler without values makes of the source in [-1, 1], in HU by the formula."""
    scaled = torch.from_numpy(source.astype(np.float32) / 2047.5 - 1)[None]
    plain = BridgeSampler(network, ABridge())(scaled, **CALL)[0]
    return np.rint((plain.double().numpy() + 1) / 2 * 4095 - 1024)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "c.pt"
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    save_checkpoint(path, unet, ABridge(), image_size=8, pictures=Spec(source=MR, target=HU))
    return path


@pytest.fixture(scope="module", params=["torch", pytest.param("onnx", marks=pytest.mark.nightly)])
def sampler(request: pytest.FixtureRequest, checkpoint: Path) -> Any:
    if request.param == "torch":
        return BridgeSampler.from_checkpoint(checkpoint)
    Export.main([str(checkpoint), str(checkpoint.parent / "onnx")])
    return OnnxBridgeSampler(checkpoint.parent / "onnx")


@pytest.fixture(scope="module")
def wanted(checkpoint: Path) -> np.ndarray[Any, Any]:
    return made_of(STORED, load_checkpoint(checkpoint).build_unet())


@pytest.mark.parametrize("suffix", [".npy", ".png", ".tif", ".nii"])
def test_a_file_gives_the_targets_values_at_its_place(
    suffix: str, sampler: Any, wanted: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    Picture(STORED, Geometry(PLACE) if suffix == ".nii" else None).save(path)
    (result,) = sampler(str(path), **CALL)
    assert (type(result), result.dtype, result.unit, result.shape) == (Picture, np.int16, "HU", STORED.shape)
    assert np.abs(result - wanted).max() <= 1  # float32 at half a level, and ONNX Runtime's order of sums
    assert result.geometry.affine == (PLACE if suffix == ".nii" else None)
    result.save(tmp_path / "b.nii")
    again = sampler(Picture(STORED), **CALL)
    np.testing.assert_array_equal(again, result)


def test_a_picture_of_8_bits_is_warned_of(sampler: Any, tmp_path: Path) -> None:
    """It ends at 255 of 4095, nearly black; given its own values, it is what it would be in 12 bits."""
    grey = (STORED[0] // 16).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"8 bits, values up to 255, and the network was trained on 0:4095: .*0, 255"):
        sampler(str(tmp_path / "a.png"), **CALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (own,) = sampler(str(tmp_path / "a.png"), source_values=(0, 255), **CALL)
        wide = sampler(grey.astype(np.float32)[None, None] / 127.5 - 1, **CALL)
    assert np.abs(own - ((wide[0] + 1) / 2 * 4095 - 1024)).max() <= 1


def test_arrays_have_values_where_the_call_says_so(sampler: Any, wanted: np.ndarray[Any, Any]) -> None:
    grey = sampler(STORED[0], source_values=MR, **CALL)
    assert (grey.dtype, grey.shape) == (np.int16, STORED.shape[1:])
    assert np.abs(grey - wanted[0]).max() <= 1
    batch = sampler(STORED[None].astype(np.float32), source_values="0:4095", target_values=(0, 1), **CALL)
    np.testing.assert_allclose(batch[0], (wanted + 1024) / 4095, atol=1 / 4095)
    unit = sampler(STORED[None].astype(np.float32) / 2047.5 - 1, **CALL)
    np.testing.assert_allclose((unit[0] + 1) / 2 * 4095 - 1024, wanted, atol=1)
    (tensor,) = sampler([torch.from_numpy(STORED.astype(np.int32))], source_values=MR, **CALL)
    assert (type(tensor), tensor.dtype) == (torch.Tensor, torch.int16)
    assert np.abs(tensor.numpy() - wanted).max() <= 1


def test_percentiles_are_of_each_picture(checkpoint: Path) -> None:
    sampler = BridgeSampler.from_checkpoint(checkpoint)
    sampler.pictures = Spec(source=Percentiles(0, 100), target=HU)
    settings: dict[str, Any] = {**CALL, "seed": [5, 5]}
    first, second = sampler([Picture(STORED), Picture(STORED // 2)], **settings)
    assert np.abs(first.astype(int) - second).max() <= 8  # // 2 rounds 1 in 4095


def test_a_volume_is_translated_by_its_slices_which_share_a_seed(checkpoint: Path, tmp_path: Path) -> None:
    sampler = BridgeSampler.from_checkpoint(checkpoint)
    volume = np.random.default_rng(1).integers(0, 4096, (1, 8, 3, 10), dtype=np.uint16)
    Picture(volume).save(tmp_path / "v.npy")
    sampler.pictures = Spec(source=MR, target=HU, slices="coronal")
    settings: dict[str, Any] = {**CALL, "seed": 4}
    first, result = sampler([tmp_path / "v.npy", tmp_path / "v.npy"], **settings, batch_size=2)
    assert (result.shape, sampler.last_seeds) == (volume.shape, (4, 5))
    assert not np.array_equal(first, result)
    network = load_checkpoint(checkpoint).build_unet()
    for place in range(3):
        assert np.abs(result[:, :, place] - made_of(volume[:, :, place], network)).max() <= 1


@pytest.mark.parametrize("backend", ["torch", pytest.param("onnx", marks=pytest.mark.nightly)])
def test_slices_with_neighbours_become_a_volume(backend: str, tmp_path: Path) -> None:
    """The bridge begins at the slice itself; the slices of a volume share their noise."""
    kind = Spec(source=MR, target=HU, slices="sagittal", neighbours=1)
    endpoint = kind.endpoint(3, 1)
    assert (endpoint, kind.endpoint(6, 1)) == ((1,), None)
    network = tiny_unet(in_channels=1, out_channels=1, condition_channels=3, endpoint=endpoint)
    save_checkpoint(tmp_path / "c.pt", network, ABridge(), pictures=kind)
    sampler: Any = BridgeSampler.from_checkpoint(tmp_path / "c.pt")
    if backend == "onnx":
        Export.main([str(tmp_path / "c.pt"), str(tmp_path / "onnx")])
        sampler = OnnxBridgeSampler(tmp_path / "onnx")
    assert sampler.pictures == kind
    volume = np.random.default_rng(2).integers(0, 4096, (1, 8, 10, 4), dtype=np.uint16)
    (result,) = sampler(Picture(volume, name="v"), **CALL, batch_size=3)
    padded = np.pad(volume[0], ((0, 0), (0, 0), (1, 1)), mode="edge")
    for place in range(4):
        stack = padded[:, :, place : place + 3].transpose(2, 0, 1)
        assert np.abs(result[..., place] - made_of(stack, network)).max() <= 1
    with pytest.raises(ValueError, match=r"source must be \(1, D, H, W\), a volume, as in training; b has shape"):
        sampler(Picture(np.concatenate([volume] * 3), name="b"), **CALL)

    volume = volume.astype("float32")
    volume[0, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"^v: nan stands in channel 0 at \(1, 2, 3\)"):
        sampler(Picture(volume, name="v"), **CALL)


def test_voxels_of_another_size_are_warned_of(checkpoint: Path, tmp_path: Path) -> None:
    network = load_checkpoint(checkpoint).build_unet()
    kind = Spec(source=MR, target=HU, slices="axial", spacing=(3.0, 1.0, 1.0))
    save_checkpoint(tmp_path / "c.pt", network, ABridge(), pictures=kind)
    sampler = BridgeSampler.from_checkpoint(tmp_path / "c.pt")
    assert sampler.pictures.spacing == (3.0, 1.0, 1.0)
    volume = np.arange(0, 4096, 32).astype(np.uint16).reshape(1, 2, 8, 8)
    for third, message in (
        (1.09, None),
        (1.11, r"^v has voxels of 3 x 1 x 1.11, and .* trained on 3 x 1 x 1: it knows"),
    ):
        place = ((0.0, 0.0, third, 0.0), (0.0, 1.0, 0.0, 0.0), (3.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        with warnings.catch_warnings() if message is None else pytest.warns(UserWarning, match=message):
            if message is None:
                warnings.simplefilter("error")
            sampler(Picture(volume, Geometry(place), name="v"), **CALL)


def test_other_pictures_than_those_of_training_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    sampler = BridgeSampler.from_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"source must be \(1, H, W\), as in training; a has shape \(2, 8, 10\)"):
        sampler(Picture(np.concatenate([STORED, STORED]), name="a"), **CALL)
    eight = BridgeSampler(tiny_unet(), ABridge())
    Picture(STORED).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"uint16 have no agreed range.*source_values="):
        eight(tmp_path / "a.png", **CALL)
    Picture(STORED).save(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"source must be \(3, H, W\)"):
        eight(tmp_path / "a.npy", **CALL)


def test_an_8_bit_source_gives_another_targets_values_and_a_folder_keeps_both(checkpoint: Path, tmp_path: Path) -> None:
    sampler = BridgeSampler.from_checkpoint(checkpoint)
    sampler.save_pretrained(tmp_path / "model")
    assert BridgeSampler.from_pretrained(tmp_path / "model").pictures == Spec(source=MR, target=HU)
    sampler.pictures = Spec(target=HU)
    (result,) = sampler(Image.new("L", (10, 8), 200), **CALL)
    assert (result.dtype, result.unit, result.shape) == (np.int16, "HU", (1, 8, 10))


def test_a_result_keeps_the_source_s_nodata_where_its_type_holds_it(checkpoint: Path, tmp_path: Path) -> None:
    sampler = BridgeSampler.from_checkpoint(checkpoint)
    stored = STORED.astype(np.int16)
    stored[0, 2, 3] = -9999
    Picture(stored, Geometry(((0, 1, 5), (-1, 0, 9), (0, 0, 1)), "geotiff", nodata=-9999)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif .*-9999.*uint8 cannot hold it"):
        sampler(tmp_path / "a.tif", target_values=Values(0, 255), **CALL)
    (result,) = sampler(tmp_path / "a.tif", **CALL)
    result.save(tmp_path / "b.tif")
    found = read(tmp_path / "b.tif")
    assert found.nodata == found[0, 2, 3] == -9999
    assert (found == result).all()
