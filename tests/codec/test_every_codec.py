"""Every kind of codec against its network's own functions: latents, images, dtypes, graphs, and files."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bbdm import (
    ABridge,
    BridgeSampler,
    DiffusersCodec,
    VQGANCodec,
    load_checkpoint,
    load_codec,
    load_vqgan,
    save_checkpoint,
    save_vqgan,
    wrap_codec,
)
from bbdm.codec import Codec, LatentStatistics, Tiling
from bbdm.execution.compiled import Compiled
from bbdm.files.weights import IncompleteFileError
from bbdm.onnx import graphs
from tests.codec.autoencoders import Own, own_codec, tiny_kl
from tests.conftest import relative_gap, sweep, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan
from tests.onnx.exports import needs_exporter

IMAGE = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
CPU, NAN = torch.device("cpu"), float("nan")
SUFFIXES = [".pt", ".safetensors"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
State = dict[str, Tensor]


class Kind(NamedTuple):
    """A codec, and what it does in the words of its network."""

    make: Callable[..., Codec]  # of a seed, 0 by default
    sizes: tuple[str, int, int]  # kind, channels and stride
    encode: Callable[[Any], Tensor]  # the latents of IMAGE
    decode: Callable[[Any, Tensor], Tensor]


def vqgan(seed: int = 0, **settings: Any) -> Codec:
    return VQGANCodec(tiny_vqgan(seed, **settings))


def diffusers(
    make: Callable[..., nn.Module], scale: float = 0.18215, shift: float | None = None
) -> Callable[..., Codec]:
    return lambda seed=0: DiffusersCodec(make(seed, scaling_factor=scale, shift_factor=shift))


KINDS = {
    "vqgan": Kind(vqgan, ("vqgan", 3, 2), lambda m: m.encode(IMAGE), lambda m, z: m.decode(z)),
    "kl of our own": Kind(
        partial(vqgan, num_codes=0),
        ("vqgan", 3, 2),
        lambda m: m.quant_conv(m.encoder(IMAGE))[:, :3],
        lambda m, z: m.decoder(m.post_quant_conv(z)),
    ),
    "kl": Kind(
        diffusers(tiny_kl),
        ("kl", 4, 2),
        lambda m: 0.18215 * m.encode(IMAGE).latent_dist.mean,
        lambda m, z: m.decode(z / 0.18215).sample,
    ),
    "kl, shifted": Kind(
        diffusers(tiny_kl, 0.5, 0.25),
        ("kl", 4, 2),
        lambda m: (m.encode(IMAGE).latent_dist.mean - 0.25) / 2,
        lambda m, z: m.decode(2 * z + 0.25).sample,
    ),
    "wrapped": Kind(
        own_codec, ("wrapped", 5, 2), lambda m: 2 * m.down(IMAGE), lambda m, z: m.up(z)
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def statistics_of(channels: int) -> LatentStatistics:
    """Of each channel another."""
    one = tuple(1 + i / 10 for i in range(channels))
    return LatentStatistics(
        one, tuple(2 * v for v in one), tuple(-v for v in one), tuple(3 * v for v in one)
    )


def rows(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def saved(path: Path, codec: Codec, **more: Any) -> Path:
    unet = tiny_unet(in_channels=codec.channels, out_channels=codec.channels)
    save_checkpoint(path, unet, ABridge(), codec=codec, **more)
    return path


@every_kind
@torch.no_grad()
def test_latents_and_images_are_the_network_s_own(kind: Kind):
    """Also normalised, sources and targets apart."""
    plain = kind.make()
    assert ((plain.kind, plain.channels, plain.stride), plain.image_channels) == (kind.sizes, 3)
    assert not any(
        [
            plain.module.training,
            *(parameter.requires_grad for parameter in plain.module.parameters()),
        ]
    )
    latents = plain.latents(IMAGE)
    torch.testing.assert_close(latents, kind.encode(plain.module))
    torch.testing.assert_close(plain.encode(IMAGE, "source"), latents, rtol=0, atol=0)
    torch.testing.assert_close(plain.decode(latents), kind.decode(plain.module, latents))
    known = statistics_of(plain.channels)
    codec = plain.with_statistics(known)
    target = (latents - rows(known.target_mean)) / rows(known.target_std)
    source = (latents - rows(known.source_mean)) / rows(known.source_std)
    torch.testing.assert_close(codec.encode(IMAGE, "source"), source)
    torch.testing.assert_close(codec.encode(IMAGE, "target"), target)
    torch.testing.assert_close(codec.decode(target), plain.decode(latents), rtol=1e-4, atol=1e-4)
    assert (plain.statistics, codec.statistics) == (None, known)


def test_statistics_are_the_mean_and_spread():
    pairs = [(torch.randn(n, 3, 4, 4) * 3 + 1, torch.randn(n, 3, 4, 4) - 2) for n in (2, 5)]
    measured = LatentStatistics.of(pairs)
    for latents, mean, std in (
        (torch.cat([s for s, _ in pairs]), measured.source_mean, measured.source_std),
        (torch.cat([t for _, t in pairs]), measured.target_mean, measured.target_std),
    ):
        torch.testing.assert_close(torch.tensor(mean), latents.mean((0, 2, 3)))
        torch.testing.assert_close(torch.tensor(std), latents.std((0, 2, 3), correction=0))


@every_kind
def test_placed_in_bfloat16(kind: Kind):
    codec = kind.make()
    codec = codec.with_statistics(statistics_of(codec.channels))
    codec.tiling = Tiling(side=64, overlap=0)
    assert codec.placed(CPU, torch.float32) is codec
    placed = codec.placed(CPU, torch.bfloat16)
    assert (placed.dtype, codec.dtype) == (torch.bfloat16, torch.float32)
    assert (placed.statistics, placed.tiling) == (codec.statistics, codec.tiling)
    latents = codec.encode(IMAGE, "target")
    assert placed.encode(IMAGE, "target").dtype == placed.decode(latents).dtype == torch.float32
    assert 0 < relative_gap(placed.encode(IMAGE, "target"), latents) < 0.05
    assert 0 < relative_gap(placed.decode(latents), codec.decode(latents)) < 0.05


def test_what_stays_in_float32():
    """Codes, of which rounding would change the nearest, and networks that overflow in float16."""
    module = vqgan().placed(CPU, torch.bfloat16).module
    assert (module.quantize.embedding.weight.dtype, module.quant_conv.weight.dtype) == (
        torch.float32,
        torch.bfloat16,
    )
    half, brain = torch.float16, torch.bfloat16
    for upcast, dtype, expected in (
        (True, half, torch.float32),
        (True, brain, brain),
        (False, half, half),
    ):
        assert DiffusersCodec(tiny_kl(force_upcast=upcast)).placed(CPU, dtype).dtype == expected


@pytest.mark.parametrize("backend", sweep(["aot_eager", "inductor"], daily=["aot_eager"]))
@pytest.mark.parametrize("name", sweep(["vqgan", "kl", "wrapped"], daily=["wrapped"]))
def test_compiled_is_eager(name: str, backend: str):
    """As one graph."""
    codec = KINDS[name].make()
    traced = partial(torch.compile, fullgraph=True, backend=backend)
    compiled = codec.compiled(
        lambda function: Compiled(function, CPU) if backend == "inductor" else traced(function)
    )
    latents = codec.latents(IMAGE)
    torch.testing.assert_close(compiled.latents(IMAGE), latents, rtol=0, atol=1e-4)
    torch.testing.assert_close(compiled.image(latents), codec.image(latents), rtol=0, atol=1e-4)


@needs_exporter
@pytest.mark.nightly  # graphs of a VQGAN are exported daily, with a network
def test_graphs_are_torch_s():
    codec = KINDS["kl, shifted"].make()
    codec = codec.with_statistics(statistics_of(codec.channels))
    latents = codec.encode(IMAGE, "source")
    for model, inputs, expected in (
        (graphs.codec_graph(codec, decodes=False), {"image": IMAGE}, latents),
        (graphs.codec_graph(codec, decodes=True), {"latent": latents}, codec.decode(latents)),
    ):
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (outputs,) = session.run(
            None, {name: value.contiguous().numpy() for name, value in inputs.items()}
        )
        assert np.abs(np.asarray(outputs) - expected.numpy()).max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, ".pt") for name in list(KINDS)[:4]), ("kl", ".safetensors")]
)
def test_a_checkpoint_holds_all(name: str, suffix: str, tmp_path: Path):
    make = KINDS[name].make
    codec = make()
    codec = codec.with_statistics(statistics_of(codec.channels))
    path = saved(tmp_path / f"bridge{suffix}", codec)
    loaded = load_checkpoint(path).build_codec()
    assert loaded is not None
    assert (loaded.config(), loaded.digest()) == (codec.config(), codec.digest())
    torch.testing.assert_close(
        loaded.encode(IMAGE, "target"), codec.encode(IMAGE, "target"), rtol=0, atol=0
    )
    torch.testing.assert_close(
        loaded.decode(loaded.latents(IMAGE)), codec.decode(codec.latents(IMAGE)), rtol=0, atol=0
    )
    load_checkpoint(path, codec=make())
    for other in (make(seed=1), vqgan(num_codes=41), diffusers(tiny_kl, 2.0)()):
        with pytest.raises(ValueError, match="another codec was given"):
            load_checkpoint(path, codec=other)


@pytest.mark.parametrize(
    ("name", "suffix", "more"),
    [
        ("wrapped", ".pt", {}),
        ("wrapped", ".safetensors", {}),
        ("vqgan", ".pt", {"training": {"step": 1}}),
    ],
)
def test_a_file_that_has_a_hash_of_its_codec_needs_the_same(
    name: str, suffix: str, more: Any, tmp_path: Path
):
    """That of a user's codec, and one with training state."""
    make, path = KINDS[name].make, tmp_path / f"bridge{suffix}"
    codec = make()
    codec = codec.with_statistics(statistics_of(codec.channels))
    saved(path, codec, **more)
    with pytest.raises(
        IncompleteFileError, match=rf"only the SHA-256 of its codec, .* '{name}': pass the codec"
    ):
        load_checkpoint(path).build_codec()
    sampler = BridgeSampler.from_checkpoint(path, codec=make(), steps=2)
    other = BridgeSampler(sampler.unet, ABridge(), steps=2, codec=codec)
    torch.testing.assert_close(sampler(IMAGE, seed=0), other(IMAGE, seed=0), rtol=0, atol=0)
    for given in (make(seed=1), own_codec(image_channels=1), vqgan(num_codes=41)):
        with pytest.raises(ValueError, match="another codec was given"):
            load_checkpoint(path, codec=given)


