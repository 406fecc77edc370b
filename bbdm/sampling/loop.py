"""The loop over a step table: each step is one call of the network and one row of the table.

What an array and a step are, a :class:`Backend` says: PyTorch, ONNX Runtime with NumPy, or files. Nothing
here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bbdm.networks.arrays import as_numpy, concatenated, converted, in_channels, padded
from bbdm.networks.conditions import SOURCE, ConditionsConfig
from bbdm.networks.guidance import Guidance
from bbdm.networks.windows import Predict, WindowGrid
from bbdm.pictures import images
from bbdm.solvers import StepTable

Callback = Callable[["Step"], Any] | None


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a network takes. Of volumes, here and below, (height, width) is (depth, height, width)."""

    source_channels: int
    image_channels: int  # of results
    channels: int  # of the bridge's space
    # the source channel of each channel; see Network.endpoint_channels
    endpoint: Sequence[int] | None
    conditions: ConditionsConfig  # besides the source
    shown: bool  # whether the network sees the source
    stride: tuple[int, ...]  # of each axis; the sides of pictures are padded to multiples of it
    cell: int = 1  # pixels of a picture along one value of the bridge's space
    # the only number of pictures or windows at once that it takes, all of one size
    only: int | None = None
    # repeat the last image where a batch is short, so that all batches have one size
    fill: bool = False

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of pictures after padding."""
        return tuple(side + -side % step for side, step in zip(size, self.stride, strict=True))

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of states for pictures of a size."""
        return tuple(side // self.cell for side in self.padded(size))


@dataclass(frozen=True, eq=False)
class Plan:
    """A solver with its table, ready to run."""

    solver: str
    table: StepTable
    times: list[float]  # that the network is called at
    loaded: Any  # the table as the backend takes it; see :meth:`Backend.load`


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size, and how they are translated."""

    plan: Plan
    indices: list[int]  # of the call's images; a batch that is filled up has more images than these
    source: Any  # (B, C, H, W) in [-1, 1]
    seeds: list[int]
    noise: Any = None  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W), 1 where the target is made, or None
    # besides the source, a row for each image
    conditions: Mapping[str, Any] = field(default_factory=dict)
    windows: WindowGrid | None = None  # None where the network sees whole images
    guidance: Guidance | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """The (height, width) of the images."""
        return tuple(self.source.shape[2:])

    def take(self, rows: list[int], count: int) -> Batch:
        """A batch of some rows, of which those after the first ``count`` only fill it up."""
        return replace(
            self,
            indices=[self.indices[i] for i in rows[:count]],
            source=self.source[rows],
            seeds=[self.seeds[i] for i in rows],
            noise=None if self.noise is None else self.noise[:, rows],
            mask=None if self.mask is None else self.mask[rows],
            conditions={name: value[rows] for name, value in self.conditions.items()},
        )

    def split(self, count: int | None, fill: bool) -> list[Batch]:
        """Batches of at most a number; with ``fill``, the last image is repeated where one is short."""
        total = len(self.indices)
        if count is None or count == total or (count > total and not fill):
            return [self]
        return [self.take(rows, kept) for rows, kept in parts([*range(total)], count, fill)]


def parts(items: list[Any], size: int, fill: bool) -> list[tuple[list[Any], int]]:
    """Items in lists of a size, each with its number; ``fill`` repeats the last one where a list is short."""
    lists: list[tuple[list[Any], int]] = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        count = len(part)
        if fill:
            part = part + part[-1:] * (size - count)
        lists.append((part, count))
    return lists


@dataclass(eq=False)
class Inputs:
    """What a batch is in the space of the bridge, padded, as the backend's arrays."""

    y: Any  # (B, C, H, W) the source in the target's channels
    # all that the network sees, one for each evaluation, or of all together
    conditions: list[dict[str, Any]]
    seeds: Any  # of each image
    noise: Any = None  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W) or None
    weights: Sequence[Any] = ()  # of the windows of each side, if any

    def take(self, rows: list[int], seeds: Any) -> Inputs:
        """Those of some images, with other seeds."""
        conditions: list[dict[str, Any]] = []
        for seen in self.conditions:
            taken: dict[str, Any] = {}
            for name, value in seen.items():  # of all evaluations, one after the other
                firsts = range(0, len(value), len(self.y))
                taken[name] = value[[first + row for first in firsts for row in rows]]
            conditions.append(taken)
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, y=self.y[rows], conditions=conditions, seeds=seeds, mask=mask)


@dataclass(eq=False)
class State:
    """The state of a run, padded; the next step may overwrite it."""

    x: Any
    x0hat: Any  # the estimate of the target
    inputs: Any  # what the network is shown next

    def clone(self) -> State:
        """The state, of tensors, in memory of its own."""
        return State(self.x.clone(), self.x0hat.clone(), self.inputs.clone())


