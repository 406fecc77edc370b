"""The sampler: reads sources, runs the loop over a step table, and gives each result its source's type.

:class:`bbdm.BridgeSampler` and :class:`bbdm.runtime.OnnxBridgeSampler` are its two backends. They say what an
array is, how the network is called, and how a step is done. All else is here, and needs neither PyTorch nor
ONNX Runtime.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm import solvers
from bbdm.base import sizes
from bbdm.base.caller import warn
from bbdm.base.recent import Recent
from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import Spec
from bbdm.networks.arrays import as_numpy, concatenated, converted, copied, padded
from bbdm.networks.conditions import SOURCE
from bbdm.networks.endpoint import in_channels
from bbdm.networks.guidance import read_guidance
from bbdm.networks.windows import WindowGrid, check_windows
from bbdm.pictures import images
from bbdm.sampling.batch import AT_ONCE, PIXELS_AT_ONCE, Batch, Inputs, Shapes
from bbdm.sampling.conditions import read_conditions
from bbdm.sampling.distribution import Distribution, draw
from bbdm.sampling.options import Options, Progress, Seed, Timesteps, WindowOptions
from bbdm.sampling.sources import Scale, Sources, read_mask, read_sources
from bbdm.sampling.step import Callback, Step
from bbdm.solvers import StepTable

if TYPE_CHECKING:
    from bbdm.files.content import Origin

KEPT = 4  # solvers with their times: tables, and what a network computes of the time alone
Array = TypeVar("Array")
Files = Image.Image | str | os.PathLike[str] | list[Any]
Advance = Callable[[int], Any]  # reports a number of network calls as done
SETTABLE = ("image_size", "pictures", "origin")


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


class Sampler(ABC, Generic[Array]):
    """Translates images, as ``Array``; a subclass says how the network is called and a step is done.

    Public attributes cannot be set, except ``image_size``, ``pictures`` and ``origin``.

    Args:
        shapes: what the network takes.
        calls: the network calls that the network was distilled for, if any.
        solver: the solver of calls that give none.
        steps: the number of steps of calls that give none.
        timesteps: the times of calls that give none.
    """

    array: type[Any]  # of the sampler's arrays
    noun: str  # of one of them, for messages
    image_size: images.Size | None = None  # of training pictures
    pictures: Spec = Spec()
    origin: Origin | None = None  # of the network's weights; None where they came from no checkpoint
    _fixed = False  # whether public attributes refuse to be set
    _first = 0  # the step that a run begins with
    _inference: Callable[[], AbstractContextManager[Any]] = nullcontext  # in which no gradients are recorded
    _graphs: Any = None  # runs that were captured; see :meth:`_replayed`

    def __init__(
        self, shapes: Shapes, calls: int | None, solver: str | None, steps: int | None, timesteps: Timesteps
    ) -> None:
        self.calls = calls
        self._shapes = shapes
        self._conditioned = bool(shapes.conditions.kinds)
        self._thread = threading.local()
        self._settings = Options(solver=solver, steps=steps, timesteps=timesteps)
        self._plans = Recent(self._make_plan, KEPT)
        self._own: Plan | None = None
        self._own = self._make_plan(solver, steps, self._settings.timesteps)
        self._fixed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self._fixed and not name.startswith("_") and name not in SETTABLE:
            raise AttributeError(f"{name} cannot be set: give solver and steps to a call, or build another sampler")
        super().__setattr__(name, value)

    # What a backend says.

    @abstractmethod
    def _table(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> tuple[str, StepTable]:
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

    def _put(self, array: Any) -> Any:
        """An array as the network takes it."""
        return array

    def _get(self, value: Any) -> Any:
        """What the network takes or returns as an array of at least 32 bits."""
        return value

    # What all backends share.

    @property
    def table(self) -> StepTable:
        """The steps of calls that give no solver, steps or timesteps."""
        return self._plan().table

    @property
    def solver(self) -> str:
        """The solver of calls that give none."""
        return self._plan().solver

    @property
    def axes(self) -> int:
        """The spatial axes of what is translated: 2 of pictures, 3 of volumes."""
        return len(self._shapes.stride)

    @property
    def last_seeds(self) -> tuple[int, ...]:
        """The seed of each source in this thread's last call. Empty before the first call."""
        return getattr(self._thread, "seeds", ())

    @overload
    def __call__(self, source: Array, seed: Seed = None, **options: Any) -> Array: ...
    @overload
    def __call__(self, source: npt.NDArray[Any], seed: Seed = None, **options: Any) -> npt.NDArray[Any]: ...
    @overload
    def __call__(self, source: Files, seed: Seed = None, **options: Any) -> list[Any]: ...
    def __call__(self, source: Any, seed: Seed = None, **options: Any) -> Any:
        """Translate images.

        Args:
            source: a (B, C, H, W) batch of floats; a NumPy array, (H, W) or (H, W, C), of uint8 or of floats
                in ``range``; a picture; a path; or a list of these, mixed, of any sizes, in which tensors are
                (C, H, W). It has the source's channels, which may be others than the result's. A file of a
                volume is translated by its slices, which share a seed. Where the network has three axes, H, W
                is D, H, W here and below; a NumPy array is (D, H, W) or (C, D, H, W).
            seed: source i gets the seed ``seed + i``, or one each from a list. The same seed gives the same
                image at every batch size. None draws one; see ``last_seeds``.
            options: those of :class:`~bbdm.sampling.options.Options`, such as ``steps=10`` or ``window=256``;
                others are conditions by their names, such as ``style="comic"``.

        Returns:
            Each result has the type of its source, its floats clamped to ``range``. A path gives a picture:
            Pillow's where the network knows 8 bits, else a :class:`~bbdm.pictures.picture.Picture`, an array
            (C, H, W) of the target's values with the source's geometry. A single picture or path gives a list
            of one.

        Raises:
            FileNotFoundError: a path leads to no file.
            TypeError: an argument is neither an option nor a condition of the network.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        o = Options.of(options, self._shapes.conditions)
        plan = self._plan(o)
        sources, batches = self._read(plan, source, seed, o)
        outputs: list[tuple[list[int], Any]] = []
        with self._progress(plan, batches, o.progress) as advance:
            for batch in batches:
                outputs.append((batch.indices, self._translate(plan, batch, advance, callback=o.callback)))
        return sources.restore(outputs)

    def stream(self, source: Any, seed: Seed = None, **options: Any) -> Iterator[Step]:
        """The same translation one step at a time, for progress and previews; arguments as for a call.

        Sources of several sizes, or of several batches, come one batch after the other: ``step.images`` says
        which. The last step's ``x`` is what a call returns, before it is clamped to [-1, 1]. With a codec,
        steps are latents, of which :meth:`Step.preview` makes pictures.
        """
        o = Options.of(options, self._shapes.conditions)
        plan = self._plan(o)
        _, batches = self._read(plan, source, seed, o)
        return self._stream(plan, batches, o)

    def _stream(self, plan: Plan, batches: list[Batch], o: Options) -> Iterator[Step]:
        with self._progress(plan, batches, o.progress) as advance:
            for batch in batches:
                with self._inference():
                    states = self._states(plan, batch, self._inputs(batch), advance)
                for index in range(len(plan.times)):
                    with self._inference():
                        step = self._shown(plan, index, next(states), batch)
                    if o.callback is not None:
                        o.callback(step)
                    yield step

    def distribution(
        self,
        source: Any,
        samples: int = 16,
        seed: int | Sequence[Sequence[int]] | None = None,
        *,
        keep: bool = True,
        **options: Any,
    ) -> Distribution:
        """Several results of each source: their mean, standard deviation and quantiles.

        A source is encoded once. Mean and standard deviation are computed while the samples are made, in the
        memory of one batch; quantiles need the samples themselves.

        Args:
            source: what a call takes.
            samples: results of each source, at least 2.
            seed: sample j of source i gets the seed ``seed + i + j * (number of sources)``, as the files of
                ``bbdm translate`` do; or the seeds themselves, a list of ``samples`` for each source. None
                draws one.
            keep: whether the samples stay in memory. :meth:`Distribution.quantile` needs them.
            options: those of a call but ``noise`` and ``callback``. ``batch_size`` is the largest number of
                results at once; None for 16, or fewer that have 2^20 pixels together.

        Raises:
            FileNotFoundError: a path leads to no file.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        if options.keys() & {"noise", "callback"}:
            raise ValueError("a distribution takes neither noise nor callback: its samples are those of seeds")
        return draw(self, source, samples, seed, keep, Options.of(options, self._shapes.conditions))

    def window_grid(
        self, options: WindowOptions, size: Sequence[int] | None = None, batch_size: int | None = None
    ) -> WindowGrid | None:
        """How a call cuts pictures of a size, or any that are larger than a window; None where it does not.

        Args:
            options: the windows of a call.
            size: the (height, width) of pictures; None of pictures that are larger than a window.
            batch_size: windows in a network call at most, which have no more than 2^20 pixels together; None
                for the network's number, or 16.

        Raises:
            ValueError: window or margin does not fit the network, or the network takes another size alone.
        """
        shapes = self._shapes
        window = self.pictures.crop if options.window == "auto" else options.window
        if window is None:
            return None
        lengths = check_windows(window, options.overlap, options.margin, shapes.stride)
        if lengths is None or (size and all(side <= length for side, length in zip(size, lengths, strict=True))):
            return None
        only = shapes.only
        if only is not None and only[1:] != lengths:
            raise ValueError(f"window must be {only[1:]}, which this network takes alone, got {window}")
        at_once = only[0] if only else min(batch_size or AT_ONCE, max(1, PIXELS_AT_ONCE // math.prod(lengths)))
        cells, unit = (tuple(side // shapes.cell for side in each) for each in (lengths, shapes.stride))
        return WindowGrid(cells, options.overlap, -(-options.margin // shapes.cell), unit, at_once, shapes.fill)

    def _plan(self, o: Options | None = None) -> Plan:
        """The plan of a call; what the call leaves out is the sampler's own."""
        assert self._own is not None
        if o is None or o.solver is o.steps is o.timesteps is None:
            return self._own
        solver, steps, timesteps, own = o.solver, o.steps, o.timesteps, self._settings
        if steps is timesteps is None and solver != "mean":  # which has one step, whatever others have
            steps, timesteps = own.steps, own.timesteps
        key: Any = solver or own.solver, steps, timesteps
        return self._own if key == (own.solver, own.steps, own.timesteps) else self._plans.get(key, *key)

    def _make_plan(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> Plan:
        name, table = self._table(solver, steps, timesteps)
        own = self._own
        if own is not None and name == own.solver and table.description() == own.table.description():
            return own
        solvers.check_calls(self.calls, name, table)
        return Plan(name, table, table.timesteps.tolist(), self._load(table))

    def _read(self, plan: Plan, source: Any, seed: Seed, o: Options, split: bool = True) -> tuple[Sources, list[Batch]]:
        """The images of a call, checked, and its batches: without ``split`` one a size, of seed 0."""
        shapes = self._shapes
        scale, guidance = Scale.of(o, self.pictures, len(shapes.stride)), None
        if o.guidance is not None:
            guidance = read_guidance(shapes.conditions, o.guidance, o.guidance_rescale, o.guidance_interval)
        for names, _ in guidance.variants if guidance is not None else ():
            if isinstance(o.conditions, Mapping) and all(o.conditions.get(name, 0) is None for name in names):
                warn(f"guidance has nothing to guide to: {', '.join(map(repr, names))} is None")
        sources = read_sources(source, self.array, self.noun, shapes.source_channels, scale)
        first, seeds = sources.groups[0][1], resolve_seeds(seed, sources.count) if split else [0] * sources.count
        single = {"noise": o.noise, "mask": o.mask, "conditions": o.conditions if shapes.conditions.images else None}
        for name, value in single.items():
            if value is not None and len(sources.groups) > 1:
                raise ValueError(f"{name} needs pictures of one size, got several")
        if o.noise is not None:
            self._check_noise(o.noise, (len(plan.times), len(first), shapes.channels, *shapes.grid(first.shape[2:])))
        mask = None if o.mask is None else read_mask(o.mask, self.array, self.noun, first)
        conditions: Mapping[str, Any] = {}
        if o.conditions is not None or self._conditioned:
            conditions = read_conditions(o.conditions, shapes.conditions, first, sources.owners)
        self._thread.seeds = tuple(seeds)
        batches: list[Batch] = []
        for indices, array in sources.groups:
            rows = {k: v if len(sources.groups) == 1 else v[indices] for k, v in conditions.items()}
            windows = self.window_grid(o, array.shape[2:], o.batch_size)
            own = [seeds[sources.owners[i]] for i in indices]
            batch = Batch(indices, array, own, o.noise, mask, rows, windows, guidance)
            only = shapes.only if windows is None else None
            if only is not None and shapes.padded(batch.size) != only[1:]:
                expected, got = sizes.shown(only[1:]), sizes.shown(batch.size)
                raise ValueError(f"this network takes pictures of {expected} only, got {got}: give window={only[1:]}")
            count = only[0] if only else o.batch_size
            batches += batch.split(count, shapes.fill and windows is None) if split else [batch]
        return sources, batches

    def _check_noise(self, noise: Any, expected: tuple[int, ...]) -> None:
        """Raise ValueError unless noise is finite normals of a shape."""
        if not isinstance(noise, self.array):
            raise ValueError(f"noise must be {self.noun}, got {type(noise).__name__}")
        if tuple(noise.shape) != expected:
            raise ValueError(f"noise must have shape {expected}, got {tuple(noise.shape)}")
        if not np.isfinite(float(abs(noise).max())):
            raise ValueError("noise must be finite, got NaN or infinity")

    def _inputs(self, batch: Batch) -> Inputs:
        """A batch on the device, in the space of the bridge."""
        shapes, none = self._shapes, self._shapes.conditions.none
        size = shapes.padded(batch.size)
        source = self._encode(padded(self._array(batch.source), size))
        y = in_channels(source, shapes.channels, shapes.endpoint, concatenated)
        values = {SOURCE: source} if shapes.shown else {}
        for name, value in batch.conditions.items():
            image = shapes.conditions.kinds[name] == "image"
            values[name] = padded(self._array(value), size) if image else self._array(value)
        variants = () if batch.guidance is None else batch.guidance.variants
        conditions = [
            values,
            *({k: none(k, v) if k in names else v for k, v in values.items()} for names, _ in variants),
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
        guides = [False] * len(plan.times) if guidance is None else guidance.guides(plan.times)
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
            y = in_channels(batch.source[:count], shapes.image_channels, shapes.endpoint, concatenated)
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
        guides = [False] * len(plan.times) if batch.guidance is None else batch.guidance.guides(plan.times)
        evaluations = 1 if batch.guidance is None else batch.guidance.evaluations
        count, size = len(batch.source), self._shapes.grid(batch.size)
        return sum(batch.windows.calls(count * (evaluations if each else 1), size) for each in guides)

    @contextmanager
    def _progress(self, plan: Plan, batches: Sequence[Batch], progress: Progress) -> Iterator[Advance]:
        """Warn of pictures of other sizes than those of training, and report the network calls of batches."""
        for batch in {batch.size: batch for batch in batches}.values():
            if self.image_size is not None and self.pictures.crop is None and batch.windows is None:
                images.warn_of_scale(self.image_size, *batch.size)
        if not progress:
            yield lambda _: None
            return
        done, total = 0, sum(self._calls(plan, batch) for batch in batches)

        def advance(calls: int) -> None:
            nonlocal done
            done += calls
            if callable(progress):
                progress(done, total)
            else:
                print(f"\rnetwork call {done} of {total}", end="", file=sys.stderr, flush=True)

        try:
            if not callable(progress):
                advance(0)
            yield advance
        finally:
            if not callable(progress):
                print(file=sys.stderr)
