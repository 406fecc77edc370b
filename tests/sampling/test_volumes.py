"""Volumes (B, C, D, H, W) through a sampler: noise, windows, masks, files, and what is refused."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import ABridge, BridgeSampler, BrownianBridge, UNet, Values, save_checkpoint, wrap
from bbdm.data.spec import Spec
from bbdm.networks.windows import Windows
from bbdm.pictures.images import from_array
from bbdm.pictures.picture import Geometry, Picture
from tests.conftest import tiny_unet
from tests.sampling.test_windows import Recorder, same

SOURCE = torch.rand(2, 1, 5, 10, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1
VOLUME: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "axes": 3, "strides": ((1, 2, 2),)}
HU = Values(-1024, 3071, "HU", "int16")


def unet(**settings: Any) -> UNet:
    return tiny_unet(**{**VOLUME, "condition_channels": 1, **settings}).eval()


def pointwise(**settings: Any) -> tuple[Recorder, BridgeSampler]:
    """A function of single voxels, which notes the shapes that it is called with."""
    module = Recorder()
    return module, BridgeSampler(
        wrap(module, 1, axes=3, **settings).eval(), ABridge(), "sde-dpm2m", steps=3
    )


def test_a_seed_is_a_volume_at_every_batch_size() -> None:
    sampler = BridgeSampler(unet(), BrownianBridge(), steps=3)
    whole = sampler(SOURCE, seed=[3, 9])
    assert whole.shape == SOURCE.shape
    same(sampler(SOURCE[1:], seed=9), whole[1:])
    same(sampler(SOURCE, seed=[3, 9], batch_size=1), whole)
    same(torch.stack(sampler(list(SOURCE), seed=[3, 9])), whole)


def test_mask_and_from_array() -> None:
    sampler = BridgeSampler(unet(), BrownianBridge(), steps=2)
    mask = torch.zeros(2, 1, 5, 10, 7)
    mask[..., 3:] = 1
    result = sampler(SOURCE, seed=1, mask=mask)
    same(result[..., :3], SOURCE[..., :3])
    assert (result - SOURCE)[..., 3:].abs().max() > 0.01
    *_, last = sampler.stream(SOURCE, seed=1)
    # planes of 10 x 7, 5 x 7, 5 x 10
    assert [picture.size for picture in last.preview()] == [(3 * 10, 10)] * 2
    volume = np.full((1, 4, 6, 8), -1.0)
    volume[0, 2], volume[0, :, 3], volume[0, :, :, 4] = 1.0, 0.0, 0.5
    pixels = np.asarray(from_array(volume).convert("L"))
    axial, coronal, sagittal = (pixels[:, 8 * k : 8 * (k + 1)] for k in range(3))
    assert (axial[0, 0], coronal[0, 0], sagittal[0, 0]) == (255, 128, 191)
    assert (axial[3, 0], axial[0, 4], coronal[0, 4]) == (128, 191, 191)


def test_windows_of_a_function_of_voxels_are_the_whole() -> None:
    module, sampler = pointwise()
    whole = sampler(SOURCE, seed=3)
    module.shapes.clear()
    same(sampler(SOURCE, seed=3, window=(3, 4, 7), overlap=0.5, batch_size=4), whole, 2e-6)
    assert {shape[1:] for shape in module.shapes} == {(1, 3, 4, 7)}
    module.shapes.clear()
    assert torch.equal(sampler(SOURCE, seed=3, window=(5, 10, 7)), whole)  # one window
    assert module.shapes == [(2, 1, 5, 10, 7)] * 3


def test_windows_of_a_stride_for_each_axis() -> None:
    """Windows begin at multiples of the axis's stride, and are those of training crops."""
    module, sampler = pointwise(stride=(1, 2, 4))
    sampler.pictures = Spec(crop=(3, 6, 8))
    source = torch.full((1, 1, 7, 9, 30), -0.5)
    assert sampler(source, seed=0, batch_size=2).shape == source.shape
    counts = [
        len(Windows.spread(n, length, math.ceil(length / 4), unit).starts)
        for n, length, unit in ((7, 3, 1), (10, 6, 2), (32, 8, 4))
    ]
    assert len(module.shapes) == 3 * math.ceil(math.prod(counts) / 2)
    assert {shape[2:] for shape in module.shapes} == {(3, 6, 8)}


