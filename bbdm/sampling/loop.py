"""The loop over a step table: each step is one call of the network and one row of the table.

A backend says what an array is, how the network is called, and a step: PyTorch, NumPy with ONNX Runtime, and
files. Windows and guidance are around the network. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from bbdm.networks.arrays import as_numpy, concatenated, converted, copied, in_channels, padded
from bbdm.networks.conditions import SOURCE, ConditionsConfig, Guidance
from bbdm.networks.windows import WindowGrid
from bbdm.pictures import images
from bbdm.solvers import StepTable

Callback = Callable[["Step"], Any] | None


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a network takes. Of volumes, here and below, (height, width) is (depth, height, width)."""

    source_channels: int
    image_channels: int  # of results
    channels: int  # of the bridge's space
    endpoint: Sequence[int] | None  # the source channel of each channel; see Network.endpoint_channels
    conditions: ConditionsConfig  # besides the source
    shown: bool  # whether the network sees the source
    stride: tuple[int, ...]  # of each axis; the sides of pictures are padded to multiples of it
    cell: int = 1  # pixels of a picture along one value of the bridge's space
    only: int | None = None  # the only number of pictures or windows at once that it takes, all of one size
    fill: bool = False  # repeat the last image where a batch is short, so that all batches have one size

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
    loaded: tuple[Any, ...]  # the table as the backend takes it; see its ``_load``


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size, and how they are translated."""

    plan: Plan
    indices: list[int]  # of the call's images; a batch that is filled up has more images than these
    source: Any  # (B, C, H, W) in [-1, 1]
    seeds: list[int]
    noise: Any = None  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W), 1 where the target is made, or None
    conditions: Mapping[str, Any] = field(default_factory=dict)  # besides the source, a row for each image
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
        return [self.take(*part) for part in parts([*range(total)], count, fill)]


def parts(items: list[Any], size: int, fill: bool) -> list[tuple[list[Any], int]]:
    """Items in lists of a size, each with its number; ``fill`` repeats the last one where a list is short."""
    cut = [items[start : start + size] for start in range(0, len(items), size)]
    return [(part + part[-1:] * (size - len(part) if fill else 0), len(part)) for part in cut]


@dataclass(eq=False)
class Inputs:
    """What a batch is in the space of the bridge, padded, as the sampler's arrays."""

    y: Any  # (B, C, H, W) the source in the target's channels
    conditions: list[dict[str, Any]]  # all that the network sees, and what it sees in each further evaluation
    seeds: Any  # of each image
    noise: Any = None  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W) or None
    weights: Sequence[Any] = ()  # of the windows of each side, if any

    def take(self, rows: list[int], seeds: Any) -> Inputs:
        """Those of some images, with other seeds."""
        conditions = [{name: value[rows] for name, value in each.items()} for each in self.conditions]
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, y=self.y[rows], conditions=conditions, seeds=seeds, mask=mask)


@dataclass
class State:
    """The state of a run after a step, which the next step may overwrite; padded."""

    x: Any
    x0hat: Any  # the estimate of the target
    inputs: Any  # what the network is shown next


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


def check_prediction(prediction: Any, x: Any) -> None:
    """Raise ValueError unless what a network returned of x is floats of its shape."""
    if prediction.shape != x.shape or "float" not in str(prediction.dtype):
        shape, expected = (tuple(each.shape) for each in (prediction, x))
        raise ValueError(
            f"the network must return floats of the state's shape {expected}, got {prediction.dtype} of {shape}"
        )


