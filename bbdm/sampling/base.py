"""What a call of any sampler does: solvers, seeds, sources, checks, padding, batches, progress.

:class:`bbdm.BridgeSampler` and :class:`bbdm.runtime.OnnxBridgeSampler` differ in their arrays and in how they
run a batch. All else is here, and needs neither PyTorch nor ONNX Runtime.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import numpy.typing as npt
from PIL import Image

from bbdm.data.spec import Spec
from bbdm.networks.endpoint import in_channels
from bbdm.networks.guidance import GuidanceSettings, Prior
from bbdm.networks.windows import Windowing
from bbdm.pictures import images
from bbdm.pictures.values import ValuesLike
from bbdm.sampling import call, sources
from bbdm.sampling.batch import Batch
from bbdm.sampling.call import Picture, Progress, Seed, Timesteps
from bbdm.sampling.distribution import Distribution, draw
from bbdm.sampling.engine import Advance, Array, Engine
from bbdm.sampling.plans import AnyPlan, Plans
from bbdm.sampling.scale import UNIT, Range
from bbdm.sampling.shapes import Shapes, Window
from bbdm.sampling.step import Callback, Step
from bbdm.solvers import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bbdm.files.content import Origin
    from bbdm.sampling.call import CallSettings


class BaseSampler(Engine[Array, AnyPlan]):
    """A sampler that calls a network on batches of ``Array``; a subclass says what that is and runs a batch.

    Public attributes cannot be set, except ``image_size``, ``pictures`` and ``origin``.

    Args:
        solver: the solver of calls that give none.
        steps: the number of steps of calls that give none.
        timesteps: the times of calls that give none.
        shapes: what the network takes.
    """

    image_size: images.Size | None = None  # of training pictures
    pictures: Spec = Spec()
    origin: Origin | None = None  # of the network's weights; None where they came from no checkpoint
    _fixed = False  # whether public attributes refuse to be set

    def __init__(self, solver: str | None, steps: int | None, timesteps: Timesteps, shapes: Shapes) -> None:
        self._shapes = shapes
        self._thread = threading.local()
        self._plans = Plans(self._make_plan, solver, steps, timesteps)
        self._fixed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self._fixed and not name.startswith("_") and name not in ("image_size", "pictures", "origin"):
            raise AttributeError(f"{name} cannot be set: give solver and steps to a call, or build another sampler")
        super().__setattr__(name, value)

    def _replan(self) -> None:
        """Plan anew for the sampler's own settings, forget all other plans, and fix the attributes."""
        self._plans = Plans(self._make_plan, *self._plans.settings)
        self._fixed = True

    @property
    def _own(self) -> AnyPlan:
        """The plan of calls that give no solver, steps or timesteps."""
        return self._plans.own

    @property
    def table(self) -> StepTable:
        """The steps of calls that give no solver, steps or timesteps."""
        return self._own.table

    @property
    def solver(self) -> str:
        """The solver of calls that give none."""
        return self._own.solver

    @property
    def axes(self) -> int:
        """The spatial axes of what is translated: 2 of pictures, 3 of volumes."""
        return self._shapes.axes

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
        progress: Progress = False,
        *,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
        range: Range = UNIT,
        source_values: ValuesLike = None,
        target_values: ValuesLike = None,
        mask: Any = None,
        conditions: Mapping[str, Any] | None = None,
        window: Window = "auto",
        overlap: float = 0.25,
        margin: int = 0,
        callback: Callback | None = None,
        guidance: float | Mapping[str, float] | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_prior: Prior | str | None = None,
        **named: Any,
    ) -> Any:
        """Translate images.

        Args:
            source: a (B, C, H, W) batch of floats; a NumPy array, (H, W) or (H, W, C), of uint8 or of floats
                in ``range``; a picture; a path; or a list of these, mixed, of any sizes, in which tensors are
                (C, H, W). It has the source's channels, which may be others than the result's. A file of a
                volume is translated by its slices, which share a seed. Where the network has three axes, H, W
                is D, H, W here and below; a NumPy array is (D, H, W) or (C, D, H, W).
            seed: image i gets the seed ``seed + i``, or one each from a list. The same seed gives the same
                image at every batch size. None draws one; see ``last_seeds``.
            noise: (K, B, C, H, W) standard normals in place of a seed, on the grid that the network sees.
            batch_size: the largest number of images at once; None for all. With windows, also that of windows
                in a network call, where None is 16; together they have at most 2^20 pixels. A compiled
                sampler repeats the last image where fewer are left, so calls with one ``batch_size`` compile
                once for each size of picture.
            progress: show on standard error how many network calls are done; or a function that is called
                with their number and that of all, after each.
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
            conditions: what the network is told besides, by name. Images: tensors or arrays (B, C, H, W) in
                [-1, 1], or (1, C, H, W) for all, resized to the sources' size, of which there is one. A
                class: its name or number for all, or a list with one for each source. Tokens: (L, D) for all,
                or (B, L, D), or a list of (L, D) of any lengths. None leaves out a condition that training
                left out at times.
            window: the side or (height, width) of windows that the network is called on, where a picture is
                larger: a multiple of the network's stride. Each step is one of the whole picture, made of the
                predictions of all windows. None calls the network on whole pictures. ``"auto"`` takes the
                size of training crops, where the network was trained on crops; else None.
            overlap: of neighbouring windows at least, as a share of a window, above 0 and at most 0.9.
            margin: pixels at the edges of windows inside the picture whose predictions count for nothing.
                With the reach of a network that knows no statistics of the picture, such as attention or
                GroupNorm, the result is that of whole pictures.
            callback: called with each :class:`Step` of each batch.
            guidance: how far predictions go from those without conditions (0) past those with them (1), or
                so for each condition by name. The network was trained to be without them at times. A step
                evaluates one image more for each, in one batch.
            guidance_rescale: share of the way back to the standard deviation of predictions that are not
                guided, in [0, 1].
            guidance_interval: the steps that are guided, by their times as shares of the first one's: 1 is at
                the source, 0 at the target.
            guidance_prior: a :class:`~bbdm.networks.guidance.Prior`, or text such as ``blur:1:1.5``: guidance
                of any network away from what it makes of a corrupted state.
            named: conditions by their names, such as ``style="comic"``.

        Returns:
            Each result has the type of its source, its floats clamped to ``range``. A path gives a picture:
            Pillow's where the network knows 8 bits, else a :class:`~bbdm.pictures.picture.Picture`, an array
            (C, H, W) of the target's values with the source's geometry. A single picture or path gives a list
            of one.

        Raises:
            FileNotFoundError: a path leads to no file.
            TypeError: an argument is neither one of these nor a condition of the network.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        self._shapes.check_batch_size(batch_size)
        plan = self._plans.of(solver, steps, timesteps)
        guided: GuidanceSettings = {
            "guidance": guidance,
            "guidance_rescale": guidance_rescale,
            "guidance_interval": guidance_interval,
            "guidance_prior": guidance_prior,
        }
        values = range, source_values, target_values
        given, whole = self._batches(plan, source, seed, noise, values, mask, conditions, {**guided, **named})
        batches: list[Batch] = []
        for each in whole:
            windows = self.windowing(window, overlap, margin, batch_size, each.source.shape[2:])
            if windows is None:
                batches += each.split(self._shapes.batch or batch_size, self._shapes.fill)
            else:
                batches += each._replace(windows=windows).split(batch_size, fill=False)
        made: list[tuple[list[int], Any]] = []
        with self._progress_of(plan, batches, progress) as advance:
            for batch in batches:
                made.append((batch.indices, self._made(plan, batch, advance, callback)))
        return given.restore(made)

    def distribution(
        self,
        source: Any,
        samples: int = 16,
        seed: int | Sequence[Sequence[int]] | None = None,
        *,
        keep: bool = True,
        **settings: Unpack[CallSettings],
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
            settings: the arguments of a call but ``noise`` and ``callback``. ``batch_size`` is the largest
                number of results at once; None for 16, or fewer that have 2^20 pixels together.

        Raises:
            FileNotFoundError: a path leads to no file.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        if settings.keys() & {"noise", "callback"}:
            raise ValueError("a distribution takes neither noise nor callback: its samples are those of seeds")
        return draw(self, source, samples, seed, keep, **settings)  # pyright: ignore[reportCallIssue]

    def _made(self, plan: AnyPlan, batch: Batch, advance: Advance, callback: Callback | None) -> Any:
        """The results of a batch in [-1, 1], without padding and repeated images."""
        count = len(batch.indices)
        result: Any = self._run(plan, batch, advance, callback)
        result = result[(slice(count), ..., *map(slice, batch.source.shape[2:]))].clip(-1, 1)
        if batch.mask is not None:  # also what a codec lost
            made_there, y = batch.mask[:count], self._ended(batch.source[:count])
            result = made_there * result + (1 - made_there) * y
        return result

    def stream(
        self,
        source: Any,
        seed: Seed = None,
        noise: Array | None = None,
        progress: Progress = False,
        *,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
        range: Range = UNIT,
        mask: Any = None,
        conditions: Mapping[str, Any] | None = None,
        window: Window = "auto",
        overlap: float = 0.25,
        margin: int = 0,
        **others: Any,
    ) -> Iterator[Step]:
        """The same translation one step at a time, for progress and previews; arguments as for a call.

        The sources have one size. The last step's ``x`` is what a call returns, before it is clamped to
        [-1, 1]. With a codec, steps are latents, of which :meth:`Step.preview` makes pictures.
        """
        plan = self._plans.of(solver, steps, timesteps)
        values = range, None, None
        _, batches = self._batches(plan, source, seed, noise, values, mask, conditions, others)
        if len(batches) > 1:
            raise ValueError("stream needs sources of one size, got several")
        windows = self.windowing(window, overlap, margin, None, batches[0].source.shape[2:])
        batch, only = batches[0]._replace(windows=windows), self._shapes.batch
        if windows is None and only not in (None, len(batch.indices)):
            raise ValueError(f"source must hold {only} images for this network, got {len(batch.indices)}")
        return self._stream(plan, batch, progress)

    def _stream(self, plan: AnyPlan, batch: Batch, progress: Progress) -> Iterator[Step]:
        with self._progress_of(plan, [batch], progress) as advance:
            for index, state in enumerate(self._states(plan, batch, advance)):
                yield self._step(plan, index, state, batch)

    def _batches(
        self,
        plan: AnyPlan,
        source: Any,
        seed: Seed,
        noise: Any,
        values: tuple[Range, ValuesLike, ValuesLike],
        mask: Any,
        conditions: Mapping[str, Any] | None,
        others: Mapping[str, Any],
    ) -> tuple[sources.Given, list[Batch]]:
        """What a call is given, and its images as one batch for each size; see :func:`call.read_call`."""
        scale = call.read_scale(self.pictures, self._shapes.axes, *values)
        kind = self._shapes, self.backend, len(plan.times), scale
        given, batches, self._thread.seeds = call.read_call(*kind, source, seed, noise, mask, conditions, others)
        return given, batches

    def windowing(
        self,
        window: Window = "auto",
        overlap: float = 0.25,
        margin: int = 0,
        batch_size: int | None = None,
        size: Sequence[int] | None = None,
    ) -> Windowing | None:
        """How a call cuts pictures of a size, or any that are larger than a window; None where it does not.

        ``size`` None is of pictures that are larger.

        Raises:
            ValueError: window, overlap or margin is out of range, or the network takes another size alone.
        """
        size = (sys.maxsize,) * self._shapes.axes if size is None else size
        return self._shapes.windows(size, window, overlap, margin, self.pictures.crop, batch_size)

    def _grid(self, batch: Batch) -> tuple[int, ...]:
        """The (height, width) of a batch's states."""
        count, _, *size = batch.source.shape
        return self._shapes.grid(count, *size)[2:]

    def _ended(self, source: Any) -> Any:
        """Pictures of sources in the target's channels."""
        return in_channels(source, self._shapes.image_channels, self._shapes.endpoint, self.backend.concatenate)

    def _step(self, plan: AnyPlan, index: int, state: tuple[Any, Any], batch: Batch) -> Step:
        """A step in memory of its own, without padding and repeated images."""
        crop = [slice(side) for side in batch.source.shape[2:]]
        kept = (slice(len(batch.indices)), ..., *(crop if self._shapes.latent_stride == 1 else ()))
        x, x0hat = (self._copied(array)[kept] for array in state)

        def pictures(estimate: Any) -> list[Image.Image]:
            made = self.backend.to_numpy(self._decoded(estimate))
            return [images.preview(image[(..., *crop)]) for image in made]

        return Step(index, plan.times[index], x, x0hat, batch.indices, pictures)

    def _run(self, plan: AnyPlan, batch: Batch, advance: Advance, callback: Callback | None) -> Array:
        """The padded result of a batch, like its source; reports network calls."""
        state: Any = None
        for index, state in enumerate(self._states(plan, batch, advance)):
            if callback is not None:
                callback(self._step(plan, index, state, batch))
        return self._decoded(state[0])

    @contextmanager
    def _progress_of(self, plan: AnyPlan, batches: list[Batch], progress: Progress) -> Iterator[Advance]:
        """Prepare for batches, then show the progress of their network calls."""
        for batch in {(*batch.source.shape, batch.windows, batch.guidance): batch for batch in batches}.values():
            if self.image_size is not None and self.pictures.crop is None and batch.windows is None:
                images.warn_of_scale(self.image_size, *batch.source.shape[2:])
            self._prepare(plan, batch, progress is True)
        total = sum(plan.calls(batch, self._grid(batch)) for batch in batches)
        if callable(progress):
            yield _counted(progress, total)
        elif progress:
            with self._progress(total) as advance:
                yield advance
        else:
            yield lambda _: None


def _counted(report: Callable[[int, int], Any], total: int) -> Advance:
    """Calls a function with how many of all calls are done."""
    done = 0

    def advance(calls: int) -> None:
        nonlocal done
        done += calls
        report(done, total)

    return advance
