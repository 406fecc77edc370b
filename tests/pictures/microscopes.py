"""Files of microscopes: CZI that Zeiss' own library writes, and a stand-in for what bioio's plugins read."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array
import numpy as np
import pytest
from bioio_base import constants, dimensions, types
from bioio_base.reader import Reader
from pylibCZIrw import czi
from xarray import DataArray

SIZE = 65e-9  # metres of a pixel that a CZI says


def random(shape: Sequence[int], kind: str = "uint16", seed: int = 0) -> np.ndarray[Any, Any]:
    """Integers that fill their type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, tuple(shape), dtype=kind)


def write_czi(
    path: Path, scenes: Sequence[np.ndarray[Any, Any]], names: Sequence[str] = ()
) -> None:
    """Write a CZI of scenes (T, C, Z, H, W), or with 3 samples at the end, that lie side by side."""
    with czi.create_czi(str(path)) as file:
        left = 0
        for scene, array in enumerate(scenes):
            samples = array if array.ndim == 6 else array[..., None]
            for time, channel, plane in np.ndindex(*samples.shape[:3]):
                index = {"T": time, "C": channel, "Z": plane}
                file.write(
                    samples[time, channel, plane], plane=index, scene=scene, location=(left, 0)
                )
            left += samples.shape[4] + 10
        if names:
            names_by_number = dict(enumerate(names))
            file.write_metadata(
                "a", channel_names=names_by_number, scale_x=SIZE, scale_y=SIZE, scale_z=4 * SIZE
            )


def own_values(path: Path, scene: int, channels: int) -> np.ndarray[Any, Any]:
    """(C, H, W) of a scene, or (H, W, 3) of colours, as the library that writes CZI reads them."""
    with czi.open_czi(str(path)) as file:
        planes = [file.read(scene=scene, plane={"C": channel}) for channel in range(channels)]
    return planes[0] if planes[0].shape[-1] == 3 else np.stack(planes)[..., 0]


class StandIn(Reader):
    """What a plugin of bioio provides: scenes of numbers (T, C, Z, Y, X), a chunk for each plane.

    ``SCENES`` are its arrays; ``computed`` counts the planes that were decoded.
    """

    SCENES: Sequence[Any] = ()
    computed: int = 0

    def __init__(self, image: Any, **settings: Any) -> None:
        self._path = str(image)

    @staticmethod
    def _is_supported_image(fs: Any, path: str, **settings: Any) -> bool:
        return True

    @property
    def scenes(self) -> tuple[str, ...]:
        return tuple(f"position {number}" for number in range(len(self.SCENES)))

    def _array(self) -> DataArray:
        stored = self.SCENES[self.current_scene_index]
        kind = type(self)

        def plane(block_info: Any = None) -> Any:
            kind.computed += 1
            times, channels, depths = (part[0] for part in block_info[None]["array-location"][:3])
            return np.asarray(stored[times, channels, depths])[None, None, None]

        chunks = [
            *((1,) * length for length in stored.shape[:3]),
            *((length,) for length in stored.shape[3:]),
        ]
        values = dask.array.map_blocks(plane, chunks=tuple(chunks), meta=stored[:0, :0, :0, :0, :0])
        names = [f"dye {number}" for number in range(stored.shape[1])]
        attributes = {constants.METADATA_UNPROCESSED: None}
        return DataArray(values, dims=list("TCZYX"), coords={"C": names}, attrs=attributes)

    def _read_delayed(self) -> DataArray:
        return self._array()

    def _read_immediate(self) -> DataArray:
        return self._array().compute()

    @property
    def physical_pixel_sizes(self) -> types.PhysicalPixelSizes:
        return types.PhysicalPixelSizes(Z=2.0, Y=0.5, X=0.25)

    @property
    def time_interval(self) -> timedelta:
        return timedelta(seconds=30)


class Boundless(StandIn):
    """A file that says more pixels than it can have; making an array of them fails."""

    @property
    def dims(self) -> dimensions.Dimensions:
        return dimensions.Dimensions("TCZYX", (2**30, 1, 1, 2**20, 2**20))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("uint16")

    def _read_delayed(self) -> DataArray:
        raise AssertionError("its values were asked for")


def stand_in(
    monkeypatch: pytest.MonkeyPatch, plugin: str, scenes: Sequence[Any], kind: Any = StandIn
) -> Any:
    """Let a plugin of bioio read all of its files as these scenes."""
    reader = type("Reader", (kind,), {"SCENES": scenes, "computed": 0})
    monkeypatch.setitem(__import__("sys").modules, plugin, SimpleNamespace(Reader=reader))
    return reader
