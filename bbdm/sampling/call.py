"""A call of a sampler: its arguments, and the batches that they become. Nothing here needs torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import Spec
from bbdm.networks.guidance import GuidanceSettings, read_guidance
from bbdm.pictures.values import ValuesLike, as_values
from bbdm.sampling import sources
from bbdm.sampling.batch import Batch
from bbdm.sampling.conditions import read_conditions
from bbdm.sampling.scale import Range, Scale, check_range
from bbdm.sampling.shapes import Shapes, Window
from bbdm.sampling.sources import ArrayBackend
from bbdm.sampling.step import Callback

Seed = int | Sequence[int] | None
Timesteps = str | Iterable[float] | None
Progress = bool | Callable[[int, int], Any]
Picture = Image.Image | str | os.PathLike[str]


if TYPE_CHECKING:  # typing_extensions is not everywhere

    class CallSettings(GuidanceSettings, total=False, extra_items=Any):
        """The arguments of a call besides its source and seed; others are conditions by their names."""

        noise: Any
        batch_size: int | None
        progress: Progress
        solver: str | None
        steps: int | None
        timesteps: Timesteps
        range: Range
        source_values: ValuesLike
        target_values: ValuesLike
        mask: Any
        conditions: Mapping[str, Any] | None
        window: Window
        overlap: float
        margin: int
        callback: Callback | None


def read_scale(kind: Spec, axes: int, range: Range, source_values: ValuesLike, target_values: ValuesLike) -> Scale:
    """What the values of a call are, for a network that was trained on pictures of a kind."""
    source, target = as_values(source_values), as_values(target_values)
    valued = replace(kind, source=source or kind.source, target=target or kind.target)
    return Scale(check_range(range), valued, not source is target is None, axes)


def read_call(
    shapes: Shapes,
    backend: ArrayBackend,
    steps: int,
    scale: Scale,
    source: Any,
    seed: Seed,
    noise: Any,
    mask: Any,
    conditions: Mapping[str, Any] | None,
    others: Mapping[str, Any],
) -> tuple[sources.Given, list[Batch], tuple[int, ...]]:
    """What a call is given, its images as one batch for each size, and the seeds of its sources; all checked.

    Args:
        shapes: what the network takes.
        backend: of the sampler's arrays.
        steps: of the call's table.
        scale: what the values are.
        source: what is translated: a batch, a picture, a path, an array, or a list of these.
        seed: that of the first source, or one for each source.
        noise: standard normals in place of seeds.
        mask: where the target is made.
        conditions: what the network is told besides, by name.
        others: arguments that guide, and conditions by their names.

    Raises:
        TypeError: an argument is neither one that guides nor a condition.
        ValueError: an argument is refused.
    """
    named = {name: value for name, value in others.items() if name not in GuidanceSettings.__annotations__}
    if unknown := [name for name in named if name not in shapes.further.kinds]:
        known = shapes.further.wanted
        raise TypeError(f"{unknown[0]!r} is no argument of a call, and no condition; the network has {known}")
    conditions = {**named, **conditions} if named and isinstance(conditions, Mapping) else named or conditions
    guided = read_guidance(shapes.further, **{name: value for name, value in others.items() if name not in named})
    for names, _ in guided.variants if guided is not None else ():
        if isinstance(conditions, Mapping) and all(conditions.get(name, 0) is None for name in names):
            told = ", ".join(map(repr, names))
            warnings.warn(f"guidance has nothing to guide to: {told} is None", stacklevel=4)  # the line of the call
    given = sources.given(source, backend, shapes.source_channels, scale)
    single = {"noise": noise, "mask": mask, "conditions": conditions if shapes.further.images else None}
    for name, value in single.items():
        if value is not None and len(given.groups) > 1:
            raise ValueError(f"{name} needs pictures of one size, got several")
    first = given.groups[0][1]
    if noise is not None:
        _check_noise(noise, backend, (steps, *shapes.grid(first.shape[0], *first.shape[2:])))
    if mask is not None:
        mask = sources.read_mask(mask, backend, first)
    seen = read_conditions(conditions, shapes.further, backend, first, given.owners)
    seeds = resolve_seeds(seed, given.owners[-1] + 1)
    own = [seeds[owner] for owner in given.owners]
    batches: list[Batch] = []
    for i, array in given.groups:
        told = {name: value if len(given.groups) == 1 else value[i] for name, value in seen.items()}
        batches.append(Batch(i, array, [own[k] for k in i], noise, mask, told, guidance=guided))
    return given, batches, tuple(seeds)


def _check_noise(noise: Any, backend: ArrayBackend, wanted: tuple[int, ...]) -> None:
    """Raise ValueError unless noise is finite normals of a shape."""
    if not isinstance(noise, backend.type):
        raise ValueError(f"noise must be {backend.noun}, got {type(noise).__name__}")
    if tuple(noise.shape) != wanted:
        raise ValueError(f"noise must have shape {wanted}, got {tuple(noise.shape)}")
    if not np.isfinite(float(abs(noise).max())):
        raise ValueError("noise must be finite, got NaN or infinity")
