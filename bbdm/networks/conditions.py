"""What a network is told besides the source: images, classes and tokens by name. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

SOURCE = "source"  # the name of the source among the conditions
TAKEN = (SOURCE, "condition", "target", "x", "t", "mask", "noise", "image")  # names of other inputs, in exports
Kind = Literal["image", "class", "tokens"]
Classes = int | tuple[str, ...]  # how many there are, or their names in order


@dataclass(frozen=True, kw_only=True)
class ConditionsConfig:
    """The conditions of a network besides the source.

    As tensors, an image is (B, channels, H, W) in [-1, 1]; a class is (B,) int64, where the number of classes
    means "none"; tokens are (B, L, width) of any length L, in which a row of zeros is no token, so that all
    rows zero means "none".

    Raises:
        ValueError: a name or a number is out of range.
    """

    images: Mapping[str, int] = field(default_factory=dict, hash=False)  # channels by name
    classes: Mapping[str, Classes] = field(default_factory=dict, hash=False)  # by name
    tokens: Mapping[str, int] = field(default_factory=dict, hash=False)  # width of a token by name
    drop: Mapping[str, float] = field(
        default_factory=dict, hash=False
    )  # share of training examples that are not told it

    def __post_init__(self) -> None:
        named = {name: as_classes(value) for name, value in self.classes.items()}
        object.__setattr__(self, "classes", named)
        for each in fields(ConditionsConfig):  # the same settings are the same bytes in files
            object.__setattr__(self, each.name, dict(sorted(getattr(self, each.name).items())))
        sizes = [(what, name, value) for what in ("images", "tokens") for name, value in getattr(self, what).items()]
        counts = [("classes", name, value if isinstance(value, int) else len(value)) for name, value in named.items()]
        for what, name, value in sizes + counts:
            if not isinstance(name, str) or not name.isidentifier() or name in TAKEN:
                rule = f"a name of {what} must be an identifier, and none of {', '.join(TAKEN)}"
                raise ValueError(f"{rule}, got {name!r}")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{what}[{name!r}] must be an integer of at least 1, got {value!r}")
        if len(self.kinds) < len(sizes + counts):
            raise ValueError(
                f"each condition needs a name of its own, got {', '.join(n for _, n, _ in sizes + counts)}"
            )
        for name, share in self.drop.items():
            if name not in self.kinds:
                names = ", ".join(self.kinds) or "(there are none)"
                raise ValueError(f"drop must be of the conditions {names}, got {name!r}")
            if not isinstance(share, int | float) or not 0 < share < 1:
                raise ValueError(f"drop[{name!r}] must be above 0 and below 1, got {share!r}")

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each condition, in the order in which a network has them."""
        return {
            **dict.fromkeys(self.images, "image"),
            **dict.fromkeys(self.classes, "class"),
            **dict.fromkeys(self.tokens, "tokens"),
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Channels of images, numbers of classes, widths of tokens, in the order of :attr:`kinds`."""
        counts = {name: value if isinstance(value, int) else len(value) for name, value in self.classes.items()}
        return {**self.images, **counts, **self.tokens}

    @property
    def wanted(self) -> str:
        """The conditions in words, such as ``'style' (3 classes: ink, oil, chalk)``."""
        return described(self.kinds, self.sizes, self.classes)

    def none(self, name: str, value: Any) -> Any:
        """What stands for a condition that is left out, like a tensor or an array of it."""
        return value * 0 + (self.sizes[name] if self.kinds[name] == "class" else 0)

    def told(self) -> dict[str, Any]:
        """The fields that are not empty, as plain values."""
        own = {each.name: getattr(self, each.name) for each in fields(ConditionsConfig)}
        return {name: value for name, value in own.items() if value}


def as_classes(value: Any) -> Classes:
    """A number of classes, or their names; ValueError where they are neither, or a name is there twice."""
    if isinstance(value, int):
        return value
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"classes must be a number or a list of names, got {value!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"a class has its name alone, got {', '.join(value)}")
    return tuple(value)


def described(kinds: Mapping[str, Kind], sizes: Mapping[str, int], classes: Mapping[str, Classes]) -> str:
    """Conditions with their sizes and names of classes, for messages."""
    units = {"image": "{} channels", "class": "{} classes", "tokens": "tokens of width {}"}
    shown: list[str] = []
    for name, size in sizes.items():
        named = classes.get(name, size)
        names = "" if isinstance(named, int) else f": {', '.join(named)}"
        shown.append(f"{name!r} ({units[kinds.get(name, 'image')].format(size)}{names})")
    return ", ".join(shown) or "none"