class Loop:
    """The loop over a step table. A backend says what an array is, how the network is called, and a step."""

    array: type[Any]  # of the sampler's arrays
    noun: str  # of one of them, for messages
    _shapes: Shapes
    _like: Any  # an array on the device in the dtype of the state
    _inference: Callable[[], AbstractContextManager[Any]] = nullcontext  # in which no gradients are recorded
    _prepare: Callable[[Any, Sequence[int]], dict[str, Any]] | None = None  # :meth:`bbdm.Network.prepared`, if any
    _load: Callable[[StepTable], tuple[Any, ...]]  # a table as the next two take it
    _net: Callable[[Plan, Mapping[str, Any], Any, int], Any]  # the prediction of a step, of conditions and inputs
    _step: Callable[[Plan, Inputs, State | None, Any, int], State]  # of a prediction; of None the first state
    _encode: Callable[[Any], Any]  # padded sources (B, C, H, W) in the space of the bridge
    _decode: Callable[[Any], Any]  # the pictures of a state or an estimate, about [-1, 1], as an array
    _put: Callable[[Any], Any] = staticmethod(lambda array: array)  # an array as the network takes it
    _get: Callable[[Any], Any] = staticmethod(lambda value: value)  # what it takes or returns, of at least 32 bits
    _copy: Callable[[Any], Any] = staticmethod(copied)  # an array for the caller, in memory of its own
    _sum: Callable[[Any], Any] = staticmethod(lambda x: None)  # zeros to add up predictions of windows of x in, if any

    def _array(self, array: Any) -> Any:
        """An array of a call on the device, floats in the dtype of the state."""
        return converted(array, self._like, "float" in str(array.dtype))

    def _inputs(self, batch: Batch) -> Inputs:
        """A batch on the device, in the space of the bridge."""
        shapes, known = self._shapes, self._shapes.conditions.each if batch.conditions else {}
        size = shapes.padded(batch.size)
        source = self._encode(padded(converted(batch.source, self._like), size))
        y = in_channels(source, shapes.channels, shapes.endpoint)
        values = {SOURCE: source} if shapes.shown else {}
        for name, value in batch.conditions.items():
            array = self._array(value)
            values[name] = padded(array, size) if known[name].spatial else array
        evaluations = [values]
        for names, _ in () if batch.guidance is None else batch.guidance.variants:
            evaluations.append({k: known[k].none(v) if k in names else v for k, v in values.items()})
        if self._prepare is not None:
            evaluations = [self._prepare(each, y.shape[2:]) for each in evaluations]
        noise, mask, weights = None if batch.noise is None else self._array(batch.noise), batch.mask, ()
        if mask is not None:
            mask = padded(self._array(mask), size, edge=False)
            for axis in range(2, mask.ndim) if shapes.cell > 1 else ():  # of a latent, whatever it covers is made
                cells = mask.reshape(*mask.shape[:axis], -1, shapes.cell, *mask.shape[axis + 1 :])
                mask = cells.max(axis + 1) if isinstance(cells, np.ndarray) else cells.amax(axis + 1)
        if batch.windows is not None:
            weights = [self._array(each) for each in batch.windows.weights(y.shape[2:])]
        return Inputs(y, evaluations, converted(np.array(batch.seeds), self._like, dtype=False), noise, mask, weights)

    def _states(self, batch: Batch, inputs: Inputs, state: State | None = None, first: int = 0) -> Iterator[State]:
        """The loop, from the state before a step on."""
        plan, network = batch.plan, self._network(batch, inputs)
        state = state or self._step(plan, inputs, None, None, -1)
        for index in range(first, len(plan.times)):
            state = self._step(plan, inputs, state, network(state.inputs, index), index)
            yield state

    def _network(self, batch: Batch, inputs: Inputs) -> Callable[[Any, int], Any]:
        """The network with a batch's conditions, on windows and guided where the batch is."""
        plan, windows, guidance, evaluations = batch.plan, batch.windows, batch.guidance, inputs.conditions
        if windows is guidance is None:
            return partial(self._net, plan, {name: self._put(value) for name, value in evaluations[0].items()})

        def net(x: Any, index: int, conditions: Mapping[str, Any]) -> Any:
            others = {name: self._put(value) for name, value in conditions.items()}
            return self._get(self._net(plan, others, self._put(x), index))

        def called(x: Any, index: int, conditions: Mapping[str, Any]) -> Any:
            if windows is None:
                return net(x, index, conditions)
            return windows.predict(net, x, index, conditions, inputs.weights, self._sum(x))

        if guidance is None:
            return lambda x, index: called(self._get(x), index, evaluations[0])
        if windows is not None or self._shapes.only is None:  # one batch
            evaluations = [{k: concatenated([each[k] for each in evaluations]) for k in evaluations[0]}]
        return lambda x, index: guidance.predict(called, self._get(x), index, evaluations)

    def _last(self, batch: Batch, inputs: Inputs, callback: Callback) -> Any:
        """The state after all steps."""
        state = None
        for index, state in enumerate(self._states(batch, inputs)):
            if callback is not None:
                callback(self._shown(batch, index, state))
        assert state is not None
        return state.x

    def _translate(self, batch: Batch, callback: Callback = None, inputs: Inputs | None = None) -> Any:
        """The results of a batch in [-1, 1], in its source's type, without padding and repeated images."""
        count, shapes = len(batch.indices), self._shapes
        with self._inference():
            x = self._last(batch, inputs or self._inputs(batch), callback)
            result = converted(self._decode(x), batch.source)
        result = result[(slice(count), ..., *map(slice, batch.size))].clip(-1, 1)
        if batch.mask is not None:  # also what a codec lost
            y = in_channels(batch.source[:count], shapes.image_channels, shapes.endpoint)
            result = batch.mask[:count] * result + (1 - batch.mask[:count]) * y
        return result

    def _steps(self, batch: Batch, callback: Callback) -> Iterator[Step]:
        """The steps of a batch, one at a time."""
        with self._inference():
            states = self._states(batch, self._inputs(batch))
        for index, _ in enumerate(batch.plan.times):
            with self._inference():
                step = self._shown(batch, index, next(states))
            if callback is not None:
                callback(step)
            yield step

    def _shown(self, batch: Batch, index: int, state: State) -> Step:
        """A step in memory of its own, without padding and repeated images."""
        crop = [slice(side) for side in batch.size]
        kept = (slice(len(batch.indices)), ..., *(crop if self._shapes.cell == 1 else ()))
        x, x0hat = (self._copy(self._get(array)[kept]) for array in (state.x, state.x0hat))

        def pictures(estimate: Any) -> list[Image.Image]:
            return [images.from_array(image[(..., *crop)]) for image in as_numpy(self._decode(estimate))]

        return Step(index, batch.plan.times[index], x, x0hat, batch.indices, pictures)
