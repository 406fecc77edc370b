"""The pairs that calibrate intervals: that training has not seen them, and how far their targets lie outside.

They are compared picture by picture with the intervals of a sampler's own samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bbdm.base.atomic import file_sha256
from bbdm.data.rows import Row, paths_of, shown
from bbdm.networks.conditions import DIRECTION, read_direction
from bbdm.pictures import formats
from bbdm.sampling.distribution import Distribution

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.files.content import Origin
    from bbdm.sampling.sampler import BridgeSampler

Array = npt.NDArray[Any]
By = Literal["quantiles", "std"]


class SeenPairsError(ValueError):
    """Pairs that are to calibrate were in training."""


def check_unseen(pairs: Pairs, origin: Origin | None) -> None:
    """Raise SeenPairsError where pairs are those that a network was trained on, by the records of its run.

    A checkpoint that training resumes from has digests of its pairs, and so has the folder of a run,
    ``OUT.run`` of ``OUT.pt`` or the one that the file is in: of names, and of files with sizes and times.
    """
    if origin is None:
        return
    known = [("their names", origin.pairs)]
    for folder in (origin.path.with_suffix(".run"), origin.path.parent):
        with suppress(OSError, ValueError, LookupError, TypeError):  # it may be of another program
            known.append((str(folder / "config.json"), json.loads((folder / "config.json").read_text())["pairs"]))
    own = {"names": pairs.names_digest(), "stamps": pairs.stamps_digest()}
    for where, record in known:
        if isinstance(record, Mapping) and any(value and record.get(name) == value for name, value in own.items()):
            raise SeenPairsError(
                f"these {len(pairs)} pairs were in training, by {where}: calibrate on others, or give other pictures "
                "other names"
            )


def check_copies(pairs: Pairs, trained: Sequence[Row]) -> None:
    """Raise SeenPairsError where a row's files have the content of those of a training row."""
    own = {paths_of(row): row for row in pairs.rows}
    others = {paths_of(row): row for row in trained}
    if () in own or () in others or own.keys() & others.keys():
        return  # pictures inside tables, or the parts are the same folder

    def sizes(paths: Sequence[Path]) -> tuple[int, ...]:
        return tuple(file.stat().st_size for path in paths for file in formats.files_of(path))

    def content(paths: Sequence[Path]) -> tuple[str, ...]:
        return tuple(file_sha256(file) for path in paths for file in formats.files_of(path))

    alike = {sizes(paths) for paths in own}  # only files of one size are compared
    known = {content(paths): row for paths, row in others.items() if sizes(paths) in alike}
    for paths, row in own.items() if known else ():
        if (other := known.get(content(paths))) is not None:
            raise SeenPairsError(
                f"{shown(row)} has the content of {shown(other)}, a training pair: calibrate on others"
            )


def ends(distribution: Distribution, by: By, alpha: float) -> Iterator[tuple[Array, Array, Array]]:
    """Of each image (C, *S), in [-1, 1]: the ends of the interval at lambda 0, and the uncertainty.

    By quantiles of alpha/2 and 1 - alpha/2 it is their distance, by standard deviation it is that one.
    """
    if by == "std":
        yield from zip(distribution.scaled_mean, distribution.scaled_mean, distribution.scaled_std, strict=True)
    else:
        levels = (alpha / 2, 1 - alpha / 2)
        for low, high in zip(*map(distribution.scaled_quantile, levels), strict=True):
            yield low, high, high - low


def measured(
    sampler: BridgeSampler,
    pairs: Pairs,
    samples: int,
    by: By,
    alpha: float,
    seed: int,
    **options: Any,
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Of each pair, its sides, and (2, values) of those that count.

    They are the lambda from which on a value of its target is inside its interval, and the uncertainty. Where
    no value counts, nothing is sampled.

    Raises:
        ValueError: a target is not finite, has another shape than results, or is of another direction.
    """
    from bbdm.pictures.picture import scale

    for index in range(len(pairs)):
        example, conditions = pairs.read(index), dict[str, Any].fromkeys(sampler._shapes.conditions.each)
        target, name = scale(example.target).numpy(), f"the target of pair {index}"
        counts = np.broadcast_to(True if example.mask is None else example.mask.numpy() != 0, target.shape)
        if not np.isfinite(target[counts]).all():
            raise ValueError(f"{name} {example.name!r} has NaN or infinity".replace(" ''", ""))
        if not counts.any():
            yield target.shape[1:], np.zeros((2, 0), np.float32)
            continue
        for key, value in example.conditions.items():
            conditions[key] = (scale(value) if value.ndim > 2 else value).numpy()[None]
        if (way := sampler.direction) is not None:
            own = way if conditions[DIRECTION] is None else read_direction(conditions[DIRECTION])
            if own != way:
                raise ValueError(f"pair {index} is of direction {own}, and must be of the sampler's, {way}")
            conditions[DIRECTION] = way
        seeds = [[seed + index + j * len(pairs) for j in range(samples)]]
        options |= {"keep": by == "quantiles", "conditions": conditions or None}
        drawn = sampler.distribution(scale(example.source).numpy()[None], samples, seeds, **options)
        ((low, high, uncertainty),) = ends(drawn, by, alpha)
        if low.shape != target.shape:
            raise ValueError(f"{name} must have shape {low.shape}, got {target.shape}")
        excess = np.maximum(np.maximum(low - target, target - high), 0)
        if by == "std":
            with np.errstate(divide="ignore", invalid="ignore"):
                excess = np.where(excess > 0, excess / uncertainty, 0)
        yield target.shape[1:], np.stack([excess, uncertainty])[:, counts].astype(np.float32)
