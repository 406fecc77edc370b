"""What runs the steps of a table: PyTorch, ONNX Runtime with NumPy, or files, each a :class:`Backend`.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bbdm.networks.arrays import concatenated
from bbdm.networks.conditions import ConditionsConfig, Guidance
from bbdm.networks.windows import Predict, WindowGrid
from bbdm.solvers import StepTable


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
    conditions: list[dict[str, Any]]  # all that the network sees, and what it sees in each further evaluation
    seeds: Any  # of each image
    noise: Any = None  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W) or None
    weights: Sequence[Any] = ()  # of the windows of each side, if any

    def take(self, rows: list[int], seeds: Any) -> Inputs:
        """Those of some images, with other seeds."""
        conditions = [{name: value[rows] for name, value in evaluation.items()} for evaluation in self.conditions]
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, y=self.y[rows], conditions=conditions, seeds=seeds, mask=mask)

    def together(self) -> Inputs:
        """The evaluations one after the other, as one batch of the network."""
        first, *others = self.conditions
        if not others:
            return self
        merged = {name: concatenated([value, *(other[name] for other in others)]) for name, value in first.items()}
        return replace(self, conditions=[merged])


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


class Backend(Protocol):
    """What an array is, how the network is called, and what a step is."""

    array: type[Any]  # of the sampler's arrays
    noun: str  # of one of them, for messages
    like: Any  # an array on the device in the dtype of the state

    def load(self, table: StepTable) -> Any:
        """A table as steps take it."""
        ...

    def turn(self) -> AbstractContextManager[Any]:
        """Where steps are done: without gradients, and one thread at a time where runs share memory."""
        ...

    def encode(self, source: Any) -> Any:
        """Padded sources (B, C, H, W) in the space of the bridge."""
        ...

    def decode(self, state: Any) -> Any:
        """The pictures of a state or an estimate, about [-1, 1]."""
        ...

    def prepare(self, conditions: dict[str, Any], sides: Sequence[int]) -> dict[str, Any]:
        """What conditions alone decide: see :meth:`bbdm.networks.base.Network.prepared`."""
        ...

    def begin(self, batch: Batch, inputs: Inputs) -> Run:
        """A run with its first state."""
        ...

    def step(self, run: Run, index: int) -> None:
        """Move the state by one call of the network and one row of the table."""
        ...

    def clamped(self, pictures: Any) -> Any:
        """Pictures in [-1, 1], in memory of the caller's own."""
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


def check_prediction(prediction: Any, x: Any) -> None:
    """Raise ValueError unless what a network returned of x is floats of its shape."""
    if prediction.shape != x.shape or "float" not in str(prediction.dtype):
        expected = tuple(x.shape)
        found = f"{prediction.dtype} of {tuple(prediction.shape)}"
        raise ValueError(f"the network must return floats of the state's shape {expected}, got {found}")
