"""Bridges in latents: sampled, masked, trained, resumed and exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm import ABridge, BridgeSampler, TrainConfig, Trainer, load_checkpoint, wrap
from bbdm.codec import LatentStatistics, Tiling, VQGANCodec
from bbdm.data.latents import measure
from bbdm.data.pairs import Pairs
from bbdm.execution.compiled import Compiled
from bbdm.sampling.loop import Batch
from tests.codec.autoencoders import own_codec
from tests.conftest import newest, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

BRIDGE = ABridge(num_steps=50)
SOURCE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
STATISTICS = LatentStatistics((0.1, -0.2, 0.3), (2.0, 0.5, 1.5), (0.4, 0.0, -0.1), (0.7, 1.1, 3.0))


@pytest.fixture
def sampler() -> BridgeSampler:
    codec = VQGANCodec(tiny_vqgan()).with_statistics(STATISTICS)
    return BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4, codec=codec)


def test_a_latent_sampler_is_encode_sample_decode(sampler: BridgeSampler):
    codec = sampler.codec
    assert codec is not None
    plain = BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4)
    batch = Batch(plain._plan(), [0, 1, 2], codec.encode(SOURCE, "source"), [3, 4, 5])
    *_, last = plain._states(batch, plain._inputs(batch))
    expected = codec.decode(last.x)
    made = sampler(SOURCE, seed=3)
    torch.testing.assert_close(made, expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    steps = list(sampler.stream(SOURCE, seed=3))
    assert [step.x.shape for step in steps] == [(3, 3, 4, 4)] * 4
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


def test_a_bridge_of_an_own_autoencoder_is_trained_and_resumed(pairs: Pairs, tmp_path: Path):
    codec = own_codec()
    codec = codec.with_statistics(measure(pairs, codec))
    first, second = (
        Trainer(
            tiny_unet(in_channels=codec.channels, out_channels=codec.channels),
            BRIDGE,
            TrainConfig(epochs=epochs, batch_size=2),
            pairs,
            None,
            tmp_path / "run",
            codec,
        )
        for epochs in (1, 2)
    )
    first.fit()
    second.resume(newest(first), load_checkpoint(newest(first)))
    second.fit()
    assert second.step == 4
    second.save(tmp_path / "out.pt")
    source = torch.rand(1, 3, 7, 8) * 2 - 1
    loaded = BridgeSampler.from_checkpoint(tmp_path / "out.pt", codec=own_codec(), steps=2)
    assert loaded.codec is not None
    assert loaded.codec.config() == codec.config()
    assert loaded(source, seed=0).shape == source.shape


def test_a_sampler_takes_and_compiles_tiles_of_large_pictures(monkeypatch: pytest.MonkeyPatch):
    codec = VQGANCodec(tiny_vqgan())
    codec.tiling = Tiling(side=8, overlap=4)
    shapes: set[tuple[int, ...]] = set()

    def compile(compiled: Compiled, x: torch.Tensor, *others: torch.Tensor | None) -> Any:
        shapes.add(tuple(x.shape))
        return compiled.function

    monkeypatch.setattr(Compiled, "_compile", compile)
    sampler = BridgeSampler(tiny_unet(), BRIDGE, steps=1, codec=codec, compile=True, dtype=torch.float32)
    sampler(-torch.ones(1, 3, 32, 24), seed=0)
    assert shapes == {(1, 3, 8, 8), (1, 3, 16, 12), (1, 3, 4, 4)}
    shapes.clear()
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
