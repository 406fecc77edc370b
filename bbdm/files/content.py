"""The content of a checkpoint, the same for every file format that is read."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bbdm import codec as codecs
from bbdm.bridges import Bridge
from bbdm.codec import Codec, LatentStatistics, WrappedCodec
from bbdm.data.spec import Spec
from bbdm.files import weights
from bbdm.files.weights import IncompleteFileError, State
from bbdm.networks.base import Network, Wrapped
from bbdm.networks.dit import DiT, DiTConfig
from bbdm.networks.endpoint import source_channels
from bbdm.networks.restore import ConfiguredNetwork, fitting, restore, state_hash
from bbdm.networks.unet import UNet
from bbdm.networks.unet_config import UNetConfig
from bbdm.networks.vqgan import VQGAN, VQGANConfig
from bbdm.networks.wrapped_config import WrappedConfig
from bbdm.pictures.images import Size
from bbdm.solvers import USUAL, Defaults

FORMAT = "bbdm"


NETWORKS: dict[str, tuple[type[Network], type[Any]]] = {  # by the names in files; the classes of their settings
    "unet": (UNet, UNetConfig),
    "dit": (DiT, DiTConfig),
    "wrapped": (Wrapped, WrappedConfig),
}


def network_settings(network: Network) -> dict[str, Any]:
    """All settings of a network, as a file's :class:`UNetState` gives them, and its kind."""
    _, settings = NETWORKS[network.kind]
    return {"network": network.kind, **vars(settings(**network.description()))}


@dataclass(frozen=True)
class UNetState:
    """A network in a file: its settings, and its weights, their moving average, or both."""

    config: Any  # UNetConfig, or the settings of another kind; has axes, channels, condition_channels and stride
    weights: State | None
    ema: State | None
    kind: str = "unet"

    @property
    def source_channels(self) -> int:
        """The channels of sources."""
        return source_channels(self.config.channels, self.config.condition_channels, self.config.endpoint)

    @classmethod
    def read(cls, content: dict[str, Any]) -> UNetState:
        """What a file says, checked.

        Raises:
            ValueError: the kind is unknown, a setting is wrong, or the weights do not fit.
        """
        kind = content.get("kind", "unet")
        if kind not in NETWORKS:
            raise ValueError(f"network kind must be one of {sorted(NETWORKS)}, got {kind!r}: update bbdm")
        network, settings = NETWORKS[kind]
        state = cls(settings(**content["config"]), content["weights"], content["ema"], kind)
        found = [each for each in (state.weights, state.ema) if each is not None]
        if not found:
            raise ValueError("it holds neither weights nor their moving average")
        if issubclass(network, ConfiguredNetwork):
            for each in found:
                fitting(network.from_config, state.config, each)
        return state

    def build(self, state: State, network: Network | None) -> Network:
        """The network in float32 and evaluation mode, with weights of the file.

        Raises:
            IncompleteFileError: the network is its user's own, and was not given.
            ValueError: another network was given.
        """
        kind, _ = NETWORKS[self.kind]
        if issubclass(kind, ConfiguredNetwork):
            if network is not None:
                raise ValueError(f"a network was given, and the file describes its own, a {kind.__name__}")
            return restore(kind.from_config, self.config, state, "the checkpoint's")  # pyright: ignore[reportReturnType]
        wanted = f"of a {self.config.module} with {self.config.channels} channels"
        if network is None:
            raise IncompleteFileError(
                f"the file holds weights {wanted}, wrapped: give the network, "
                "BridgeSampler.from_checkpoint(path, network=bbdm.wrap(module, ...))"
            )
        sizes, given = (
            {k: v for k, v in each.items() if k != "module"}
            for each in (self.config.description(), network.description())
        )
        if network.kind != self.kind or sizes != given:  # a class may have moved; weights are compared by key and shape
            raise ValueError(f"the file holds weights {wanted}, wrapped with {sizes}; the one given has {given}")
        made = fitting(lambda _: copy.deepcopy(network), None, state, "the checkpoint's")
        made.load_state_dict(state)
        return made.float().eval()


