"""Shared by the importers' tests: networks, files of them, checks, and the A-Bridge scripts' VQGAN."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.files.content import Checkpoint
from bbdm.networks.vqgan import VQGAN
from tests.conftest import relative_gap

PEERS = ("sde_bbdm", "torchmanager", "torchmanager_core", "diffusion", "vqgan", "model", "pytorch_lightning")
SMALL: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 2), "head_channels": 32, "num_groups": 32}


def fill(network: nn.Module, seed: int = 0) -> Any:
    """Random values for every parameter, also those that are initialised to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                (parameter == 1) + 0.1 * noise if parameter.ndim == 1 else noise / parameter[0].numel() ** 0.5
            )
    return network.eval()


def expected(kind: Any, config: Any) -> dict[str, Tensor]:
    """The weights of a network, without values."""
    with torch.device("meta"):
        return kind.from_config(config).state_dict()


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


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


# The A-Bridge scripts' VQGAN: only its tree of names, and its results.


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
        assert relative_gap(loaded.encode(x), latents) < 1e-5
        assert relative_gap(loaded.decode(latents), seed.decode(latents)) < 1e-5


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
