"""What the pictures of a translation are: as the network was trained, and as the settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bbdm.data.examples import known_conditions
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row
from bbdm.data.spec import Spec
from bbdm.files.content import Checkpoint
from bbdm.networks.conditions import DIRECTION
from bbdm.pictures.images import Size
from bbdm.translation.config import TranslateConfig
from bbdm.translation.files import are_photographs

DEFAULT_SIZE = 256  # for checkpoints without the size of their pictures


@dataclass(frozen=True)
class Pictures:
    """What the pictures of a translation are.

    Args:
        spec: what an example is.
        size: that sources are resized to, for manifests: ``keep``, ``fit SIZE``, or a size.
        notes: what a user should know.
    """

    spec: Spec
    size: Size | str = "keep"
    notes: list[str] = field(default_factory=list)


def pictures_of(config: TranslateConfig, checkpoint: Checkpoint, rows: Sequence[Row]) -> Pictures:
    """What the pictures of rows are.

    Pictures keep their own size where the network was trained on crops, or they are no photographs.

    Raises:
        ValueError: other values are given than the network was trained on, or conditions are missing.
    """
    known = checkpoint.unet.config
    codec = checkpoint.build_codec()
    trained = checkpoint.pictures
    labels = dict(config.conditions or {})
    if known.two_way:
        if DIRECTION in labels:
            raise ValueError(
                f"the direction is --direction, and no --condition; got {DIRECTION}={labels[DIRECTION]}"
            )
        labels[DIRECTION] = config.direction
        if config.direction == "BtoA":
            trained = trained.turned
    spec = config.spec(
        config.dataset,
        rows,
        learned=trained,
        channels=known.source_channels if codec is None else codec.image_channels,
        axes=known.axes,
        conditions=known_conditions(known, trained.conditions, rows, labels),
    )
    # sources alone are of the direction already
    if known.two_way and rows[0].get("target") is None:
        spec = replace(spec, direction="AtoB")
    return _sized(config, checkpoint, rows, spec)


def _sized(
    config: TranslateConfig, checkpoint: Checkpoint, rows: Sequence[Row], spec: Spec
) -> Pictures:
    """The pictures of a spec with the size that they are resized to."""
    chosen = config.usual_size if config.image_size is None else config.image_size
    keeps = checkpoint.pictures.crop is not None or not spec.eight_bit
    if isinstance(chosen, str) and keeps:
        chosen = "keep"
    notes: list[str] = []
    if checkpoint.image_size is None and chosen in ("train", "fit"):
        notes.append(
            f"{config.model} does not hold the size of its pictures: image_size is {DEFAULT_SIZE}"
        )
    if chosen == "keep" or not are_photographs(Pairs(rows, spec, skip_bad=True)):
        return Pictures(spec, "keep", notes)
    size = chosen
    if isinstance(size, str):
        size = checkpoint.image_size or DEFAULT_SIZE
    if chosen == "fit":
        return Pictures(replace(spec, size=size, resize="fit"), f"fit {size}", notes)
    return Pictures(replace(spec, size=size, resize="stretch"), size, notes)
