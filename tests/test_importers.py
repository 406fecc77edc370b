"""Other people's checkpoints: written here by sde-bbdm itself, or in the layout that the other programs write."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bbdm import ABridge, BrownianBridge
from bbdm.bridges import Bridge
from bbdm.checkpoint import Checkpoint, load_checkpoint, load_vqgan
from bbdm.codec import VQGANCodec
from bbdm.importers import shapes
from bbdm.networks.unet import PRESETS as UNETS
from bbdm.networks.unet import UNet, UNetConfig
from bbdm.networks.vqgan import PRESETS as VQGANS
from bbdm.networks.vqgan import VQGAN
from tests.conftest import tiny_unet

PEERS = ("sde_bbdm", "torchmanager", "torchmanager_core", "diffusion", "vqgan", "model", "pytorch_lightning")
SMALL: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 2), "head_channels": 32, "num_groups": 32}


def fill(network: nn.Module, seed: int = 0) -> Any:
    """Random values for every parameter, those that start as zeros too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                (parameter == 1) + 0.1 * noise if parameter.ndim == 1 else noise / parameter[0].numel() ** 0.5
            )
    return network.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def relative(made: Tensor, wanted: Tensor) -> float:
    return ((made - wanted).norm() / wanted.norm()).item()


@contextlib.contextmanager
def peers_blocked() -> Iterator[None]:
    """Importing any of the programs that wrote the files is an ImportError."""
    with pytest.MonkeyPatch.context() as patch:
        for name in {*PEERS, *(name for name in sys.modules if name.split(".")[0] in PEERS)}:
            patch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError):
            __import__("sde_bbdm")
        yield


def load(path: Path, **arguments: Any) -> Checkpoint:
    with peers_blocked():
        return load_checkpoint(path, **arguments)


def refused(path: Path, message: str, reader: Callable[..., Any] = load_checkpoint, **arguments: Any) -> None:
    kind = "VQGAN" if reader is load_vqgan else "checkpoint"
    with pytest.raises(ValueError, match=message) as caught:
        reader(path, **arguments)
    assert str(caught.value).startswith(f"cannot read {path} as a {kind}: ")


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the source of a class is not found
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


# The A-Bridge scripts' VQGAN: only its tree of names, and what it computes.


class SeedResidual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        first = nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        self.block = nn.Sequential(*first, nn.GroupNorm(32, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1))
        if channels != out:
            self.channel_up = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + (self.channel_up(x) if hasattr(self, "channel_up") else x)


