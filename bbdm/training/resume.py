"""Checks that a run can begin with its network and pairs, or resume from a checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbdm.base import sizes
from bbdm.base.atomic import short
from bbdm.codec import Codec
from bbdm.data.cached import LatentDataset
from bbdm.data.pairs import Pairs
from bbdm.files.content import CodecState
from bbdm.networks.arrays import check_pictures
from bbdm.networks.base import SOURCE, Network
from bbdm.pictures import images
from bbdm.training.config import BridgeConfig, RunConfig


def check_batch(config: RunConfig, train: Pairs, processes: int, parts: int = 1) -> None:
    """Raise ValueError where pairs do not fill a batch, or processes and parts do not share it equally."""
    if len(train) < config.batch_size:
        raise ValueError(f"batch_size must be at most the {len(train)} training pairs, got {config.batch_size}")
    if config.batch_size % (parts * processes):
        computed = f" with grad_accumulation={parts}" if isinstance(config, BridgeConfig) else ""
        raise ValueError(
            f"batch_size {config.batch_size} does not split into equal parts for {processes} processes{computed}"
        )


def check_start(network: Network, config: BridgeConfig, train: Pairs, codec: Codec | None) -> None:
    """Raise ValueError where a network cannot be trained on pairs or their latents."""
    stride = 1 if codec is None else codec.stride
    sides = (train.source_channels, train.channels) if codec is None else (codec.channels, codec.channels)
    if (network.source_channels, network.channels) != sides:
        kind = "pairs" if codec is None else "latents"
        takes, have = (
            f"{target} channels" if source == target else f"sources of {source} and targets of {target} channels"
            for source, target in ((network.source_channels, network.channels), sides)
        )
        raise ValueError(f"the network takes {takes}, and the {kind} have {have}")
    if codec is not None:
        check_pictures(network.axes, "a codec")
    if network.further.two_way != (train.spec.direction == "both"):
        raise ValueError(
            "pairs of direction 'both' and a network with classes={'direction': ('AtoB', 'BtoA')} need each other; got "
            f"direction {train.spec.direction!r} and classes={dict(network.classes)}"
        )
    takes, have = (sorted({*each} - {SOURCE}) for each in (network.inputs, train.spec.conditions))
    if takes != have:
        raise ValueError(f"the network takes the conditions {takes} besides the source, and the pairs have {have}")
    size = images.sides(train.image_size, train.spec.axes)
    if len(size) != network.axes:
        shapes = [f"(B, C, {sizes.SIDES[axes]})" for axes in (network.axes, len(size))]
        raise ValueError(f"the network takes {shapes[0]}, and the pairs are {shapes[1]}, of {sizes.shown(size)}")
    if any(side % (each * stride) for side, each in zip(size, network.strides, strict=True)):
        factors = f"the network's {network.stride}"
        if codec is not None:
            factors = f"{network.strides[0] * stride}, {factors} times the autoencoder's {stride}"
        raise ValueError(f"image_size {train.image_size} is not a multiple of {factors}")
    if isinstance(train, LatentDataset):
        if codec is None or train.codec != codec.description():
            got = "none" if codec is None else "another one"
            raise ValueError(f"codec must be that of the latents in {train.folder}, got {got}")
        if train.flip != config.flip:
            raise ValueError(f"flip must be that of the latents in {train.folder}, {train.flip}, got {config.flip}")
        if config.shift or config.zoom:
            raise ValueError("shift and zoom change pictures, and must be 0 with latents that are computed once")


def describe_pairs(train: Pairs) -> dict[str, Any]:
    """The properties of the training pairs that must stay the same when a run resumes."""
    spec = train.spec
    about = {"image_size": train.image_size, "direction": spec.direction, "crops": spec.crops}
    return {**about, **train.settings(), "number": len(train), "names": train.names_digest()}


def describe_data(train: Pairs, validation: Pairs | None) -> dict[str, Any]:
    """What the folder of a run says of its data besides :func:`describe_pairs`."""
    counts = {"training": len(train), "validation": 0 if validation is None else len(validation)}
    return {**counts, "channels": train.channels, "stamps": train.stamps_digest()}


def check_alike(starts: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where the processes of a run, in order of rank, begin differently."""
    for rank, start in enumerate(starts):
        differing = [name for name, value in start.items() if value != starts[0][name]]
        if differing:
            about = ", ".join(f"{name} {short(start[name])}, not {short(starts[0][name])}" for name in differing)
            raise ValueError(f"process {rank} differs from process 0, and all must begin alike: {about}")


def training_state(
    path: Path,
    state: dict[str, Any] | None,
    stored: dict[str, Any],
    own: dict[str, Any],
    config: RunConfig,
    pairs: Mapping[str, Any],
) -> dict[str, Any]:
    """The training state in the file ``path``, where this run is the same.

    Args:
        path: the file of the checkpoint.
        state: the training state that it holds.
        stored: the settings of what it trained.
        own: those of what this run trains.
        config: the settings of this run.
        pairs: what :func:`describe_pairs` says of them.

    Raises:
        ValueError: it has no training state.
        ValueError: it is of another run; the message names the differences.
    """
    if state is None:
        raise ValueError(f"{path} holds no training state: a run resumes only from one of its step_*.pt files")
    settings, own = {**stored, **state["config"]}, {**own, **config.compared()}
    changed = [f"{name}={settings[name]}" for name, value in own.items() if settings.get(name, value) != value]
    old = dict(state["pairs"])
    if not changed and old != pairs:
        both = {name: (old.get(name), pairs.get(name)) for name in {**pairs, **old} if "names" not in name}
        changed = [f"{name}={was} of the pairs, not {is_now}" for name, (was, is_now) in both.items() if was != is_now]
        changed = changed or ["pairs of other names"]
    if changed:
        raise ValueError(
            f"{path} was trained with {', '.join(changed)}: resume with the same, begin anew in another "
            "folder (experiment), or overwrite this run"
        )
    return state


def resumed_codec(stored: CodecState | None, codec: Codec | None) -> Codec | None:
    """The codec of a run that resumes, with the stored statistics.

    Raises:
        ValueError: ``codec`` is not the stored one, or only one of them normalises.
    """
    where = "training can resume only in the space where it began"
    if stored is None:
        if codec is not None:
            raise ValueError(f"{where}: without a codec (vqgan_path)")
        return None
    normalises = stored.statistics is not None
    if codec is None or not stored.same_latents(codec) or (codec.statistics is not None) != normalises:
        how = "with" if normalises else "without"
        raise ValueError(f"{where}: with the same codec (vqgan_path), {how} normalised latents (normalize_latents)")
    return codec if stored.statistics is None else codec.with_statistics(stored.statistics)
