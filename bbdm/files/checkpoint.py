"""The checkpoint file: a network, its bridge, its codec and, during training, the state to resume from.

It is a ``.pt`` or, without training state, a ``.safetensors``, as :mod:`bbdm.files.weights` writes them; a
VQGAN alone is a file of the same two kinds. :mod:`bbdm.files.importers` reads the files of other programs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec, DiffusersCodec, VQGANCodec
from bbdm.codec.kinds import diffusers_class
from bbdm.data.spec import Spec
from bbdm.defaults import Defaults
from bbdm.files import weights
from bbdm.files.content import Checkpoint, CodecState, NetworkState, origin_of, vqgan_snapshot
from bbdm.files.diffusers_folders import NETWORK, variant_of
from bbdm.files.importers import programs
from bbdm.files.repository import find_checkpoint
from bbdm.files.weights import Snapshot
from bbdm.networks.base import Network, check_network, find_dtype
from bbdm.networks.vqgan import VQGAN
from bbdm.pictures.images import Size


def save_checkpoint(
    path: str | os.PathLike[str],
    unet: Network,
    bridge: Bridge,
    *,
    ema: Network | None = None,
    codec: Codec | None = None,
    image_size: Size | None = None,
    training: dict[str, Any] | None = None,
    calls: int | None = None,
    pictures: Spec | None = None,
    solver: str | None = None,
    steps: int | None = None,
    timesteps: Iterable[float] | str | None = None,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Write a checkpoint, atomically: a reader sees the old file or the complete new one.

    Args:
        path: ends in ``.pt`` or ``.safetensors``.
        unet: the network whose weights are stored.
        bridge: the bridge that the network was trained on.
        ema: a network with the moving average of the weights.
        codec: the codec of the space that it was trained in; None for image space. The file holds its
            weights, or only their SHA-256: with training state, and of one of
            :func:`~bbdm.codec.wrap_codec`.
        image_size: side of the square pictures that it was trained on, or their (height, width).
        training: state to resume from, of plain containers and tensors; only in a ``.pt``.
        calls: the network calls that the network was distilled for; None for any number.
        pictures: values, crops and slices of the pictures that it was trained on; None for whole 8-bit ones.
        solver: the solver that samplers and commands take where none is given; None leaves it open.
        steps: the steps of this solver that they take; None for the solver's default.
        timesteps: the times of this solver that they take, in place of ``steps``.
        dtype: in which the network's weights are stored, such as ``"fp16"``; None for the one that they have.
            A codec's weights keep theirs.

    Raises:
        ValueError: another suffix, training state for a ``.safetensors``, steps that the solver or the bridge
            cannot take, or weights beyond the range of ``dtype``.
    """
    check_network(unet)
    network = NetworkState.of(unet, ema, None if dtype is None else find_dtype(dtype))
    coded = None if codec is None else CodecState.of(codec)
    defaults = Defaults(calls=calls).over(solver, steps, timesteps)
    content = Checkpoint(network, bridge, coded, image_size, training, defaults, pictures or Spec())
    weights.write(path, content.snapshot())


