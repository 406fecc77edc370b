"""Any autoencoder as a codec."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint, wrap_codec
from bbdm.codec import LatentStatistics, Tiling, VQGANCodec, WrappedCodec
from bbdm.files.weights import IncompleteFileError
from tests.codec.autoencoders import Own, own_codec
from tests.conftest import tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

IMAGE = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
STATISTICS = LatentStatistics((0.5,) * 5, (2.0,) * 5, (-0.5,) * 5, (4.0,) * 5)
SUFFIXES = [".pt", ".safetensors"]


def test_its_functions_are_called():
    module = Own()
    codec = own_codec()
    latents = 2 * module.down(IMAGE).detach()
    torch.testing.assert_close(codec.latents(IMAGE), latents)
    torch.testing.assert_close(codec.image(latents), module.up(latents).detach())
    normal = codec.with_statistics(STATISTICS)
    torch.testing.assert_close(normal.encode(IMAGE, "source"), (latents - 0.5) / 2)
    torch.testing.assert_close(normal.decode((latents + 0.5) / 4), module.up(latents).detach())


def test_placed_and_compiled():
    codec = own_codec()
    placed = codec.placed(torch.device("cpu"), torch.bfloat16)
    assert (codec.dtype, placed.dtype) == (torch.float32, torch.bfloat16)
    latents = codec.latents(IMAGE)
    assert placed.latents(IMAGE).dtype == placed.image(latents).dtype == torch.float32
    torch.testing.assert_close(placed.latents(IMAGE), latents, rtol=0, atol=0.05)
    compiled = codec.compiled(lambda function: torch.compile(function, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled.latents(IMAGE), latents)
    torch.testing.assert_close(compiled.image(latents), codec.image(latents))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_checkpoint_needs_the_codec_and_has_its_weights(suffix: str, tmp_path: Path):
    codec = own_codec().with_statistics(STATISTICS)
    path = tmp_path / f"bridge{suffix}"
    save_checkpoint(path, tiny_unet(in_channels=5, out_channels=5), ABridge(), codec=codec)
    with pytest.raises(IncompleteFileError, match=r"wrapped tests\.codec\.autoencoders\.Own: give the codec, .*codec="):
        load_checkpoint(path).build_codec()
    given = own_codec(seed=1)
    given.tiling = Tiling(whole=64, side=8, overlap=2)
    loaded = load_checkpoint(path, codec=given).build_codec()
    assert isinstance(loaded, WrappedCodec)
    assert (loaded.config(), loaded.digest()) == (codec.config(), codec.digest())
    assert loaded.tiling == given.tiling
    assert given.digest() == own_codec(seed=1).digest() != codec.digest()
    loaded.tiling = Tiling()
    torch.testing.assert_close(loaded.encode(IMAGE, "source"), codec.encode(IMAGE, "source"), rtol=0, atol=0)
    sampler = BridgeSampler.from_checkpoint(path, codec=given, steps=2)
    own = BridgeSampler(tiny_unet(in_channels=5, out_channels=5), ABridge(), steps=2, codec=codec)
    torch.testing.assert_close(sampler(IMAGE, seed=0), own(IMAGE, seed=0))
    for other in (own_codec(image_channels=1), VQGANCodec(tiny_vqgan())):
        with pytest.raises(ValueError, match=r"codec must be wrapped with|another codec was given"):
            load_checkpoint(path, codec=other)


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        ("text", {}, r"module must be a torch\.nn\.Module, got str"),
        (nn.ReLU(), {}, "module must have parameters, got a ReLU without any"),
        (Own(), {"channels": 0}, "channels must be at least 1, got 0"),
        (Own(), {"stride": 1.5}, r"stride must be of integers, got 1\.5"),
    ],
)
def test_what_cannot_be(module: Any, changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        wrap_codec(module, lambda _, x: x, lambda _, z: z, **{"channels": 5, "stride": 2, **changes})
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 12\) must become \(2, 3\) values, got \(4, 6\)"):
        own_codec(stride=4).latents(IMAGE)
    with pytest.raises(ValueError, match=r"latents must have 4 channels, got 5"):
        own_codec(channels=4).latents(IMAGE)
    save_checkpoint(tmp_path / "a.pt", tiny_unet(in_channels=5, out_channels=5), ABridge(), codec=own_codec())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["states"]["codec"]["up.bias"] = torch.zeros(4)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"the codec's weights do not fit .* up\.bias \(4,\) \(wanted \(3,\)\)"):
        load_checkpoint(tmp_path / "a.pt", codec=own_codec())
