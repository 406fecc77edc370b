"""The options of a call: declared once, for calls, streams, distributions, commands, servers and manifests.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from bbdm.base.settings import setting
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.guidance import read_scale
from bbdm.networks.windows import check_windows
from bbdm.pictures.images import Size, read_size
from bbdm.pictures.values import ValuesLike, as_values
from bbdm.solvers import AnySolver

Seed = Any  # an integer, a sequence of them, or None
TimestepsLike = str | Iterable[float] | None
Window = Size | Literal["auto"] | None


def read_window(text: str) -> Window:
    """The option ``window`` from text: ``auto``, ``none``, or a size. ValueError for others."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    return read_size(text)


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """On which windows of larger pictures a network is called, and how its predictions are guided.

    Each step is one of the whole picture, made of the predictions of all windows. With the reach of a network
    as ``margin``, one that knows no statistics of the picture, such as attention or GroupNorm, the result is
    that of whole pictures. ``window`` is a multiple of the network's stride, a side or (height, width), None
    for whole pictures; ``overlap`` is above 0 and at most 0.9.

    ``guidance`` is how far predictions go from those without conditions (0) past those with them (1), or so
    for each condition by name; see :class:`~bbdm.networks.guidance.Guidance`. The network was trained to be
    without them at times. A step evaluates one image more for each, in one batch.

    Raises:
        ValueError: a number is out of range.
    """

    window: Window = setting(
        "auto",
        "side, HxW or DxHxW, of the windows of larger pictures that the network is called on; auto: the size of "
        "training crops, if any; none: whole pictures",
        parse=read_window,
    )
    overlap: float = setting(0.25, "of neighbouring windows at least, as a share of a window")
    margin: int = setting(0, "pixels at the edges of windows whose predictions count for nothing")
    guidance: float | dict[str, float] | None = setting(
        None,
        "how far past what the network makes of conditions, a number, or NAME=NUMBER,...",
        parse=read_scale,
    )

    def __post_init__(self) -> None:
        check_windows(None, self.overlap, self.margin, (1, 1))

    @property
    def call(self) -> dict[str, Any]:
        """The options of windows and guidance that are not the usual ones, as keywords of a call."""
        values = ((field, getattr(self, field.name)) for field in fields(GuidanceOptions))
        return {field.name: value for field, value in values if value != field.default}

    def window_of(self, crop: Size | None) -> Size | None:
        """The window for a network that was trained on crops, if any; None for whole pictures."""
        return crop if self.window == "auto" else self.window


@dataclass(frozen=True, kw_only=True, eq=False)
class Options(GuidanceOptions):
    """The options of a call of a sampler; windows and guidance are those of commands too.

    Args:
        solver: for this call; see :func:`bbdm.solvers.build`. None for the sampler's own.
        steps: for this call; each is one network call. None for the sampler's own. Tables of the last few
            solvers and steps are kept.
        timesteps: the times of this call, in place of ``steps``.
        source_values: the :class:`~bbdm.pictures.values.Values` of sources, (low, high), or text such as
            ``0:4095``. Then arrays and tensors hold such values, and results those of the target. None for
            those of training, which files have, and for floats in [-1, 1].
        target_values: the values of results, in place of those of training.
        mask: where the target is made, for inpainting; elsewhere the source stays, in the target's channels
            where it has others. A picture, a path, an (H, W) array, white or 1 where it is made, or (B, 1, H,
            W) floats in [0, 1]. The images have one size.
        conditions: what the network sees besides the source, by name. Images: tensors or arrays (B, C, H, W)
            in [-1, 1], or (1, C, H, W) for all, resized to the sources' size, of which there is one. A class:
            its name or number for all, or a list with one for each source. Tokens: (L, D) for all, or
            (B, L, D), or a list of (L, D) of any lengths. None leaves out a condition that training left out
            at times.
        noise: (K, B, C, H, W) standard normals in place of a seed, on the grid that the network sees.
        batch_size: the largest number of images at once; None for all. With windows, also that of windows in
            a network call, where None is 16; together they have at most 2^20 pixels. A compiled sampler
            repeats the last image where fewer are left, so calls with one ``batch_size`` compile once for
            each size of picture.
        callback: called with each :class:`~bbdm.sampling.loop.Step` of each batch, to show what is done.

    Raises:
        ValueError: an option is out of range.
    """

    solver: AnySolver | None = None
    steps: int | None = None
    timesteps: TimestepsLike = None
    source_values: ValuesLike = None
    target_values: ValuesLike = None
    mask: Any = None
    conditions: Mapping[str, Any] | None = None
    noise: Any = None
    batch_size: int | None = None
    callback: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.timesteps, Iterable) and not isinstance(self.timesteps, str):
            object.__setattr__(self, "timesteps", tuple(self.timesteps))
        for name in ("source_values", "target_values"):
            object.__setattr__(self, name, as_values(getattr(self, name)))
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @classmethod
    def of(cls, options: Mapping[str, Any], conditions: ConditionsConfig) -> Options:
        """The options of a call's keywords, of which others are conditions by their names.

        Raises:
            TypeError: a keyword is neither an option nor a condition of the network.
            ValueError: an option is out of range.
        """
        arguments: dict[str, Any] = {}
        by_name: dict[str, Any] = {}
        for name, value in options.items():
            if name in NAMES:
                arguments[name] = value
            elif name in conditions.each:
                by_name[name] = value
            else:
                raise TypeError(
                    f"{name!r} is no argument of a call, and no condition; the network has "
                    f"{conditions.described}"
                )
        if by_name:
            mapping = arguments.get("conditions")
            if mapping is None:
                arguments["conditions"] = by_name
            elif isinstance(mapping, Mapping):  # else the check of conditions refuses it
                arguments["conditions"] = {**by_name, **mapping}
        return cls(**arguments)


NO_OPTIONS = Options()  # of calls that give none
NAMES = frozenset(field.name for field in fields(Options))
