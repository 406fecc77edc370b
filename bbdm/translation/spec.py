"""What the pictures of a data set are for a trained network: values, sizes, and what it sees besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bbdm.data.conditions import known_conditions
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row
from bbdm.data.spec import Spec
from bbdm.files.content import Checkpoint
from bbdm.sampling.network_config import DEFAULT_SIZE, chosen_size, described_size
from bbdm.translation.config import TranslateConfig
from bbdm.translation.files import Files


def spec_of(config: TranslateConfig, checkpoint: Checkpoint, rows: Sequence[Row]) -> tuple[Spec, Any, list[str]]:
    """What the pictures of rows are, their size for people and manifests, and what a user should know.

    Pictures keep their own size where the network was trained on crops, or they are no photographs.

    Raises:
        ValueError: other values are given than the network was trained on, or conditions are missing.
    """
    trained, known, codec = checkpoint.pictures, checkpoint.unet.config, checkpoint.build_codec()
    channels = checkpoint.unet.source_channels if codec is None else codec.image_channels
    seen = known_conditions(known, trained.conditions, rows, config.conditions)
    shown = channels if channels in (1, 3) else None  # photographs become grey or colour, others stay
    about: dict[str, Any] = {"learned": trained, "channels": shown, "axes": known.axes, "conditions": seen}
    spec = config.spec(config.dataset, rows, **about)
    chosen, notes = config.usual_size if config.image_size is None else config.image_size, list[str]()
    if isinstance(chosen, str) and (trained.crop is not None or not spec.eight_bit):
        chosen = "keep"
    if checkpoint.image_size is None and chosen in ("train", "fit"):
        notes.append(f"{config.model} does not hold the size of its pictures: image_size is {DEFAULT_SIZE}")
    size, resize = chosen_size(chosen, checkpoint.image_size)
    if resize == "keep" or not Files(Pairs(rows, spec, skip_bad=True), channels).photographs:
        return spec, described_size(size, "keep"), notes
    return replace(spec, size=size, resize=resize), described_size(size, resize), notes
