"""The conditions of a network besides the source: images, classes and tokens.

:class:`ConditionInput` says what tensors of a kind are, what stands for none, what a call may give, and how a
word of a command is read. No other code compares kinds. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
STATE = "x"  # that of the state, where what a network is shown is listed
# names of other inputs, in exports
TAKEN = (SOURCE, "condition", "target", "x", "t", "mask", "noise", "image")
DIRECTION = "direction"  # the class of networks that translate both ways
DIRECTIONS = ("AtoB", "BtoA")  # its names
Kind = Literal["image", "class", "tokens"]
Direction = Literal["AtoB", "BtoA"]
# by fields, in a network's order
KINDS: dict[str, Kind] = {"images": "image", "classes": "class", "tokens": "tokens"}
Classes = int | tuple[str, ...]  # how many there are, or their names in order


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
        if self.kind == "image":
            form = f"{self.size} channels"
        elif self.kind == "tokens":
            form = f"tokens of width {self.size}"
        elif self.names:
            form = f"{self.size} classes: {', '.join(self.names)}"
        else:
            form = f"{self.size} classes"
        return f"{self.name!r} ({form})"

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
        shapes = {
            "image": (count, self.size, *sides),
            "class": (count,),
            "tokens": (count, length, self.size),
        }
        return shapes[self.kind]

    def check(self, value: torch.Tensor) -> None:
        """Raise ValueError unless a tensor has the axes, the size and the kind of numbers."""
        shape = tuple(value.shape)
        if self.kind == "image":
            rule = f"{self.size} channels"
            fits = len(shape) > 3 and shape[1] == self.size
        elif self.kind == "class":
            rule = "shape (B,) of int64"
            fits = len(shape) == 1 and "int" in str(value.dtype)
        else:
            rule = f"shape (B, L, {self.size})"
            fits = shape[2:] == (self.size,)
        if not fits:
            self._refuse(f"have {rule}", f"{shape} of {value.dtype}")

    def _refuse(self, rule: str, got: Any) -> NoReturn:
        raise ValueError(f"condition {self.name!r} must {rule}, got {got}")

    def none(self, value: Any) -> Any:
        """What stands for it where it is left out, like a tensor or an array of it."""
        zeros = value * 0
        if self.kind == "class":
            return zeros + self.size
        return zeros

    def parse(self, text: str) -> Any:
        """A word of a command as what a call takes: a class, or the path of a .npy file, or ``none``."""
        if text == "none" and text not in self.names:
            return None
        if self.kind == "class":
            if text in self.names or not text.isdecimal():
                return text
            return int(text)
        if not text.endswith(".npy"):
            raise ValueError(f"condition {self.name!r} takes FILE.npy or none, got {text!r}")
        array = np.load(text)
        if self.spatial:
            return array[None]
        return array

    def read(self, value: Any, source: Any, owners: Sequence[int]) -> Any:
        """What a call gives for it, as an array with a row for each image; see :func:`read_conditions`."""
        if self.spatial:
            return self._images(value, source, len(owners))
        count = owners[-1] + 1  # of sources
        if self.kind == "class":
            numbers = [self._number(label) for label in self._of_sources(value, count, axes=0)]
            rows = np.array(numbers, np.int64)
        else:
            rows = self._padded(
                [self._tokens(tokens) for tokens in self._of_sources(value, count, axes=2)]
            )
        if count == len(owners):
            return rows
        return rows[list(owners)]

    def _of_sources(self, value: Any, count: int, axes: int) -> list[Any]:
        """What a call gives for it as a value for each source; ``axes`` are those of a single value."""
        if (
            value is None
            or isinstance(value, str | int | float)
            or getattr(value, "ndim", -1) == axes
        ):
            return [value] * count
        values = value.tolist() if getattr(value, "ndim", 0) == 1 else list(value)
        if len(values) == 1:
            return values * count
        if len(values) != count:
            self._refuse(f"be one value, or one for each of {count} sources", len(values))
        return values

    def _padded(self, arrays: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """(N, L, size) of arrays (l, size), of which rows of zeros fill the shorter ones; L is at least 1."""
        length = max(1, *map(len, arrays))
        rows = np.zeros((len(arrays), length, self.size), np.float32)
        for row, tokens in zip(rows, arrays, strict=True):
            row[: len(tokens)] = tokens
        return rows

    def _number(self, value: Any) -> int:
        """The class of a name, a number or None."""
        count = self.size
        if self.droppable:
            count += 1  # the last one is none
        if value is None:
            number = self.size
        elif value in self.names:
            number = self.names.index(value)
        else:
            number = value
        is_class = not isinstance(number, str) and int(number) == number and 0 <= number < count
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
        self._check_images(value, shape)
        if tuple(value.shape[2:]) != sides:
            pictures = as_numpy(value).astype(np.float32)
            value = np.stack([images.fitted(picture, sides) for picture in pictures])
        value = converted(value, source)
        if len(value) == count:
            return value
        return concatenated([value] * count)

    def _check_images(self, value: Any, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless it is finite floats of a shape (N, C, *S), or of what becomes that."""
        is_float = "float" in str(getattr(value, "dtype", ""))
        if not is_float:
            self._refuse(
                "be an array or a tensor of floats in [-1, 1]",
                getattr(value, "dtype", type(value).__name__),
            )
        got = tuple(value.shape)
        is_for_all = got[:2] == (1, self.size)
        is_for_each = got[:2] == shape[:2]
        is_picture = len(shape) == 4 and len(got) == 4 and all(got)  # which is resized
        if not (is_for_all or is_for_each) or not (is_picture or got[2:] == shape[2:]):
            self._refuse(f"have shape {shape}", got)
        self._finite(value)

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
    # how many by name, or their names
    classes: Mapping[str, Classes] = field(default_factory=dict, hash=False)
    tokens: Mapping[str, int] = field(default_factory=dict, hash=False)  # width of a token by name
    # share of training examples without it
    drop: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for setting in fields(ConditionsConfig):
            # the same settings are the same bytes in files
            values = dict(sorted(getattr(self, setting.name).items()))
            for name, value in values.items():
                if isinstance(value, list):
                    values[name] = tuple(value)
            object.__setattr__(self, setting.name, values)
        names: list[str] = []
        for setting in KINDS:
            for name, value in getattr(self, setting).items():
                _check_name(setting, name)
                _check_size(setting, name, value)
                names.append(name)
        if len(set(names)) < len(names):
            raise ValueError(f"each condition needs a name of its own, got {', '.join(names)}")
        for name, share in self.drop.items():
            self._check_drop(name, share)

    def _check_drop(self, name: str, share: Any) -> None:
        """Raise ValueError unless a condition can be left out in a share of training examples."""
        if name not in self.each:
            names = ", ".join(self.each) or "(there are none)"
            raise ValueError(f"drop must be of the conditions {names}, got {name!r}")
        if self.two_way and name == DIRECTION:
            raise ValueError(
                f"drop must be of other conditions than {name!r}, which says what the target is"
            )
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise ValueError(f"drop[{name!r}] must be above 0 and below 1, got {share!r}")

    @cached_property
    def each(self) -> dict[str, ConditionInput]:
        """The conditions by name, in the order in which a network has them."""
        conditions: dict[str, ConditionInput] = {}
        for setting, kind in KINDS.items():
            for name, value in getattr(self, setting).items():
                droppable = name in self.drop
                if isinstance(value, int):
                    conditions[name] = ConditionInput(name, kind, value, droppable=droppable)
                else:
                    conditions[name] = ConditionInput(name, kind, len(value), value, droppable)
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
        values = {setting.name: getattr(self, setting.name) for setting in fields(ConditionsConfig)}
        return {name: value for name, value in values.items() if value}