class SeedAttention(nn.Module):
    """Has a projection and does not use it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(32, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (conv(self.gn(x)).flatten(2) for conv in (self.q, self.k, self.v))
        weights = torch.einsum("bci,bcj->bij", q, k).div(x.shape[1] ** 0.5).softmax(2)
        return x + torch.einsum("bij,bcj->bci", weights, v).view_as(x)


class SeedResample(nn.Module):
    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0))


class SeedEncoder(nn.Module):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        row: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        channels = widths[0]
        for level, width in enumerate(widths):
            row += [SeedResidual(channels, width), SeedResidual(width, width)]
            row += [SeedResample(width, True)] if level < len(widths) - 1 else []
            channels = width
        self.down_sampling = nn.Sequential(*row)
        last = widths[-1]
        self.mid_blocks = nn.Sequential(
            SeedResidual(last, last), SeedAttention(last), SeedResidual(last, last), nn.GroupNorm(32, last)
        )
        self.conv_out = nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.mid_blocks(self.down_sampling(x))))


class SeedDecoder(nn.Module):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        last = channels = widths[-1]
        self.conv_in = nn.Conv2d(3, last, 3, padding=1)
        self.mid = nn.ModuleList([SeedResidual(last, last), SeedAttention(last), SeedResidual(last, last)])
        levels = []
        for level, width in reversed(list(enumerate(widths))):
            part = nn.Module()
            part.block = nn.ModuleList([SeedResidual(channels if i == 0 else width, width) for i in range(3)])
            part.attn = nn.ModuleList()
            if level:
                part.upsample = SeedResample(width, False)
            levels.insert(0, part)
            channels = width
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(32, channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = nn.Sequential(self.conv_in, *self.mid)(z)
        for part in reversed(self.up):
            h = nn.Sequential(*part.block)(h)  # pyright: ignore[reportGeneralTypeIssues]
            h = part.upsample(h) if hasattr(part, "upsample") else h  # pyright: ignore[reportCallIssue]
        return self.conv_out(F.silu(self.norm_out(h)))


class SeedCodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 3)

    def forward(self, z: Tensor) -> Tensor:
        rows = z.permute(0, 2, 3, 1)
        nearest = torch.cdist(rows.reshape(-1, 3), self.embedding.weight).argmin(1)
        return self.embedding(nearest).view_as(rows).permute(0, 3, 1, 2)


class SeedVQGAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = SeedEncoder((32, 64, 96)), SeedDecoder((32, 64, 96))
        self.quantizer = SeedCodes()
        self.quant_conv, self.post_quant_conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.discriminator = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8))
        fill(self)
        nn.init.normal_(self.quantizer.embedding.weight)

    def encode(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quantizer(z)))


def assert_same_autoencoder(loaded: VQGAN, seed: SeedVQGAN) -> None:
    x = images(1, 3, 32, 40)
    with torch.no_grad():
        latents = seed.encode(x)
        assert relative(loaded.encode(x), latents) < 1e-5
        assert relative(loaded.decode(latents), seed.decode(latents)) < 1e-5


class TestSeedVQGAN:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_computes_the_same(self, zipped: bool, tmp_path: Path):
        seed = SeedVQGAN()
        loaded = load_vqgan(save(seed, tmp_path / "vqgan.model", zipped))
        assert (loaded.config.eps, loaded.config.projects_attention, loaded.training) == (1e-5, False, False)
        assert (loaded.config.channel_mult, loaded.config.num_codes, loaded.config.stride) == ((1, 2, 3), 40, 4)
        assert_same_autoencoder(loaded, seed)
        ours = VQGAN.from_config(loaded.config)
        projecting = VQGAN(**{**vars(ours.config), "projects_attention": True}).eval()
        projecting.load_state_dict(loaded.state_dict())
        with torch.no_grad():  # it matters
            assert relative(projecting.encode(images(1, 3, 32, 40)), seed.encode(images(1, 3, 32, 40))) > 0.01

    def test_state_dict_of_it(self, tmp_path: Path):
        seed = SeedVQGAN()
        assert_same_autoencoder(load_vqgan(save(seed.state_dict(), tmp_path / "a.pt")), seed)

    def test_keys_that_do_not_fit(self, tmp_path: Path):
        state = SeedVQGAN().state_dict()
        del state["encoder.mid_blocks.1.q.bias"]
        state["decoder.up.0.block.0.block.9.weight"] = torch.ones(1)
        message = r"missing: encoder\.mid\.attn_1\.q\.bias; extra: decoder\.up\.0\.block\.0\.block\.9\.weight$"
        refused(save(state, tmp_path / "a.pt"), message, load_vqgan)


# Latent diffusion's VQGAN, whose names are ours


def small_vqgan(**settings: Any) -> VQGAN:
    vqgan = VQGAN(**{"model_channels": 32, "num_codes": 40, "num_res_blocks": 1, "channel_mult": (1, 1, 2), **settings})
    fill(vqgan)
    nn.init.normal_(vqgan.quantize.embedding.weight)
    return vqgan


LATENT: dict[str, dict[str, Any]] = {
    "f4": {},
    "f8": {"latent_channels": 4, "channel_mult": (1, 1, 2, 2), "attention_resolutions": (8,)},
    "f16": {"latent_channels": 8, "channel_mult": (1, 1, 1, 2, 2), "attention_resolutions": (16,)},
}


class TestLatentDiffusion:
    @pytest.mark.parametrize("name", ["vq-f4", "vq-f8", "vq-f16"])
    def test_settings_from_shapes(self, name: str):
        assert shapes.vqgan_config(shapes.expected(VQGAN, VQGANS[name])) == VQGANS[name]

    @pytest.mark.parametrize("name", LATENT)
    @pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vqgan."])
    def test_full_checkpoint(self, name: str, prefix: str, tmp_path: Path):
        vqgan = small_vqgan(**LATENT[name])
        state = {f"{prefix}{key}": value for key, value in vqgan.state_dict().items()}
        state[f"{prefix}loss.discriminator.main.0.weight"] = torch.ones(3)
        state["model_ema.decay"] = torch.ones(())
        if prefix:
            state["model.diffusion_model.time_embed.0.weight"] = torch.ones(2, 2)
            state["cond_stage_model.quantize.embedding.weight"] = torch.ones(2, 2)
        content = {"state_dict": state, "epoch": 3, "callbacks": {argparse.Namespace: argparse.Namespace(a=1)}}
        with peers_blocked():
            loaded = load_vqgan(save(content, tmp_path / "last.ckpt"))
        assert loaded.config == vqgan.config
        assert all(torch.equal(value, vqgan.state_dict()[key]) for key, value in loaded.state_dict().items())

    def test_order_of_the_keys_does_not_matter(self, tmp_path: Path):
        vqgan = small_vqgan()
        loaded = load_vqgan(save(dict(reversed(vqgan.state_dict().items())), tmp_path / "a.pt"))
        assert all(torch.equal(value, vqgan.state_dict()[key]) for key, value in loaded.state_dict().items())

    def test_every_missing_and_extra_key_is_listed(self, tmp_path: Path):
        state = small_vqgan().state_dict()
        for key in ("quant_conv.bias", "encoder.conv_out.weight"):
            del state[key]
        state |= {"zeta": torch.ones(1), "alpha": torch.ones(1), "decoder.conv_in.weight": torch.ones(64, 3, 1, 1)}
        wanted = (
            r"missing: encoder\.conv_out\.weight, quant_conv\.bias; extra: alpha, zeta; "
            r"of another shape: decoder\.conv_in\.weight \(64, 3, 1, 1\) \(wanted \(64, 3, 3, 3\)\)$"
        )
        refused(save(state, tmp_path / "a.pt"), wanted, load_vqgan)

    def test_a_key_that_the_settings_are_read_from(self, tmp_path: Path):
        """Compared with the official network that it is closest to, so that the key is named all the same."""
        state = {k: torch.zeros(1).expand(0) for k in shapes.expected(VQGAN, VQGANS["vq-f8"])}
        state["quantize.embedding.weight"] = torch.ones(2, 2)
        del state["encoder.conv_in.weight"]
        refused(save(state, tmp_path / "a.pt"), r"missing: encoder\.conv_in\.weight; of another shape: dec", load_vqgan)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"a": torch.ones(1)}, r"a dict of 1 entries \('a'\) with no codebooks in it; wanted: a VQGAN of latent"),
            ([1], "it is a list with no codebooks"),
            ({"quantize.embedding.weight": 3}, r"quantize\.embedding\.weight is a int, not a tensor"),
            (nn.Linear(1, 1), "a torch.nn.modules.linear.Linear with no codebooks"),
            ({f"{p}.quantize.embedding.weight": torch.ones(1, 1) for p in "ab"}, "with 2 codebooks in it"),
        ],
    )
    def test_something_else(self, content: Any, message: str, tmp_path: Path):
        refused(save(content, tmp_path / "a.pt"), message, load_vqgan)


# sde-bbdm


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    sde_bbdm = pytest.importorskip("sde_bbdm")
    for name in ("encoder", "decoder"):  # torchmanager 1.5 asks for them before its sde-bbdm manager has set them
        monkeypatch.setattr(sde_bbdm.managers.LatentDiffusionManager, name, None, raising=False)
    return sde_bbdm


def public_unet(peers: Any, channels: int = 3, *, timed: bool = False, **settings: Any) -> Any:
    kind = peers.networks.UNet if timed else peers.networks.OpenAIUNet
    shape = {"num_res_blocks": 1, "attention_resolutions": [2], "channel_mult": [1, 2], "num_head_channels": 32}
    fixed = {"use_scale_shift_norm": True, "resblock_updown": True, "num_heads": 8}
    return fill(kind(channels, 32, 3, **{**shape, **fixed, **settings}))


def torchmanager_file(manager: Any, path: Path, **settings: Any) -> Path:
    """As its callback writes it after an epoch."""
    callbacks = pytest.importorskip("torchmanager").callbacks
    callbacks.LastCheckpoint(manager, str(path), **settings).on_epoch_end(7)
    return path


def trained_manager(peers: Any, kind: str = "SDEBBDMManager", **settings: Any) -> Any:
    """With the state of an optimizer, a loss and metrics."""
    losses = pytest.importorskip("torchmanager").losses
    unet = public_unet(peers, timed=True)
    optimizer = torch.optim.Adam(unet.parameters())
    unet.time_embed(torch.ones(1, 32)).sum().backward()
    optimizer.step()
    more = {"optimizer": optimizer, "loss_fn": losses.MAE(), "metrics": {"mse": losses.MSE()}}
    return getattr(peers.managers, kind)(unet, 800, **more, **settings)


def assert_same_network(loaded: Checkpoint, unet: Any, condition: bool = False) -> None:
    ours = loaded.build_unet()
    x, y, t = images(2, 3, 16, 24), images(2, 3, 16, 24, seed=2), torch.tensor([1, 700])
    with torch.no_grad():
        public = type(unet).forward(unet, x, t, y if condition else None)
        assert relative(ours(x, t, y if condition else None), public) < 1e-5


class TestSdeBbdm:
    @pytest.mark.parametrize(
        ("kind", "settings", "bridge"),
        [
            ("SDEBBDMManager", {"c_lambda": 1.5}, ABridge(800, 1.5)),
            ("SDEBBDMManager", {"c_lambda": 3}, ABridge(800, 3.0)),
            ("BBDMManager", {}, BrownianBridge(800)),
            ("BBDMSpecialCaseManager", {}, BrownianBridge(800)),
        ],
    )
    def test_manager(self, kind: str, settings: Any, bridge: Bridge, peers: Any, tmp_path: Path):
        manager = trained_manager(peers, kind, **settings)
        loaded = load(torchmanager_file(manager, tmp_path / "exp" / "last.model"))
        assert (loaded.bridge, loaded.codec, loaded.unet.ema) == (bridge, None, None)
        assert isinstance(getattr(loaded.bridge, "c_lambda", 1.0), float)
        assert_same_network(loaded, manager.model)

    def test_manager_of_a_module(self, peers: Any, tmp_path: Path):
        """As sde-bbdm 1.1 trains: a manager around the bridge's module."""
        module = peers.nn.ABridgeModule(public_unet(peers), 600, c_lambda=0.5)
        losses = pytest.importorskip("torchmanager").losses
        manager = pytest.importorskip("diffusion").managers.Manager(module, loss_fn=losses.MAE())
        loaded = load(torchmanager_file(manager, tmp_path / "exp" / "last.model"))
        assert loaded.bridge == ABridge(600, 0.5)
        assert_same_network(loaded, module.model)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize(
        ("kind", "settings", "bridge"),
        [
            ("ABridgeModule", {"c_lambda": 2}, ABridge(600, 2.0)),
            ("BBDMModule", {}, BrownianBridge(600)),
            ("SDEBBDMModule", {}, BrownianBridge(600)),
        ],
    )
    def test_module(self, kind: str, settings: Any, bridge: Bridge, zipped: bool, peers: Any, tmp_path: Path):
        module = getattr(peers.nn, kind)(public_unet(peers), 600, **settings)
        loaded = load(save(module, tmp_path / "a.pt", zipped))
        assert loaded.bridge == bridge
        assert_same_network(loaded, module.model)

    def test_network_with_the_source_as_condition(self, peers: Any, tmp_path: Path):
        module = peers.nn.BBDMModule(public_unet(peers, 6, attention_resolutions=[1, 2]), 600)
        loaded = load(save(module, tmp_path / "a.pt"))
        assert (loaded.unet.config.condition_channels, loaded.unet.config.attention_resolutions) == (3, (1, 2))
        assert_same_network(loaded, module.model, condition=True)

    def test_settings_that_only_the_pickle_knows(self, peers: Any, tmp_path: Path):
        unet = public_unet(peers, num_head_channels=16, dropout=0.25, attention_resolutions=[32, 16])
        loaded = load(save(unet, tmp_path / "a.pt"), num_steps=100, c_lambda=1.0)
        config = loaded.unet.config
        assert (config.head_channels, config.dropout, config.attention_resolutions) == (16, 0.25, (32, 16))
        assert_same_network(loaded, unet)
        heads = public_unet(peers, num_head_channels=-1, num_heads=4)
        loaded = load(save(heads, tmp_path / "b.pt"), num_steps=100, c_lambda=1.0)
        assert loaded.unet.config.head_channels == 16
        assert_same_network(loaded, heads)

    def test_settings_of_the_papers_network(self, peers: Any):
        with torch.device("meta"):
            state = peers.networks.build(3, 3).state_dict()
        found = shapes.unet_config({key: tuple(value.shape) for key, value in state.items()})
        assert found == UNetConfig(attention_resolutions=())  # which its three levels never reach

    @pytest.mark.parametrize("name", ["paper", "bbdm", "lbbdm-f8", "lbbdm-f16"])
    def test_settings_from_shapes(self, name: str):
        preset = UNETS[name]
        reached = tuple(value for value in (1, 2, 4) if value in preset.attention_resolutions)
        found = shapes.unet_config(shapes.expected(UNet, preset))
        assert found == UNetConfig(**{**vars(preset), "attention_resolutions": reached})

    @pytest.mark.parametrize("settings", [{"channel_mult": (1,)}, {"channel_mult": (1, 2, 2, 3), "num_res_blocks": 3}])
    def test_other_shapes(self, settings: Any):
        config = UNetConfig(**{**SMALL, "attention_resolutions": (1,), **settings})
        assert shapes.unet_config(shapes.expected(UNet, config), head_channels=32, num_groups=32) == config

    def test_autoencoder_in_the_manager(self, peers: Any, tmp_path: Path):
        seed = SeedVQGAN()
        encoder = nn.Sequential(seed.encoder, seed.quant_conv)
        decoder = nn.Sequential(seed.quantizer, seed.post_quant_conv, seed.decoder)
        manager = trained_manager(peers, encoder=encoder, decoder=decoder)
        path = torchmanager_file(manager, tmp_path / "exp" / "last.model")
        codec = load(path).build_codec()
        assert isinstance(codec, VQGANCodec)
        assert_same_autoencoder(codec.vqgan, seed)
        load(path, codec=codec)
        refused(path, "another codec was given", codec=VQGANCodec(small_vqgan()))

        module = peers.nn.ABridgeModule(public_unet(peers), 600, encoder=nn.DataParallel(encoder), decoder=decoder)
        codec = load(save(module, tmp_path / "a.pt")).build_codec()
        assert isinstance(codec, VQGANCodec)
        assert_same_autoencoder(codec.vqgan, seed)
        loaded = load(save(module.state_dict(), tmp_path / "b.pt"), num_steps=600, c_lambda=2.0)
        assert isinstance(loaded.build_codec(), VQGANCodec)

        manager.decoder = None
        refused(torchmanager_file(manager, tmp_path / "exp" / "half.model"), r"missing: .*decoder\.conv_in\.bias")

    def test_network_alone(self, peers: Any, tmp_path: Path):
        unet = public_unet(peers)
        path = save(unet, tmp_path / "a.pt")
        refused(path, r"does not say its num_steps or c_lambda: give num_steps= \(-t\), c_lambda= \(-l\)$")
        refused(path, r"does not say its c_lambda: give c_lambda= \(-l\)$", num_steps=1000)
        refused(path, r"does not say its num_steps: give num_steps= \(-t\)$", c_lambda=1.0)
        loaded = load(path, num_steps=1000, c_lambda=1.0)
        assert (loaded.bridge, loaded.codec) == (ABridge(1000, 1.0), None)
        assert_same_network(loaded, unet)

        coded = load(path, num_steps=1000, c_lambda=1.0, codec=VQGANCodec(small_vqgan()))
        assert coded.codec is not None
        message = "works on 3 channels, and the codec's latents have 4"
        refused(path, message, num_steps=1000, c_lambda=1.0, codec=VQGANCodec(small_vqgan(latent_channels=4)))

    def test_state_dicts(self, peers: Any, tmp_path: Path):
        unet = public_unet(peers, num_head_channels=64)  # as the paper has it, since nothing in the file says so
        manager = peers.managers.SDEBBDMManager(unet, 1000)
        content = {"last_epoch": 1, "optimizer": None, "loss_fn": None, "metrics": {}, "save_weights_only": True}
        for name, value in {
            "bare": unet.state_dict(),
            "parallel": nn.DataParallel(unet).state_dict(),
            "module": peers.nn.ABridgeModule(unet, 1000).state_dict(),
            "lightning": {"state_dict": {f"net.{k}": v for k, v in unet.state_dict().items()}, "epoch": 1},
            "weights only": {**content, "model": manager.state_dict()},
        }.items():
            path = save(value, tmp_path / f"{name}.pt")
            loaded = load(path, num_steps=1000, c_lambda=1.0)
            assert loaded.bridge == ABridge(1000, 1.0)
            assert_same_network(loaded, unet)
            refused(path, "does not say its num_steps or c_lambda")
        narrow = save(public_unet(peers, channel_mult=[1, 1]).state_dict(), tmp_path / "narrow.pt")
        refused(narrow, "attention on 32 channels does not split into heads of 64", num_steps=1000, c_lambda=1.0)

    def test_parallel_and_our_own_networks(self, peers: Any, tmp_path: Path):
        bridge = {"num_steps": 1000, "c_lambda": 1.0}
        unet = public_unet(peers)
        assert_same_network(load(save(nn.DataParallel(unet), tmp_path / "a.pt"), **bridge), unet)
        ours = tiny_unet(dropout=0.5).eval()
        loaded = load(save(ours, tmp_path / "b.pt"), **bridge)
        assert loaded.unet.config == ours.config
        assert torch.equal(
            loaded.build_unet()(images(1, 3, 8, 8), torch.ones(1)), ours(images(1, 3, 8, 8), torch.ones(1))
        )

    def test_arguments_that_disagree(self, peers: Any, tmp_path: Path):
        path = torchmanager_file(trained_manager(peers, c_lambda=1.5), tmp_path / "exp" / "last.model")
        assert load(path, num_steps=800, c_lambda=1.5).bridge == ABridge(800, 1.5)
        refused(path, r"num_steps=1000 was given, but the network was trained with num_steps=800", num_steps=1000)
        refused(path, r"c_lambda=2\.0 was given, but the network was trained with c_lambda=1\.5", c_lambda=2.0)
        refused(path, r"config=a\.yaml was given, but only files of the original BBDM need one", config="a.yaml")
        refused(path, "trained in image space", codec=VQGANCodec(small_vqgan()))
        brownian = save(peers.nn.BBDMModule(public_unet(peers), 600), tmp_path / "b.pt")
        refused(brownian, r"c_lambda=2\.0 was given, but the network was trained with c_lambda=None", c_lambda=2.0)

    def test_other_networks_of_the_kind(self, peers: Any, tmp_path: Path):
        cases: list[tuple[str, dict[str, Any], str]] = [
            ("resampling", {"resblock_updown": False}, r"extra: input_blocks\.2\.0\.op\.bias"),
            ("classes", {"num_classes": 4}, r"extra: label_emb\.weight$"),
            ("plain", {"use_scale_shift_norm": False}, r"of another shape: input_blocks\.1\.0\.emb_layers\.1\.bias"),
            ("order", {"use_new_attention_order": True}, "the new order of q, k and v"),
            (
                "heads",
                {"num_heads": 4, "num_head_channels": -1, "attention_resolutions": [1, 2]},
                r"different head_channels, \[8, 16\]",
            ),
        ]
        for name, more, message in cases:
            path = save(public_unet(peers, **more), tmp_path / f"{name}.pt")
            refused(path, message, num_steps=1000, c_lambda=2.0)
        path = save(public_unet(peers, 4), tmp_path / "channels.pt")
        refused(path, "takes 4 channels for 3 that it gives; wanted 3, or 6", num_steps=1000, c_lambda=2.0)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_any_damage_is_a_value_error_or_unnoticed(
        self, data: st.DataObject, damaged: tuple[Path, bytes, dict[str, Tensor]]
    ):
        path, original, wanted = damaged
        content = bytearray(original)
        anywhere = st.integers(0, len(content) - 1)
        for place in data.draw(st.lists(st.one_of(anywhere, st.integers(0, 30_000)), max_size=3)):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), anywhere))])
        with contextlib.suppress(ValueError):
            loaded = load_checkpoint(path).unet.weights
            assert loaded is not None
            assert all(torch.equal(loaded[key], value) for key, value in wanted.items())


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, dict[str, Tensor]]:
    peers = pytest.importorskip("sde_bbdm")
    unet = public_unet(peers, channel_mult=[1], attention_resolutions=[])
    path = tmp_path_factory.mktemp("damaged") / "a.model"
    save({"model": peers.nn.ABridgeModule(unet, 600), "optimizer": None, "last_epoch": 3}, path)
    return path, path.read_bytes(), unet.state_dict()


