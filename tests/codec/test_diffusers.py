"""Autoencoders of diffusers as codecs: latents and images against diffusers itself, files and graphs."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_asym_kl import AsymmetricAutoencoderKL
from torch import nn

from bbdm import ABridge, DiffusersCodec, load_checkpoint, load_codec, save_checkpoint, save_vqgan
from bbdm.codec import LatentStatistics, VQGANCodec
from bbdm.execution.compiled import Compiled
from bbdm.onnx import graphs
from tests.codec.autoencoders import tiny_kl, tiny_tiny
from tests.conftest import relative_gap, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan
from tests.nightly import sweep

IMAGE = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
STATISTICS = LatentStatistics((0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0), (0.5, 0.0, 0.0, 0.0), (2.0, 1.0, 1.0, 1.0))
SUFFIXES = [".pt", ".safetensors"]
BOTH = {"kl": tiny_kl, "tiny": tiny_tiny}
CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"

both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)


@pytest.mark.parametrize(
    ("kind", "scale", "shift"), [("kl", 0.18215, None), ("kl", 0.5, 0.25), ("tiny", 1.5, 0.25)], ids=str
)
@torch.no_grad()
def test_latents_are_scaled(kind: str, scale: float, shift: float | None):
    """The mean of a KL autoencoder, and a tiny one's own."""
    network: Any = BOTH[kind](scaling_factor=scale, shift_factor=shift).eval()
    codec = DiffusersCodec(network)
    assert (codec.image_channels, codec.channels, codec.kind) == (3, 4, kind)
    assert codec.stride == {"kl": 2, "tiny": 4}[kind]
    encoded = network.encode(IMAGE)
    own = encoded.latent_dist.mean if kind == "kl" else encoded.latents
    latents = codec.encode(IMAGE, "source")
    torch.testing.assert_close(latents, (own - (shift or 0)) * scale)
    torch.testing.assert_close(codec.decode(latents), network.decode(own).sample)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_other_sizes_and_channels():
    kl = tiny_kl(latent_channels=16, in_channels=1, out_channels=1, use_quant_conv=False, use_post_quant_conv=False)
    codec = DiffusersCodec(kl)
    assert (codec.image_channels, codec.channels) == (1, 16)
    assert codec.image(codec.latents(IMAGE[:, :1])).shape == (2, 1, 16, 24)
    with pytest.raises(ValueError, match=r"an image must be \(B, 1, H, W\), with height and width multiples of 2"):
        codec.latents(IMAGE)


@both
def test_placed_in_bfloat16(make: Callable[[], nn.Module]):
    codec = DiffusersCodec(make())
    assert codec.placed(CPU, torch.float32) is codec
    placed = codec.placed(CPU, torch.bfloat16)
    assert (placed.dtype, codec.dtype) == (torch.bfloat16, torch.float32)
    latents = codec.latents(IMAGE)
    assert placed.latents(IMAGE).dtype == placed.image(latents).dtype == torch.float32
    assert 0 < relative_gap(placed.latents(IMAGE), latents) < 0.05
    assert 0 < relative_gap(placed.image(latents), codec.image(latents)) < 0.05


def test_a_network_that_overflows_in_float16_stays_in_float32():
    assert DiffusersCodec(tiny_kl(force_upcast=True)).placed(CPU, torch.float16).dtype == torch.float32
    assert DiffusersCodec(tiny_kl(force_upcast=True)).placed(CPU, torch.bfloat16).dtype == torch.bfloat16
    assert DiffusersCodec(tiny_kl(force_upcast=False)).placed(CPU, torch.float16).dtype == torch.float16


