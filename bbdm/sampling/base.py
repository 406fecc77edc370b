"""What a call of any sampler does: solvers, seeds, sources, checks, padding, batches, progress.

:class:`bbdm.BridgeSampler` and :class:`bbdm.runtime.OnnxBridgeSampler` differ in their arrays and in how they
run a batch. All else is here, and needs neither PyTorch nor ONNX Runtime.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base.recent import Recent
from bbdm.base.seeds import resolve_seeds
from bbdm.networks.endpoint import in_channels
from bbdm.pictures import images
from bbdm.pictures.kind import EIGHT_BIT_PICTURES, PictureKind
from bbdm.pictures.values import ValuesLike, as_values
from bbdm.sampling import sources
from bbdm.sampling.batch import Batch, SolverPlan
from bbdm.sampling.sources import UNIT, ArrayBackend, Range, Scale
from bbdm.sampling.step import Callback, Step
from bbdm.solvers import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

PLANS_KEPT = 4  # solvers with their times: tables, and what a network computes of the time alone
Seed = int | Sequence[int] | None
Timesteps = str | Iterable[float] | None
Advance = Callable[[int], Any]  # reports a number of network calls as done
Picture = Image.Image | str | os.PathLike[str]


class CallSettings(TypedDict, total=False):
    """The arguments of a call besides its source and seed."""

    noise: Any
    batch_size: int | None
    progress: bool
    solver: str | None
    steps: int | None
    timesteps: Timesteps
    range: Range
    source_values: ValuesLike
    target_values: ValuesLike
    mask: Any
    conditions: Mapping[str, Any] | None
    callback: Callback | None


Array = TypeVar("Array")
AnyPlan = TypeVar("AnyPlan", bound=SolverPlan)


class BaseSampler(ABC, Generic[Array, AnyPlan]):
    """A sampler that calls a network on batches of ``Array``; a subclass says what that is and runs a batch.

    Public attributes cannot be set, except ``image_size`` and ``pictures``.

    Args:
        solver: the solver of calls that give none.
        steps: the number of steps of calls that give none.
        timesteps: the times of calls that give none.
        source_channels: the channels of sources.
        image_channels: the channels of results.
        channels: the channels of the bridge's space.
        endpoint: the source channel for each channel of a result; see
            :attr:`bbdm.networks.base.Network.endpoint_channels`.
        images: the channels of further condition images by name.
        stride: the height and width of pictures are padded to multiples of it.
        latent_stride: pixels of a picture along one of the bridge's space.
        batch: the only number of images that the network takes, or None.
        fill: repeat the last image where a batch is short, so that all batches have one size.
    """

    backend: ArrayBackend
    image_size: images.Size | None = None  # of training pictures
    pictures: PictureKind = EIGHT_BIT_PICTURES
    _fixed = False  # whether public attributes refuse to be set

    def __init__(
        self,
        solver: str | None,
        steps: int | None,
        timesteps: Timesteps,
        *,
        source_channels: int,
        image_channels: int,
        channels: int,
        endpoint: Sequence[int] | None,
        images: Mapping[str, int],
        stride: int,
        latent_stride: int,
        batch: int | None,
        fill: bool,
    ) -> None:
        self._source_channels = source_channels
        self._image_channels = image_channels
        self._channels = channels
        self._endpoint = endpoint
        self._images = dict(sorted(images.items()))
        self._stride = stride
        self._latent_stride = latent_stride
        self._batch = batch
        self._fill = fill
        self._thread = threading.local()
        self._settings = solver, steps, _hashable(timesteps)
        self._replan()

    def __setattr__(self, name: str, value: Any) -> None:
        if self._fixed and not name.startswith("_") and name not in ("image_size", "pictures"):
            raise AttributeError(f"{name} cannot be set: give solver and steps to a call, or build another sampler")
        super().__setattr__(name, value)

    def _replan(self) -> None:
        """Plan anew for the sampler's own settings, forget all other plans, and fix the attributes."""
        self._plans = Recent(self._make_plan, PLANS_KEPT)
        self._own = self._make_plan(*self._settings)
        self._fixed = True

    def _plan(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> AnyPlan:
        """The plan of a call's arguments; what the call leaves out is the sampler's own."""
        if solver is steps is timesteps is None:
            return self._own
        own_solver, own_steps, own_timesteps = self._settings
        if steps is None and timesteps is None:
            steps, timesteps = own_steps, own_timesteps
        key = solver or own_solver, steps, _hashable(timesteps)
        return self._own if key == self._settings else self._plans.get(key, *key)

    @property
    def table(self) -> StepTable:
        """The steps of calls that give no solver, steps or timesteps."""
        return self._own.table

    @property
    def solver(self) -> str:
        """The solver of calls that give none."""
        return self._own.solver

    @property
    def last_seeds(self) -> tuple[int, ...]:
        """The seed of each image in this thread's last call, drawn or given. Empty before the first call."""
        return getattr(self._thread, "seeds", ())

    @overload
    def __call__(self, source: Array, seed: Seed = None, **settings: Unpack[CallSettings]) -> Array: ...
    @overload
    def __call__(
        self, source: Picture | list[Any], seed: Seed = None, **settings: Unpack[CallSettings]
    ) -> list[Any]: ...
    @overload
    def __call__(
        self, source: npt.NDArray[Any], seed: Seed = None, **settings: Unpack[CallSettings]
    ) -> npt.NDArray[Any]: ...
    def __call__(
        self,
        source: Any,
        seed: Seed = None,
        noise: Array | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        *,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
        range: Range = UNIT,
        source_values: ValuesLike = None,
        target_values: ValuesLike = None,
        mask: Any = None,
        conditions: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
    ) -> Any:
        """Translate images.

        Args:
            source: a (B, C, H, W) batch of floats; a NumPy array, (H, W) or (H, W, C), of uint8 or of floats
                in ``range``; a picture; a path; or a list of these, mixed, of any sizes, in which tensors are
                (C, H, W). It has the source's channels, which may be others than the result's. A file of a
                volume is translated by its slices, which share a seed.
            seed: image i gets the seed ``seed + i``, or one each from a list. The same seed gives the same
                image at every batch size. None draws one; see ``last_seeds``.
            noise: (K, B, C, H, W) standard normals in place of a seed, on the grid that the network sees.
            batch_size: the largest number of images at once; None for all. A compiled sampler repeats the
                last image where fewer are left, so calls with one ``batch_size`` compile once for each size
                of picture.
            progress: show on standard error how many network calls are done.
            solver: for this call; None for the sampler's own.
            steps: for this call; each is one network call. None for the sampler's own. Tables of the last few
                solvers and steps are kept.
            timesteps: the times of this call, in place of ``steps``.
            range: of floats in arrays and tensors, such as (0, 1); results have it too.
            source_values: the :class:`~bbdm.pictures.values.Values` of sources, or text such as ``0:4095``.
                Then arrays and tensors hold such values. None for those of training, which files have.
            target_values: the values of results, in place of those of training.
            mask: where the target is made, for inpainting; elsewhere the source stays, in the target's
                channels where it has others. A picture, a path, an (H, W) array, white or 1 where it is made,
                or (B, 1, H, W) floats in [0, 1]. The images have one size.
            conditions: the further images that the network sees, by name: tensors or arrays (B, C, H, W) in
                [-1, 1], or (1, C, H, W) for all, of the source's size. The images have one size.
            callback: called with each :class:`Step` of each batch.

        Returns:
            Each result has the type of its source, its floats clamped to ``range``. A path gives a picture:
            Pillow's where the network knows 8 bits, else a :class:`~bbdm.pictures.picture.Picture`, an array
            (C, H, W) of the target's values with the source's geometry. A single picture or path gives a list
            of one.

        Raises:
            FileNotFoundError: a path leads to no file.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        self._check_batch_size(batch_size)
        plan = self._plan(solver, steps, timesteps)
        scale = self._scale(range, source_values, target_values)
        given, batches = self._batches(plan, source, seed, noise, scale, mask, conditions)
        batches = [b for whole in batches for b in whole.split(self._batch or batch_size, self._fill)]
        made: list[tuple[list[int], Any]] = []
        with self._progress_of(plan, batches, progress) as advance:
            for batch in batches:
                count, (height, width) = len(batch.indices), batch.source.shape[2:]
                result: Any = self._run(plan, batch, advance, callback)
                result = result[:count, :, :height, :width].clip(-1, 1)
                if batch.mask is not None:  # also what a codec lost
                    made_there, y = batch.mask[:count], self._ended(batch.source[:count])
                    result = made_there * result + (1 - made_there) * y
                made.append((batch.indices, result))
        return given.restore(made)

    def stream(
        self,
        source: Any,
        seed: Seed = None,
        noise: Array | None = None,
        progress: bool = False,
        *,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
        range: Range = UNIT,
        mask: Any = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> Iterator[Step]:
        """The same translation one step at a time, for progress and previews; arguments as for a call.

        The sources have one size. The last step's ``x`` is what a call returns, before it is clamped to
        [-1, 1]. With a codec, steps are latents, of which :meth:`Step.preview` makes pictures.
        """
        plan = self._plan(solver, steps, timesteps)
        _, batches = self._batches(plan, source, seed, noise, self._scale(range, None, None), mask, conditions)
        if len(batches) > 1:
            raise ValueError("stream needs sources of one size, got several")
        if self._batch not in (None, len(batches[0].indices)):
            raise ValueError(f"source must hold {self._batch} images for this network, got {len(batches[0].indices)}")
        return self._stream(plan, batches[0], progress)

    def _stream(self, plan: AnyPlan, batch: Batch, progress: bool) -> Iterator[Step]:
        with self._progress_of(plan, [batch], progress) as advance:
            for index, state in enumerate(self._states(plan, batch)):
                yield self._step(plan, index, state, batch)
                advance(1)

    def _scale(self, range: Range, source_values: ValuesLike, target_values: ValuesLike) -> Scale:
        """What the values of a call are."""
        source, target = as_values(source_values), as_values(target_values)
        kind = replace(self.pictures, source=source or self.pictures.source, target=target or self.pictures.target)
        return Scale(sources.check_range(range), kind, given=not source is target is None)

    def _batches(
        self,
        plan: AnyPlan,
        source: Any,
        seed: Seed,
        noise: Any,
        scale: Scale,
        mask: Any,
        conditions: Mapping[str, Any] | None,
    ) -> tuple[sources.Given, list[Batch]]:
        """What a call is given, and its images as one batch for each size, all checked."""
        given = sources.given(source, self.backend, self._source_channels, scale)
        for name, value in {"noise": noise, "mask": mask, "conditions": conditions if self._images else None}.items():
            if value is not None and len(given.groups) > 1:
                raise ValueError(f"{name} needs pictures of one size, got several")
        first = given.groups[0][1]
        if noise is not None:
            self._check_noise(plan, noise, first.shape)
        if mask is not None:
            mask = sources.read_mask(mask, self.backend, first)
        seen = sources.read_conditions(conditions, self._images, self.backend, first)
        seeds = resolve_seeds(seed, given.owners[-1] + 1)
        self._thread.seeds = tuple(seeds)
        own = [seeds[owner] for owner in given.owners]
        return given, [Batch(i, array, [own[k] for k in i], noise, mask, seen) for i, array in given.groups]

    def _ended(self, source: Any) -> Any:
        """Pictures of sources in the target's channels."""
        return in_channels(source, self._image_channels, self._endpoint, self.backend.concatenate)

    def _step(self, plan: AnyPlan, index: int, state: tuple[Any, Any], batch: Batch) -> Step:
        """A step in memory of its own, without padding and repeated images."""
        height, width = batch.source.shape[2:]
        crop = (slice(height), slice(width)) if self._latent_stride == 1 else ()
        x, x0hat = (self._copied(array)[(slice(len(batch.indices)), slice(None), *crop)] for array in state)

        def pictures(estimate: Any) -> list[Image.Image]:
            made = self.backend.to_numpy(self._decoded(estimate))
            return [images.from_array(image[:, :height, :width]) for image in made]

        return Step(index, plan.times[index], x, x0hat, batch.indices, pictures)

    def _run(self, plan: AnyPlan, batch: Batch, advance: Advance, callback: Callback | None) -> Array:
        """The padded result of a batch, like its source; reports network calls."""
        state: Any = None
        for index, state in enumerate(self._states(plan, batch)):
            if callback is not None:
                callback(self._step(plan, index, state, batch))
            advance(1)
        return self._decoded(state[0])

    @contextmanager
    def _progress_of(self, plan: AnyPlan, batches: list[Batch], progress: bool) -> Iterator[Advance]:
        """Prepare for batches, then show the progress of their network calls."""
        for shape in sorted({tuple(batch.source.shape) for batch in batches}):
            if self.image_size is not None and self.pictures.crop is None:
                images.warn_of_scale(self.image_size, *shape[2:])
            self._prepare(plan, shape, progress)
        if progress:
            with self._progress(len(batches) * len(plan.times)) as advance:
                yield advance
        else:
            yield lambda _: None

    def _check_batch_size(self, batch_size: int | None) -> None:
        if batch_size is not None and batch_size < (self._batch or 1):
            which = f"{self._batch}, which the network takes alone" if self._batch else "1"
            raise ValueError(f"batch_size must be at least {which}, got {batch_size}")

    def _check_noise(self, plan: AnyPlan, noise: Any, shape: Sequence[int]) -> None:
        """Raise ValueError unless noise is finite normals for a source of a shape."""
        if not isinstance(noise, self.backend.type):
            raise ValueError(f"noise must be {self.backend.noun}, got {type(noise).__name__}")
        wanted = (len(plan.times), *self._grid(shape[0], shape[2], shape[3]))
        if tuple(noise.shape) != wanted:
            raise ValueError(f"noise must have shape {wanted}, got {tuple(noise.shape)}")
        if not np.isfinite(float(abs(noise).max())):
            raise ValueError("noise must be finite, got NaN or infinity")

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """The size of pictures after padding."""
        return height + -height % self._stride, width + -width % self._stride

    def _grid(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the bridge's space for pictures of a size."""
        height, width = (side // self._latent_stride for side in self._padded(height, width))
        return batch, self._channels, height, width

    @abstractmethod
    def _make_plan(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> AnyPlan:
        """The plan of a solver; see :func:`bbdm.solvers.build`."""

    @abstractmethod
    def _progress(self, total: int) -> AbstractContextManager[Advance]:
        """A display of a number of network calls, and the function that advances it."""

    def _prepare(self, plan: AnyPlan, shape: tuple[int, ...], progress: bool) -> None:
        """Do what is due once for sources of a shape, such as compiling."""

    @abstractmethod
    def _states(self, plan: AnyPlan, batch: Batch) -> Iterator[tuple[Any, Any]]:
        """State and estimate after each step, padded, which the next step may overwrite."""

    @abstractmethod
    def _copied(self, state: Any) -> Any:
        """A state or an estimate as an array of its own."""

    @abstractmethod
    def _decoded(self, state: Any) -> Array:
        """The pictures of a state, a copied state or an estimate, about [-1, 1]."""


def _hashable(timesteps: Timesteps) -> str | tuple[float, ...] | None:
    return tuple(timesteps) if isinstance(timesteps, Iterable) and not isinstance(timesteps, str) else timesteps