EDITS: dict[str, tuple[str, Callable[..., object], str]] = {
    "no statistics": (
        "vqgan",
        lambda c, _: c.pop("statistics"),
        "settings are none of kind 'vqgan': 'statistics'",
    ),
    "NaN": (
        "vqgan",
        lambda c, _: c["statistics"].update(source_std=(1, NAN, 1)),
        "source_std must be finite",
    ),
    "short": (
        "vqgan",
        lambda c, _: c.update(statistics=dict.fromkeys(c["statistics"], (1,))),
        "must be of 3 channels",
    ),
    "vqgan, unknown": (
        "vqgan",
        lambda c, _: c["config"].update(speed=1),
        "none of kind 'vqgan': .*speed",
    ),
    "fraction": (
        "vqgan",
        lambda c, _: c["config"].update(num_codes=1.5),
        "num_codes must be of integers, got 1.5",
    ),
    "vqgan, weights": (
        "vqgan",
        lambda _, s: s["codec"].pop("quant_conv.bias"),
        r"missing: quant_conv\.bias$",
    ),
    "kl, no config": ("kl", lambda c, _: c.pop("config"), "none of kind 'kl': 'config'"),
    "kl, unknown": ("kl", lambda c, _: c["config"].update(speed=1), "none of kind 'kl': .*'speed'"),
    "blocks": (
        "kl",
        lambda c, _: c["config"].update(layers_per_block=10**9),
        "2000000000 blocks, for",
    ),
    "another kind": (
        "kl",
        lambda c, _: c.update(kind="tiny"),
        r"kind must be one of \['kl', 'vqgan'\], got 'tiny'",
    ),
    "no hash": ("wrapped", lambda c, _: c.update(sha256=""), "sha256 must be text, got ''"),
    "a number as hash": ("wrapped", lambda c, _: c.update(sha256=3), "sha256 must be text, got 3"),
}


