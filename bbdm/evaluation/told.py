"""What the network is told of the sources of a data set, as a sampler takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bbdm.data.examples import stacked
from bbdm.evaluation.files import Files
from bbdm.pictures import images
from bbdm.pictures.kind import AXES


def conditions_of(files: Files, indices: Sequence[int]) -> dict[str, Any]:
    """The sampler's argument ``conditions`` for some sources; empty where the network is told nothing.

    Of a volume that is translated by slices, further images are (D, K, H, W).

    Raises:
        ValueError: something cannot be read, or does not fit; the message names it.
    """
    dataset = files.dataset
    told = [dataset.conditions(files.entries[index]) for index in indices]
    made: dict[str, Any] = dict.fromkeys(dataset.told.left_out)
    for name in dataset.further.kinds:
        values = [each[name] for each in told]
        if name in dataset.further.images and dataset.kind.slices is not None:
            (volume,) = values
            made[name] = images.scale(volume.movedim(1 + AXES[dataset.kind.slices], 0))
        else:
            joined = stacked(values)
            made[name] = images.scale(joined) if name in dataset.further.images else joined
    return {"conditions": made} if made else {}