def load_checkpoint(
    path: str | os.PathLike[str],
    num_steps: int | None = None,
    c_lambda: float | None = None,
    codec: Codec | None = None,
    config: str | None = None,
) -> Checkpoint:
    """Read a checkpoint, our own or one that :mod:`bbdm.files.importers` knows, with tensors on the CPU.

    Args:
        path: the file; or a folder or repository of :meth:`bbdm.BridgeSampler.save_pretrained`, the latter as
            OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face Hub.
        num_steps: T, for files that leave it out. It must agree with a file that states it, since a network
            works only with the bridge that it was trained on.
        c_lambda: the noise scale, for files that leave it out. It must agree with a file that states it.
        codec: the autoencoder, for files that leave it out. It must be the one that the network was trained
            with.
        config: the name of the settings that a file of another program leaves out: one of
            :data:`bbdm.files.importers.arguments.PUBLISHED` for DDBM, DBIM, ECSI and I2SB, or of
            :data:`bbdm.files.importers.programs.OBJECTIVES` for the original BBDM. Of networks of your own
            training with the code of DDBM, ECSI or I2SB, the path of a ``.json`` of its arguments.

    Raises:
        FileNotFoundError: there is no such file.
        HubError: a repository's file cannot be fetched.
        ModuleNotFoundError: it is a repository, and huggingface_hub is not installed.
        ValueError: it is not a checkpoint, is damaged, is of a newer version, disagrees with an argument, or
            leaves out a value that no argument gives.
    """
    file = find_checkpoint(path)
    with weights.opened(file, weights.FORMAT, "checkpoint") as content:
        settings: Mapping[str, Any] = {}
        if not isinstance(content, Snapshot):
            checkpoint = programs.read_checkpoint(content, num_steps, c_lambda, codec, config)
        elif config is not None:
            raise ValueError(
                f"config={config} was given, but the file describes its network itself"
            )
        else:
            checkpoint = Checkpoint.read(content, codec)
            settings = content.settings
        for name, value in {"num_steps": num_steps, "c_lambda": c_lambda}.items():
            stored = getattr(checkpoint.bridge, name, None)
            if value is not None and value != stored:
                raise ValueError(
                    f"{name}={value} was given, but the network was trained with {name}={stored}"
                )
        if codec is not None and checkpoint.codec is None:
            raise ValueError("a codec was given, but the network was trained in image space")
        if (
            codec is not None
            and checkpoint.codec is not None
            and not checkpoint.codec.same_latents(codec)
        ):
            raise ValueError(
                "another codec was given than the one that the network was trained with"
            )
        return replace(checkpoint, origin=origin_of(file, settings))


def save_vqgan(path: str | os.PathLike[str], vqgan: VQGAN) -> None:
    """Write a VQGAN or a KL autoencoder alone, atomically; ValueError where a path has another suffix."""
    weights.write(path, vqgan_snapshot(vqgan))


def load_vqgan(path: str | os.PathLike[str]) -> VQGAN:
    """Read a VQGAN or a KL autoencoder, our own, or a VQGAN that :mod:`bbdm.files.importers` knows.

    It is in float32 and in evaluation mode, with the averaged weights where the file has both.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no VQGAN, is damaged, or is of a newer version.
    """
    return load_vqgan_state(path).build()


def load_vqgan_state(path: str | os.PathLike[str]) -> NetworkState:
    """Read all that a file of an autoencoder holds, also its training state; see :func:`load_vqgan`."""
    with weights.opened(path, weights.VQGAN_FORMAT, "VQGAN") as content:
        if not isinstance(content, Snapshot):
            return programs.read_vqgan(content)
        state = NetworkState.read(content.settings, content, VQGAN.kind)
        return replace(state, origin=origin_of(Path(path), content.settings))


def load_codec(path: str | os.PathLike[str]) -> Codec:
    """Read an autoencoder as a codec, in float32 on the CPU.

    Args:
        path: what :func:`load_vqgan` reads; or the folder of an AutoencoderKL of diffusers, with
            ``config.json`` and ``diffusion_pytorch_model.safetensors``, and nothing else of it is read.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: it is an autoencoder of diffusers, which is not installed.
        OSError: a file of the folder is missing.
        ValueError: it is no autoencoder, is damaged, or is of a newer version.
    """
    if not Path(path).is_dir():
        return VQGANCodec(load_vqgan(path))
    with weights.readable(path, "codec"):
        module, report = diffusers_class().from_pretrained(
            path,
            use_safetensors=True,
            variant=variant_of(Path(path), NETWORK),
            torch_dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        wrong = {kind: keys for kind, keys in report.items() if keys}
        if wrong:
            raise ValueError(f"its weights do not fit an AutoencoderKL of its config.json: {wrong}")
        return DiffusersCodec(module)
