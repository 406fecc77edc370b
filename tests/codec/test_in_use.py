"""Bridges in latents: sampled, masked, trained, resumed and exported."""

import pytest
import torch
from torch import nn

from bbdm import ABridge, BridgeSampler, wrap
from bbdm.codec import LatentStatistics, Tiling, VQGANCodec
from tests.conftest import tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

BRIDGE = ABridge(num_steps=50)
SOURCE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
STATISTICS = LatentStatistics((0.1, -0.2, 0.3), (8.0, 2.0, 6.0), (0.4, 0.0, -0.1), (0.7, 1.1, 3.0))


@pytest.fixture
def sampler() -> BridgeSampler:
    codec = VQGANCodec(tiny_vqgan()).with_statistics(STATISTICS)
    return BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4, codec=codec)


def test_a_latent_sampler_is_encode_sample_decode(sampler: BridgeSampler):
    codec = sampler.codec
    assert codec is not None
    made, steps = sampler(SOURCE, seed=3), list(sampler.stream(SOURCE, seed=3))
    plain = BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4).stream(codec.encode(SOURCE, "source"), seed=3)
    for step, expected in zip(steps, plain, strict=True):
        torch.testing.assert_close(step.x, expected.x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.decode(steps[-1].x).clamp(-1, 1), made, rtol=1e-4, atol=1e-4)


def test_sizes_are_padded_and_cropped(sampler: BridgeSampler):
    source = torch.rand(2, 3, 9, 6) * 2 - 1  # the strides of both networks together are 4
    padded = torch.nn.functional.pad(source, (0, 2, 0, 3), mode="replicate")
    made = sampler(source, seed=0)
    assert made.shape == source.shape
    torch.testing.assert_close(made, sampler(padded, seed=0)[..., :9, :6], rtol=1e-4, atol=1e-4)
    assert sampler(source, noise=torch.randn(4, 2, 3, 6, 4)).shape == source.shape
    with pytest.raises(ValueError, match=r"noise must have shape \(4, 2, 3, 6, 4\), got \(4, 2, 3, 9, 6\)"):
        sampler(source, noise=torch.randn(4, 2, 3, 9, 6))


def test_a_sampler_takes_large_pictures_in_tiles():
    codec, shapes = VQGANCodec(tiny_vqgan()), set[tuple[int, ...]]()
    codec.tiling = Tiling(side=8, overlap=4)
    encoder, decoder = codec.encoder, codec.decoder
    codec.encoder = lambda image: shapes.add(tuple(image.shape)) or encoder(image)
    codec.decoder = lambda latents: shapes.add(tuple(latents.shape)) or decoder(latents)
    made = BridgeSampler(tiny_unet(), BRIDGE, steps=2, codec=codec)(-torch.ones(1, 3, 30, 20), seed=0)
    assert made.shape == (1, 3, 30, 20)
    assert shapes == {(1, 3, 8, 8), (1, 3, 4, 4)}


class Pointwise(nn.Module):
    """A network of which each position sees itself alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixed = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.mixed(torch.cat([x, condition], dim=1))


def test_a_mask_makes_each_latent_that_it_touches():
    """One pixel of a mask makes its latent as without a mask, and leaves the others as the source's."""
    torch.manual_seed(0)
    codec = VQGANCodec(tiny_vqgan())
    network = wrap(Pointwise(codec.channels), codec.channels, codec.channels)
    sampler = BridgeSampler(network, ABridge(50), "sde-dpm2m", 4, codec=codec)
    y = torch.rand(1, 3, 16, 16) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, 5, 6] = 1
    (*_, whole), (*_, part) = (sampler.stream(y, seed=1, mask=each) for each in (None, mask))
    source, row, column = codec.encode(y, "source"), 5 // codec.stride, 6 // codec.stride
    wanted = source.clone()
    wanted[..., row, column] = whole.x[..., row, column]
    assert not torch.equal(wanted, source)
    torch.testing.assert_close(part.x, wanted, rtol=1e-4, atol=1e-4)
    result = sampler(y, seed=1, mask=mask)
    assert torch.equal(torch.where(mask == 0, result, y), y), "what the codec lost is there again"
