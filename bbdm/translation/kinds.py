"""What is made of sources: samples, maps of them, and the ends of intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bbdm.data.spec import AXES
from bbdm.pictures import Picture
from bbdm.pictures.values import Values
from bbdm.sampling.base import Sampler


def make(
    sampler: Sampler[Any],
    sources: Sequence[Any],
    seeds: Sequence[Sequence[int]],
    kinds: Iterable[str],
    intervals: Any = None,
    orientations: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """The results of sources by kind.

    Args:
        sampler: what makes the results.
        sources: what a call of it takes as a list.
        seeds: of each source, one for each sample.
        kinds: ``0``, ``1`` and so on, the samples; or maps of all samples: ``mean``, ``std``, quantiles in
            percent such as ``q05``; or ``low`` and ``high``, the ends of ``intervals``.
        intervals: a :class:`~bbdm.Intervals` of the sampler, where their ends are wanted.
        orientations: 3 for the mean of the samples by axial, coronal and sagittal slices.
        options: of a call of the sampler.

    Returns:
        For each source, its results by kind, each as the sampler's calls return them.

    Raises:
        ValueError: what a call of the sampler refuses.
    """
    kinds = list(kinds)
    if all(kind.isdecimal() for kind in kinds):
        repeated = [source for source in sources for _ in kinds]
        chosen = [each[int(kind)] for each in seeds for kind in kinds]
        results = _samples(sampler, repeated, chosen, orientations, options)
        starts = range(0, len(results), len(kinds))
        return [dict(zip(kinds, results[start : start + len(kinds)], strict=True)) for start in starts]
    keep = not {"mean", "std"}.issuperset(kinds)
    found = sampler.distribution([*sources], len(seeds[0]), [[*each] for each in seeds], keep=keep, **options)
    maps: dict[str, Any] = dict(zip(("low", "high"), intervals.of(found), strict=True)) if intervals is not None else {}
    for kind in kinds:
        if kind in ("mean", "std"):
            maps[kind] = getattr(found, kind)
        elif kind not in maps:
            maps[kind] = found.samples[int(kind)] if kind.isdecimal() else found.quantile(float(kind[1:]) / 100)
    return [{kind: maps[kind][i] for kind in kinds} for i in range(len(sources))]


def _samples(
    sampler: Sampler[Any], sources: list[Any], seeds: list[int], orientations: int, options: Mapping[str, Any]
) -> list[Any]:
    """The results of a call; of three orientations, their mean."""
    if orientations == 1:
        return sampler(sources, seeds, **options)
    spec, planes = sampler.pictures, []
    floats = replace(spec.target, dtype="float32")  # the mean is rounded, and not what it is of
    try:
        for plane in AXES:
            sampler.pictures = replace(spec, slices=plane)
            planes.append(sampler(sources, seeds, target_values=floats, **options))
    finally:
        sampler.pictures = spec
    return [_mean(results, spec.target) for results in zip(*planes, strict=True)]


def _mean(results: Sequence[Picture], values: Values) -> Picture:
    """The mean of volumes (C, D, H, W) in stored values, as values of a type are stored."""
    mean, dtype, first = np.mean(results, axis=0, dtype=np.float64), np.dtype(values.dtype), results[0]
    stored = (mean if dtype.kind == "f" else np.rint(mean)).astype(dtype)
    return Picture(stored, first.geometry, first.unit, first.name)
