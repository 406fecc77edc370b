"""Checks that a run can begin with its network and pairs, or resume from a checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bbdm.base import sizes
from bbdm.base.atomic import short
from bbdm.codec import Codec
from bbdm.data.cached import LatentDataset
from bbdm.data.pairs import Pairs
from bbdm.files.content import CodecState
from bbdm.networks.base import Network
from bbdm.networks.checks import check_pictures
from bbdm.pictures import images
from bbdm.training.config import FREE, RunConfig, TrainConfig


class OtherRunError(ValueError):
    """A checkpoint was trained with other settings or pairs."""


class OtherCodecError(ValueError):
    """A checkpoint was trained in another space."""


class Stored(NamedTuple):
    """What a checkpoint trained, beside what this run trains."""

    weights: dict[str, torch.Tensor] | None
    average: dict[str, torch.Tensor] | None
    settings: dict[str, Any]
    asked: dict[str, Any]  # the settings of this run


def check_batch(config: RunConfig, train: Pairs, processes: int, parts: int = 1) -> None:
    """Raise ValueError where pairs do not fill a batch, or processes and parts do not share it equally."""
    if len(train) < config.batch_size:
        raise ValueError(f"batch_size must be at most the {len(train)} training pairs, got {config.batch_size}")
    if config.batch_size % (parts * processes):
        computed = f" with grad_accumulation={parts}" if isinstance(config, TrainConfig) else ""
        raise ValueError(
            f"batch_size {config.batch_size} does not split into equal parts for {processes} processes{computed}"
        )


def check_start(unet: Network, config: TrainConfig, train: Pairs, codec: Codec | None, processes: int) -> None:
    """Raise ValueError where a network cannot be trained on pairs or their latents."""
    check_batch(config, train, processes, config.grad_accumulation)
    stride = 1 if codec is None else codec.stride
    sides = (train.source_channels, train.channels) if codec is None else (codec.channels, codec.channels)
    if (unet.source_channels, unet.channels) != sides:
        kind = "pairs" if codec is None else "latents"
        takes, have = (
            f"{target} channels" if source == target else f"sources of {source} and targets of {target} channels"
            for source, target in ((unet.source_channels, unet.channels), sides)
        )
        raise ValueError(f"the network takes {takes}, and the {kind} have {have}")
    if codec is not None:
        check_pictures(unet.axes, "a codec")
    size = images.sides(train.image_size, train.spec.axes)
    if len(size) != unet.axes:
        shapes = [f"(B, C, {sizes.SIDES[axes]})" for axes in (unet.axes, len(size))]
        raise ValueError(f"the network takes {shapes[0]}, and the pairs are {shapes[1]}, of {sizes.shown(size)}")
    if any(side % (each * stride) for side, each in zip(size, unet.strides, strict=True)):
        factors = f"the network's {unet.stride}"
        if codec is not None:
            factors = f"{unet.strides[0] * stride}, {factors} times the autoencoder's {stride}"
        raise ValueError(f"image_size {train.image_size} is not a multiple of {factors}")
    if isinstance(train, LatentDataset):
        if codec is None or train.codec != codec.description():
            given = "none" if codec is None else "another one"
            raise ValueError(f"codec must be the one that made the latents in {train.folder}, got {given}")
        if train.flip != config.flip:
            raise ValueError(f"flip must be that of the latents in {train.folder}, {train.flip}, got {config.flip}")
        if config.shift or config.zoom:
            raise ValueError("shift and zoom change pictures, and must be 0 with latents that are computed once")


def describe_pairs(train: Pairs) -> dict[str, Any]:
    """The properties of the training pairs that must stay the same when a run resumes."""
    spec = train.spec
    about = {"image_size": train.image_size, "direction": spec.direction, "crops": [spec.crops, spec.in_mask]}
    return {**about, **train.settings(), "number": len(train), "names": train.names_digest()}


def check_alike(starts: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where the processes of a run, in order of rank, begin differently."""
    for rank, start in enumerate(starts):
        differing = [name for name, value in start.items() if value != starts[0][name]]
        if differing:
            about = ", ".join(f"{name} {short(start[name])}, not {short(starts[0][name])}" for name in differing)
            raise ValueError(f"process {rank} differs from process 0, and all must begin alike: {about}")


def training_state(
    path: Path, stored: Stored, state: dict[str, Any] | None, config: RunConfig, train: Pairs
) -> dict[str, Any]:
    """The training state in the file ``path``, where this run is the same.

    Raises:
        ValueError: it has no training state.
        OtherRunError: it is of another run; the message names the differences.
    """
    if state is None or stored.weights is None or stored.average is None:
        raise ValueError(f"{path} holds no training state: a run resumes only from one of its step_*.pt files")
    settings = {**stored.settings, **asdict(type(config)()), **state["config"]}  # a file lacks those that came later
    asked = {**stored.asked, **asdict(config)}
    changed = [f"{k}={settings[k]}" for k, v in asked.items() if k not in FREE and settings.get(k, v) != v]
    pairs = describe_pairs(train)
    old = dict(state["pairs"])
    if not changed and old != pairs:
        both = {name: (old.get(name), pairs.get(name)) for name in {**pairs, **old} if "names" not in name}
        changed = [f"{name}={was} of the pairs, not {is_now}" for name, (was, is_now) in both.items() if was != is_now]
        changed = changed or ["pairs of other names"]
    if changed:
        raise OtherRunError(
            f"{path} was trained with {', '.join(changed)}: resume with the same, begin anew in another "
            "folder (experiment), or overwrite this run"
        )
    return state


def resumed_codec(stored: CodecState | None, codec: Codec | None) -> Codec | None:
    """The codec of a run that resumes, with the stored statistics.

    Raises:
        OtherCodecError: ``codec`` is not the stored one, or only one of them normalises.
    """
    where = "training can resume only in the space where it began"
    if stored is None:
        if codec is not None:
            raise OtherCodecError(f"{where}: without a codec (vqgan_path)")
        return None
    normalises = stored.statistics is not None
    if codec is None or not stored.same_latents(codec) or (codec.statistics is not None) != normalises:
        how = "with" if normalises else "without"
        raise OtherCodecError(
            f"{where}: with the same codec (vqgan_path), {how} normalised latents (normalize_latents)"
        )
    return codec if stored.statistics is None else codec.with_statistics(stored.statistics)
