"""The loop over a step table: each step is one call of the network and one row of the table.

What an array and a step are, a :class:`bbdm.sampling.backend.Backend` says. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from bbdm.networks.arrays import as_numpy, converted, in_channels, padded
from bbdm.networks.conditions import SOURCE
from bbdm.pictures import images
from bbdm.sampling.backend import Backend, Batch, Inputs, Run, Shapes

Callback = Callable[["Step"], Any] | None


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a translation, in the space of the bridge. Without a codec, sizes are the source's."""

    index: int  # row of the table
    t: float  # the time of the row
    x: Any  # (B, C, H, W) the state after the step, in the sampler's arrays; with a codec, a padded latent
    x0hat: Any  # the estimate of the target that the step was made with; shape and kind of x
    images: list[int]  # which of the call's images these are
    _pictures: Callable[[Any], list[Image.Image]] = field(repr=False)

    def preview(self) -> list[Image.Image]:
        """The estimates of the target as pictures, of the source's size."""
        return self._pictures(self.x0hat)


class Loop:
    """The loop of a sampler.

    Args:
        backend: what runs a step.
        shapes: what the network takes.
    """

    def __init__(self, backend: Backend, shapes: Shapes) -> None:
        self.backend = backend
        self.shapes = shapes

    def translate(self, batch: Batch, callback: Callback = None, inputs: Inputs | None = None) -> Any:
        """The results of a batch in [-1, 1], in its source's type, without padding and repeated images."""
        backend = self.backend
        if callback is None:
            with backend.turn():
                run = self.begin(batch, inputs or self.inputs(batch))
                for index in range(len(batch.plan.times)):
                    backend.step(run, index)
                result = self._result(run)
        else:
            with backend.turn():
                run = self.begin(batch, inputs or self.inputs(batch))
            for step in self._steps(run):
                callback(step)
            with backend.turn():
                result = self._result(run)
        result = converted(result, batch.source)
        if batch.mask is not None:  # also what a codec lost
            mask = batch.mask[: len(result)]
            y = in_channels(batch.source[: len(result)], self.shapes.image_channels, self.shapes.endpoint)
            result = mask * result + (1 - mask) * y
        return result

    def stream(self, batch: Batch, callback: Callback) -> Iterator[Step]:
        """The steps of a batch, one at a time."""
        with self.backend.turn():
            run = self.begin(batch, self.inputs(batch))
        for step in self._steps(run):
            if callback is not None:
                callback(step)
            yield step

    def inputs(self, batch: Batch) -> Inputs:
        """A batch on the device, in the space of the bridge."""
        size = self.shapes.padded(batch.size)
        source = self.backend.encode(padded(converted(batch.source, self.backend.like), size))
        y = in_channels(source, self.shapes.channels, self.shapes.endpoint)
        noise = None if batch.noise is None else self.array(batch.noise)
        mask = None if batch.mask is None else self._mask(batch.mask, size)
        weights: list[Any] = []
        if batch.windows is not None:
            weights = [self.array(side) for side in batch.windows.weights(y.shape[2:])]
        seeds = self.array(np.array(batch.seeds))
        return Inputs(y, self._evaluations(batch, source), seeds, noise, mask, weights)

    def array(self, array: Any) -> Any:
        """An array of a call on the device, floats in the dtype of the state."""
        return converted(array, self.backend.like, "float" in str(array.dtype))

    def begin(self, batch: Batch, inputs: Inputs) -> Run:
        """A run with its first state. What guidance compares is one batch where the network takes any."""
        if batch.windows is not None or self.shapes.only is None:
            inputs = inputs.together()
        return self.backend.begin(batch, inputs)

    def _evaluations(self, batch: Batch, source: Any) -> list[dict[str, Any]]:
        """What the network sees besides the state, and what it sees for each variant of guidance."""
        size = self.shapes.padded(batch.size)
        known = self.shapes.conditions.each
        seen: dict[str, Any] = {}
        if self.shapes.shown:
            seen[SOURCE] = source
        for name, value in batch.conditions.items():
            array = self.array(value)
            if known[name].spatial:
                array = padded(array, size)
            seen[name] = array
        evaluations = [seen]
        if batch.guidance is not None:
            for absent, _ in batch.guidance.variants:
                variant = dict(seen)
                for name in variant.keys() & {*absent}:
                    variant[name] = known[name].none(seen[name])
                evaluations.append(variant)
        return [self.backend.prepare(each, source.shape[2:]) for each in evaluations]

    def _mask(self, mask: Any, size: tuple[int, ...]) -> Any:
        """A mask on the grid of states; a value of a latent is made whatever of it the mask covers."""
        mask = padded(self.array(mask), size, edge=False)
        if self.shapes.cell == 1:
            return mask
        for axis in range(2, mask.ndim):
            cells = mask.reshape(*mask.shape[:axis], -1, self.shapes.cell, *mask.shape[axis + 1 :])
            mask = cells.max(axis + 1) if isinstance(cells, np.ndarray) else cells.amax(axis + 1)
        return mask

    def _steps(self, run: Run) -> Iterator[Step]:
        for index in range(len(run.batch.plan.times)):
            with self.backend.turn():
                self.backend.step(run, index)
                step = self._shown(run, index)
            yield step

    def _shown(self, run: Run, index: int) -> Step:
        """A step in memory of its own, without padding and repeated images."""
        batch = run.batch
        crop = [slice(side) for side in batch.size]
        kept: tuple[Any, ...] = (slice(len(batch.indices)), ...)
        if self.shapes.cell == 1:
            kept = (*kept, *crop)
        x = self.backend.copy(run.state.x[kept])
        x0hat = self.backend.copy(run.state.x0hat[kept])

        def pictures(estimate: Any) -> list[Image.Image]:
            with self.backend.turn():
                decoded = as_numpy(self.backend.decode(estimate))
            return [images.from_array(image[(..., *crop)]) for image in decoded]

        return Step(index, batch.plan.times[index], x, x0hat, batch.indices, pictures)

    def _result(self, run: Run) -> Any:
        """The pictures of a state in [-1, 1], without padding and repeated images."""
        pictures = self.backend.decode(run.state.x)
        crop = (slice(side) for side in run.batch.size)
        return self.backend.clamped(pictures[(slice(len(run.batch.indices)), ..., *crop)])