@dataclass(frozen=True)
class CodecState:
    """A codec in a file: its :meth:`~bbdm.codec.base.Codec.config`, and its weights or their hash."""

    config: dict[str, Any]
    weights: State | None
    sha256: str | None = None
    given: Codec | None = None  # by the user, for files that do not hold all of it

    @classmethod
    def of(cls, codec: Codec) -> CodecState:
        """The state of a codec, on the CPU."""
        state = {k: v.detach().cpu().clone() for k, v in codec.state_dict().items()}
        return cls(codec.config(), state, given=codec)

    @property
    def statistics(self) -> LatentStatistics | None:
        """The statistics that latents are normalised by, or None."""
        statistics = self.config["statistics"]
        return None if statistics is None else LatentStatistics(**statistics)

    def digest(self) -> str:
        """SHA-256 of the weights in float32."""
        if self.sha256 is not None:
            return self.sha256
        assert self.weights is not None
        return state_hash(self.weights, torch.float32)

    def same_latents(self, codec: Codec) -> bool:
        """Whether a codec has the same settings and weights, and so the same latents before normalisation."""
        stored, given = ({**config, "statistics": None} for config in (self.config, codec.config()))
        return _plain(stored) == _plain(given) and self._same_weights(codec)

    def same_network(self, codec: Codec) -> bool:
        """Whether a codec has the same autoencoder, though perhaps other latents of it.

        The weights of a wrapped one may be others where the file holds them: the given one is but its code.
        """
        same = _plain(self.config["config"]) == _plain(codec.config()["config"])
        return same and ((self._wrapped and self.sha256 is None) or self._same_weights(codec))

    @property
    def lacks(self) -> str | None:
        """What a file leaves out, so that the codec cannot be built, and how to give it; None if nothing."""
        if self.weights is None:
            return (
                f"a training checkpoint holds only the SHA-256 of its codec's weights, {self.digest()[:8]}...: "
                "pass the codec, load_checkpoint(path, codec=...), or take the run's final weights"
            )
        if self._wrapped and self.given is None:
            return (
                f"the file holds the weights of a codec that is a wrapped {self.config['config']['module']}: "
                "give the codec, load_checkpoint(path, codec=bbdm.wrap_codec(module, ...))"
            )
        return None

    @property
    def _wrapped(self) -> bool:
        return self.config.get("kind") == WrappedCodec.kind

    def _same_weights(self, codec: Codec) -> bool:
        return self.digest() == state_hash(codec.state_dict(), torch.float32)


@dataclass(frozen=True)
class VQGANState:
    """A VQGAN or KL autoencoder in a file of its own, and the state of its training run, if any."""

    config: VQGANConfig
    weights: State
    ema: State | None = None
    training: dict[str, Any] | None = None

    @classmethod
    def read(cls, content: dict[str, Any]) -> VQGANState:
        """What a file says, checked.

        Raises:
            ValueError: a setting is wrong, or the weights do not fit.
        """
        config, states = VQGANConfig(**content["config"]), (content["weights"], content.get("ema"))
        for state in states:
            if state is not None:
                fitting(VQGAN.from_config, config, state)
        return cls(config, *states, content.get("training"))

    def build(self) -> VQGAN:
        """The network in float32 and evaluation mode, with the averaged weights if there are both."""
        return restore(VQGAN.from_config, self.config, self.weights if self.ema is None else self.ema)


class Origin(NamedTuple):
    """Where a network comes from."""

    path: Path  # the file
    pairs: Any  # what it says of the training pairs, such as their number and names; None for nothing


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`~bbdm.files.checkpoint.load_checkpoint` returns."""

    unet: UNetState
    bridge: Bridge
    codec: CodecState | None = None  # of the space of the bridge; None for image space
    image_size: Size | None = None  # side or (height, width) of the pictures of training, where known
    training: dict[str, Any] | None = None
    defaults: Defaults = USUAL  # what samplers take where solver and steps are left out
    pictures: Spec = Spec()
    format: str = FORMAT
    version: int = weights.VERSION
    path: Path | None = None  # of the file

    @property
    def origin(self) -> Origin | None:
        """The file, and what it says of the training pairs."""
        return None if self.path is None else Origin(self.path, (self.training or {}).get("pairs"))

    @property
    def calls(self) -> int | None:
        """The network calls that the network was distilled for, or None."""
        return self.defaults.calls

    def half(self, ema: bool = True) -> torch.dtype | None:
        """The dtype of the weights of :meth:`build_unet`, where all are stored in one of 16 bits."""
        found = {value.dtype for value in self._state(ema).values() if value.is_floating_point()}
        return found.pop() if len(found) == 1 and found <= {torch.float16, torch.bfloat16} else None

    def _state(self, ema: bool) -> State:
        first, second = (self.unet.ema, self.unet.weights) if ema else (self.unet.weights, self.unet.ema)
        state = second if first is None else first
        assert state is not None  # checked when the file was read
        return state

    def build_unet(self, ema: bool = True, network: Network | None = None) -> Network:
        """The network in float32 and evaluation mode; ``ema`` picks if the file has both kinds of weights.

        ``network`` is the one that a file of a wrapped network is of; it is copied.

        Raises:
            IncompleteFileError: that network is missing.
            ValueError: another network was given.
        """
        return self.unet.build(self._state(ema), network)

    def build_codec(self) -> Codec | None:
        """The codec in float32, or None for a network of image space.

        Raises:
            IncompleteFileError: the file refers to the codec by a hash, as training checkpoints do, or the
                codec is wrapped, and :func:`~bbdm.files.checkpoint.load_checkpoint` was not given it.
        """
        if self.codec is None:
            return None
        if self.codec.lacks is not None:
            raise IncompleteFileError(self.codec.lacks)
        assert self.codec.weights is not None
        return codecs.from_config(self.codec.config, self.codec.weights, self.codec.given)


def _plain(config: dict[str, Any]) -> str:
    """Settings as text, the same for tuples and lists."""
    return json.dumps(config, sort_keys=True)