@pytest.mark.parametrize(("name", "edit", "message"), EDITS.values(), ids=EDITS)
def test_a_damaged_checkpoint_is_refused(
    name: str, edit: Callable[..., object], message: str, tmp_path: Path
):
    codec = KINDS[name].make()
    path = saved(tmp_path / "a.pt", codec.with_statistics(statistics_of(codec.channels)))
    content = torch.load(path, weights_only=True)
    edit(content["codec"], content["states"])
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"cannot read .*a\.pt as a checkpoint: .*{message}"):
        load_checkpoint(path)


def wrapped(module: Any = None, **settings: Any) -> Codec:
    module = Own() if module is None else module
    return wrap_codec(
        module, lambda _, x: x, lambda _, z: z, **{"channels": 5, "stride": 2, **settings}
    )


def statistics(std: Any = (1.0,), target_mean: Any = (0.0,)) -> LatentStatistics:
    return LatentStatistics((0.0,), std, target_mean, (1.0,))


ONES = torch.ones(1, 3, 2, 2)
IMPOSSIBLE: list[tuple[Callable[[], object], str]] = [
    (
        lambda: DiffusersCodec(nn.Linear(2, 2)),
        "module must be a diffusers AutoencoderKL, got a Linear",
    ),
    (
        lambda: DiffusersCodec(tiny_kl(out_channels=4)),
        "the autoencoder's out_channels must be 3, got 4",
    ),
    (lambda: wrapped("text"), r"module must be a torch\.nn\.Module with parameters, got a str"),
    (lambda: wrapped(nn.ReLU()), r"Module with parameters, got a ReLU"),
    (lambda: wrapped(channels=0), "channels must be at least 1, got 0"),
    (lambda: wrapped(stride=1.5), r"stride must be of integers, got 1\.5"),
    (
        lambda: own_codec(stride=4).latents(IMAGE),
        r"\(3, 16, 24\) must become \(5, 4, 6\) values, got \(5, 8, 12\)",
    ),
    (
        lambda: own_codec(image_channels=4).image(torch.zeros(1, 5, 2, 2)),
        r"must become \(4, 4, 4\) values, got",
    ),
    (lambda: LatentStatistics.of([]), "at least one batch"),
    (lambda: LatentStatistics.of([(ONES, ONES)]), "source_std must be finite and positive"),
    (lambda: statistics(std=(NAN,)), "source_std must be finite"),
    (lambda: statistics(target_mean=(0.0, 0.0)), "target_mean must have 1 numbers, got 2"),
    (lambda: vqgan().with_statistics(statistics()), "must be of 3 channels, got 1"),
    (
        lambda: BridgeSampler(tiny_unet(), ABridge(), codec=vqgan(latent_channels=4)),
        "codec must have the network's 3 channels, got 4",
    ),
    (
        lambda: own_codec().latents(torch.zeros(1, 3, 9, 8)),
        "sides that are multiples of 2 x 2, got 9 x 8",
    ),
    (
        lambda: own_codec().latents(torch.zeros(1, 1, 8, 8)),
        r"x must be \(B, 3, H, W\), got shape \(1, 1, 8, 8\)",
    ),
    (
        lambda: own_codec().image(torch.zeros(1, 3, 8, 8)),
        r"x must be \(B, 5, H, W\), got shape \(1, 3, 8, 8\)",
    ),
]


