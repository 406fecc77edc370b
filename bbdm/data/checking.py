"""Looking at a data set before training: what cannot be read, and what its values show at a glance."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from bbdm.data.loading import with_short_errors
from bbdm.data.pairs import Pairs
from bbdm.data.reading import Column
from bbdm.data.rows import named, shown
from bbdm.data.spec import CONTRAST, ROLES
from bbdm.pictures.values import Values, check_finite

LOOKED_AT = 8  # rows, at a glance
CLIPPED = 0.001  # share of values outside of the range that is said
SHAPES_DIFFER = 1.1  # ratio of the sides' widths over heights


def check_rows(pairs: Pairs, workers: int = 0, progress: bool = False) -> dict[int, str]:
    """Read all that rows have, as training does but whole, and return why rows cannot be, by their indices.

    Args:
        pairs: the data set, whose rows have indices.
        workers: processes that read rows.
        progress: show a progress bar.
    """
    count: Any = range(len(pairs.rows))
    how: Any = {"num_workers": workers, "collate_fn": partial(_reason, pairs)}
    loader = DataLoader(count, batch_size=None, **how)
    bar = tqdm(with_short_errors(loader), "checking", len(count), unit="pair", leave=False, disable=not progress)
    return {index: reason for index, reason in enumerate(bar) if reason}


def _reason(pairs: Pairs, index: int) -> str:
    """Why a row cannot be trained on, or nothing."""
    row = pairs.rows[index]
    try:
        for role, column in pairs.reader.whole(row).items():
            channels = {"source": pairs.source_channels // pairs.spec.planes, "target": pairs.channels}
            if len(column.array) != channels.get(role, len(column.array)):
                raise ValueError(f"its {role} has {len(column.array)} channels, and others have {channels[role]}")
            check_finite(column.array, column.absent)
        pairs.conditions(row)
    except (ValueError, FileNotFoundError) as error:
        return " ".join(named(row, error).split())
    return ""


def first_look(pairs: Pairs) -> list[str]:
    """What the first rows show: values outside of ranges, sources without contrast, stretched sides."""
    shares, flat, stretched = {role: list[float]() for role in ROLES}, list[str](), list[str]()
    for index in range(min(LOOKED_AT, len(pairs.rows))):
        try:
            row = pairs.rows[index]
            columns = pairs.reader.whole(row)
            sides = [pairs.reader.header(columns[role].cells[-1]).shape[-2:] for role in ROLES if role in columns]
        except (ValueError, FileNotFoundError):  # which is said where the example is read
            continue
        shapes = [width / height for height, width in sides]
        if pairs.spec.size is not None and max(shapes) > SHAPES_DIFFER * min(shapes):
            stretched.append(row["name"])
        for role in ROLES:
            values = getattr(pairs.spec, role)
            if role in columns and isinstance(values, Values):
                share, contrast = _levels(columns[role], values)
                shares[role].append(share)
                flat += [shown(row)] if role == "source" and contrast < CONTRAST else []
    found: list[str] = []
    for role, each in shares.items():
        if each and (share := float(np.mean(each))) > CLIPPED:
            found.append(
                f"{100 * share:.2g} % of the values of the first {len(each)} {role}s are outside of their range, "
                f"{getattr(pairs.spec, role)}, and clipped to it"
            )
    if flat:
        found.append(f"{flat[0]} is nearly constant within {pairs.spec.source}: give the range that sources use")
    if stretched:
        count = "1 pair has" if len(stretched) == 1 else f"{len(stretched)} of the first pairs have"
        found.append(f"{count} sides of different shapes, first {stretched[0]!r}: each side is stretched to one size")
    return found


def _levels(column: Column, values: Values) -> tuple[float, float]:
    """The share of values outside of a range, and the largest share of it that a channel uses."""
    array = column.array[:, ~np.broadcast_to(column.absent, column.array.shape[1:])].astype(np.float64)
    if not array.size:
        return 0.0, 1.0
    low, high = (np.reshape(level, (-1, 1)) for level in (values.low, values.high))
    used = np.ptp(array.clip(low, high), axis=1) / (high - low)[:, 0]
    return float(((array < low) | (array > high)).mean()), float(used.max())
