"""The conditions of a network besides the source: images, classes and tokens; and guidance by them.

:class:`ConditionInput` says what tensors of a kind are, what stands for none, what a call may give, and how a
word of a command is read. No other code compares kinds. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from bbdm.networks.arrays import as_numpy, concatenated, converted
from bbdm.pictures import images

if TYPE_CHECKING:
    import torch

SOURCE = "source"  # the name of the source among the conditions
TAKEN = (SOURCE, "condition", "target", "x", "t", "mask", "noise", "image")  # names of other inputs, in exports
DIRECTION = "direction"  # the class of networks that translate both ways
DIRECTIONS = ("AtoB", "BtoA")  # its names
Kind = Literal["image", "class", "tokens"]
Direction = Literal["AtoB", "BtoA"]
KINDS: dict[str, Kind] = {"images": "image", "classes": "class", "tokens": "tokens"}  # by fields, in a network's order
Classes = int | tuple[str, ...]  # how many there are, or their names in order
Variant = tuple[tuple[str, ...], float]  # conditions that are left out, and the weight of the difference


@dataclass(frozen=True)
class ConditionInput:
    """A condition of a network.

    - ``image``: (B, size, H, W) in [-1, 1]; zeros mean none.
    - ``class``: (B,) int64, where ``size`` means none.
    - ``tokens``: (B, L, size) of any length L; a row of zeros is no token, so all rows zero mean none.

    Args:
        name: that of the call's keyword.
        kind: one of these three.
        size: channels of images, number of classes, or width of tokens.
        names: of classes in order; empty where they are numbers.
        droppable: whether training left it out at times, so that a call may.
    """

    name: str
    kind: Kind
    size: int
    names: tuple[str, ...] = ()
    droppable: bool = False

    def __str__(self) -> str:
        listed = f": {', '.join(self.names)}" if self.names else ""
        form = {"image": "{} channels", "class": "{} classes{}", "tokens": "tokens of width {}"}[self.kind]
        return f"{self.name!r} ({form.format(self.size, listed)})"

    @property
    def dtype(self) -> str:
        """Of its tensors."""
        return "int64" if self.kind == "class" else "float32"

    @property
    def spatial(self) -> bool:
        """Whether it has the places of the source."""
        return self.kind == "image"

    def shape(self, count: int, sides: Sequence[int], length: int = 1) -> tuple[int, ...]:
        """The shape of the tensor of a number of images of a size; ``length`` is the number of tokens."""
        shapes = {"image": (count, self.size, *sides), "class": (count,), "tokens": (count, length, self.size)}
        return shapes[self.kind]

    def check(self, value: torch.Tensor) -> None:
        """Raise ValueError unless a tensor has the axes, the size and the kind of numbers."""
        shape = tuple(value.shape)
        rules = {
            "image": (len(shape) > 3 and shape[1] == self.size, f"{self.size} channels"),
            "class": (len(shape) == 1 and "int" in str(value.dtype), "shape (B,) of int64"),
            "tokens": (shape[2:] == (self.size,), f"shape (B, L, {self.size})"),
        }
        fits, rule = rules[self.kind]
        if not fits:
            self._refuse(f"have {rule}", f"{shape} of {value.dtype}")

    def _refuse(self, rule: str, got: Any) -> NoReturn:
        raise ValueError(f"condition {self.name!r} must {rule}, got {got}")

    def none(self, value: Any) -> Any:
        """What stands for it where it is left out, like a tensor or an array of it."""
        return value * 0 + self.size if self.kind == "class" else value * 0

    def parse(self, text: str) -> Any:
        """A word of a command as what a call takes: a class, or the path of a .npy file, or ``none``."""
        if text == "none" and text not in self.names:
            return None
        if self.kind == "class":
            return int(text) if text not in self.names and text.isdecimal() else text
        if not text.endswith(".npy"):
            raise ValueError(f"condition {self.name!r} takes FILE.npy or none, got {text!r}")
        array = np.load(text)
        return array[None] if self.spatial else array

    def read(self, value: Any, source: Any, owners: Sequence[int]) -> Any:
        """What a call gives for it, as an array with a row for each image; see :func:`read_conditions`."""
        if self.spatial:
            return self._images(value, source, len(owners))
        count, axes = owners[-1] + 1, 0 if self.kind == "class" else 2  # axes of one source's value
        if value is None or isinstance(value, str | int | float) or getattr(value, "ndim", -1) == axes:
            values = [value] * count
        else:
            values = value.tolist() if getattr(value, "ndim", 0) == 1 else list(value)
            if len(values) not in (1, count):
                self._refuse(f"be one value, or one for each of {count} sources", len(values))
            values *= count // len(values)
        if self.kind == "class":
            rows: Any = np.array([self._number(each) for each in values], np.int64)
        else:  # padded with rows of zeros
            arrays = [self._tokens(each) for each in values]
            rows = np.zeros((count, max(1, *map(len, arrays)), self.size), np.float32)
            for row, each in zip(rows, arrays, strict=True):
                row[: len(each)] = each
        return rows if count == len(owners) else rows[list(owners)]

    def _number(self, value: Any) -> int:
        """The class of a name, a number or None."""
        number = value
        if value is None:
            number = self.size
        elif value in self.names:
            number = self.names.index(value)
        highest = self.size if self.droppable else self.size - 1  # without a class, where training left it out
        is_class = not isinstance(number, str) and int(number) == number and 0 <= number <= highest
        if not is_class:
            known = ", ".join(self.names) or f"numbers from 0 to {self.size - 1}"
            self._refuse(f"be of {known}", repr(value))
        return int(number)

    def _tokens(self, value: Any) -> npt.NDArray[np.float32]:
        """(L, size) of an array, a tensor or None."""
        if value is None:
            value = np.zeros((0, self.size))
        elif hasattr(value, "detach"):
            value = as_numpy(value)
        array = np.asarray(value, np.float32)
        if array.ndim != 2 or array.shape[1] != self.size:
            self._refuse(f"be tokens (L, {self.size}), or (B, L, {self.size})", array.shape)
        return self._finite(array)

    def _images(self, value: Any, source: Any, count: int) -> Any:
        """(N, C, *S) of images in [-1, 1], one for all or for each; pictures are resized."""
        sides: Any = tuple(source.shape[2:])
        shape = self.shape(count, sides)
        if value is None:
            return converted(np.zeros(shape, np.float32), source)
        if "float" not in str(getattr(value, "dtype", "")):
            self._refuse("be an array or a tensor of floats in [-1, 1]", getattr(value, "dtype", type(value).__name__))
        got = tuple(value.shape)
        resizes = len(sides) == 2 and len(got) == 4 and all(got)
        if got[:2] not in ((1, self.size), (count, self.size)) or not (resizes or got[2:] == sides):
            self._refuse(f"have shape {shape}", got)
        self._finite(value)
        if got[2:] != sides:
            value = np.stack([images.fitted(each, sides) for each in as_numpy(value).astype(np.float32)])
        value = converted(value, source)
        return value if len(value) == count else concatenated([value] * count)

    def _finite(self, value: Any) -> Any:
        if len(value) and not np.isfinite(float(abs(value).max())):
            self._refuse("be finite", "NaN or infinity")
        return value


@dataclass(frozen=True, kw_only=True)
class ConditionsConfig:
    """The conditions of a network besides the source, as its settings and its file name them.

    Args:
        images: the channels of condition images by name, such as ``{"sar": 2}``: (B, 2, H, W) each.
        classes: the number of classes by name, or their names, such as ``{"style": ("ink", "oil")}``: (B,)
            int64 each. The number of classes means "none".
        tokens: the width of tokens by name, such as ``{"text": 768}``: (B, L, 768) each, of any length L. A
            row of zeros is no token.
        drop: the share of training examples without a condition, by name; they have "none" in its place. A
            call may leave these out, and take ``guidance``.

    Raises:
        ValueError: a name or a number is out of range.
    """

    images: Mapping[str, int] = field(default_factory=dict, hash=False)  # channels by name
    classes: Mapping[str, Classes] = field(default_factory=dict, hash=False)  # how many by name, or their names
    tokens: Mapping[str, int] = field(default_factory=dict, hash=False)  # width of a token by name
    drop: Mapping[str, float] = field(default_factory=dict, hash=False)  # share of training examples without it

    def __post_init__(self) -> None:
        for each in fields(ConditionsConfig):  # sorted: the same settings are the same bytes in files
            values = sorted(getattr(self, each.name).items())
            own = {name: tuple(value) if isinstance(value, list) else value for name, value in values}
            object.__setattr__(self, each.name, own)
        sizes = [(what, name, value) for what in KINDS for name, value in getattr(self, what).items()]
        for what, name, value in sizes:
            if not isinstance(name, str) or not name.isidentifier() or name in TAKEN:
                rule = f"a name of {what} must be an identifier, and none of {', '.join(TAKEN)}"
                raise ValueError(f"{rule}, got {name!r}")
            if what == "classes" and isinstance(value, tuple):
                if len(set(value)) < len(value):
                    raise ValueError(f"a class has its name alone, got {', '.join(map(str, value))}")
                value = len(value) if all(isinstance(each, str) for each in value) else value
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                also = " or names" if what == "classes" else ""
                raise ValueError(f"{what}[{name!r}] must be an integer of at least 1{also}, got {value!r}")
        if len({name for _, name, _ in sizes}) < len(sizes):
            raise ValueError(f"each condition needs a name of its own, got {', '.join(name for _, name, _ in sizes)}")
        for name, share in self.drop.items():
            if name not in self.each:
                names = ", ".join(self.each) or "(there are none)"
                raise ValueError(f"drop must be of the conditions {names}, got {name!r}")
            if self.two_way and name == DIRECTION:
                raise ValueError(f"drop must be of other conditions than {name!r}, which says what the target is")
            if not isinstance(share, int | float) or not 0 < share < 1:
                raise ValueError(f"drop[{name!r}] must be above 0 and below 1, got {share!r}")

    @cached_property
    def each(self) -> dict[str, ConditionInput]:
        """The conditions by name, in the order in which a network has them."""
        conditions: dict[str, ConditionInput] = {}
        for what, kind in KINDS.items():
            for name, value in getattr(self, what).items():
                size, names = (value, ()) if isinstance(value, int) else (len(value), value)
                conditions[name] = ConditionInput(name, kind, size, names, name in self.drop)
        return conditions

    @property
    def two_way(self) -> bool:
        """Whether it is a network of two directions: the class ``direction`` says which."""
        return self.classes.get(DIRECTION) == DIRECTIONS

    @property
    def described(self) -> str:
        """The conditions in words, such as ``'style' (3 classes: ink, oil, chalk)``."""
        return ", ".join(map(str, self.each.values())) or "none"

    def settings(self) -> dict[str, Any]:
        """The fields that are not empty, as plain values."""
        return {each.name: value for each in fields(ConditionsConfig) if (value := getattr(self, each.name))}


def matched(conditions: Mapping[str, Any] | None, known: Mapping[str, ConditionInput]) -> dict[str, Any]:
    """Conditions by name in a network's order.

    Raises:
        ValueError: they are no mapping, or one is missing or unknown.
    """
    conditions = {} if conditions is None else conditions
    if not isinstance(conditions, Mapping):
        kind = type(conditions).__name__
        raise ValueError(f"conditions must be a mapping of names to values, such as {{'source': y}}, got a {kind}")
    described = ", ".join(map(str, known.values())) or "none"
    if unknown := [name for name in conditions if name not in known]:
        raise ValueError(f"conditions of this network are {described}, got {', '.join(map(repr, unknown))}")
    for name, each in known.items():
        if name not in conditions:
            also = "; None leaves it out of a sampler's call" if each.droppable else ""
            raise ValueError(f"condition {name!r} is missing: this network has {described}{also}")
    return {name: conditions[name] for name in known}


def read_conditions(
    conditions: Mapping[str, Any] | None, known: ConditionsConfig, source: Any, owners: Sequence[int]
) -> dict[str, Any]:
    """The conditions of a call by name as a network takes them, a row for each image of the call.

    Images are (N, C, H, W) of the type, dtype and device of a source (B, C', H, W), and have its size;
    classes are (N,) int64, and tokens (N, L, D) float32. Classes and tokens are given for sources, of which
    ``owners`` has one for each image.

    Raises:
        ValueError: they are no mapping, or one is missing or unknown, of another kind or shape, or not
            finite; or one is None that the network was never trained without.
    """
    values = matched(conditions, known.each)
    for name, value in values.items():
        missing = value is None or (isinstance(value, list | tuple) and any(one is None for one in value))
        if missing and not known.each[name].droppable:
            raise ValueError(f"condition {name!r} cannot be None: the network was never trained without it")
    return {name: known.each[name].read(value, source, owners) for name, value in values.items()}


def read_direction(value: Any) -> Direction:
    """The direction of a call, by its name or number, or by several equal ones; else a ValueError."""
    values = np.ravel(as_numpy(value) if hasattr(value, "detach") else value).tolist()
    for number, name in enumerate(DIRECTIONS):
        if values and all(each in (number, name) for each in values):
            return name
    raise ValueError(f"direction must be {' or '.join(DIRECTIONS)}, one for all of a call, got {value!r}")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of a call: predictions are moved away from those without conditions.

    Ho and Salimans 2022, with a weight for each condition (Liu et al. 2022): the prediction becomes F + sum
    of w (F - F_v) over variants v, where F sees all conditions. Besides F, a step evaluates each variant.
    """

    variants: tuple[Variant, ...]

    def predict(self, network: Callable[..., Any], x: Any, index: int, conditions: Sequence[Mapping[str, Any]]) -> Any:
        """The guided prediction of a step, (B, C, *S), of a network that returns at least 32 bits.

        ``conditions`` are those of each evaluation, (B, ...); or of all, (N B, ...), for one batch.
        """
        count = 1 + len(self.variants)
        if len(conditions) > 1:
            full, *others = [network(x, index, each) for each in conditions]
        else:
            together = network(concatenated([x] * count), index, conditions[0])
            full, *others = [together[i * len(x) : (i + 1) * len(x)] for i in range(count)]
        guided = full
        for (_, weight), other in zip(self.variants, others, strict=True):
            guided = guided + weight * (full - other)
        return guided


def read_guidance(conditions: ConditionsConfig, guidance: float | Mapping[str, float]) -> Guidance | None:
    """The guidance of a call's argument for a network with conditions; None where predictions stay.

    Raises:
        ValueError: a weight is out of range, or the network was never trained without a condition.
    """
    weights = guidance if isinstance(guidance, Mapping) else {None: guidance}
    if unknown := [name for name in weights if name is not None and name not in conditions.each]:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"guidance must be for conditions, {conditions.described}, got {names}")
    variants: list[Variant] = []
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"guidance must be a number of at least 0, got {weight!r}")
        names = tuple(conditions.drop) if name is None else (name,)
        missing = [repr(each) for each in names if each not in conditions.drop]
        if missing or not names:
            rule = f"guidance compares with predictions without {missing[0] if missing else 'a condition'}"
            raise ValueError(f"{rule}, and the network was not trained so: see drop")
        if weight != 1:
            variants.append((names, weight - 1.0))
    return Guidance(tuple(variants)) if variants else None


def read_scale(text: str) -> float | dict[str, float]:
    """The argument ``guidance`` from text: ``2``, or ``style=2,text=3``. ValueError for others."""
    try:
        if "=" not in text:
            return float(text)
        return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise ValueError(f"guidance must be a number, or NAME=NUMBER,..., got {text!r}") from error
