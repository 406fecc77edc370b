"""LIF and ND2 of microscopes, by bioio and the plugin of each.

CZI has a module of its own: bioio-czi 3.0 overruns memory where scenes differ in size.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.base.atomic import stamp
from bbdm.pictures import formats, windows
from bbdm.pictures.formats import scenes
from bbdm.pictures.formats.parts import WHOLE, Part
from bbdm.pictures.formats.scenes import Scene
from bbdm.pictures.picture import Header

bioio: Any = optional.package("bioio", "a file of a microscope, which is read from Python 3.11 on,")
PLUGINS = {".lif": "bioio_lif", ".nd2": "bioio_nd2"}
UNNAMED = re.compile(r"Channel:[\d:]+")  # what bioio calls channels without a name
OPENED = 8  # scenes that are kept open

Array = npt.NDArray[Any]


def parts(path: Path) -> list[Part]:
    """The parts that are rows, see :func:`bbdm.pictures.formats.scenes.parts`."""
    image = _image(path)
    of_file: list[Scene] = []
    for number in range(len(image.scenes)):
        image.set_scene(number)
        of_file.append(_scene(image, path))
    return scenes.parts(of_file)


def header(path: Path, part: Part = WHOLE) -> Header:
    """The header of a part, see :func:`bbdm.pictures.formats.scenes.header`.

    Raises:
        ValueError: it is damaged, the part is not in it, or a scene or a time is to be chosen.
    """
    image = _image(path)
    number = scenes.chosen(path, part, len(image.scenes))
    image.set_scene(number)
    scene = _scene(image, path)
    names = tuple(map(str, image.channel_names or ()))
    if all(UNNAMED.fullmatch(name) for name in names):
        names = ()
    measured = image.physical_pixel_sizes
    steps = {axis: float(getattr(measured, axis) or 0) for axis in "XYZ"}
    interval = image.time_interval if scene.lengths["T"] > 1 else None
    seconds = 0.0 if interval is None else interval.total_seconds()
    head = scenes.header(
        path, part, number, replace(scene, names=names, steps=steps, seconds=seconds)
    )
    return replace(head, windowed=_is_windowed(image, head.stored.depth))


def read(header: Header, window: tuple[slice, ...]) -> Array:
    """(C, *W) of a window, of which only planes or tiles that it touches are decoded."""
    file, scene, time, depth, channel = header.stored
    image = _opened(file, scene, stamp(file))
    order = f"C{depth}YX"
    if "S" in image.dims.order:
        order = f"CS{depth}YX"
    selected: dict[str, Any] = {"T": time, "Z": 0}
    selected |= dict(zip(f"{depth}YX", window, strict=True))
    delayed = image.get_image_dask_data(order, **selected).reshape(-1, *windows.lengths(window))
    if channel is not None:
        delayed = delayed[channel : channel + 1]
    return np.array(delayed.compute(scheduler="synchronous"), header.dtype)


def _image(path: Path) -> Any:
    """A file, opened by its plugin.

    Raises:
        ModuleNotFoundError: the plugin is not installed.
    """
    suffix = formats.suffix_of(path)
    name = PLUGINS[suffix]
    try:
        plugin = optional.package(name, suffix)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        project = name.replace("_", "-")
        message = f"{suffix} needs the plugin {project} of bioio, which is not installed: pip install {project}"
        raise ModuleNotFoundError(message, name=name) from error
    return bioio.BioImage(path, reader=plugin.Reader)


@lru_cache(OPENED)
def _opened(path: Path, scene: int, stamped: str) -> Any:
    """A scene of a file as it was when it had a stamp."""
    image = _image(path)
    image.set_scene(scene)
    return image


def _scene(image: Any, path: Path) -> Scene:
    """The lengths and the type of the scene that is set."""
    dtype = np.dtype(image.dtype)
    scenes.check_size(path, image.reader.dims.shape, dtype)
    dims = image.dims
    lengths = dict(zip(dims.order, dims.shape, strict=True))
    lengths["C"] *= lengths.get("S", 1)
    return Scene(lengths, dtype)


def _is_windowed(image: Any, depth: str) -> bool:
    """Whether a window is read without all planes or tiles."""
    chunks = dict(zip(image.dims.order, image.dask_data.chunks, strict=True))
    return any(len(chunks[axis]) > 1 for axis in f"{depth}YX")
