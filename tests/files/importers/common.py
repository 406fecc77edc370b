"""Shared by the importers' tests: networks, files of them, and checks."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.files.content import Checkpoint
from bbdm.networks.vqgan import VQGAN

PEERS = (
    "sde_bbdm",
    "torchmanager",
    "torchmanager_core",
    "diffusion",
    "vqgan",
    "model",
    "pytorch_lightning",
)


def fill(network: nn.Module, seed: int = 0) -> Any:
    """Random values for every parameter, also those that are initialised to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                (parameter == 1) + 0.1 * noise
                if parameter.ndim == 1
                else noise / parameter[0].numel() ** 0.5
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


def refused(
    path: Path, message: str, reader: Callable[..., Any] = load_checkpoint, **arguments: Any
) -> None:
    kind = "VQGAN" if reader is load_vqgan else "checkpoint"
    with pytest.raises(ValueError, match=message) as caught:
        reader(path, **arguments)
    assert str(caught.value).startswith(f"cannot read {path} as a {kind}: ")


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the source of a class is not found
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def small_vqgan(**settings: Any) -> VQGAN:
    vqgan = VQGAN(
        **{
            "model_channels": 32,
            "num_codes": 40,
            "num_res_blocks": 1,
            "channel_mult": (1, 1, 2),
            **settings,
        }
    )
    fill(vqgan)
    nn.init.normal_(vqgan.quantize.embedding.weight)
    return vqgan


LATENT: dict[str, dict[str, Any]] = {
    "f4": {},
    "f8": {"latent_channels": 4, "channel_mult": (1, 1, 2, 2), "attention_resolutions": (8,)},
    "f16": {"latent_channels": 8, "channel_mult": (1, 1, 1, 2, 2), "attention_resolutions": (16,)},
}