@pytest.mark.parametrize("backend", sweep(["aot_eager", "inductor"], daily=["aot_eager"]))
@pytest.mark.parametrize("make", sweep([tiny_kl, tiny_tiny], daily=[tiny_tiny]), ids=BOTH)
def test_compiled_is_eager(make: Callable[[], nn.Module], backend: str):
    """As one graph."""
    codec = DiffusersCodec(make())
    traced = partial(torch.compile, fullgraph=True, backend=backend)
    compiled = codec.compiled(lambda function: Compiled(function, CPU) if backend == "inductor" else traced(function))
    latents = codec.latents(IMAGE)
    torch.testing.assert_close(compiled.latents(IMAGE), latents, rtol=0, atol=1e-4)
    torch.testing.assert_close(compiled.image(latents), codec.image(latents), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", sweep([tiny_kl, tiny_tiny], daily=[tiny_tiny]), ids=BOTH)
def test_graphs_are_torchs(make: Callable[[], nn.Module]):
    codec = DiffusersCodec(make()).with_statistics(STATISTICS)
    latents = codec.encode(IMAGE, "source")
    for model, given, wanted in (
        (graphs.encoder_graph(codec, 23), {"image": IMAGE}, latents),
        (graphs.decoder_graph(codec, 23), {"latent": latents}, codec.decode(latents)),
    ):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (made,) = session.run(None, {name: value.contiguous().numpy() for name, value in given.items()})
        assert np.abs(np.asarray(made) - wanted.numpy()).max() < 1e-4 * wanted.abs().max()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that diffusers wrote."""
    tiny_kl().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


@both
def test_a_folder_of_diffusers(make: Callable[[], nn.Module], tmp_path: Path):
    make().save_pretrained(tmp_path / "a")  # pyright: ignore[reportCallIssue]
    wanted = DiffusersCodec(make())
    for path in (tmp_path / "a", tmp_path / "a" / WEIGHTS):
        codec = load_codec(path)
        assert isinstance(codec, DiffusersCodec)
        assert codec.config() == wanted.config()
        torch.testing.assert_close(codec.latents(IMAGE), wanted.latents(IMAGE), rtol=0, atol=0)


def test_weights_in_float16_and_of_old_versions(folder: Path):
    wanted = DiffusersCodec(tiny_kl().half().float())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = safetensors.torch.load_file(folder / WEIGHTS)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value.half() for key, value in state.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    (folder / WEIGHTS).unlink()
    safetensors.torch.save_file(state, folder / "vae.fp16.safetensors")
    codec = load_codec(folder / "vae.fp16.safetensors")
    assert codec.dtype == torch.float32
    torch.testing.assert_close(codec.latents(IMAGE), wanted.latents(IMAGE), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("normalised", [False, True])
@both
def test_a_checkpoint_holds_all(make: Callable[..., nn.Module], normalised: bool, suffix: str, tmp_path: Path):
    make().save_pretrained(tmp_path / "a")  # pyright: ignore[reportCallIssue]
    codec = load_codec(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    codec = codec.with_statistics(STATISTICS) if normalised else codec
    path = tmp_path / f"bridge{suffix}"
    save_checkpoint(path, tiny_unet(in_channels=4, out_channels=4), ABridge(), codec=codec)
    loaded = load_checkpoint(path).build_codec()
    assert isinstance(loaded, DiffusersCodec)
    assert (loaded.config(), loaded.digest()) == (codec.config(), codec.digest())
    torch.testing.assert_close(loaded.encode(IMAGE, "target"), codec.encode(IMAGE, "target"), rtol=0, atol=0)
    load_checkpoint(path, codec=DiffusersCodec(make()))
    for other in (DiffusersCodec(make(seed=1)), DiffusersCodec(make(scaling_factor=2.0)), VQGANCodec(tiny_vqgan())):
        with pytest.raises(ValueError, match="another codec was given"):
            load_checkpoint(path, codec=other)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no-config": (lambda codec: codec.pop("config"), "must be those of an AutoencoderKL, got None"),
    "unknown": (lambda codec: codec["config"].update(speed=1), "none of an AutoencoderKL: .*'speed'"),
    "blocks": (lambda codec: codec["config"].update(layers_per_block=10**9), "2000000000 blocks, for"),
    "text": (lambda codec: codec["config"].update(block_out_channels="ab"), "none of an AutoencoderKL"),
    "type": (lambda codec: codec["config"].update(down_block_types=["X", "Y"]), "none of an AutoencoderKL: X"),
    "statistics": (lambda codec: codec.update(statistics={}), "statistics cannot be read"),
    "weights": (lambda codec: codec["weights"].pop("quant_conv.bias"), r"the codec's .* missing: quant_conv\.bias$"),
    "other": (lambda codec: codec.update(kind="tiny"), "none of an AutoencoderTiny"),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_a_damaged_checkpoint_is_refused(edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path):
    codec = DiffusersCodec(tiny_kl())
    save_checkpoint(tmp_path / "a.pt", tiny_unet(in_channels=4, out_channels=4), ABridge(), codec=codec)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    codec = content["codec"] | {"weights": content["states"]["codec"]}
    edit(codec)
    content["states"]["codec"] = codec.pop("weights")
    content["codec"] = codec
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"cannot read .*a\.pt as a checkpoint: .*{message}"):
        load_checkpoint(tmp_path / "a.pt")


def test_folders_that_hold_no_autoencoder(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=rf"no {WEIGHTS} in .*kl, .*; it has diffusion_pytorch_model\.bin"):
        load_codec(folder)
    (folder / "diffusion_pytorch_model.bin").rename(folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="of a 'UNet2DModel', and an AutoencoderKL or AutoencoderTiny is wanted"):
        load_codec(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json as a config of an autoencoder"):
        load_codec(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json of an autoencoder in .*kl$"):
        load_codec(folder / WEIGHTS)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it holds a pipeline, whose autoencoder is the folder vae"):
        load_codec(tmp_path)
    for suffix in SUFFIXES:  # other files are VQGANs
        save_vqgan(tmp_path / f"vqgan{suffix}", tiny_vqgan())
        codec = load_codec(tmp_path / f"vqgan{suffix}")
        assert isinstance(codec, VQGANCodec)
        assert codec.digest() == VQGANCodec(tiny_vqgan()).digest()
    with pytest.raises(FileNotFoundError, match="there is no VQGAN"):
        load_codec(tmp_path / "none.safetensors")


def test_modules_that_are_no_codec():
    with pytest.raises(ValueError, match="a diffusers AutoencoderKL or AutoencoderTiny, got a Linear"):
        DiffusersCodec(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got a AsymmetricAutoencoderKL"):
        DiffusersCodec(AsymmetricAutoencoderKL(norm_num_groups=1))
    with pytest.raises(ValueError, match="the autoencoder's out_channels must be 3, got 4"):
        DiffusersCodec(tiny_kl(out_channels=4))
    with pytest.raises(ValueError, match="the autoencoder's upsampling_scaling_factor must be 2, got 3"):
        DiffusersCodec(tiny_tiny(upsampling_scaling_factor=3))


def test_without_diffusers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "bridge.pt"
    save_checkpoint(path, tiny_unet(in_channels=4, out_channels=4), ABridge(), codec=DiffusersCodec(tiny_kl()))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for load in (lambda: load_codec(folder), lambda: load_checkpoint(path)):
        with pytest.raises(
            ModuleNotFoundError, match=r"kind 'kl' needs diffusers, .*: pip install 'bbdm\[diffusers\]'"
        ):
            load()
