"""One large picture on a cluster, cut into bands of rows: each step of a band is a call of a worker.

A call gets the state before the step in the rows that its windows see: the band's own and its halo, which are
the nearest rows of its neighbours. They are objects in Ray's store, cut at the edges of halos; the driver has
references to them. So each step is one of the whole picture, as in the call of one machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from bbdm.base.scripts import StoppedError
from bbdm.networks.windows import Spans
from bbdm.pictures import formats
from bbdm.pictures.lazy import Geometry, LazyPicture, Window
from bbdm.sampling.bands import Bands
from bbdm.sampling.sampler import BridgeSampler
from bbdm.serving.config import ClusterConfig
from bbdm.serving.rows import SourceRows
from bbdm.serving.workers import MOST_FRUITLESS, Call, Workers, load_sampler, what_was_lost

BAND = 16  # rows of windows of a band, where there are enough: those that reach into the next are computed twice
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PictureTask:
    """What each worker needs to know: the network, the picture and its seed."""

    config: ClusterConfig
    sha256: str  # of the network's file
    path: Path
    seed: int

    def opened(self, sampler: BridgeSampler) -> tuple[SourceRows, Bands]:
        """The picture, and its steps.

        Raises:
            ValueError: the picture cannot be read, or the network cannot translate it by bands.
        """
        config = self.config
        if config.guides:
            raise ValueError("a picture that several machines make together cannot be guided")
        source = SourceRows(formats.open(self.path), sampler.pictures, sampler.unet.source_channels)
        return source, sampler.bands(source.size, self.seed, batch_size=config.batch_size, **config.windows)


class Layout:
    """Where a picture is cut.

    Args:
        bands: the steps of the picture.
        workers: their number, of which that of bands is a multiple where windows suffice.

    Attributes: ``steps``, their number; ``rows``, those of each band; ``seen``, the rows of the state that
    each reads; ``cuts``, where the state is cut into objects.
    """

    def __init__(self, bands: Bands, workers: int) -> None:
        starts = bands.first_rows
        count = min(len(starts), workers * max(1, len(starts) // (BAND * workers)))
        firsts = [starts[i * len(starts) // count] for i in range(count)]
        self.steps = bands.steps
        self.rows = [slice(start, stop) for start, stop in pairwise([*firsts, bands.size[0]])]
        self.seen = [bands.seen(rows) for rows in self.rows]
        self.cuts = sorted({place for rows in (*self.rows, *self.seen) for place in (rows.start, rows.stop)})

    def objects(self, rows: slice) -> slice:
        """The objects of some rows, among those of the state."""
        return slice(bisect_left(self.cuts, rows.start), bisect_left(self.cuts, rows.stop))


def translate_bands(layout: Layout, workers: Workers, advance: Callable[[], Any] = lambda: None) -> list[Any]:
    """References to the results of all bands, stored values (C, rows, W).

    ``advance`` is called after each call of a worker.
    """
    x: list[Any] = [None] * (len(layout.cuts) - 1)
    x0hat: list[Any] = [None] * len(layout.rows)
    for index in range(layout.steps):
        calls: dict[int, Call] = {}
        for band, (rows, seen) in enumerate(zip(layout.rows, layout.seen, strict=True)):
            places = layout.objects(rows)
            cuts = layout.cuts[places.start : places.stop + 1]
            state = [*x[layout.objects(seen)], x0hat[band]] if index else []
            returned = len(cuts) if index < layout.steps - 1 else 1
            calls[band] = Call((index, rows, cuts, *state), returned + 1)
        x, x0hat = x.copy(), x0hat.copy()  # those before the step are kept until it is complete
        for band, made, _ in workers.run("step", calls):
            *x[layout.objects(layout.rows[band])], x0hat[band] = made
            advance()
    return x0hat


class BandedResult(LazyPicture):
    """A result whose bands are objects elsewhere.

    Args:
        path: the file that it becomes.
        geometry: that of the result.
        rows: those of each band.
        made: the references of the bands' results.
        get: returns the stored values (C, rows, W) of a reference.
    """

    windowed = True

    def __init__(
        self, path: Path, geometry: Geometry, rows: Sequence[slice], made: Sequence[Any], get: Callable[[Any], Array]
    ) -> None:
        self.path, self.geometry, self.nodata = path, geometry, geometry.kept.get("nodata")
        self._rows, self._made, self._get = rows, made, get
        first, last = get(made[0]), get(made[-1])
        self.shape = (len(first), rows[-1].start + last.shape[1], first.shape[2])
        self.dtype = first.dtype

    def __getitem__(self, window: Window) -> Array:
        down, across = window
        parts: list[Array] = []
        for rows, made in zip(self._rows, self._made, strict=True):
            if rows.start < down.stop and rows.stop > down.start:
                parts.append(self._get(made)[:, max(down.start - rows.start, 0) : down.stop - rows.start, across])
        return np.concatenate(parts, axis=1)


def make_picture(task: PictureTask, bands: Bands, path: Path, geometry: Geometry, progress: bool) -> None:
    """Make and write the result of a picture. Ray is connected.

    A lost worker's bands are sent to others. If objects of the step before were lost too, or all workers, the
    picture is started again.

    Raises:
        StoppedError: the picture cannot be read, or machines were lost too often.
    """
    import ray
    from ray.exceptions import RayError

    lost = ""
    for _ in range(MOST_FRUITLESS):
        try:
            with closing(Workers(BandWorker, task, task.config)) as workers:
                layout = Layout(bands, workers.count)
                with tqdm(total=layout.steps * len(layout.rows), unit="band", disable=not progress) as bar:
                    made = translate_bands(layout, workers, bar.update)
                return formats.write_rows(path, BandedResult(path, geometry, layout.rows, made, ray.get))
        except RayError as error:
            lost = what_was_lost(error)
    raise StoppedError(f"the cluster lost the picture {MOST_FRUITLESS} times: {lost}")


class BandWorker:
    """A sampler in a process of its own, which makes steps of bands."""

    def __init__(self, task: PictureTask) -> None:
        self.task = task

    @cached_property
    def _opened(self) -> tuple[SourceRows, Bands]:
        return self.task.opened(load_sampler(self.task.config, self.task.sha256))

    @torch.inference_mode()
    def step(self, index: int, rows: slice, cuts: Sequence[int], *state: Array) -> list[Array | None]:
        """Make a step of a band.

        Args:
            index: of the step, from 0.
            rows: those of the band.
            cuts: where the new state is cut, from the first row to the last.
            state: x before the step, one after the other in the rows that the windows see, and the estimate
                of the target in the band's rows; nothing before the first step.

        Returns:
            x after the step, in objects, the estimate, and None. Of the last step: the result, and None.

        Raises:
            ValueError: the picture cannot be read, or the network is not the driver's.
        """
        source, bands = self._opened
        seen = bands.seen(rows)
        held = {"source": (seen.start, source.scaled(seen, (bands.size[0], bands.size[1])))}

        def read(name: str, place: Spans) -> torch.Tensor:
            down, across = place
            top, array = held[name]
            return array[:, :, down.start - top : down.stop - top, across]

        if index == 0:
            x, x0hat = bands.start(seen, read)
            held |= {"x": (seen.start, x), "x0hat": (seen.start, x0hat)}
        else:
            *parts, x0hat = state
            held |= {"x": (seen.start, torch.from_numpy(np.concatenate(parts, axis=2)))}
            held |= {"x0hat": (rows.start, torch.tensor(x0hat))}
        made = [(x.cpu(), x0hat.cpu()) for _, x, x0hat in bands.step(index, rows, read)]
        x, x0hat = (torch.cat(parts, dim=2).numpy() for parts in zip(*made, strict=True))
        if index == bands.steps - 1:
            return [source.stored(x[0], rows), None]
        return [*(x[:, :, start - cuts[0] : stop - cuts[0]].copy() for start, stop in pairwise(cuts)), x0hat, None]