# The original BBDM

STEPS = 200


def buffers(schedule: str = "linear", max_var: float = 1.0, steps: int = STEPS) -> dict[str, Tensor]:
    """What its model registers, in its float32."""
    if schedule == "linear":
        m = np.linspace(0.001, 0.999, steps)
    elif schedule == "sin":
        m = 1.0075 ** np.linspace(0, steps, steps)
        m = m / m[-1]
        m[-1] = 0.999
    else:  # of its first version
        m = np.arange(steps) / steps
        m[0] = 0.0005
        m = 0.5 * np.sin(np.pi * (m - 0.5)) + 0.5
    before = np.append(0, m[:-1])
    variance = 2 * (m - m**2) * max_var
    variance_before = np.append(0.0, variance[:-1])
    step = variance - variance_before * ((1 - m) / (1 - before)) ** 2
    found = {
        "m_t": m,
        "m_tminus": before,
        "variance_t": variance,
        "variance_tminus": variance_before,
        "variance_t_tminus": step,
        "posterior_variance_t": step * variance_before / variance,
    }
    return {key: torch.tensor(value, dtype=torch.float32) for key, value in found.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def bbdm_unet(seed: int = 0, **settings: Any) -> UNet:
    return fill(UNet(**{**SMALL, "attention_resolutions": (32, 16, 8), "num_res_blocks": 1, **settings}), seed)


def bbdm_file(path: Path, vqgan: VQGAN | None = None, schedule: dict[str, Tensor] | None = None, **unet: Any) -> Any:
    """(file, network, moving average) in the layout of its runner."""
    network, average = bbdm_unet(0, **unet), bbdm_unet(1, **unet)
    model = {**(schedule or buffers()), **under("denoise_fn.", network.state_dict())}
    if vqgan is not None:
        model |= under("vqgan.", vqgan.state_dict())
    shadow = under("denoise_fn.", dict(average.named_parameters()))
    shadow = {key: value.data for key, value in shadow.items()}
    return save({"step": 20, "model": model, "epoch": 2, "ema": shadow}, path), network, average


def bbdm_yaml(path: Path, latent: bool = False, **changes: Any) -> Path:
    """Its template, with settings at dotted names changed."""
    unet = {
        "image_size": 16,
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 3,
        "num_res_blocks": 1,
        "attention_resolutions": (32, 16, 8),
        "channel_mult": (1, 2),
        "num_heads": 8,
        "num_head_channels": 32,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_spatial_transformer": False,
        "context_dim": None,
        "condition_key": "nocond" if latent else "SpatialRescaler",
    }
    params: dict[str, Any] = {
        "mt_type": "linear",
        "objective": "grad",
        "loss_type": "l1",
        "num_timesteps": STEPS,
        "eta": 1.0,
        "max_var": 1.0,
    }
    params["UNetParams"] = unet
    model = {"model_name": "a", "model_type": "LBBDM" if latent else "BBDM", "BB": {"params": params}}
    content: dict[str, Any] = {"runner": "BBDMRunner", "data": {"dataset_config": {"image_size": 256}}, "model": model}
    for name, value in changes.items():
        *places, last = name.split("__")
        target = {"unet": unet, "params": params, "model": model}[places[0]]
        if value is None:
            del target[last]
        else:
            target[last] = value
    path.write_text(yaml.dump(content))
    return path


class TestOriginalBbdm:
    def test_pixel_model(self, tmp_path: Path):
        path, network, average = bbdm_file(tmp_path / "last_model.pth", condition_channels=3)
        loaded = load(path, config=bbdm_yaml(tmp_path / "a.yaml"))
        assert (loaded.bridge, loaded.codec, loaded.image_size) == (BrownianBridge.bbdm(STEPS), None, 16)
        assert loaded.unet.config == network.config
        x, y, t = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=2), torch.tensor([0, 150])
        with torch.no_grad():
            assert torch.equal(loaded.build_unet(ema=False)(x, t, y), network(x, t, y))
            assert torch.equal(loaded.build_unet()(x, t, y), average(x, t, y))

    @pytest.mark.parametrize("name", LATENT)
    @pytest.mark.parametrize("before", [True, False], ids=["before-quant-conv", "after"])
    def test_latent_model(self, name: str, before: bool, tmp_path: Path):
        vqgan = small_vqgan(**LATENT[name])
        channels = vqgan.config.latent_channels
        attention: dict[str, Any] = {"attention_resolutions": (16, 8, 4)} if name == "f16" else {}
        path, network, _ = bbdm_file(
            tmp_path / "a.pth", vqgan, in_channels=channels, out_channels=channels, **attention
        )
        changes = {f"unet__{key}": value for key, value in attention.items()}
        config = bbdm_yaml(tmp_path / "a.yaml", True, model__latent_before_quant_conv=before, **changes)
        loaded = load(path, config=config)
        assert (loaded.unet.config, loaded.image_size) == (network.config, 16 * vqgan.config.stride)
        codec = loaded.build_codec()
        assert isinstance(codec, VQGANCodec)
        assert (codec.vqgan.config, codec.before_quant_conv, codec.statistics) == (vqgan.config, before, None)
        assert all(torch.equal(value, vqgan.state_dict()[key]) for key, value in codec.state_dict().items())
        load(path, config=config, codec=VQGANCodec(vqgan))
        refused(path, "another codec", config=config, codec=VQGANCodec(small_vqgan(num_codes=7)))

    def test_statistics(self, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", small_vqgan())
        content = torch.load(path, weights_only=True)
        names = ("ori_latent_mean", "ori_latent_std", "cond_latent_mean", "cond_latent_std")
        for i, name in enumerate(names):
            content[name] = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1) + i
        save(content, path)
        config = bbdm_yaml(tmp_path / "a.yaml", True, model__normalize_latent=True)
        codec = load(path, config=config).build_codec()
        assert codec is not None
        assert codec.statistics is not None
        assert vars(codec.statistics) == {
            "target_mean": (1.0, 2.0, 3.0),
            "target_std": (2.0, 3.0, 4.0),
            "source_mean": (3.0, 4.0, 5.0),
            "source_std": (4.0, 5.0, 6.0),
        }
        plain = bbdm_yaml(tmp_path / "b.yaml", True)
        refused(path, r"has statistics of latents, but .*b\.yaml does not say normalize_latent", config=plain)
        del content["ori_latent_std"]
        refused(save(content, path), "ori_latent_std is a NoneType, not a tensor", config=config)

    @pytest.mark.parametrize("schedule", ["linear", "sin"])
    @pytest.mark.parametrize("max_var", [1.0, 0.25, 3.7])
    def test_schedule_is_told_from_the_buffers(self, schedule: Any, max_var: float, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", None, buffers(schedule, max_var, 300), condition_channels=3)
        changes: dict[str, Any] = {"params__mt_type": None, "params__max_var": None, "params__num_timesteps": None}
        loaded = load(path, config=bbdm_yaml(tmp_path / "a.yaml", **changes))
        assert loaded.bridge == BrownianBridge.bbdm(300, max_var, schedule)

    @pytest.mark.parametrize(("theirs", "ours"), [("grad", "residual"), ("noise", "noise"), ("ysubx", "displacement")])
    def test_objective(self, theirs: str, ours: str, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        loaded = load(path, config=bbdm_yaml(tmp_path / "a.yaml", params__objective=theirs))
        assert loaded.bridge.objective == ours

    def test_settings_as_its_runner_saves_them(self, tmp_path: Path):
        path, network, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)

        def namespaces(value: Any) -> Any:
            if isinstance(value, dict):
                return argparse.Namespace(**{key: namespaces(part) for key, part in value.items()})
            return value

        content = namespaces(yaml.load(bbdm_yaml(tmp_path / "a.yaml").read_text(), yaml.FullLoader))
        content.training = argparse.Namespace(device=[torch.device("cuda:0"), torch.device("cpu")], use_DDP=False)
        content.args = argparse.Namespace(train=True, max_epoch=None)
        (tmp_path / "config.yaml").write_text(yaml.dump(content))
        assert "!!python/object/apply:torch.device" in (tmp_path / "config.yaml").read_text()
        assert load(path, config=tmp_path / "config.yaml").unet.config == network.config

    def test_weights_without_average_and_without_a_runner(self, tmp_path: Path):
        path, network, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        content = torch.load(path, weights_only=True)
        config = bbdm_yaml(tmp_path / "a.yaml")
        del content["ema"]
        for value in (content, content["model"]):
            loaded = load(save(value, path), config=config)
            assert loaded.unet.ema is None
            assert loaded.unet.weights is not None
            assert all(torch.equal(loaded.unet.weights[k], v) for k, v in network.state_dict().items())

    def test_head_width_from_the_number_of_heads(self, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        config = bbdm_yaml(tmp_path / "a.yaml", unet__num_head_channels=-1, unet__num_heads=4)
        assert load(path, config=config).unet.config.head_channels == 16

    def test_config_is_needed(self, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        refused(path, r"does not say its objective and condition: give config= \(--config\)")
        with pytest.raises(FileNotFoundError):
            load(path, config=tmp_path / "gone.yaml")

    def test_spatial_rescaler_is_refused_by_name(self, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", small_vqgan(), condition_channels=3)
        config = bbdm_yaml(tmp_path / "a.yaml", True, unet__condition_key="SpatialRescaler")
        refused(path, "a latent model with the condition SpatialRescaler; of these only nocond", config=config)
        content = torch.load(path, weights_only=True)
        content["model"]["cond_stage_model.channel_mapper.weight"] = torch.ones(3, 3, 1, 1)
        refused(save(content, path), r"conditioned by a SpatialRescaler \(cond_stage_model\.\*\)")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"params__num_timesteps": 1000}, r"says model\.BB\.params\.num_timesteps 1000, but .* with 200$"),
            ({"params__mt_type": "sin"}, r"says model\.BB\.params\.mt_type 'sin', but .* with 'linear'$"),
            ({"params__max_var": 2.0}, r"says model\.BB\.params\.max_var 2\.0, but .* with 1\.0$"),
            ({"model__model_type": "LBBDM"}, r"says model\.model_type 'LBBDM', but .* with 'BBDM'$"),
            ({"params__objective": "x0"}, r"objective must be one of \['grad', 'noise', 'ysubx'\], .* says 'x0'"),
            ({"params__objective": None}, r"a\.yaml does not say model\.BB\.params\.objective"),
            ({"unet__condition_key": "nocond"}, r"3 channels of condition, but .*a\.yaml says nocond"),
            ({"unet__condition_key": None}, r"does not say model\.BB\.params\.UNetParams\.condition_key"),
            ({"unet__use_new_attention_order": True}, "the new order of q, k and v"),
            ({"unet__attention_resolutions": (1,)}, r"missing: input_blocks\.1\.1\.norm\.bias"),
            ({"model__normalize_latent": True}, r"."),
        ],
    )
    def test_yaml_of_another_model(self, changes: Any, message: str, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        if "model__normalize_latent" in changes:  # which a model of pixels ignores, as its own code does
            load(path, config=bbdm_yaml(tmp_path / "a.yaml", **changes))
        else:
            refused(path, message, config=bbdm_yaml(tmp_path / "a.yaml", **changes))

    def test_yaml_that_asks_for_code(self, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        (tmp_path / "a.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {tmp_path}/marker']\n")
        refused(path, r"a\.yaml is no YAML of the original BBDM: .*os\.system", config=tmp_path / "a.yaml")
        assert not (tmp_path / "marker").exists()

    def test_other_files_of_its_kind(self, tmp_path: Path):
        config = bbdm_yaml(tmp_path / "a.yaml")
        path, _, _ = bbdm_file(tmp_path / "a.pth", None, buffers("first"), condition_channels=3)
        refused(path, "neither of the schedules linear and sin", config=config)
        wrong = buffers()
        wrong["m_t"][150] += 1e-3
        path, _, _ = bbdm_file(tmp_path / "b.pth", None, wrong, condition_channels=3)
        refused(path, "neither of the schedules linear and sin", config=config)
        path, _, _ = bbdm_file(tmp_path / "c.pth", condition_channels=3)
        content = torch.load(path, weights_only=True)
        del content["ema"]["denoise_fn.out.2.bias"]
        refused(save(content, path), r"missing: out\.2\.bias$", config=config)
        path, _, _ = bbdm_file(tmp_path / "d.pth", condition_channels=3)
        refused(path, "num_steps=7 was given", config=config, num_steps=7)
        refused(path, r"c_lambda=2\.0 was given", config=config, c_lambda=2.0)


# Anything else


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it is a list with no UNets in it; wanted: a checkpoint, module or network of sde-bbdm"),
        (None, "it is a NoneType with no UNets"),
        (torch.ones(2), "it is a tensor with no UNets"),
        ({"a": torch.ones(2), "b": 1}, r"it is a dict of 2 entries \('a', 'b'\) with no UNets"),
        ({"model": {"a": 1}, "optimizer": 3}, r"it is a dict of 2 entries \('model', 'optimizer'\) with no UNets"),
        (nn.Linear(1, 1), "it is a torch.nn.modules.linear.Linear with no UNets"),
        (argparse.Namespace(a=1), "it is a argparse.Namespace with no UNets"),
        (dict.fromkeys("abcdefghij"), r"a dict of 10 entries \('a', .*'h', \.\.\.\)"),
        ({"input_blocks.0.0.weight": 1}, r"input_blocks\.0\.0\.weight is a int, not a tensor"),
        ({"input_blocks.0.0.weight": torch.ones(3)}, r"missing entry 'out\.2\.weight'|impossible shape"),
        ({f"{p}.input_blocks.0.0.weight": torch.ones(1) for p in "ab"}, "with 2 UNets in it"),
        ({"m_t": torch.ones(3)}, "give config="),
    ],
)
def test_something_else(content: Any, message: str, tmp_path: Path):
    refused(save(content, tmp_path / "a.pt"), message)


def test_weights_that_are_not_floating_point(tmp_path: Path):
    state = {key: value.long() for key, value in UNet(channel_mult=(2,), model_channels=32).state_dict().items()}
    refused(save(state, tmp_path / "a.pt"), "weights must be floating point", num_steps=100, c_lambda=1.0)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("reader", [load_checkpoint, load_vqgan])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_it_does_not_run_and_is_named(reader: Any, zipped: bool, tmp_path: Path):
    good = {**UNet(channel_mult=(2,), model_channels=32).state_dict(), **SeedVQGAN().state_dict()}
    path = save({"state_dict": good, "optimizer": [{"state": Trap(tmp_path / "marker")}]}, tmp_path / "a.pt", zipped)
    refused(path, r"asks for the forbidden global (posix|nt)\.system$", reader)
    assert not (tmp_path / "marker").exists()