@dataclass(eq=False)
class Run:
    """A batch on its way through the steps of its plan."""

    batch: Batch
    inputs: Inputs
    state: State
    recorded: Any = None  # what a backend replays for it, if anything


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a translation, in the space of the bridge. Without a codec, sizes are the source's."""

    index: int  # row of the table
    t: float  # the time of the row
    # (B, C, H, W) the state after the step, in the sampler's arrays; with a codec, a padded latent
    x: Any
    x0hat: Any  # the estimate of the target that the step was made with; shape and kind of x
    images: list[int]  # which of the call's images these are
    _pictures: Callable[[Any], list[Image.Image]] = field(repr=False)

    def preview(self) -> list[Image.Image]:
        """The estimates of the target as pictures, of the source's size."""
        return self._pictures(self.x0hat)


class Backend(Protocol):
    """What an array is, how the network is called, and what a step is."""

    array: type[Any]  # of the sampler's arrays
    noun: str  # of one of them, for messages
    like: Any  # an array on the device in the dtype of the state

    def load(self, table: StepTable) -> Any:
        """A table as steps take it."""
        ...

    @property
    def turn(self) -> Callable[[], AbstractContextManager[Any]]:
        """Where steps are done: without gradients, and one thread at a time where runs share memory."""
        ...

    def encode(self, source: Any) -> Any:
        """Padded sources (B, C, H, W) in the space of the bridge."""
        ...

    def decode(self, state: Any) -> Any:
        """The pictures of a state or an estimate, about [-1, 1], which later steps leave alone."""
        ...

    def prepare(self, conditions: Mapping[str, Any], sides: Sequence[int]) -> dict[str, Any]:
        """What conditions alone decide: see :meth:`bbdm.networks.base.Network.prepared`."""
        ...

    def begin(self, batch: Batch, inputs: Inputs) -> Run:
        """A run with its first state."""
        ...

    def step(self, run: Run, index: int) -> None:
        """Move the state by one call of the network and one row of the table."""
        ...

    def copy(self, array: Any) -> Any:
        """A state or an estimate of at least 32 bits, in memory of the caller's own."""
        ...


def predict(network: Predict, batch: Batch, inputs: Inputs, shown: Any) -> Any:
    """The prediction of a step, on windows and guided where the batch is.

    Where it is either, predictions are added up, and the network must return at least 32 bits.
    """

    def whole(x: Any, conditions: Mapping[str, Any]) -> Any:
        if batch.windows is None:
            return network(x, conditions)
        return batch.windows.predict(network, x, conditions, inputs.weights)

    if batch.guidance is None:
        return whole(shown, inputs.conditions[0])
    return batch.guidance.predict(whole, shown, inputs.conditions)


def wrong_prediction(prediction: Any, x: Any) -> ValueError:
    """What is said of a prediction that is not floats of the shape of x."""
    got = f"{prediction.dtype} of {tuple(prediction.shape)}"
    return ValueError(
        f"the network must return floats of the state's shape {tuple(x.shape)}, got {got}"
    )


class Loop:
    """The loop of a sampler.

    Args:
        backend: what runs a step.
        shapes: what the network takes.
    """

    def __init__(self, backend: Backend, shapes: Shapes) -> None:
        self.backend = backend
        self.shapes = shapes

    def translate(
        self, batch: Batch, callback: Callback = None, inputs: Inputs | None = None
    ) -> Any:
        """The results of a batch in [-1, 1], in its source's type, without padding and repeated images."""
        backend = self.backend
        pictures: Any = None
        with backend.turn():
            run = backend.begin(batch, inputs or self.inputs(batch))
            if callback is None:
                for index in range(len(batch.plan.times)):
                    backend.step(run, index)
                pictures = backend.decode(run.state.x)
        if callback is not None:
            for step in self._steps(run):
                callback(step)
            with backend.turn():
                pictures = backend.decode(run.state.x)
        crop = (slice(side) for side in batch.size)
        result = converted(pictures[(slice(len(batch.indices)), ..., *crop)], batch.source).clip(
            -1, 1
        )
        if batch.mask is not None:  # also what a codec lost
            mask = batch.mask[: len(result)]
            y = in_channels(
                batch.source[: len(result)], self.shapes.image_channels, self.shapes.endpoint
            )
            result = mask * result + (1 - mask) * y
        return result

    def stream(self, batch: Batch, callback: Callback) -> Iterator[Step]:
        """The steps of a batch, one at a time."""
        with self.backend.turn():
            run = self.backend.begin(batch, self.inputs(batch))
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
        seeds = converted(np.array(batch.seeds), self.backend.like, dtype=False)
        return Inputs(y, self._evaluations(batch, source, size), seeds, noise, mask, weights)

    def array(self, array: Any) -> Any:
        """An array of a call on the device, floats in the dtype of the state."""
        return converted(array, self.backend.like, "float" in str(array.dtype))

    def _evaluations(
        self, batch: Batch, source: Any, size: tuple[int, ...]
    ) -> list[dict[str, Any]]:
        """What the network sees besides the state, and what it sees for each variant of guidance.

        They are one batch, but where the network takes one number of pictures alone.
        """
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
        evaluations = [
            self.backend.prepare(evaluation, source.shape[2:]) for evaluation in evaluations
        ]
        if len(evaluations) == 1 or (self.shapes.only is not None and batch.windows is None):
            return evaluations
        together = {
            name: concatenated([evaluation[name] for evaluation in evaluations])
            for name in evaluations[0]
        }
        return [together]

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
