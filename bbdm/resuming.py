"""Whether a run can go on from a checkpoint, which must be of the same network, bridge, space, pairs and settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bbdm.bridges import Bridge
from bbdm.checkpoint import Checkpoint
from bbdm.codec import Codec
from bbdm.networks.unet import UNetConfig
from bbdm.train_config import FREE, TrainConfig


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
        pairs: image_size, direction and number of the pairs now.

    Raises:
        ValueError: it has none, or is of another run; the message says in what.
    """
    state = checkpoint.training
    if state is None or checkpoint.unet.weights is None or checkpoint.unet.ema is None:
        raise ValueError(f"{path} holds no training state: training can go on only from a run's step_*.pt")
    if checkpoint.unet.config != unet or checkpoint.bridge != bridge:
        raise ValueError(
            f"{path} was trained as {checkpoint.unet.config}, {checkpoint.bridge}, "
            f"and these settings ask for {unet}, {bridge}"
        )
    stored = {"image_size": checkpoint.image_size, **state.get("pairs", {})}
    for name, value in pairs.items():
        if stored.get(name, value) != value:
            raise ValueError(f"{path} was trained with {name} {stored[name]}, and these pairs have {value}")
    settings = state["config"]
    changed = [k for k, v in asdict(config).items() if k not in FREE and settings.get(k, v) != v]
    if changed:
        raise ValueError(
            f"{path} was trained with {', '.join(f'{k}={settings[k]}' for k in changed)}: "
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
