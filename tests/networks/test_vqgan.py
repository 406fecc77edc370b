"""The VQGAN against diffusers' VQModel on the same weights, and its own behaviour; and the PatchGAN."""

from typing import Any

import pytest
import torch

from bbdm.networks.vqgan import CHUNK, VQGAN, Codebook, PatchGAN, VQGANConfig, nearest_code
from tests.conftest import relative_gap

TINY: dict[str, Any] = {
    "latent_channels": 3,
    "num_codes": 40,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "num_groups": 4,
}


def tiny_vqgan(seed: int = 0, **settings: Any) -> VQGAN:
    torch.manual_seed(seed)
    vqgan = VQGAN(**{**TINY, **settings})
    if vqgan.config.num_codes:
        torch.nn.init.normal_(vqgan.quantize.embedding.weight)
    return vqgan.eval()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"channel_mult": (1, 2, 4), "num_res_blocks": 2, "num_codes": 500}, id="f4"),
        pytest.param(
            {"latent_channels": 4, "channel_mult": (1, 2, 2, 4), "attention_resolutions": (8,)},
            id="f8",
        ),
    ],
)
def test_parity_with_diffusers(settings: dict[str, Any]):
    from benchmarks.peers import diffusers_vqgan as peers  # slow to import

    vqgan = tiny_vqgan(**settings)
    peer: Any = peers.network(vqgan)
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = peer.encode(x).latents
        assert relative_gap(vqgan.encode(x), latents) < 1e-5
        quantised = peer.quantize(latents)[0]
        assert relative_gap(vqgan.quantize(latents), quantised) < 1e-4
        assert relative_gap(vqgan.decode(latents), peer.decode(latents).sample) < 1e-4


# of its published settings: codes, widths in 128 channels, and the side with attention, of 256
LDM = [
    ("vq-f4", (8192, 3), (1, 2, 4), ()),
    ("vq-f8", (16384, 4), (1, 2, 2, 4), (32,)),
    ("vq-f16", (16384, 8), (1, 1, 2, 2, 4), (16,)),
]


@pytest.mark.parametrize(("preset", "codes", "mult", "attention"), LDM)
def test_presets(
    preset: str, codes: tuple[int, int], mult: tuple[int, ...], attention: tuple[int, ...]
):
    with torch.device("meta"):
        vqgan, stride = VQGAN.from_preset(preset), int(preset.removeprefix("vq-f"))
        latents = vqgan.encoder(torch.zeros(1, 3, 256, 256))
        small = VQGAN.from_preset("demo")
    assert (vqgan.config.stride, vqgan.quantize.embedding.weight.shape) == (stride, codes)
    assert latents.shape == (1, codes[1], 256 // stride, 256 // stride)
    assert (
        vqgan.config.model_channels,
        vqgan.config.channel_mult,
        vqgan.config.num_res_blocks,
    ) == (128, mult, 2)
    assert tuple(256 // factor for factor in vqgan.config.attention_resolutions) == attention
    if preset == "vq-f4":
        # as LDM prints
        assert sum(p.numel() for p in vqgan.parameters()) == pytest.approx(55.3e6, rel=1e-3)
    assert (small.config.stride, small.quantize.embedding.weight.shape) == (4, (512, 3))
    # as docs/latent.md has it
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(2.7e6, rel=2e-3)


def test_gradients_pass_the_quantisation_straight_through():
    vqgan = tiny_vqgan()
    x = torch.randn(1, 3, 8, 8)
    h, z, index = vqgan(x)
    z.retain_grad()
    vqgan.decoder.conv_out(h).square().sum().backward(retain_graph=True)
    codes = vqgan.quantize.look_up(index).detach().requires_grad_()
    vqgan.decoder(vqgan.post_quant_conv(codes)).square().sum().backward()
    assert z.grad is not None
    assert codes.grad is not None
    torch.testing.assert_close(z.grad, codes.grad, rtol=1e-4, atol=1e-5)
    assert vqgan.quantize.embedding.weight.grad is None


def test_without_codes_latents_are_the_mean_of_a_gaussian():
    """The image of z = mean + exp(log variance / 2) noise, of which the encoder gives both as halves."""
    vqgan = tiny_vqgan(num_codes=0)
    x, noise = torch.randn(2, 3, 8, 12), torch.randn(2, 3, 4, 6)
    h, mean, log_variance = vqgan(x, noise)
    halves = vqgan.quant_conv(vqgan.encoder(x))
    torch.testing.assert_close(torch.cat([mean, log_variance], dim=1), halves)
    torch.testing.assert_close(vqgan.encode(x), halves[:, :3])
    drawn = torch.distributions.Normal(halves[:, :3], torch.exp(halves[:, 3:]) ** 0.5)
    torch.testing.assert_close(
        vqgan.decoder.conv_out(h), vqgan.decode(drawn.loc + drawn.scale * noise)
    )
    assert not any("quantize" in key for key in vqgan.state_dict())


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\), got shape \(1, 4, 8, 8\)"):
        tiny_vqgan().encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="multiples of 2 x 2, got 8 x 7"):
        tiny_vqgan().encode(torch.zeros(1, 3, 8, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 3, 7), (CHUNK + 1, 4, 65), (64, 8, 1000)], ids=str)
def test_no_code_is_nearer(size: tuple[int, int, int], dtype: torch.dtype):
    """In float64, up to rounding of a squared distance; and under autocast. Ties go to the first code."""
    vectors, channels, count = size
    z = torch.randn(2, channels, vectors, 1).to(dtype)
    codebook = Codebook(VQGANConfig(latent_channels=channels, num_codes=count)).to(dtype)
    codes = torch.nn.init.normal_(codebook.embedding.weight)
    index = codebook.nearest(z)
    distances = torch.cdist(z[..., 0].mT.double(), codes.double()).square()
    chosen = distances.gather(2, index)[..., 0]
    assert (index.shape, index.dtype) == ((2, vectors, 1), torch.int64)
    assert (chosen - distances.amin(2)).max() <= 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.nearest(z), index)
    twice = codes.detach().float().repeat(2, 1)
    assert torch.equal(nearest_code(twice, twice), torch.arange(count).repeat(2))
    torch.library.opcheck(torch.ops.bbdm.nearest_code.default, (z[0, :, :, 0].mT.float(), twice))


# The discriminator


def test_a_logit_sees_70_by_70_pixels():
    """Isola et al. 2017, appendix 6.1.2: the pixels that reach a logit through the convolutions."""
    convolutions = torch.nn.Sequential(
        *(m for m in PatchGAN(3, 8).layers if isinstance(m, torch.nn.Conv2d))
    )
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = convolutions(x)
    assert logits.shape == (1, 1, 18, 18)
    logits[0, 0, 9, 9].backward()
    assert x.grad is not None
    rows, columns = (x.grad[0].abs().sum(0).sum(side).nonzero().flatten() for side in (1, 0))
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (70, 70)


def test_widths_sizes_and_batches():
    convolutions = [m for m in PatchGAN(3).layers if isinstance(m, torch.nn.Conv2d)]
    widths = [(3, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 1), (512, 1, 1)]  # of the paper
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == widths
    network, x = PatchGAN(3, 4), torch.randn(3, 3, PatchGAN.least, PatchGAN.least + 16)
    assert network(x).shape == (3, 1, 1, 3)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))  # each image is normalised alone
    with pytest.raises(RuntimeError):
        network(x[:, :, 1:])
    for width in (0, 6):
        with pytest.raises(ValueError, match=f"width must be a multiple of 4, got {width}"):
            PatchGAN(3, width)
