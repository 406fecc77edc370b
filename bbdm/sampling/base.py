"""The sampler: reads the sources of a call, runs the loop, and gives each result its source's type.

:class:`bbdm.BridgeSampler` and :class:`bbdm.runtime.OnnxBridgeSampler` are its backends; see
:mod:`bbdm.sampling.loop`. Nothing here needs PyTorch or ONNX Runtime.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm import solvers
from bbdm.base.scripts import warn
from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import Spec
from bbdm.networks.conditions import DIRECTION, DIRECTIONS, Direction, read_conditions, read_direction, read_guidance
from bbdm.networks.windows import WindowGrid, check_windows
from bbdm.pictures import images
from bbdm.sampling.distribution import Distribution, sample_seeds
from bbdm.sampling.loop import Batch, Loop, Plan, Shapes, Step, parts
from bbdm.sampling.options import USUAL, GuidanceOptions, Options, Seed
from bbdm.sampling.sources import Scale, Sources, check_noise, read_mask, read_sources
from bbdm.solvers import Defaults, StepTable

if TYPE_CHECKING:
    from typing_extensions import Self

    from bbdm.bridges import Bridge
    from bbdm.files.content import Origin

KEPT = 4  # solvers with their times: tables, and what a network computes of the time alone
AT_ONCE = 16  # windows in a network call, or results of a distribution, where no batch_size is given
PIXELS_AT_ONCE = 2**20  # of windows in a network call, but for one that is larger
Array = TypeVar("Array")
Files = Image.Image | str | os.PathLike[str] | list[Any]


class _Key:
    """What was chosen, by its values; a solver that cannot be hashed is the same as itself alone."""

    def __init__(self, choice: Defaults) -> None:
        self.choice = choice
        solver: Any = choice.chosen
        try:
            hash(solver)
        except TypeError:
            solver = id(solver)  # which stays its own: the choice holds it
        times = choice.timesteps
        self._values = solver, choice.steps, times if isinstance(times, str | None) else tuple(times)

    def __hash__(self) -> int:
        return hash(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._values == other._values


class Sampler(Loop, Generic[Array]):
    """Translates images, as ``Array``; a subclass says how the network is called and a step is done.

    Args:
        shapes: what the network takes.
        choice: solver, steps and times of calls that give none.
    """

    bridge: Bridge
    _network_name: str  # for ``repr``
    axes: int  # spatial, of what is translated: 2 of pictures, 3 of volumes
    direction: Direction | None = None  # of calls that say none, where the network has two
    image_size: images.Size | None = None  # of training pictures
    pictures: Spec = Spec()
    origin: Origin | None = None  # of the network's weights; None where they came from no checkpoint
    _table: Callable[[Defaults], tuple[str, StepTable]]  # of what was chosen, with the solver's name

    def __init__(self, shapes: Shapes, choice: Defaults) -> None:
        self.calls = choice.calls
        self._shapes = shapes
        self.axes = len(shapes.stride)
        self.direction = DIRECTIONS[0] if shapes.conditions.two_way else None
        self._other: Self | None = None  # of the other direction
        self._choose(choice)

    def _choose(self, choice: Defaults) -> None:
        """Make the plan of calls that give no solver, steps or times."""
        self._choice = choice
        self._plans = lru_cache(KEPT)(lambda key: self._make_plan(key.choice, self._own))
        self._own = self._make_plan(choice)

    def __repr__(self) -> str:
        """Network, bridge, solver and number of steps."""
        settings = f"solver={self.solver!r}, steps={len(self.table)}"
        return f"{type(self).__name__}({self._network_name}, {self.bridge!r}, {settings})"

    def towards(self, direction: Direction) -> Self:
        """The sampler of a direction of a network of two, as calls with ``direction`` take it.

        It shares the network, and has the ``bridge`` and the ``pictures`` of the direction.

        Raises:
            ValueError: it is no direction, or the network is of one.
        """
        if self.direction is None:
            raise ValueError(f"this network has one direction, got {direction!r}")
        if (direction := read_direction(direction)) == self.direction:
            return self
        other = self._other
        if other is None:
            other = copy(self)
            other.bridge = self.bridge.turned
            other.direction = direction
            other._other = self
            other._choose(self._choice)
            self._other = other
        if direction == DIRECTIONS[1]:
            vars(other).update(image_size=self.image_size, origin=self.origin, pictures=self.pictures.turned)
        return other

    @property
    def table(self) -> StepTable:
        """The steps of calls that give no solver, steps or timesteps."""
        return self._own.table

    @property
    def solver(self) -> str:
        """The solver of calls that give none."""
        return self._own.solver

    @overload
    def __call__(self, source: Array, seed: Seed = None, **options: Any) -> Array: ...
    @overload
    def __call__(self, source: npt.NDArray[Any], seed: Seed = None, **options: Any) -> npt.NDArray[Any]: ...
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
        self, o, sources, batches = self._call(source, seed, options)
        return sources.restore([(batch.indices, self._translate(batch, o.callback)) for batch in batches])

    def stream(self, source: Any, seed: Seed = None, **options: Any) -> Iterator[Step]:
        """The same translation one step at a time, to show what is done; arguments as for a call.

        Sources of several sizes, or of several batches, come one batch after the other: ``step.images`` says
        which. The last step's ``x`` is what a call returns, before it is clamped to [-1, 1]. With a codec,
        steps are latents, of which :meth:`Step.preview` makes pictures.
        """
        self, o, _, batches = self._call(source, seed, options)
        return (step for batch in batches for step in self._steps(batch, o.callback))

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
        self, o, sources, groups = self._call(source, None, options, split=False)
        seeds, only = sample_seeds(seed, sources.count, samples), self._shapes.only
        found = Distribution(sources, seeds, keep)
        for group in groups:
            alone = only if group.windows is None else None
            size = alone or o.batch_size or min(AT_ONCE, max(1, PIXELS_AT_ONCE // math.prod(group.size)))
            fill = self._shapes.fill and group.windows is None
            for whole in group.split(alone or max(1, size // samples), fill):
                with self._inference():
                    encoded = self._inputs(whole)
                pairs = [(row, sample) for row, _ in enumerate(whole.indices) for sample in range(samples)]
                for drawn, count in parts(pairs, size, fill):
                    rows = [row for row, _ in drawn]
                    own = [seeds[sources.owners[whole.indices[row]]][sample] for row, sample in drawn]
                    batch, inputs = whole.take(rows, count), encoded.take(rows, self._array(np.array(own)))
                    found.add(batch.indices, self._translate(batch, o.callback, inputs))
        return found

    def window_grid(
        self, options: GuidanceOptions, size: Sequence[int] | None = None, batch_size: int | None = None
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
        shapes = self._shapes
        window = self.pictures.crop if options.window == "auto" else options.window
        if window is None:
            return None
        lengths = check_windows(window, options.overlap, options.margin, shapes.stride)
        if lengths is None or (size and all(side <= length for side, length in zip(size, lengths, strict=True))):
            return None
        at_once = shapes.only or min(batch_size or AT_ONCE, max(1, PIXELS_AT_ONCE // math.prod(lengths)))
        cells, unit = (tuple(side // shapes.cell for side in each) for each in (lengths, shapes.stride))
        return WindowGrid(cells, options.overlap, -(-options.margin // shapes.cell), unit, at_once, shapes.fill)

    def _plan(self, o: Options = USUAL) -> Plan:
        """The plan of a call; what the call leaves out is the sampler's own."""
        if o.solver is None and o.steps is None and o.timesteps is None:
            return self._own
        choice = self._choice.over(o.solver, o.steps, o.timesteps)
        if choice is self._choice:
            return self._own
        return self._plans(_Key(choice))

    def _make_plan(self, choice: Defaults, own: Plan | None = None) -> Plan:
        """The plan of what was chosen; the sampler's own one where it has the same table."""
        name, table = self._table(choice)
        if own is not None and name == own.solver and table.description() == own.table.description():
            return own
        if self.calls is not None and (name != solvers.DISTILLED or len(table) > self.calls):
            wanted = f"distilled for calls={self.calls} of the solver {solvers.DISTILLED!r}"
            warn(f"the network was {wanted}, and is asked for {len(table)} of {name!r}: results may be worse")
        return Plan(name, table, table.timesteps.tolist(), self._load(table))

    def _call(
        self, source: Any, seed: Seed, options: Mapping[str, Any], split: bool = True
    ) -> tuple[Self, Options, Sources, list[Batch]]:
        """The sampler of a call's direction, and its images in batches; without ``split``, one a size."""
        o, shapes = Options.of(options, self._shapes.conditions) if options else USUAL, self._shapes
        if self.direction is not None and isinstance(o.conditions, Mapping | None):
            given = o.conditions or {}
            direction = read_direction(given.get(DIRECTION, self.direction))
            self, o = self.towards(direction), replace(o, conditions={**given, DIRECTION: direction})
        plan, kind, mask, conditions = self._plan(o), self.pictures, None, {}
        guidance = None if o.guidance is None else read_guidance(shapes.conditions, o.guidance)
        stored = o.source_values is not None or o.target_values is not None
        if stored:
            kind = replace(kind, source=o.source_values or kind.source, target=o.target_values or kind.target)
        scale = Scale(self.array, self.noun, shapes.source_channels, kind, stored, self.axes)
        sources = read_sources(source, scale)
        groups, owners, first = sources.groups, sources.owners, sources.groups[0][1]
        seeds = resolve_seeds(seed, sources.count) if split else [0] * sources.count
        if len(groups) > 1:
            conditioned = o.conditions if shapes.conditions.images else None
            for name, value in {"noise": o.noise, "mask": o.mask, "conditions": conditioned}.items():
                if value is not None:
                    raise ValueError(f"{name} needs pictures of one size, got several")
        if o.noise is not None:
            expected = len(plan.times), len(first), shapes.channels, *shapes.grid(first.shape[2:])
            check_noise(o.noise, scale, expected)
        if o.mask is not None:
            mask = read_mask(o.mask, scale, first)
        if o.conditions is not None or shapes.conditions.each:
            conditions = read_conditions(o.conditions, shapes.conditions, first, owners)
        batches: list[Batch] = []
        for indices, array in groups:
            rows = {name: value if len(groups) == 1 else value[indices] for name, value in conditions.items()}
            windows = self.window_grid(o, size := tuple(array.shape[2:]), o.batch_size)
            own = [seeds[owners[i]] for i in indices]
            batch = Batch(plan, indices, array, own, o.noise, mask, rows, windows, guidance)
            if self.image_size is not None and self.pictures.crop is None and windows is None:
                images.warn_of_scale(self.image_size, *size)
            count = o.batch_size if windows is not None else shapes.only or o.batch_size
            batches += batch.split(count, shapes.fill and windows is None) if split else [batch]
        return self, o, sources, batches
