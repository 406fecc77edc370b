"""The network of diffusion models that a training has: where it is, and what is read there.

It is in a folder that diffusers saved, in a file of ADM, or in a file of bbdm that began with one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bbdm.bridges import Bridge
    from bbdm.codec import Codec
    from bbdm.files.content import Checkpoint
    from bbdm.networks.pretrained import Pretrained

KIND = "pretrained"  # of such a network, in files of bbdm


def find_base(init_from: Any, config: str | None) -> Path | None:
    """The folder or the file of the network that a run begins with; None where it is of no such network.

    Args:
        init_from: a path, or a name on the Hugging Face Hub; None of a run that begins with no other network.
        config: the name of the settings of a file of another program; None for none.
    """
    if init_from is None:
        return None
    from bbdm.files import pretrained, repository

    path = Path(init_from)
    if is_own(path):
        return path
    found = pretrained.find_pretrained(path, config)
    if found is not None:
        return found
    file = repository.find_checkpoint(path)
    return file if is_own(file) else None


def is_own(path: Path) -> bool:
    """Whether a file is one of bbdm, whose network began as one of diffusion models."""
    from bbdm.files.weights import settings_of

    network = settings_of(path).get("unet")
    return isinstance(network, Mapping) and network.get("kind") == KIND


def find_autoencoder(base: Path) -> Path | None:
    """The folder or the file of the autoencoder in whose latents a network works; None of pictures."""
    from bbdm.files.pretrained import autoencoder_folder
    from bbdm.files.weights import settings_of

    if base.is_dir():
        return autoencoder_folder(base)
    is_of_latents = settings_of(base).get("codec") is not None
    return base if is_of_latents else None


def load_autoencoder(path: Path) -> Codec:
    """An autoencoder of its own file or folder, or that of a file of bbdm that holds a network of latents."""
    from bbdm.files.checkpoint import load_checkpoint, load_codec

    codec = load_checkpoint(path).build_codec() if is_own(path) else None
    return load_codec(path) if codec is None else codec


def built_of(checkpoint: Checkpoint, bridge: Bridge, endpoint: tuple[int, ...] | None) -> tuple[Pretrained, Bridge]:
    """The network of a checkpoint, and a bridge with its objective and its range of noise levels.

    ``endpoint`` is as in :class:`~bbdm.networks.config.NetworkConfig`.
    """
    stored = checkpoint.unet
    network = replace(stored, config=replace(stored.config, endpoint=endpoint)).build()
    known = checkpoint.bridge.noise_range
    return network, replace(bridge, objective="denoiser", noise_range=known)
