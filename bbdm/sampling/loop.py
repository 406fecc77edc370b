"""The loop over a step table, and what its two backends say: PyTorch and NumPy with ONNX Runtime.

Each step is one call of the network and one row of the table. Windows and guidance are around the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bbdm.networks.arrays import as_numpy, concatenated, converted, copied, in_channels, padded
from bbdm.networks.conditions import SOURCE
from bbdm.networks.windows import WindowGrid
from bbdm.pictures import images
from bbdm.sampling.batch import Batch, Inputs, Shapes
from bbdm.sampling.options import Timesteps
from bbdm.sampling.step import Callback, Step
from bbdm.solvers import AnySolver, StepTable

Advance = Callable[[int], Any]  # reports a number of network calls as done


@dataclass(frozen=True, eq=False)
class Plan:
    """A solver with its table, ready to run."""

    solver: str
    table: StepTable
    times: list[float]  # that the network is called at
    loaded: Any  # the table as the backend's steps take it


@dataclass
class State:
    """The state of a run after a step, which the next step may overwrite; padded."""

    x: Any
    x0hat: Any  # the estimate of the target
    inputs: Any  # what the network is shown next


class Loop(ABC):
    """The loop over a step table. A backend says what an array is, how the network is called, and a step."""

    array: type[Any]  # of the sampler's arrays
    noun: str  # of one of them, for messages
    _shapes: Shapes
    _first = 0  # the step that a run begins with
    _inference: Callable[[], AbstractContextManager[Any]] = nullcontext  # in which no gradients are recorded
    _graphs: Any = None  # runs that were captured; see :meth:`_replayed`

    # What a backend says.

    @abstractmethod
    def _table(self, solver: AnySolver | None, steps: int | None, timesteps: Timesteps) -> tuple[str, StepTable]:
        """The name and the table of a solver; see :func:`bbdm.solvers.build`."""

    @abstractmethod
    def _load(self, table: StepTable) -> Any:
        """A table as :meth:`_start` and :meth:`_step` take it."""

    @abstractmethod
    def _array(self, array: Any) -> Any:
        """An array of a call on the device, in the dtype of the state."""

    @abstractmethod
    def _seeds(self, seeds: Sequence[int]) -> Any:
        """Seeds as a step takes them."""

    @abstractmethod
    def _encode(self, source: Any) -> Any:
        """Padded sources (B, C, H, W) in the space of the bridge."""

    @abstractmethod
    def _decode(self, state: Any) -> Any:
        """The pictures of a state or an estimate, about [-1, 1], as an array."""

    @abstractmethod
    def _prepared(self, conditions: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
        """Conditions as :meth:`_network` takes them, for states of a size: what they alone decide."""

    @abstractmethod
    def _network(self, plan: Plan, x: Any, index: int, conditions: Mapping[str, Any]) -> Any:
        """The prediction of a step."""

    @abstractmethod
    def _start(self, plan: Plan, inputs: Inputs) -> State:
        """The first state: see :meth:`_step`."""

    @abstractmethod
    def _step(self, plan: Plan, inputs: Inputs, state: State, prediction: Any, index: int) -> None:
        """One row of the table, which moves the state; -1 is the one that makes the first state."""

    def _replayed(self, plan: Plan, batch: Batch, inputs: Inputs) -> Any:
        """The last state of a run that was captured; of backends that have ``_graphs``."""
        raise NotImplementedError

    def _blended(self, x: Any) -> Any:
        """Zeros, in which predictions of windows of x are added up; None for memory of its own."""
        return None

    def _note(self, batches: Sequence[Batch]) -> str:
        """What takes long before the first step of batches, for people; else nothing."""
        return ""

    def _put(self, array: Any) -> Any:
        """An array as the network takes it."""
        return array

    def _get(self, value: Any) -> Any:
        """What the network takes or returns as an array of at least 32 bits."""
        return value

    # What all backends share.

    def _inputs(self, batch: Batch) -> Inputs:
        """A batch on the device, in the space of the bridge."""
        shapes = self._shapes
        size = shapes.padded(batch.size)
        source = self._encode(padded(self._array(batch.source), size))
        y = in_channels(source, shapes.channels, shapes.endpoint)
        values = {SOURCE: source} if shapes.shown else {}
        each = shapes.conditions.each if batch.conditions else {}
        for name, value in batch.conditions.items():
            values[name] = padded(self._array(value), size) if each[name].spatial else self._array(value)
        variants = () if batch.guidance is None else batch.guidance.variants
        conditions = [
            values,
            *({k: each[k].none(v) if k in names else v for k, v in values.items()} for names, _ in variants),
        ]
        prepared = [self._prepared(each, y.shape[2:]) for each in conditions]
        noise = None if batch.noise is None else self._array(batch.noise)
        mask = None if batch.mask is None else self._grid_mask(padded(self._array(batch.mask), size, edge=False))
        return Inputs(y, prepared, self._seeds(batch.seeds), noise, mask)

    def _grid_mask(self, mask: Any) -> Any:
        """A mask on the grid that the network sees: of a latent, whatever it covers is made."""
        cell = self._shapes.cell
        for axis in range(2, mask.ndim) if cell > 1 else ():
            parts = mask.reshape(*mask.shape[:axis], -1, cell, *mask.shape[axis + 1 :])
            mask = parts.max(axis + 1) if isinstance(parts, np.ndarray) else parts.amax(axis + 1)
        return mask

    def _states(self, plan: Plan, batch: Batch, inputs: Inputs, advance: Advance) -> Iterator[State]:
        """The loop: each step is one call of the network and one row of the table."""
        predict = self._predictor(plan, batch, inputs, advance)
        state = self._start(plan, inputs)
        for index in range(self._first, len(plan.times)):
            self._step(plan, inputs, state, predict(state.inputs, index), index)
            if batch.windows is None:
                advance(1)
            yield state

    def _predictor(self, plan: Plan, batch: Batch, inputs: Inputs, advance: Advance) -> Callable[[Any, int], Any]:
        """The network with a batch's conditions, on windows and guided where the batch is."""
        windows, guidance, evaluations = batch.windows, batch.guidance, inputs.conditions
        if windows is guidance is None:
            conditions = {name: self._put(value) for name, value in evaluations[0].items()}
            return lambda x, index: self._network(plan, x, index, conditions)

        def network(x: Any, index: int, conditions: Mapping[str, Any]) -> Any:
            others = {name: self._put(value) for name, value in conditions.items()}
            prediction = self._get(self._network(plan, self._put(x), index, others))
            if windows is not None:
                advance(1)
            return prediction

        def windowed(x: Any, index: int, conditions: Mapping[str, Any]) -> Any:
            assert windows is not None
            return windows.predict(network, x, index, conditions, self._weights(windows, x.shape[2:]), self._blended(x))

        called = network if windows is None else windowed
        guides = batch.guides(plan.times)
        if guidance is not None and (windows is not None or self._shapes.only is None):  # one batch
            together = [{k: concatenated([each[k] for each in evaluations]) for k in evaluations[0]}]
        else:
            together = evaluations

        def predict(x: Any, index: int) -> Any:
            x = self._get(x)
            if guidance is None or not guides[index]:
                return called(x, index, evaluations[0])
            return guidance.predict(called, x, index, together)

        return predict

    def _weights(self, windows: WindowGrid, size: Sequence[int]) -> list[Any]:
        """The weights of windows of a state, as predictions are."""
        return [self._array(each) for each in windows.weights(size)]

    def _translate(
        self,
        plan: Plan,
        batch: Batch,
        advance: Advance,
        inputs: Inputs | None = None,
        callback: Callback | None = None,
    ) -> Any:
        """The results of a batch in [-1, 1], in its source's type, without padding and repeated images."""
        count, state = len(batch.indices), None
        with self._inference():
            inputs = inputs or self._inputs(batch)
            if self._graphs is not None and callback is inputs.noise is inputs.mask is None:
                x = self._replayed(plan, batch, inputs)
                advance(self._calls(plan, batch))
            else:
                for index, state in enumerate(self._states(plan, batch, inputs, advance)):
                    if callback is not None:
                        callback(self._shown(plan, index, state, batch))
                assert state is not None
                x = state.x
            result = converted(self._decode(x), batch.source)
        result = result[(slice(count), ..., *map(slice, batch.size))].clip(-1, 1)
        if batch.mask is not None:  # also what a codec lost
            shapes = self._shapes
            y = in_channels(batch.source[:count], shapes.image_channels, shapes.endpoint)
            result = batch.mask[:count] * result + (1 - batch.mask[:count]) * y
        return result

    def _shown(self, plan: Plan, index: int, state: State, batch: Batch) -> Step:
        """A step in memory of its own, without padding and repeated images."""
        crop = [slice(side) for side in batch.size]
        kept = (slice(len(batch.indices)), ..., *(crop if self._shapes.cell == 1 else ()))
        x, x0hat = (copied(self._get(array)[kept]) for array in (state.x, state.x0hat))

        def pictures(estimate: Any) -> list[Image.Image]:
            return [images.preview(image[(..., *crop)]) for image in as_numpy(self._decode(estimate))]

        return Step(index, plan.times[index], x, x0hat, batch.indices, pictures)

    def _calls(self, plan: Plan, batch: Batch) -> int:
        """The network calls of all steps of a batch."""
        if batch.windows is None:
            return len(plan.times)
        evaluations = 1 if batch.guidance is None else batch.guidance.evaluations
        count, size = len(batch.source), self._shapes.grid(batch.size)
        return sum(batch.windows.calls(count * (evaluations if each else 1), size) for each in batch.guides(plan.times))
