"""Whether a run can begin with its network and pairs, or go on from a checkpoint, which must be of the same run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bbdm.base import images
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import PairedDataset
from bbdm.files.content import Checkpoint
from bbdm.networks.unet import UNetConfig
from bbdm.training.config import FREE, TrainConfig


def check_start(
    unet: UNetConfig,
    config: TrainConfig,
    train: PairedDataset | LatentDataset,
    codec: Codec | None,
    processes: int,
) -> None:
    """Raise ValueError where a network cannot be trained on pairs; see :class:`bbdm.training.trainer.Trainer`."""
    if len(train) < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is more than the number of training pairs, {len(train)}")
    parts = config.grad_accumulation * processes
    if config.batch_size % parts:
        told = f"{processes} processes with grad_accumulation={config.grad_accumulation}"
        raise ValueError(f"batch_size {config.batch_size} does not split into equal parts for {told}")
    channels, stride = (train.channels, 1) if codec is None else (codec.channels, codec.stride)
    if unet.in_channels != channels:
        kind = "pairs" if codec is None else "latents"
        raise ValueError(f"the network takes {unet.in_channels} channels, and the {kind} have {channels}")
    if any(side % (unet.stride * stride) for side in images.sides(train.image_size)):
        factors = f"the network's {unet.stride}"
        if codec is not None:
            factors = f"{unet.stride * stride}, {factors} times the VQGAN's {stride}"
        raise ValueError(f"image_size {train.image_size} is not a multiple of {factors}")
    if isinstance(train, LatentDataset):
        if codec is None or train.codec != codec.description():
            given = "none" if codec is None else "another one"
            raise ValueError(f"codec must be the one that made the latents in {train.folder}, got {given}")
        if train.flip != config.flip:
            raise ValueError(f"flip must be that of the latents in {train.folder}, {train.flip}, got {config.flip}")


def training_state(
    path: Path,
    checkpoint: Checkpoint,
    unet: UNetConfig,
    bridge: Bridge,
    config: TrainConfig,
    pairs: dict[str, Any],
) -> dict[str, Any]:
    """The training state of a checkpoint of the same run.

    Args:
        path: its file, for errors.
        checkpoint: what was read.
        unet: the network's,
        bridge: and
        config: the run's settings now.
        pairs: what of them must not change: image_size, direction, number and names.

    Raises:
        ValueError: it has none, or is of another run; the message says in what.
    """
    state = checkpoint.training
    if state is None or checkpoint.unet.weights is None or checkpoint.unet.ema is None:
        raise ValueError(f"{path} holds no training state: training can go on only from a run's step_*.pt")
    stored = {**asdict(checkpoint.unet.config), **checkpoint.bridge.config(), **state["config"]}
    asked = {**asdict(unet), **bridge.config(), **asdict(config)}
    changed = [f"{k}={stored[k]}" for k, v in asked.items() if k not in FREE and stored.get(k, v) != v]
    if not changed and state["pairs"] != pairs:
        old, new = state["pairs"], pairs
        changed = [f"{k}={old[k]} of the pairs, not {v}" for k, v in new.items() if k != "names" and old[k] != v]
        changed = changed or ["pairs of other names"]
    if changed:
        raise ValueError(
            f"{path} was trained with {', '.join(changed)}: "
            "go on with that, or start anew with --overwrite or in another --experiment folder"
        )
    return state


def stored_codec(checkpoint: Checkpoint, codec: Codec | None) -> Codec | None:
    """The codec with the statistics of a run's, which must be the same otherwise.

    Raises:
        ValueError: it is another one.
    """
    stored = checkpoint.build_codec()
    descriptions = [None if each is None else each.description() for each in (stored, codec)]
    normalises = [each is not None and each.statistics is not None for each in (stored, codec)]
    if descriptions[0] != descriptions[1] or normalises[0] != normalises[1]:
        flags = "without -vq" if stored is None else "with -vq and the same VQGAN, "
        if stored is not None:
            flags += f"{'without' if stored.statistics is None else 'with'} --normalize_latents"
        raise ValueError(f"training can go on only in the space where it began: {flags}")
    if codec is not None and stored is not None and stored.statistics is not None:
        return codec.with_statistics(stored.statistics)
    return codec
