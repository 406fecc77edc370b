"""Scenes of microscopes: which pictures a file of several scenes, times and planes has, whatever reads it.

Several planes are a volume (C, Z, Y, X), and several times of one plane a sequence (C, T, Y, X). Lengths are
in micrometres. Results are OME-TIFF, whose entries ``kept`` has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bbdm.pictures import windows
from bbdm.pictures.formats.parts import Part
from bbdm.pictures.formats.tifffile import NAME, SIZE_UNITS, SIZES
from bbdm.pictures.picture import Affine, Geometry, Header, as_affine


@dataclass(frozen=True)
class Scene:
    """What a file says of a scene.

    Args:
        lengths: of the axes T, C, Z, Y and X; C counts the samples of colours.
        dtype: the type of its values.
        names: of channels; () for unknown ones.
        steps: the micrometres of a pixel along X, Y and Z; 0 for unknown ones.
        seconds: from one time to the next; 0 for unknown ones.
    """

    lengths: Mapping[str, int]
    dtype: np.dtype[Any]
    names: tuple[str, ...] = ()
    steps: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Stored(NamedTuple):
    """Which values of a file a picture has."""

    file: Path
    scene: int
    time: int  # the first one of a sequence
    depth: str  # the axis between channels and rows: Z, T, or "" of a flat picture
    channel: int | None  # None for all


def check_size(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raise ValueError for a scene of a shape that a file of its size cannot hold; nothing is made of it."""
    most = _most(path)
    if math.prod(shape) * dtype.itemsize > most:
        windows.check_cost(shape, dtype, most)


def parts(scenes: Sequence[Scene]) -> list[Part]:
    """A part for each scene, or where a scene has several times of several planes, for each of its times."""
    all_parts: list[Part] = []
    for number, scene in enumerate(scenes):
        of_scene = Part(number if len(scenes) > 1 else None)
        if scene.lengths["T"] > 1 and scene.lengths["Z"] > 1:
            all_parts += [replace(of_scene, time=time) for time in range(scene.lengths["T"])]
        else:
            all_parts.append(of_scene)
    return all_parts


def chosen(path: Path, part: Part, scenes: int) -> int:
    """The number of the scene that a part of a file of some scenes is of.

    Raises:
        ValueError: there is no such scene, or one is to be chosen.
    """
    Part(part.scene).check(scene=scenes)
    if part.scene is None and scenes > 1:
        raise ValueError(
            f"it has {scenes} scenes: choose one, such as {path.name}#{replace(part, scene=0)}"
        )
    return part.scene or 0


def header(path: Path, part: Part, number: int, scene: Scene) -> Header:
    """The header of a part of a file, in a scene; ``stored`` is a :class:`Stored`.

    ``geometry.kept`` has, where the file says them, ome: pixel sizes and their units, descriptions: names of
    channels, and seconds from one time to the next; of a sequence depth, t.

    Raises:
        ValueError: the part is not in it, or a time is to be chosen.
    """
    lengths = scene.lengths
    channels = lengths["C"]
    part.check(scene=number + 1, time=lengths["T"], channel=channels)
    depth = _depth(path, part, lengths)
    names = scene.names if len(scene.names) == channels else ()
    if part.channel is not None:
        names = names[part.channel : part.channel + 1]
        channels = 1
    sides = [lengths[axis] for axis in f"{depth}YX"]
    stored = Stored(path, number, part.time or 0, depth, part.channel)
    geometry = _geometry(scene, depth, names)
    return Header(path, (channels, *sides), scene.dtype, geometry, most=_most(path), stored=stored)


def _most(path: Path) -> float:
    """The bytes of values that a file of its size can hold."""
    return path.stat().st_size * windows.RATIO


def _depth(path: Path, part: Part, lengths: Mapping[str, int]) -> str:
    """The axis between channels and rows."""
    times = lengths["T"]
    planes = lengths["Z"]
    if part.time is None and times > 1:
        if planes > 1:
            address = f"{path.name}#{replace(part, time=0)}"
            raise ValueError(
                f"it has {times} times of {planes} planes: choose a time, such as {address}"
            )
        return "T"
    return "Z" if planes > 1 else ""


def _geometry(scene: Scene, depth: str, names: tuple[str, ...]) -> Geometry:
    """Scale, names of channels and time of a scene."""
    kept: dict[str, Any] = {}
    if any(names):
        kept["descriptions"] = names
    axes = "XYZ" if depth == "Z" else "XY"
    steps = [scene.steps.get(axis, 0.0) for axis in axes]
    if all(steps):
        kept["ome"] = dict(zip(SIZES, steps, strict=False)) | dict.fromkeys(
            SIZE_UNITS[: len(steps)], "µm"
        )
    if depth == "T":
        kept["depth"] = "t"
        if scene.seconds > 0:
            kept["seconds"] = scene.seconds
        steps.append(scene.seconds or 1.0)
    affine: Affine | None = None
    if all(steps):
        affine = as_affine(np.diag(steps), np.zeros(len(steps)))
    return Geometry(affine, NAME, kept)
