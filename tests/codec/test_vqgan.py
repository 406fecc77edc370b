"""VQGANs as codecs: image space and back, normalisation, in a file and in a sampler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bbdm import ABridge, BridgeSampler, load_checkpoint, load_vqgan, save_checkpoint, save_vqgan
from bbdm.codec import LatentStatistics, VQGANCodec, from_config
from bbdm.sampling.batch import Batch
from tests.conftest import relative_gap, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

STATISTICS = LatentStatistics((0.1, -0.2, 0.3), (2.0, 0.5, 1.5), (0.4, 0.0, -0.1), (0.7, 1.1, 3.0))
NAN = float("nan")
SUFFIXES = [".pt", ".safetensors"]
SOURCE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


@pytest.mark.parametrize("before", [False, True], ids=["quant_conv", "before it"])
def test_latents_are_those_before_quantisation(before: bool):
    vqgan = tiny_vqgan()
    codec = VQGANCodec(vqgan, before)
    assert (codec.image_channels, codec.channels, codec.stride) == (3, 3, 2)
    latents = vqgan.encoder(SOURCE) if before else vqgan.encode(SOURCE)
    torch.testing.assert_close(codec.encode(SOURCE, "target"), latents)
    decoded = vqgan.decode(vqgan.quant_conv(latents) if before else latents)
    torch.testing.assert_close(codec.decode(latents), decoded)
    assert relative_gap(vqgan.encoder(SOURCE), vqgan.encode(SOURCE)) > 0.1


def test_a_kl_autoencoder():
    """Latents are the mean, decoding is that of the network, in a file and in bfloat16 too."""
    vqgan = tiny_vqgan(num_codes=0)
    codec = VQGANCodec(vqgan)
    assert (codec.channels, codec.stride) == (3, 2)
    latents = codec.encode(SOURCE, "source")
    torch.testing.assert_close(latents, vqgan.quant_conv(vqgan.encoder(SOURCE))[:, :3])
    torch.testing.assert_close(codec.decode(latents), vqgan.decoder(vqgan.post_quant_conv(latents)))
    loaded = from_config(codec.config(), codec.state_dict())
    assert torch.equal(loaded.latents(SOURCE), codec.latents(SOURCE))
    narrow = codec.placed(torch.device("cpu"), torch.bfloat16)
    assert relative_gap(narrow.latents(SOURCE), latents) < 0.05
    assert relative_gap(narrow.image(latents), codec.image(latents)) < 0.05
    with pytest.raises(ValueError, match="before_quant_conv must be False for a KL autoencoder"):
        VQGANCodec(vqgan, before_quant_conv=True)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 9, 8), (1, 3, 8, 9), (1, 1, 8, 8), (1, 3, 0, 8), (3, 8, 8)], ids=str)
def test_images_that_have_no_latents(shape: tuple[int, ...], before: bool):
    with pytest.raises(ValueError, match=r"image must be \(B, 3, H, W\), with height and width multiples of 2, got"):
        VQGANCodec(tiny_vqgan(), before).latents(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"latents must be \(B, 3, H, W\), got"):
        VQGANCodec(tiny_vqgan(), before).image(torch.zeros(shape)[..., :0])


def test_normalised_sources_and_targets_apart():
    plain = VQGANCodec(tiny_vqgan())
    codec = plain.with_statistics(STATISTICS)
    latents = plain.encode(SOURCE, "source")
    source = (latents - per_channel(STATISTICS.source_mean)) / per_channel(STATISTICS.source_std)
    target = (latents - per_channel(STATISTICS.target_mean)) / per_channel(STATISTICS.target_std)
    torch.testing.assert_close(codec.encode(SOURCE, "source"), source)
    torch.testing.assert_close(codec.encode(SOURCE, "target"), target)
    torch.testing.assert_close(codec.decode(target), plain.decode(latents))
    assert plain.statistics is None


def test_statistics_are_the_mean_and_spread():
    pairs = [(torch.randn(n, 3, 4, 4) * 3 + 1, torch.randn(n, 3, 4, 4) - 2) for n in (2, 5)]
    measured = LatentStatistics.of(pairs)
    for latents, mean, std in (
        (torch.cat([s for s, _ in pairs]), measured.source_mean, measured.source_std),
        (torch.cat([t for _, t in pairs]), measured.target_mean, measured.target_std),
    ):
        torch.testing.assert_close(torch.tensor(mean), latents.mean((0, 2, 3)))
        torch.testing.assert_close(torch.tensor(std), latents.std((0, 2, 3), correction=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatentStatistics.of([]), "at least one batch"),
        (
            lambda: LatentStatistics.of([(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2))]),
            "source_std must be positive",
        ),
        (lambda: LatentStatistics((0.0,) * 3, (1.0, NAN, 1.0), (0.0,) * 3, (1.0,) * 3), "source_std must be finite"),
        (lambda: LatentStatistics((0.0,), (1.0,), (NAN,), (1.0,)), "target_mean must be finite"),
        (lambda: LatentStatistics((0.0,), (1.0,), (0.0,), (float("inf"),)), "target_std must be finite"),
        (lambda: LatentStatistics((0.0,), (1.0,), (0.0, 0.0), (1.0,)), "target_mean must have 1 numbers, got 2"),
        (lambda: VQGANCodec(tiny_vqgan()).with_statistics(LatentStatistics((0.0,), (1.0,), (0.0,), (1.0,))), "3 chann"),
        (lambda: from_config({"kind": "fsq"}, {}), r"kind must be one of \['kl', .*'vqgan', .*\], got 'fsq'"),
    ],
)
def test_what_cannot_be(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_codes_stay_in_float32_when_placed_in_bfloat16():
    codec = VQGANCodec(tiny_vqgan())
    codec.statistics = STATISTICS
    assert codec.placed(torch.device("cpu"), torch.float32) is codec
    placed = codec.placed(torch.device("cpu"), torch.bfloat16)
    assert placed.statistics == STATISTICS
    assert placed.vqgan.encoder.conv_in.weight.dtype == torch.bfloat16
    assert placed.vqgan.quantize.embedding.weight.dtype == torch.float32
    assert codec.vqgan.encoder.conv_in.weight.dtype == torch.float32
    latents = placed.encode(SOURCE, "source")
    assert latents.dtype == torch.float32
    assert relative_gap(latents, codec.encode(SOURCE, "source")) < 0.05
    made = placed.decode(codec.encode(SOURCE, "target"))
    assert made.dtype == torch.float32
    assert relative_gap(made, codec.decode(codec.encode(SOURCE, "target"))) < 0.05


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_vqgan_round_trip(suffix: str, tmp_path: Path):
    vqgan = tiny_vqgan(eps=1e-5, projects_attention=False)
    save_vqgan(tmp_path / f"vqgan{suffix}", vqgan)
    loaded = load_vqgan(tmp_path / f"vqgan{suffix}")
    assert loaded.config == vqgan.config
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in vqgan.state_dict().items())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("normalised", [False, True])
def test_checkpoint_round_trip(suffix: str, normalised: bool, tmp_path: Path):
    codec = VQGANCodec(tiny_vqgan(), before_quant_conv=True)
    codec = codec.with_statistics(STATISTICS) if normalised else codec
    path = tmp_path / f"bridge{suffix}"
    save_checkpoint(path, tiny_unet(), ABridge(), codec=codec)
    loaded = load_checkpoint(path).build_codec()
    assert isinstance(loaded, VQGANCodec)
    assert loaded.config() == codec.config()
    torch.testing.assert_close(loaded.encode(SOURCE, "target"), codec.encode(SOURCE, "target"), rtol=0, atol=0)
    load_checkpoint(path, codec=VQGANCodec(tiny_vqgan()))
    for other in (tiny_vqgan(seed=1), tiny_vqgan(projects_attention=False)):
        with pytest.raises(ValueError, match="another codec was given"):
            load_checkpoint(path, codec=VQGANCodec(other))


CODEC_EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no-statistics": (lambda codec: codec.pop("statistics"), "statistics cannot be read: 'statistics'"),
    "no-config": (lambda codec: codec.pop("config"), "none of a VQGAN's: 'config'"),
    "no-before": (lambda codec: codec.pop("before_quant_conv"), "none of a VQGAN's: 'before_quant_conv'"),
    "before-of-text": (lambda codec: codec.update(before_quant_conv="no"), "before_quant_conv must be true or false"),
    "extra-setting": (lambda codec: codec["config"].update(speed=1), "none of a VQGAN's: .*speed"),
    "fraction": (lambda codec: codec["config"].update(num_codes=1.5), "num_codes must be of integers, got 1.5"),
    "statistics": (lambda codec: codec["statistics"].update(source_std=(1, NAN, 1)), "source_std must be finite"),
    "short": (lambda codec: codec.update(statistics=dict.fromkeys(codec["statistics"], (1,))), "must be of 3 channels"),
    "weights": (lambda codec: codec["weights"].pop("quant_conv.bias"), r"the codec's .* missing: quant_conv\.bias$"),
}


@pytest.mark.parametrize(("edit", "message"), CODEC_EDITS.values(), ids=CODEC_EDITS)
def test_a_checkpoint_of_a_damaged_codec_is_refused(
    edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
):
    codec = VQGANCodec(tiny_vqgan()).with_statistics(STATISTICS)
    save_checkpoint(tmp_path / "a.pt", tiny_unet(), ABridge(), codec=codec)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    codec = content["codec"] | {"weights": content["states"]["codec"]}
    edit(codec)
    content["states"]["codec"] = codec.pop("weights")
    content["codec"] = codec
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"cannot read .*a\.pt as a checkpoint: .*{message}"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_kind_of_file_is_not_the_other(suffix: str, tmp_path: Path):
    bridge, vqgan = tmp_path / f"bridge{suffix}", tmp_path / f"vqgan{suffix}"
    save_checkpoint(bridge, tiny_unet(), ABridge())
    assert load_checkpoint(bridge).build_codec() is None
    save_vqgan(vqgan, tiny_vqgan())
    with pytest.raises(ValueError, match="trained in image space"):
        load_checkpoint(bridge, codec=VQGANCodec(tiny_vqgan()))
    with pytest.raises(ValueError, match=r"cannot read .* as a VQGAN"):
        load_vqgan(bridge)
    with pytest.raises(ValueError, match=r"cannot read .* as a checkpoint"):
        load_checkpoint(vqgan)
    with pytest.raises(FileNotFoundError, match="there is no VQGAN"):
        load_vqgan(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"ends in \.pt or \.safetensors"):
        save_vqgan(tmp_path / "vqgan.bin", tiny_vqgan())


def latent_sampler(normalised: bool = True, **settings: object) -> BridgeSampler:
    codec = VQGANCodec(tiny_vqgan())
    codec = codec.with_statistics(STATISTICS) if normalised else codec
    return BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4, codec=codec, **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("normalised", [False, True])
def test_a_latent_sampler_is_encode_sample_decode(normalised: bool):
    sampler = latent_sampler(normalised)
    codec = sampler.codec
    assert codec is not None
    plain = BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4)
    batch = Batch([0, 1, 2], codec.encode(SOURCE, "source"), [3, 4, 5])
    *_, last = plain._states(plain._plan(), batch, plain._inputs(batch), lambda _: None)
    expected = codec.decode(last.x)
    made = sampler(SOURCE, seed=3)
    torch.testing.assert_close(made, expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    steps = list(sampler.stream(SOURCE, seed=3))
    assert [step.x.shape for step in steps] == [(3, 3, 4, 4)] * 4
    torch.testing.assert_close(codec.decode(steps[-1].x).clamp(-1, 1), made, rtol=1e-4, atol=1e-4)


def test_sizes_are_padded_and_cropped():
    sampler = latent_sampler()
    source = torch.rand(2, 3, 9, 6) * 2 - 1  # the strides of both networks together are 4
    padded = torch.nn.functional.pad(source, (0, 2, 0, 3), mode="replicate")
    made = sampler(source, seed=0)
    assert made.shape == source.shape
    torch.testing.assert_close(made, sampler(padded, seed=0)[..., :9, :6], rtol=1e-4, atol=1e-4)
    noise = torch.randn(4, 2, 3, 6, 4)
    assert sampler(source, noise=noise).shape == source.shape
    with pytest.raises(ValueError, match=r"noise must have shape \(4, 2, 3, 6, 4\), got \(4, 2, 3, 9, 6\)"):
        sampler(source, noise=torch.randn(4, 2, 3, 9, 6))


def test_a_compiled_codec_is_the_eager_one():
    codec = VQGANCodec(tiny_vqgan())
    compiled = codec.compiled(lambda function: torch.compile(function, fullgraph=True, backend="aot_eager"))
    latents = codec.latents(SOURCE)
    torch.testing.assert_close(compiled.latents(SOURCE), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(compiled.image(latents), codec.image(latents), rtol=0, atol=1e-5)


@pytest.mark.nightly
def test_compiled_is_eager():
    expected = latent_sampler()(SOURCE, seed=3)
    made = latent_sampler(compile=True, dtype=torch.float32)(SOURCE, seed=3)
    assert expected.abs().lt(1).float().mean() > 0.25
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)


def test_channels_must_be_the_networks():
    with pytest.raises(ValueError, match="codec must have the network's 3 channels, got 4"):
        BridgeSampler(tiny_unet(), ABridge(), codec=VQGANCodec(tiny_vqgan(latent_channels=4)))
    sampler = BridgeSampler(
        tiny_unet(in_channels=4, out_channels=4), ABridge(), steps=2, codec=VQGANCodec(tiny_vqgan(latent_channels=4))
    )
    assert sampler(SOURCE, seed=0).shape == SOURCE.shape
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        sampler(torch.zeros(1, 4, 8, 8), seed=0)