def _check_name(setting: str, name: Any) -> None:
    """Raise ValueError unless a condition can have a name in calls, files and exports."""
    if not isinstance(name, str) or not name.isidentifier() or name in TAKEN:
        rule = f"a name of {setting} must be an identifier, and none of {', '.join(TAKEN)}"
        raise ValueError(f"{rule}, got {name!r}")


def _check_size(setting: str, name: str, value: Any) -> None:
    """Raise ValueError unless a value is a size or, of classes, their names."""
    size = value
    rule = "an integer of at least 1"
    if setting == "classes":
        rule = f"{rule} or names"
    if setting == "classes" and isinstance(value, tuple):
        if len(set(value)) < len(value):
            raise ValueError(f"a class has its name alone, got {', '.join(map(str, value))}")
        if all(isinstance(label, str) for label in value):
            size = len(value)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{setting}[{name!r}] must be {rule}, got {value!r}")


def matched(
    conditions: Mapping[str, Any] | None, known: Mapping[str, ConditionInput]
) -> dict[str, Any]:
    """Conditions by name in a network's order.

    Raises:
        ValueError: they are no mapping, or one is missing or unknown.
    """
    if conditions is None:
        conditions = {}
    if not isinstance(conditions, Mapping):
        kind = type(conditions).__name__
        raise ValueError(
            f"conditions must be a mapping of names to values, such as {{'source': y}}, got a {kind}"
        )
    described = ", ".join(map(str, known.values())) or "none"
    unknown = [repr(name) for name in conditions if name not in known]
    if unknown:
        raise ValueError(f"conditions of this network are {described}, got {', '.join(unknown)}")
    for name, condition in known.items():
        if name not in conditions:
            message = f"condition {name!r} is missing: this network has {described}"
            if condition.droppable:
                message += "; None leaves it out of a sampler's call"
            raise ValueError(message)
    return {name: conditions[name] for name in known}


def read_conditions(
    conditions: Mapping[str, Any] | None,
    known: ConditionsConfig,
    source: Any,
    owners: Sequence[int],
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
        values_of_sources = value if isinstance(value, list | tuple) else [value]
        is_missing = any(single is None for single in values_of_sources)
        if is_missing and not known.each[name].droppable:
            raise ValueError(
                f"condition {name!r} cannot be None: the network was never trained without it"
            )
    return {name: known.each[name].read(value, source, owners) for name, value in values.items()}


def read_direction(value: Any) -> Direction:
    """The direction of a call, by its name or number, or by several equal ones; else a ValueError."""
    array = as_numpy(value) if hasattr(value, "detach") else value
    labels = np.ravel(array).tolist()
    for number, name in enumerate(DIRECTIONS):
        if labels and all(label in (number, name) for label in labels):
            return name
    raise ValueError(
        f"direction must be {' or '.join(DIRECTIONS)}, one for all of a call, got {value!r}"
    )
