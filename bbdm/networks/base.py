"""What any network must be to be trained, sampled, compiled, exported and saved; and how to make one so.

Of any module, or of settings and weights, which are compared, hashed and loaded.
"""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.networks.arrays import Stride, along, check_images, in_channels
from bbdm.networks.conditions import SOURCE as SOURCE
from bbdm.networks.conditions import Classes, ConditionInput, matched
from bbdm.networks.config import FACTORIES, Base, LoRA, WrappedConfig

Conditions = Mapping[str, torch.Tensor]
Call = Callable[[Any, torch.Tensor, torch.Tensor, Conditions], torch.Tensor]
Module = TypeVar("Module", bound=nn.Module)
Configured = TypeVar("Configured", bound="ConfiguredNetwork")
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
# Network.body, or what it was compiled to
Body = Callable[[torch.Tensor, torch.Tensor, Conditions], torch.Tensor]


class Network(nn.Module):
    """The base class of networks. :func:`wrap` makes one of any module.

    A class of one's own sets ``channels``, ``condition_channels`` and ``stride`` and, where they are not the
    usual ones, ``axes``, ``images``, ``classes``, ``tokens``, ``drop`` and ``endpoint_channels``. They are
    arguments of :func:`wrap`, of which the last is called ``endpoint``. Shapes are of pictures; of
    volumes, H, W is D, H, W.

    Attributes:
        network_config: its settings as a file has them.
        strides: the stride of each axis.
        source_channels: those of sources, whether it sees them or not.
        base: the network of diffusion models that it began as; None of others.
        lora: which weights it has beside those that are trained; None where all may be trained.
        inputs: all conditions by name: ``source``, where it is seen, then images, classes and tokens.
    """

    # its name in files, which hold the weights of a class of one's own, and not the class
    kind: str = "wrapped"
    channels: int
    condition_channels: int
    axes: int = 2
    stride: Stride
    images: Mapping[str, int] = {}
    classes: Mapping[str, Classes] = {}
    tokens: Mapping[str, int] = {}
    drop: Mapping[str, float] = {}
    endpoint_channels: tuple[int, ...] | None = None
    # the key of the weight (out, in, ...) that sees the state, the source and images, in this order
    first_layer: str | None = None
    base: Base | None = None
    lora: LoRA | None = None

    # a NetworkConfig; None where the attributes are a class's own
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        if config is None:
            config = WrappedConfig(
                type(self).__qualname__,
                self.channels,
                self.stride,
                condition_channels=self.condition_channels,
                axes=self.axes,
                images=self.images,
                classes=self.classes,
                tokens=self.tokens,
                drop=self.drop,
                endpoint=self.endpoint_channels,
            )
        self.network_config = config
        self.channels = config.channels
        self.condition_channels = config.condition_channels
        self.axes = config.axes
        self.stride = config.stride
        self.strides = along(config.stride, config.axes)
        self.images = config.images
        self.classes = config.classes
        self.tokens = config.tokens
        self.drop = config.drop
        self.endpoint_channels = config.endpoint
        self.source_channels = config.source_channels
        self.inputs: dict[str, ConditionInput] = config.inputs

    def endpoint(self, source: torch.Tensor) -> torch.Tensor:
        """y, the source in the target's channels: where the bridge begins to sample.

        Args:
            source: (B, source_channels, H, W).

        Returns:
            (B, channels, H, W): the source itself, not a copy, where it has the target's channels; the
            channels ``endpoint_channels`` where there are any; else the mean over channels, repeated.

        Raises:
            ValueError: the source has other channels.
        """
        if source.shape[1] != self.source_channels:
            raise ValueError(
                f"the source must have {self.source_channels} channels, got {source.shape[1]}"
            )
        y = in_channels(source, self.channels, self.endpoint_channels)
        if y is source:
            return source
        return y.contiguous(memory_format=CHANNELS_LAST[y.ndim])

    def without(self, conditions: Conditions, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Conditions of which some are "none": the number of classes, or zeros."""
        others = dict(conditions)
        for name in names:
            if name in conditions:
                others[name] = self.inputs[name].none(conditions[name])
        return others

    def prepared(self, conditions: Conditions, sides: Sequence[int]) -> dict[str, torch.Tensor]:
        """What conditions alone decide, computed once for all steps: what :meth:`body` takes for them.

        Args:
            conditions: tensors by name, in the order of :attr:`inputs`.
            sides: of the state, (height, width) or (depth, height, width).

        Returns:
            A tensor (B, ...) for each name. Those with as many axes as the state have places, and are cut
            where the state is cut into windows. By default they are the conditions themselves.
        """
        return dict(conditions)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions | None = None
    ) -> torch.Tensor:
        """Predict the bridge's objective.

        Args:
            x: (B, channels, H, W) what the bridge shows of the state.
            t: (B,) integers or reals, what the network sees of the times; or (1,) for all.
            conditions: tensors by name, those that :attr:`inputs` lists, such as ``source``, which is
                (B, condition_channels, H, W). None where there are none.

        Returns:
            (B, channels, H, W) the prediction of the bridge's objective.

        Raises:
            ValueError: x has other axes or channels, or a size that is no multiple of the stride; or a
                condition is missing or unknown, or has another size.
        """
        check_images(x, self.channels, self.strides)
        if isinstance(conditions, dict) and list(conditions) == list(self.inputs):
            seen = conditions
        else:
            seen = matched(conditions, self.inputs)
        for name, value in seen.items():
            self.inputs[name].check(value)
        return self.body(x, self.embed(t), self.prepared(seen, x.shape[2:]))

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """What depends on the time alone, computed once a table; the time itself by default."""
        return t

    @abstractmethod
    def body(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """The rest of the network; ``embedding`` has a row for each image, or one for all.

        ``conditions`` are :meth:`prepared`: all of :attr:`inputs`, empty where there are none.
        """

    def embedder(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """:meth:`embed` of times on any device, without keeping weights that it does not need."""
        device = next(self.parameters()).device
        return lambda t: self.embed(t.to(device))

    def description(self) -> dict[str, Any]:
        """Plain values by which a checkpoint names it."""
        return asdict(self.network_config)


class Wrapped(Network):
    """Any module as a network; see :func:`wrap`."""

    def __init__(self, module: nn.Module, config: WrappedConfig, call: Call | None) -> None:
        super().__init__(config)
        self.module = module
        self._call = call

    @classmethod
    def from_config(cls, config: WrappedConfig) -> Wrapped:
        """The network that a registered function makes of settings; KeyError where none has their name."""
        make, call = FACTORIES[config.module]
        return cls(make(config), config, call)

    def body(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """The module's prediction; the embedding is the time."""
        t = embedding.expand(x.shape[0])
        if self._call is not None:
            return self._call(self.module, x, t, conditions)
        if conditions.keys() - {SOURCE}:
            return self.module(x, t, conditions)
        if conditions:
            return self.module(x, t, conditions[SOURCE])
        return self.module(x, t)


def wrap(
    module: nn.Module,
    channels: int = 3,
    condition_channels: int = 0,
    stride: Stride = 1,
    call: Call | None = None,
    **settings: Any,
) -> Wrapped:
    """Any module as a network that can be trained, sampled, compiled, exported and saved.

    Args:
        module: the module, which is used, not copied.
        channels: of the state, and of the prediction: the target's.
        condition_channels: channels of the source, where the module sees it; otherwise 0.
        stride: sides must be multiples of it: a number, or one for each axis. Pictures are padded to that.
        call: call(module, x, t, conditions) gives the prediction, (B, channels, H, W). The time is (B,)
            float, and conditions are tensors by name, of which ``source`` is the source. By default
            module(x, t), module(x, t, source) where it sees the source, and module(x, t, conditions) with
            further conditions.
        **settings: ``images``, ``classes``, ``tokens`` and ``drop`` of
            :class:`~bbdm.networks.conditions.ConditionsConfig`, and ``endpoint`` and ``axes`` of
            :class:`~bbdm.networks.config.NetworkConfig`.

    Raises:
        ValueError: a size or a name is out of range, or ``module`` is no module.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    config = WrappedConfig(
        name, channels, stride, condition_channels=condition_channels, **settings
    )
    return Wrapped(module, config, call)


def check_network(network: Any) -> None:
    """Raise ValueError for what is no network."""
    if not isinstance(network, Network):
        raise ValueError(
            f"it must be a network, got {type(network).__name__}: bbdm.wrap makes one of any module"
        )
    if next(network.parameters(), None) is None:
        raise ValueError(
            f"a network must have parameters, got a {type(network).__name__} without any"
        )


def placed(network: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """The network on a device, in a dtype and in evaluation mode: itself where it is so, else a copy."""
    weight = next(network.parameters())
    if (weight.device, weight.dtype) == (device, dtype) and not network.training:
        return network
    return copy.deepcopy(network).to(device, dtype).eval().requires_grad_(False)


class ConfiguredNetwork:
    """A network whose arguments are the fields of a settings dataclass, its attribute ``config``."""

    presets: ClassVar[Mapping[str, Any]]  # settings by name

    @classmethod
    def from_config(cls: type[Configured], config: Any) -> Configured:
        """A network of these settings, with freshly initialised weights."""
        return cls(**asdict(config))

    @classmethod
    def from_preset(cls: type[Configured], name: str) -> Configured:
        """A network of a preset's settings, with freshly initialised weights; ``presets`` has the names.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in cls.presets:
            raise ValueError(f"preset must be one of {sorted(cls.presets)}, got {name!r}")
        return cls.from_config(cls.presets[name])


def fitting(
    build: Callable[[Any], Module], config: Any, state: Mapping[str, Any], whose: str = "its"
) -> Module:
    """A network on the device "meta", without memory, that weights fit by key, shape and kind of number.

    ``whose`` begins a message.

    Raises:
        ValueError: there is no network of such sizes, or weights do not fit: the message has every key that
            is missing, extra or of another shape.
    """
    if not isinstance(state, Mapping) or not all(
        hasattr(value, "shape") for value in state.values()
    ):
        raise ValueError(f"{whose} weights are no state dict of tensors")
    blocks = getattr(config, "blocks", 0)
    if blocks > len(state):  # a wrong number of blocks can be huge, and would be built
        raise ValueError(
            f"{whose} weights do not fit the network: {len(state)} tensors, for {blocks} blocks"
        )
    try:
        with torch.device("meta"):
            network = build(config)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor has
        raise ValueError(
            f"there is no network of such sizes: {str(error).splitlines()[0]}"
        ) from error
    differences = differences_of(state, network.state_dict())
    if differences:
        raise ValueError(f"{whose} weights do not fit the network: {'; '.join(differences)}")
    return network


def differences_of(state: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """In words, the keys of weights that an expected state dict does not have so."""
    shapes: list[str] = []
    integers: list[str] = []
    for key in sorted(state.keys() & expected.keys()):
        shape = tuple(state[key].shape)
        expected_shape = tuple(expected[key].shape)
        if shape != expected_shape:
            shapes.append(f"{key} {shape} (wanted {expected_shape})")
        if expected[key].is_floating_point() and not state[key].dtype.is_floating_point:
            integers.append(key)
    differences = {
        "missing": sorted(expected.keys() - state.keys()),
        "extra": sorted(map(str, state.keys() - expected.keys())),
        "of another shape": shapes,
        "no floating point numbers": integers,
    }
    return [f"{name}: {', '.join(keys)}" for name, keys in differences.items() if keys]


def restore(
    build: Callable[[Any], Module], config: Any, state: dict[str, torch.Tensor], whose: str = "its"
) -> Module:
    """A network in float32 on the CPU, in evaluation mode; for arguments and errors see :func:`fitting`."""
    network = fitting(build, config, state, whose)
    computed = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    if computed:  # which no file holds, such as the places of tokens
        network = build(config)
    else:
        # initial values would take longer to draw than the file takes to read
        network.to_empty(device="cpu")
    network.load_state_dict(state)
    return network.eval()


def find_dtype(name: str | torch.dtype) -> torch.dtype:
    """A floating-point dtype, or that of a name: ``bf16``, ``fp16``, ``fp32``, or torch's own, ``bfloat16``.

    Raises:
        ValueError: the name is unknown, or the dtype is not one of floating-point numbers.
    """
    dtype: Any = name
    if isinstance(name, str):
        dtype = DTYPES.get(name, getattr(torch, name, None))
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"dtype must be a floating-point dtype such as {', '.join(DTYPES)}, got {name!r}"
        )
    return dtype


def converted(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A state dict whose floating-point numbers are of a dtype; ValueError where they leave its range."""
    outputs = dict(state)
    for key, value in state.items():
        if value.is_floating_point():
            outputs[key] = value.to(dtype)
            overflows = outputs[key].isfinite() != value.isfinite()
            if bool(overflows.any()):
                raise ValueError(f"{key} has values beyond the range of {dtype}")
    return outputs


def state_hash(state: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the keys and values of a state dict; values are converted to ``dtype`` where it is given."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        value = value.detach().to("cpu", dtype or value.dtype).contiguous()
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