@pytest.mark.parametrize(("make", "message"), IMPOSSIBLE)
def test_what_cannot_be(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_one_channel():
    kl = tiny_kl(
        latent_channels=16,
        in_channels=1,
        out_channels=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    codec = DiffusersCodec(kl)
    assert (codec.image_channels, codec.channels) == (1, 16)
    assert codec.image(codec.latents(IMAGE[:, :1])).shape == (2, 1, 16, 24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that diffusers wrote."""
    tiny_kl().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def test_a_folder_of_diffusers(folder: Path):
    codec, own = load_codec(folder), DiffusersCodec(tiny_kl())
    assert (codec.config(), codec.dtype) == (own.config(), torch.float32)
    torch.testing.assert_close(codec.latents(IMAGE), own.latents(IMAGE), rtol=0, atol=0)


def test_folders_that_hold_no_autoencoder(folder: Path, tmp_path: Path):
    cases: list[tuple[Callable[[State], Any], str]] = [
        (lambda state: state.pop("quant_conv.bias"), r"missing_keys': \['quant_conv.bias'\]"),
        (lambda state: state.update(more=torch.ones(1)), r"unexpected_keys': \['more'\]"),
    ]
    state = safetensors.torch.load_file(folder / WEIGHTS)
    for edit, message in cases:
        edit(wrong := dict(state))
        safetensors.torch.save_file(wrong, folder / WEIGHTS, {"format": "pt"})
        with pytest.raises(ValueError, match=f"cannot read .*kl as a codec: .*{message}"):
            load_codec(folder)
    for name in (WEIGHTS, "config.json"):
        (folder / name).unlink()
        with pytest.raises(OSError, match=f"no file named {name} found"):
            load_codec(folder)
    with pytest.raises(FileNotFoundError, match="there is no VQGAN"):
        load_codec(tmp_path / "none.safetensors")


def test_without_diffusers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / "bridge.pt", DiffusersCodec(tiny_kl()))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for load in (lambda: load_codec(folder), lambda: load_checkpoint(path)):
        with pytest.raises(
            ModuleNotFoundError,
            match=r"kind 'kl' needs diffusers, .*: pip install 'bbdm\[diffusers\]'",
        ):
            load()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_our_own_vqgan(suffix: str, tmp_path: Path):
    vqgan, path = tiny_vqgan(), tmp_path / f"vqgan{suffix}"
    save_vqgan(path, vqgan)
    loaded = load_vqgan(path)
    assert (loaded.config, loaded.training) == (vqgan.config, False)
    assert all(
        torch.equal(value, loaded.state_dict()[key]) for key, value in vqgan.state_dict().items()
    )
    assert load_codec(path).description() == VQGANCodec(vqgan).description()
    bridge = tmp_path / f"bridge{suffix}"
    save_checkpoint(bridge, tiny_unet(), ABridge())
    with pytest.raises(ValueError, match=r"cannot read .* as a VQGAN"):
        load_vqgan(bridge)
    with pytest.raises(ValueError, match=r"cannot read .* as a checkpoint"):
        load_checkpoint(path)
