"""The sampler: reads the sources of a call, runs the loop, and gives each result its source's type.

:class:`bbdm.BridgeSampler` and :class:`bbdm.runtime.OnnxBridgeSampler` are samplers, each with a
:class:`bbdm.sampling.loop.Backend`. Nothing here needs PyTorch or ONNX Runtime.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm import solvers
from bbdm.base.scripts import warn
from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import Spec
from bbdm.defaults import Defaults
from bbdm.networks.conditions import (
    DIRECTION,
    DIRECTIONS,
    Direction,
    read_conditions,
    read_direction,
)
from bbdm.networks.guidance import read_guidance
from bbdm.networks.windows import WindowGrid, check_windows
from bbdm.pictures import images
from bbdm.sampling.distribution import Distribution, sample_seeds
from bbdm.sampling.loop import Backend, Batch, Loop, Plan, Shapes, Step, parts
from bbdm.sampling.options import NO_OPTIONS, GuidanceOptions, Options, Seed
from bbdm.sampling.sources import Scale, Sources, check_noise, read_mask, read_sources
from bbdm.solvers import StepTable

if TYPE_CHECKING:
    from typing_extensions import Self

    from bbdm.bridges import Bridge
    from bbdm.data.trained import Origin

# solvers with their times, besides the sampler's own: tables, and what a network computes of times alone
KEPT = 4
# windows in a network call, or results of a distribution, where no batch_size is given
AT_ONCE = 16
PIXELS_AT_ONCE = 2**20  # of windows in a network call, but for one that is larger
Array = TypeVar("Array")
Files = Image.Image | str | os.PathLike[str] | list[Any]


@dataclass(frozen=True, eq=False)
class Call:
    """What a call asks for.

    Args:
        options: what the call's keywords say.
        sources: the images, and how results are made of them.
        groups: the images of each size.
        shapes: what the network takes.
    """

    options: Options
    sources: Sources
    groups: list[Batch]
    shapes: Shapes

    def batches(self) -> list[Batch]:
        """The groups in parts of as many images as the call asks for, or the network takes."""
        batches: list[Batch] = []
        for group in self.groups:
            if group.windows is not None:
                batches += group.split(self.options.batch_size, fill=False)
            else:
                batches += group.split(
                    self.shapes.only or self.options.batch_size, self.shapes.fill
                )
        return batches


class Sampler(Generic[Array]):
    """Translates images, as ``Array``.

    Args:
        backend: what runs the steps.
        bridge: what the network was trained on.
        shapes: what the network takes.
        choice: solver, steps and times of calls that give none.
        name: of the network, for ``repr``.

    Attributes: ``axes``, spatial, of what is translated: 2 of pictures, 3 of volumes; ``direction``, of calls
    that say none, where the network has two, else None; ``calls``, those that the network was distilled for.
    """

    image_size: images.Size | None = None  # of training pictures
    pictures: Spec = Spec()
    # of the network's weights; None where they came from no checkpoint
    origin: Origin | None = None

    def __init__(
        self, backend: Backend, bridge: Bridge, shapes: Shapes, choice: Defaults, name: str
    ) -> None:
        self.backend = backend
        self.bridge = bridge
        self.shapes = shapes
        self.calls = choice.calls
        self.axes = len(shapes.stride)
        self.direction: Direction | None = DIRECTIONS[0] if shapes.conditions.two_way else None
        self.loop = Loop(backend, shapes)
        self._choice = choice
        self._name = name
        self._own: dict[Direction | None, Plan] = {}  # of the choice, for each direction
        # the one used last at the end
        self._others: dict[tuple[Direction | None, Defaults], Plan] = {}
        self.plan()  # or it cannot be made

    def __repr__(self) -> str:
        """Network, bridge, solver and number of steps."""
        settings = f"solver={self.solver!r}, steps={len(self.table)}"
        return f"{type(self).__name__}({self._name}, {self.bridge!r}, {settings})"

    def towards(self, direction: Direction) -> Self:
        """The sampler of a direction of a network of two, as calls with ``direction`` take it.

        It shares the network, and has the ``bridge`` and the ``pictures`` of the direction.

        Raises:
            ValueError: it is no direction, or the network is of one.
        """
        if self.direction is None:
            raise ValueError(f"this network has one direction, got {direction!r}")
        direction = read_direction(direction)
        if direction == self.direction:
            return self
        other = copy(self)
        other.direction = direction
        other.bridge = self.bridge.turned
        other.pictures = self.pictures.turned
        return other

    @property
    def table(self) -> StepTable:
        """The steps of calls that give no solver, steps or timesteps."""
        return self.plan().table

    @property
    def solver(self) -> str:
        """The solver of calls that give none."""
        return self.plan().solver

    @overload
    def __call__(self, source: Array, seed: Seed = None, **options: Any) -> Array: ...
    @overload
    def __call__(
        self, source: npt.NDArray[Any], seed: Seed = None, **options: Any
    ) -> npt.NDArray[Any]: ...
    @overload
    def __call__(self, source: Files, seed: Seed = None, **options: Any) -> list[Any]: ...
    def __call__(self, source: Any, seed: Seed = None, **options: Any) -> Any:
        """Translate images.

        Args:
            source: a (B, C, H, W) batch of floats; a NumPy array, (H, W) or (H, W, C), of uint8 or of floats;
                a picture; a path; or a list of these, mixed, of any sizes, in which tensors are (C, H, W).
                Floats are in [-1, 1], or of ``source_values``. It has the source's channels, which may be
                others than the result's. A file of a volume is translated by its slices, which share a seed.
                Where the network has three axes, H, W is D, H, W here and below; a NumPy array is (D, H, W)
                or (C, D, H, W).
            seed: source i gets the seed ``seed + i``, or one each from a list. The same seed gives the same
                image at every batch size, but for rounding. None draws one.
            options: those of :class:`~bbdm.sampling.options.Options`, such as ``steps=10`` or ``window=256``;
                others are conditions by their names, such as ``style="comic"``. A network of two directions
                has ``direction``, ``"AtoB"`` if it is left out, or ``"BtoA"``, for all of a call.

        Returns:
            Each result has the type of its source, its floats clamped to [-1, 1]. A path gives a picture:
            Pillow's where the network knows 8 bits, else a :class:`~bbdm.pictures.picture.Picture`, an array
            (C, H, W) of the target's values with the source's geometry. A single picture or path gives a list
            of one.

        Raises:
            FileNotFoundError: a path leads to no file.
            TypeError: an argument is neither an option nor a condition of the network.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        call = self.read(source, seed, options)
        results: list[tuple[list[int], Any]] = []
        for batch in call.batches():
            results.append((batch.indices, self.loop.translate(batch, call.options.callback)))
        return call.sources.restore(results)

    def stream(self, source: Any, seed: Seed = None, **options: Any) -> Iterator[Step]:
        """The same translation one step at a time, to show what is done; arguments as for a call.

        Sources of several sizes, or of several batches, come one batch after the other: ``step.images`` says
        which. The last step's ``x`` is what a call returns, before it is clamped to [-1, 1]. With a codec,
        steps are latents, of which :meth:`Step.preview` makes pictures.
        """
        call = self.read(source, seed, options)
        batches = call.batches()  # what is wrong is said before the first step
        callback = call.options.callback
        return (step for batch in batches for step in self.loop.stream(batch, callback))

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
            options: those of a call but ``noise``. ``batch_size`` is the largest number of results at once;
                None for 16, or fewer that have 2^20 pixels together.

        Raises:
            FileNotFoundError: a path leads to no file.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        if "noise" in options:
            raise ValueError("a distribution takes no noise: its samples are those of seeds")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
            raise ValueError(f"samples must be an integer of at least 2, got {samples!r}")
        call = self.read(source, 0, options)  # its samples have other seeds
        sources = call.sources
        seeds = sample_seeds(seed, sources.count, samples)
        distribution = Distribution(sources, seeds, keep)
        for group in call.groups:
            only = None
            fill = False
            if group.windows is None:
                only = self.shapes.only
                fill = self.shapes.fill
            most = max(1, PIXELS_AT_ONCE // math.prod(group.size))
            size = only or call.options.batch_size or min(AT_ONCE, most)  # results at once
            for batch in group.split(only or max(1, size // samples), fill):
                with self.backend.turn():
                    encoded = self.loop.inputs(batch)
                drawn = [
                    (row, sample) for row in range(len(batch.indices)) for sample in range(samples)
                ]
                for part, count in parts(drawn, size, fill):
                    rows = [row for row, _ in part]
                    own = [
                        seeds[sources.owners[batch.indices[row]]][sample] for row, sample in part
                    ]
                    inputs = encoded.take(rows, self.loop.array(np.array(own)))
                    taken = batch.take(rows, count)
                    results = self.loop.translate(taken, call.options.callback, inputs)
                    distribution.add(taken.indices, results)
        return distribution

    def window_grid(
        self,
        options: GuidanceOptions,
        size: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> WindowGrid | None:
        """How a call cuts pictures of a size, or any that are larger than a window; None where it does not.

        Args:
            options: the windows of a call.
            size: the (height, width) of pictures; None of pictures that are larger than a window.
            batch_size: windows in a network call at most, which have no more than 2^20 pixels together; None
                for the network's number, or 16.

        Raises:
            ValueError: window or margin does not fit the network.
        """
        shapes = self.shapes
        window = self.pictures.crop if options.window == "auto" else options.window
        if window is None:
            return None
        lengths = check_windows(window, options.overlap, options.margin, shapes.stride)
        assert lengths is not None
        if size is not None and all(
            side <= length for side, length in zip(size, lengths, strict=True)
        ):
            return None
        most = max(1, PIXELS_AT_ONCE // math.prod(lengths))
        return WindowGrid(
            lengths=tuple(length // shapes.cell for length in lengths),
            overlap=options.overlap,
            margin=math.ceil(options.margin / shapes.cell),
            unit=tuple(step // shapes.cell for step in shapes.stride),
            at_once=shapes.only or min(batch_size or AT_ONCE, most),
            fill=shapes.fill,
        )

    def plan(self, options: Options | None = None) -> Plan:
        """The plan of a call; what the call leaves out is the sampler's own. The last few are kept."""
        choice = self._choice
        if options is not None:
            asked = (options.solver, options.steps, options.timesteps)
            if any(value is not None for value in asked):
                choice = choice.over(*asked)
        if choice is self._choice and self.direction in self._own:
            return self._own[self.direction]
        key = (self.direction, choice)
        plan = self._others.pop(key, None) or self.plan_of(*self._table(choice))
        if choice is self._choice:
            self._own[self.direction] = plan
        else:
            self._others[key] = plan
        for known in list(self._others)[:-KEPT]:
            self._others.pop(known, None)  # or another thread has
        return plan

    def plan_of(self, name: str, table: StepTable) -> Plan:
        """A solver's table as the backend takes it; a warning where the network was distilled for another."""
        if self.calls is not None and (name != solvers.DISTILLED or len(table) > self.calls):
            wanted = f"distilled for calls={self.calls} of the solver {solvers.DISTILLED!r}"
            warn(
                f"the network was {wanted}, and is asked for {len(table)} of {name!r}: results may be worse"
            )
        return Plan(name, table, table.timesteps.tolist(), self.backend.load(table))

    def _table(self, choice: Defaults) -> tuple[str, StepTable]:
        """The table of what was chosen, with the solver's name."""
        return solvers.name_of(choice.chosen), choice.table(self.bridge)

    def read(
        self,
        source: Any,
        seed: Seed,
        options: Mapping[str, Any],
        plan_of: Callable[[Sampler[Array]], Plan] | None = None,
    ) -> Call:
        """The images and options of a call, in its direction.

        Args:
            source: images, paths or arrays, as a call takes them.
            seed: an integer, or one for each source; None draws one.
            options: the call's keywords, conditions by their names too.
            plan_of: of the sampler of the direction, what takes the place of the plan that options say.

        Raises:
            FileNotFoundError: a path leads to no file.
            TypeError: an argument is neither an option nor a condition of the network.
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        shapes = self.shapes
        sampler = self
        given = Options.of(options, shapes.conditions) if options else NO_OPTIONS
        if self.direction is not None and isinstance(given.conditions, Mapping | None):
            conditions = dict(given.conditions or {})
            direction = read_direction(conditions.get(DIRECTION, self.direction))
            given = replace(given, conditions={**conditions, DIRECTION: direction})
            sampler = self.towards(direction)
        plan = sampler.plan(given) if plan_of is None else plan_of(sampler)
        guidance = None
        if given.guidance is not None:
            guidance = read_guidance(shapes.conditions, given.guidance)
        spec = sampler.pictures
        stored = given.source_values is not None or given.target_values is not None
        if stored:
            source_values = given.source_values or spec.source
            spec = replace(spec, source=source_values, target=given.target_values or spec.target)
        scale = Scale(
            self.backend.array, self.backend.noun, shapes.source_channels, spec, stored, self.axes
        )
        sources = read_sources(source, scale)
        seeds = resolve_seeds(seed, sources.count)
        _, first = sources.groups[0]
        if len(sources.groups) > 1:
            _check_sizes(given, shapes)
        if given.noise is not None:
            expected = (len(plan.times), len(first), shapes.channels, *shapes.grid(first.shape[2:]))
            check_noise(given.noise, scale, expected)
        mask = None
        if given.mask is not None:
            mask = read_mask(given.mask, scale, first)
        conditions = {}
        if given.conditions is not None or shapes.conditions.each:
            conditions = read_conditions(given.conditions, shapes.conditions, first, sources.owners)
        groups: list[Batch] = []
        for indices, array in sources.groups:
            rows = conditions
            if len(sources.groups) > 1:
                rows = {name: value[indices] for name, value in conditions.items()}
            windows = sampler.window_grid(given, tuple(array.shape[2:]), given.batch_size)
            own = [seeds[sources.owners[index]] for index in indices]
            batch = Batch(plan, indices, array, own, given.noise, mask, rows, windows, guidance)
            if self.image_size is not None and spec.crop is None and windows is None:
                images.warn_of_scale(self.image_size, *batch.size)
            groups.append(batch)
        return Call(given, sources, groups, shapes)


def _check_sizes(options: Options, shapes: Shapes) -> None:
    """Raise ValueError for an option that needs pictures of one size."""
    refused = {"noise": options.noise, "mask": options.mask}
    if shapes.conditions.images:
        refused["conditions"] = options.conditions
    for name, value in refused.items():
        if value is not None:
            raise ValueError(f"{name} needs pictures of one size, got several")
