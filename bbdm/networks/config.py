"""The settings of networks, which decide their shapes, and their presets; without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

from bbdm.base.registry import Registry
from bbdm.networks.arrays import Stride, along
from bbdm.networks.conditions import SOURCE, STATE, ConditionInput, ConditionsConfig

# annotations of fields that are integers of at least 1,
SIZES = ("int", "tuple[int, ...]", "Stride")
MAY_BE_ZERO = ("condition_channels", "num_codes")  # or of at least 0


def check_sizes(config: Any) -> None:
    """Make tuples of lists, and raise ValueError where a size is no integer or out of range."""

    def tuples(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(tuples, value))
        return value

    for setting in fields(config):
        object.__setattr__(config, setting.name, tuples(getattr(config, setting.name)))
        if setting.type in SIZES:
            check_integers(config, setting.name, least=0 if setting.name in MAY_BE_ZERO else 1)


def check_integers(config: Any, *names: str, least: int = 1) -> None:
    """Raise ValueError where a setting, or a member of a tuple, is not an integer of at least ``least``."""
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"{name} must be of integers, got {value!r}")
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")


def check_levels(config: UNetConfig | VQGANConfig) -> list[int]:
    """The widths of all levels; ValueError where there is none, or one that groups do not divide."""
    if not config.channel_mult:
        raise ValueError("channel_mult must have a number for each level, got none")
    widths = [config.model_channels * mult for mult in config.channel_mult]
    for width in (config.model_channels, *widths):
        if width % config.num_groups:
            raise ValueError(
                f"a level is {width} channels wide, not a multiple of num_groups={config.num_groups}"
            )
    return widths


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ConditionsConfig):
    """What the settings of all networks of bridges have, besides the ``channels`` of the state.

    Raises:
        ValueError: no network can be built from a value.
    """

    condition_channels: int = 0  # channels of the source; 0 where it is not shown
    # source channels that the bridge ends in; None: itself, or the mean
    endpoint: tuple[int, ...] | None = None
    axes: int = 2  # spatial: 2 for pictures (H, W), 3 for volumes (D, H, W)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self)
        if self.axes not in (2, 3):
            raise ValueError(f"axes must be 2, of pictures, or 3, of volumes, got {self.axes!r}")
        if self.endpoint is not None:
            self._check_endpoint(self.endpoint)

    def _check_endpoint(self, endpoint: tuple[int, ...]) -> None:
        """Raise ValueError unless each channel of the state has a source channel."""
        count: int = self.channels  # pyright: ignore[reportAttributeAccessIssue]  (a field or a property of each kind)
        end = math.inf
        which = "counted from 0"
        if self.condition_channels:
            end = self.condition_channels
            which = f"of {end} counted from 0"
        are_channels = all(type(channel) is int and 0 <= channel < end for channel in endpoint)
        if len(endpoint) != count or not are_channels:
            rule = f"a source channel, {which}, for each of {count} channels"
            raise ValueError(f"endpoint must be {rule}, got {endpoint!r}")

    @cached_property
    def inputs(self) -> dict[str, ConditionInput]:
        """All conditions by name: ``source``, where it is seen, then images, classes and tokens."""
        if not self.condition_channels:
            return self.each
        source = ConditionInput(SOURCE, "image", self.condition_channels)
        return {SOURCE: source} | self.each

    @cached_property
    def shown(self) -> dict[str, int]:
        """How many channels of each kind the first layer sees, in its order: the state's, then images'."""
        count: int = self.channels  # pyright: ignore[reportAttributeAccessIssue]  (a field or a property of each kind)
        images = {key: each.size for key, each in self.inputs.items() if each.kind == "image"}
        return {STATE: count} | images

    @cached_property
    def source_channels(self) -> int:
        """The channels of sources.

        A network that does not see them has sources with the target's channels or, with an endpoint, with
        the channels up to the last that it names.
        """
        if self.condition_channels:
            return self.condition_channels
        if self.endpoint is not None:
            return max(self.endpoint) + 1
        return self.channels  # pyright: ignore[reportAttributeAccessIssue]  (a field or a property of each kind)


@dataclass(frozen=True)
class WrappedConfig(NetworkConfig):
    """What a file says of a network of one's own: see :func:`~bbdm.networks.base.wrap`, :func:`register`."""

    module: str  # the name of its class, or the one that makes it
    channels: int  # channels of the state, and of the prediction
    stride: Stride  # sides are multiples of it: a number, or one for each axis

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(along(self.stride, self.axes)) != self.axes:
            raise ValueError(
                f"stride must be a number, or one for each of {self.axes} axes, got {self.stride!r}"
            )


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """The settings of a UNet.

    Condition images are concatenated to x, a class adds its embedding to the time's, and positions with
    self-attention attend to tokens too.

    Raises:
        ValueError: no network can be built from a value.
    """

    in_channels: int = 3  # channels of the state x
    out_channels: int = 3  # channels of the prediction
    model_channels: int = 128  # width of the first level
    # width of each level, in model_channels; each level halves the size
    channel_mult: tuple[int, ...] = (1, 4, 8)
    num_res_blocks: int = 2  # residual blocks a level on the way down, one more on the way up
    # levels with attention, as factors from the first level
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64  # width of an attention head
    num_groups: int = 32  # groups of every GroupNorm
    dropout: float = 0.0  # before the last convolution of a residual block
    # side of the square of pixels that is one position of the first level; of pictures alone
    patch: int = 1
    # of each axis from a level to the next, 1 or 2; None: all 2
    strides: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = check_levels(self)
        self._check_strides(len(widths) - 1)
        if self.patch > 1 and self.axes == 3:
            raise ValueError(f"patch is of pictures, and must be 1 for volumes, got {self.patch}")
        if self.model_channels % 2:
            raise ValueError(f"model_channels must be even, got {self.model_channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for level, width in enumerate(widths):
            is_last = level == len(widths) - 1  # the middle block, which has attention
            is_attended = is_last or 2**level in self.attention_resolutions
            if is_attended and width % self.head_channels:
                raise ValueError(
                    f"attention on {width} channels does not split into heads of {self.head_channels}"
                )

    def _check_strides(self, count: int) -> None:
        """Raise ValueError unless each of ``count`` transitions between levels has a stride of each axis."""
        fits = len(self.level_strides) == count
        for stride in self.level_strides:
            if (
                not isinstance(stride, tuple)
                or len(stride) != self.axes
                or not set(stride) <= {1, 2}
            ):
                fits = False
        if not fits:
            rule = f"{count} tuples of {self.axes} numbers, each 1 or 2"
            raise ValueError(f"strides must be {rule}, got {self.strides!r}")

    @property
    def channels(self) -> int:
        """Of the state."""
        return self.in_channels

    @property
    def blocks(self) -> int:
        """The number of its residual blocks on one way, each of which has weights."""
        return self.num_res_blocks * len(self.channel_mult)

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Of each axis, from each level to the next."""
        if self.strides is not None:
            return self.strides
        halving = (2,) * self.axes
        return (halving,) * (len(self.channel_mult) - 1)

    @property
    def stride(self) -> Stride:
        """Sides must be multiples of this: a number for all, or one for each axis."""
        sides = [self.patch] * self.axes
        for factors in self.level_strides:
            sides = [side * factor for side, factor in zip(sides, factors, strict=True)]
        if len(set(sides)) == 1:
            return sides[0]
        return tuple(sides)


@dataclass(frozen=True)
class DiTConfig(NetworkConfig):
    """The settings of a transformer.

    Condition images are concatenated to x, a class adds its embedding to the time's, and each block attends
    to tokens after itself.

    Raises:
        ValueError: no network can be built from a value.
    """

    axes: ClassVar[int] = 2  # pyright: ignore[reportIncompatibleVariableOverride]  # pictures alone
    channels: int = 3  # of the state, and of the prediction
    condition_channels: int = field(default=3, kw_only=True)  # channels of the source
    patch: int = 4  # side of a token, in pixels; sides of pictures must be multiples of it
    width: int = 384  # channels of a token
    depth: int = 12  # blocks
    heads: int = 6  # heads of every attention

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width must be a multiple of heads={self.heads} and of 4, got {self.width}"
            )

    @property
    def stride(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch


@dataclass(frozen=True)
class Base:
    """Which network of diffusion models a network began as, and the terms of that one's weights.

    Raises:
        ValueError: a value is no text.
    """

    name: str  # OWNER/NAME on the Hugging Face Hub, or the name of the folder or file
    license: str | None = None  # by its model card; None where it is unknown
    license_name: str | None = None  # where ``license`` is ``other``
    license_link: str | None = None  # to the text of that one

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, str) and (value is not None or each.name == "name"):
                raise ValueError(f"{each.name} of a base must be text, got {value!r}")

    def __str__(self) -> str:
        """Its name and its licence in one line."""
        terms: list[str] = []
        for text in (self.license, self.license_name, self.license_link):
            if text is not None:
                terms.append(text)
        return f"{self.name}, license {', '.join(terms) or 'unknown'}"

    @property
    def metadata(self) -> dict[str, str | None]:
        """What a model card says of it: arguments of ``huggingface_hub.ModelCardData``."""
        terms = asdict(self)
        name = terms.pop("name")
        return {"base_model": name if "/" in name else None, **terms}


@dataclass(frozen=True)
class LoRA:
    """Which weights a network with LoRA has beside those that are trained.

    Raises:
        ValueError: the rank is below 1, or a text is none.
    """

    rank: int  # of the added products
    base: str  # the folder or the file of the network that it began with
    sha256: str  # of that network's weights
    dtype: str = "float32"  # of those beside the products, to which they are rounded

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"lora must be a rank of at least 1, got {self.rank!r}")
        for name in ("base", "sha256", "dtype"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name} must be text, got {value!r}")

    def check(self, lora: LoRA | None) -> None:
        """Raise ValueError where a network's ``lora`` has another rank, or began with another base."""
        rank = None if lora is None else lora.rank
        if lora is None or rank != self.rank:
            raise ValueError(f"lora must be {self.rank}, with which it was trained, got {rank}")
        if lora.sha256 != self.sha256:
            raise ValueError(
                f"the weights in {lora.base} are not those that LoRA was trained beside: init_from must be "
                f"{self.base} as it was, with SHA-256 {self.sha256[:8]}..., got {lora.sha256[:8]}..."
            )


@dataclass(frozen=True)
class VQGANConfig:
    """The settings of an autoencoder.

    Raises:
        ValueError: no network can be built from a value.
    """

    image_channels: int = 3  # channels of an image
    latent_channels: int = 3  # also the length of a code
    num_codes: int = 8192  # 0: no codebook, a KL autoencoder
    model_channels: int = 128  # width of the first level
    # width of each level, in model_channels; each level halves the size
    channel_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2  # residual blocks a level of the encoder, one more in the decoder
    # downsampling factors of levels with attention, besides the middle
    attention_resolutions: tuple[int, ...] = ()
    num_groups: int = 32  # groups of every GroupNorm

    def __post_init__(self) -> None:
        check_sizes(self)
        check_levels(self)

    @property
    def stride(self) -> int:
        """Image pixels along one side of a latent pixel; sides of images must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def blocks(self) -> int:
        """The number of its encoder's residual blocks, each of which has weights."""
        return self.num_res_blocks * len(self.channel_mult)

    @property
    def encoded_channels(self) -> int:
        """What the encoder gives: latents, or mean and log variance."""
        if self.num_codes:
            return self.latent_channels
        return 2 * self.latent_channels


_small = partial(UNetConfig, condition_channels=3, num_groups=8)
UNETS: dict[str, UNetConfig] = {
    # of the A-Bridge paper, in image space and on VQ-f4 latents; 237.1 M parameters
    "paper": UNetConfig(),
    "paper-pinned": UNetConfig(condition_channels=3),  # the same, to be trained for few calls
    "few": UNetConfig(condition_channels=3),  # that, to be trained on some hundred pairs
    "bbdm": UNetConfig(condition_channels=3),  # the original BBDM's pixel model
    "lbbdm-f4": UNetConfig(),  # the original BBDM on VQ-f4 latents
    "lbbdm-f8": UNetConfig(in_channels=4, out_channels=4),
    "lbbdm-f16": UNetConfig(in_channels=8, out_channels=8, attention_resolutions=(16, 8, 4)),
    # CT and MR, for crops of 64 x 96 x 96 voxels, slices farther apart; 17.2 M parameters
    "volume": UNetConfig(
        in_channels=1,
        out_channels=1,
        condition_channels=1,
        model_channels=32,
        channel_mult=(1, 2, 4, 5),
        num_res_blocks=1,
        attention_resolutions=(8,),
        head_channels=32,
        num_groups=8,
        axes=3,
        strides=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    ),
    "demo": _small(
        model_channels=64,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_resolutions=(2, 4),
        patch=2,
    ),
    "small": _small(  # 1.2 M parameters, for half an hour on a laptop
        model_channels=24,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_resolutions=(2, 4),
        head_channels=24,
        patch=2,
    ),
    # what demo was before it was trained for few calls
    "demo-residual": _small(
        model_channels=32, channel_mult=(1, 2, 4, 4), attention_resolutions=(8,), head_channels=32
    ),
}
DITS: dict[str, DiTConfig] = {  # the paper's sizes
    "dit-s": DiTConfig(width=384, depth=12, heads=6),  # 33 M parameters
    "dit-b": DiTConfig(width=768, depth=12, heads=12),  # 131 M
    "dit-l": DiTConfig(width=1024, depth=24, heads=16),  # 459 M
}
VQGANS: dict[str, VQGANConfig] = {
    "vq-f4": VQGANConfig(),
    "vq-f8": VQGANConfig(
        latent_channels=4, num_codes=16384, channel_mult=(1, 2, 2, 4), attention_resolutions=(8,)
    ),
    "vq-f16": VQGANConfig(
        latent_channels=8,
        num_codes=16384,
        channel_mult=(1, 1, 2, 2, 4),
        attention_resolutions=(16,),
    ),
    "demo": VQGANConfig(num_codes=512, model_channels=32, num_res_blocks=1, num_groups=8),
}
OWN: Registry[WrappedConfig] = Registry("network")  # of networks that are registered
FACTORIES: dict[str, tuple[Callable[[WrappedConfig], Any], Callable[..., Any] | None]] = {}
Factory = TypeVar("Factory", bound=Callable[[WrappedConfig], Any])


def register(
    name: str,
    *,
    sees_source: bool = True,
    stride: Stride = 1,
    axes: int = 2,
    call: Callable[..., Any] | None = None,
) -> Callable[[Factory], Factory]:
    """A decorator that gives a network of one's own a name, for ``bbdm train --preset`` and for files.

    The function makes the module of a :class:`WrappedConfig`, whose ``channels`` are the target's and whose
    ``condition_channels`` are the source's. A file has the name and the settings, so that all that reads it
    makes the network again. The same function defined again, as by a cell of a notebook that runs twice,
    replaces the first.

    Args:
        name: in files and in commands.
        sees_source: the module is called with the source; if not, ``condition_channels`` is 0.
        stride: sides must be multiples of it, as of :func:`~bbdm.networks.base.wrap`.
        axes: 2 for a module of pictures, 3 for one of volumes.
        call: call(module, x, t, conditions), as of :func:`~bbdm.networks.base.wrap`.

    Raises:
        ValueError: the name is of a preset of this library or of another function, or a size is out of range.
    """
    if name in UNETS or name in DITS:
        raise ValueError(f"the name {name!r} is of a preset of this library: choose another")
    config = WrappedConfig(name, 3, stride, condition_channels=3 if sees_source else 0, axes=axes)

    def add(make: Factory) -> Factory:
        OWN.register(name, config, make)
        FACTORIES[name] = make, call
        return make

    return add