def test_values_of_files_and_arrays() -> None:
    """HU in, HU out, on the same grid, of a picture and of arrays."""
    sampler = BridgeSampler(unet(), BrownianBridge(), steps=2)
    sampler.pictures = Spec(source=HU, target=HU)
    stored = np.random.default_rng(0).integers(-1024, 3072, (4, 6, 8)).astype(np.int16)
    geometry = Geometry(format="medical", kept={"spacing": (1.0, 1.0, 3.0)})
    made: Any = sampler(Picture(stored[None], geometry), seed=1)
    assert (type(made), made.shape, made.dtype, made.unit) == (
        Picture,
        (1, 4, 6, 8),
        np.int16,
        "HU",
    )
    assert made.geometry == geometry
    scaled = torch.from_numpy(HU.scaled(stored[None, None].astype(np.float32), axes=4))
    expected = (sampler(scaled, seed=1).numpy()[0, 0] + 1) * (4095 / 2) - 1024
    np.testing.assert_allclose(np.asarray(made)[0], expected, atol=0.51)
    for array in (stored, stored[None]):
        result = sampler(array, seed=1, source_values=HU, target_values=HU)
        assert result.shape == array.shape
        np.testing.assert_array_equal(result.reshape(stored.shape), np.asarray(made)[0])


REFUSED: list[tuple[int, Any, dict[str, Any], str]] = [  # axes, a source, options
    (
        3,
        SOURCE[:, :, 0],
        {},
        "source must be a non-empty (B, 1, D, H, W) batch, got shape (2, 1, 10, 7)",
    ),
    (2, SOURCE, {}, "source must be a non-empty (B, 3, H, W) batch, got shape (2, 1, 5, 10, 7)"),
    (3, [SOURCE[0, :, 0]], {}, "a tensor in a list must be (1, D, H, W), got shape (1, 10, 7)"),
    (
        3,
        [np.zeros((2, 4, 6, 8), np.uint8)],
        {},
        "source[0]: must be (1, D, H, W), a volume, as in training",
    ),
    (3, from_array(SOURCE[0].numpy()), {}, "source must be (1, D, H, W), a volume, as in training"),
    (
        3,
        SOURCE,
        {"window": (3, 5, 8)},
        "window must be a multiple of the network's stride (1, 2, 2), got (3, 5, 8)",
    ),
    (
        3,
        SOURCE,
        {"window": (8, 8)},
        "window must be a side, (depth, height, width), 'auto' or None, got (8, 8)",
    ),
]


@pytest.mark.parametrize(("axes", "source", "options", "message"), REFUSED)
def test_what_is_refused(axes: int, source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BridgeSampler(unet() if axes == 3 else tiny_unet().eval(), BrownianBridge(), steps=1)(
            source, **options
        )


def test_a_file_says_its_axes(tmp_path: Path) -> None:
    network, kind = unet(dropout=0.1), Spec(crop=(8, 6, 4))
    save_checkpoint(
        tmp_path / "v.safetensors", network, BrownianBridge(), image_size=(8, 6, 4), pictures=kind
    )
    sampler = BridgeSampler.from_checkpoint(tmp_path / "v.safetensors", steps=2)
    own = BridgeSampler(network, BrownianBridge(), steps=2)
    assert (sampler.axes, sampler.image_size, sampler.pictures.crop) == (3, (8, 6, 4), (8, 6, 4))
    assert torch.equal(
        sampler(SOURCE[..., :4], seed=1), own(SOURCE[..., :4], seed=1, window=(8, 6, 4))
    )
