"""Distributions of results: equal to closed forms with the ideal denoiser, made of a sampler's own calls."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import brentq
from scipy.stats import norm

from bbdm import ABridge, BridgeSampler, BrownianBridge, wrap
from bbdm.data.spec import Spec
from bbdm.pictures.picture import Geometry, Picture
from bbdm.pictures.values import Values
from tests.conftest import noise, tiny_unet
from tests.gaussian import Array, IdealOfMixture
from tests.onnx.exports import tiny_codec

BRIDGE = ABridge(num_steps=100)
TIMES = BrownianBridge(num_steps=10**6)  # so that levels are hardly rounded
SOURCE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def sampler() -> BridgeSampler:
    return BridgeSampler(tiny_unet(condition_channels=3), BRIDGE, "sde-dpm2m", 3)


MIXTURE = [0.35, 0.65], [-0.35, 0.3], [0.08, 0.13]  # weights, means and spreads of its parts


def standard_errors(solver: str, steps: int) -> Array:
    """How far the averages over pixels of mean, variance and quantiles are from those of the distribution.

    Each of 1,024 samples, of 32 pixels of one source and of 32 of another; in standard errors.
    """
    weights, means, spreads = map(np.array, MIXTURE)
    times = [TIMES.top, *(int(t) for t in TIMES.time_at(np.geomspace(50, 3e-3, steps - 1)))]
    sampler = BridgeSampler(
        wrap(IdealOfMixture(TIMES, weights, means, spreads), 1, 1), TIMES, solver, timesteps=times
    )
    source = torch.tensor([-0.4, 0.4]).repeat_interleave(32).reshape(1, 1, 8, 8)
    found = sampler.distribution(source, samples := 1024, seed=0, batch_size=1024)
    made = {q: found.quantile(q).double() for q in (0.05, 0.25, 0.5, 0.9)}
    distances: list[Any] = []
    for y in (-0.4, 0.4):
        here, count = source == np.float32(y), 32 * samples
        mean = weights @ means
        off = means - mean
        variance = weights @ (spreads**2 + off**2)
        fourth = weights @ (3 * spreads**4 + 6 * spreads**2 * off**2 + off**4)
        distances += [
            float(found.mean[here].double().mean() - y / 4 - mean) / np.sqrt(variance / count),
            float(found.std[here].double().square().mean() - variance)
            / np.sqrt((fourth - variance**2) / count),
        ]
        for q, each in made.items():
            true: Any = brentq(lambda v, q=q: weights @ norm.cdf(v, means, spreads) - q, -2, 2)
            error = np.sqrt(q * (1 - q) / count) / (weights @ norm.pdf(true, means, spreads))
            distances.append((float(each[here].mean()) - y / 4 - true) / error)
    return np.array(distances)


@pytest.mark.parametrize("solver", ["sde-dpm2m", "dpm2m"])
def test_many_steps_give_the_distribution_itself(solver: str):
    """Within 5 standard errors, with a false alarm in 10^5 runs. They show the bias of 5 steps."""
    many, few = (abs(standard_errors(solver, steps)).max() for steps in (100, 5))
    assert many < 5 < few


def test_samples_are_calls_and_their_moments_are_those_of_numpy(sampler: BridgeSampler):
    found = sampler.distribution(SOURCE, 5, seed=7)
    assert found.seeds[2] == (9, 12, 15, 18, 21)
    calls = torch.stack([sampler(SOURCE, seed=7 + 3 * j) for j in range(5)])
    torch.testing.assert_close(torch.stack(found.samples), calls, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.mean, calls.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std, calls.std(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.quantile(0.3), calls.quantile(0.3, 0), rtol=0, atol=1e-5)
    found = sampler.distribution(SOURCE[:2], 2, [[4, 9], [8, 1]])
    torch.testing.assert_close(
        found.samples[1], sampler(SOURCE[:2], seed=[9, 1]), rtol=0, atol=1e-5
    )
    assert sampler.distribution(SOURCE, 2).seeds != sampler.distribution(SOURCE, 2).seeds
    sums = sampler.distribution(SOURCE, 5, seed=0, keep=False)
    torch.testing.assert_close(sums.mean, sampler.distribution(SOURCE, 5, seed=0).mean)
    for what in (lambda: sums.samples, lambda: sums.quantile(0.5)):
        with pytest.raises(
            ValueError, match="quantiles and samples need the samples: leave out keep=False"
        ):
            what()


def test_a_source_is_encoded_once_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch):
    codec, encoded = tiny_codec(), list[int]()
    sampler = BridgeSampler(tiny_unet(condition_channels=3), BRIDGE, "sde-dpm2m", 2, codec=codec)
    encode = type(codec).encode
    monkeypatch.setattr(
        type(codec),
        "encode",
        lambda self, x, *rest: encoded.append(len(x)) or encode(self, x, *rest),
    )
    for batch_size, sizes in ((1, [1, 1, 1]), (4, [1, 1, 1]), (14, [2, 1]), (None, [2, 1])):
        encoded.clear()
        found = sampler.distribution(SOURCE, 6, 0, batch_size=batch_size)
        assert encoded == sizes
        torch.testing.assert_close(found.samples[1], sampler(SOURCE, seed=3), rtol=0, atol=2e-3)


def test_memory_does_not_grow_with_the_number_of_samples():
    sampler = BridgeSampler(tiny_unet(), BRIDGE, steps=1)
    source = -np.ones((1, 3, 64, 64), np.float32)
    # what is imported and kept at a first call
    sampler.distribution(source, 2, seed=0, keep=False, batch_size=2)
    tracemalloc.start()
    sampler.distribution(source, 40, seed=0, keep=False, batch_size=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 25 * source.nbytes  # of NumPy's arrays: sums in float64, and two results


def test_results_have_the_kind_of_their_sources(sampler: BridgeSampler, tmp_path: Path):
    """8-bit pictures in levels, floats in their range; of lists each in its own."""
    noise(0, 8, 8).save(tmp_path / "a.png")
    array = np.asarray(noise(0, 8, 8))
    source = [
        noise(0, 8, 8),
        tmp_path / "a.png",
        array,
        array / 255,
        torch.from_numpy(array / 127.5 - 1).movedim(2, 0),
    ]
    seeds = [[1, 2, 3, 4]] * 5
    found = sampler.distribution(source, 4, seeds)
    kinds = [Image.Image, Image.Image, np.ndarray, np.ndarray, torch.Tensor]
    for name in ("mean", "std"):
        assert all(
            isinstance(each, kind) for each, kind in zip(getattr(found, name), kinds, strict=True)
        )
    samples = np.stack([np.asarray(each[4]) for each in found.samples]).transpose(0, 2, 3, 1)
    for i in range(3):
        assert (
            abs(np.asarray(found.std[i], float) - samples.std(0, ddof=1) * 127.5).max()
            <= 0.5 + 1e-3
        )
        assert (
            abs(np.asarray(found.mean[i], float) - (samples.mean(0) + 1) * 127.5).max()
            <= 0.5 + 1e-3
        )
    unit = sampler.distribution(
        array / 255, 4, seeds[:1], source_values=(0, 1), target_values=(0, 1)
    )
    np.testing.assert_allclose(unit.std, samples.std(0, ddof=1) / 2, rtol=0, atol=1e-5)
    assert unit.std.dtype == np.float32


def test_pictures_with_values_keep_unit_place_and_pixels_without_a_value():
    values = Values(-1024, 3071, "HU", "int16")
    sampler = BridgeSampler(tiny_unet(in_channels=1, out_channels=1), BRIDGE, "sde-dpm2m", 2)
    sampler.pictures = Spec(source=values, target=values)
    stored = np.random.default_rng(0).integers(-900, 3000, (1, 8, 8)).astype(np.int16)
    stored[0, 0, 0] = -2000
    picture = Picture(stored, Geometry(format="nifti", nodata=-2000))
    found = sampler.distribution([picture], 6, seed=0)
    samples = np.stack([np.asarray(each[0], float) for each in found.samples])
    std = found.std[0]
    assert (std.unit, std.dtype, std.geometry.affine) == (
        "HU",
        np.float32,
        found.mean[0].geometry.affine,
    )
    assert found.mean[0][0, 0, 0] == found.quantile(0.1)[0][0, 0, 0] == -2000
    inside = stored != -2000
    assert np.array_equal(np.isnan(std), ~inside)
    assert abs(np.asarray(std) - samples.std(0, ddof=1))[inside].max() <= 1.1  # samples are rounded


def test_the_deviation_of_mapped_values_with_pixels_without_a_value():
    """Half of the way from one deviation below the mean to one above, of logarithms within the range."""
    values = Values(1, 100, dtype="float32", mapping="log")
    sampler = BridgeSampler(tiny_unet(in_channels=1, out_channels=1), BRIDGE, "sde-dpm2m", 2)
    sampler.pictures = Spec(source=values, target=values)
    stored = np.random.default_rng(0).uniform(1, 100, (1, 8, 8)).astype(np.float32)
    stored[0, 0, 0] = -1
    found = sampler.distribution([Picture(stored, Geometry(nodata=-1))], 6, seed=0)
    inside = stored != -1
    samples = np.stack([np.asarray(each[0])[inside] for each in found.samples])
    logarithms = np.log10(samples.astype(float))
    mean, deviation = logarithms.mean(0), logarithms.std(0, ddof=1)
    high = np.minimum(mean + deviation, 2)
    low = np.maximum(mean - deviation, 0)
    expected = (10**high - 10**low) / 2
    std = np.asarray(found.std[0])
    assert np.array_equal(np.isnan(std), ~inside)
    np.testing.assert_allclose(std[inside], expected, rtol=1e-3)


@pytest.mark.parametrize("slices", [None, "coronal"])
def test_samples_that_agree_have_a_deviation_of_0_where_0_is_no_value(slices: Any):
    """Another stored value stands for none in the map, or who looks at it loses the certain pixels."""
    values = Values(0, 4095, dtype="uint16")
    # which draws nothing
    sampler = BridgeSampler(tiny_unet(in_channels=1, out_channels=1), BRIDGE, "ddim", 1)
    sampler.pictures = Spec(source=values, target=values, nodata=0, slices=slices)
    stored = (
        np.random.default_rng(0)
        .integers(1, 4096, (1, 3, 8, 8) if slices else (1, 8, 8))
        .astype(np.uint16)
    )
    stored[..., 2, 3] = 0
    std = sampler.distribution([Picture(stored, Geometry(nodata=0))], 2, seed=0).std[0]
    assert np.array_equal(std.absent(), (stored == 0)[0])
    assert not np.asarray(std)[stored != 0].any()


def test_windows_and_masks(sampler: BridgeSampler):
    wide = torch.cat([SOURCE, SOURCE], 3)
    found = sampler.distribution(wide, 3, seed=1, window=8)
    torch.testing.assert_close(found.samples[2], sampler(wide, seed=7, window=8), rtol=0, atol=1e-5)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    masked = sampler.distribution(SOURCE, 3, seed=1, mask=mask)
    assert not masked.std[..., :4].any()
    assert (masked.std[..., 4:] > 0).float().mean() > 0.9  # but where all samples are clipped


def test_what_is_refused(sampler: BridgeSampler):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"samples": 1}, "samples must be an integer of at least 2, got 1"),
        ({"seed": [1, 2, 3]}, r"for each of 3 sources a list of 16 seeds, got \[1, 2, 3\]"),
        ({"seed": [[1], [2], [3]]}, "one integer or one for each of 16 images, got 1"),
        ({"noise": SOURCE}, "takes no noise"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            sampler.distribution(SOURCE, **arguments)
    with pytest.raises(ValueError, match=r"a quantile must be in \[0, 1\], got 5"):
        sampler.distribution(SOURCE, 2).quantile(5)
