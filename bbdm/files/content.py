"""The content of a checkpoint, the same for every file format that is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bbdm import bridges
from bbdm import codec as codecs
from bbdm.base.manifest import as_json
from bbdm.bridges import Bridge, BrownianBridge
from bbdm.codec import WRAPPED, Codec, LatentStatistics
from bbdm.data.spec import Spec
from bbdm.data.trained import Origin
from bbdm.defaults import NO_DEFAULTS, Defaults
from bbdm.files import weights
from bbdm.files.diffusers_folders import network_folder
from bbdm.files.pretrained import read_pretrained
from bbdm.files.weights import FORMAT, VQGAN_FORMAT, IncompleteFileError, Snapshot, State
from bbdm.networks.base import (
    ConfiguredNetwork,
    Network,
    Wrapped,
    converted,
    fitting,
    restore,
    state_hash,
)
from bbdm.networks.config import FACTORIES, Base, LoRA, UNetConfig, WrappedConfig
from bbdm.networks.dit import DiT, DiTConfig
from bbdm.networks.lora import add_lora, completed, merged, trained
from bbdm.networks.pretrained import Pretrained
from bbdm.networks.pretrained_config import PretrainedConfig
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN, VQGANConfig
from bbdm.pictures.images import Size, as_size

# by the names in files; the classes of their settings
NETWORKS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "unet": (UNet, UNetConfig),
    "dit": (DiT, DiTConfig),
    "wrapped": (Wrapped, WrappedConfig),
    "pretrained": (Pretrained, PretrainedConfig),
    "vqgan": (VQGAN, VQGANConfig),  # in a file of its own
}


@dataclass(frozen=True)
class NetworkState:
    """A network or an autoencoder in a file: its settings, and its weights, their moving average, or both."""

    config: Any  # UNetConfig, or the settings of another kind
    weights: State | None
    ema: State | None = None
    kind: str = "unet"
    # of an autoencoder's file; a bridge's has it in the Checkpoint
    training: dict[str, Any] | None = None
    base: Base | None = None  # the network of diffusion models that it began as
    lora: LoRA | None = None  # of a run's file that has trained weights alone
    origin: Origin | None = None  # of an autoencoder's file

    @classmethod
    def of(
        cls, network: Network, ema: Network | None = None, dtype: torch.dtype | None = None
    ) -> NetworkState:
        """The state of a network, and of one with its moving average, whose tensors are not copied.

        That of a network with LoRA is of the plain network that computes the same, and a copy.

        Raises:
            ValueError: a weight is beyond the range of ``dtype``, if given.
        """
        weights = plain_state(network, dtype)
        average = None if ema is None else plain_state(ema, dtype)
        return cls(network.network_config, weights, average, network.kind, base=network.base)

    @classmethod
    def of_trained(cls, network: Network, ema: Network) -> NetworkState:
        """The weights of a network with LoRA that are trained, and their moving average, not copied."""
        return cls(
            network.network_config,
            trained(network),
            trained(ema),
            network.kind,
            base=network.base,
            lora=network.lora,
        )

    @classmethod
    def read(cls, settings: dict[str, Any], content: Snapshot, kind: str = "unet") -> NetworkState:
        """What a file describes; ValueError where a setting is wrong, or the weights do not fit."""
        kind = settings.get("kind", kind)
        is_autoencoder = content.format == VQGAN_FORMAT
        if kind not in NETWORKS or (kind == VQGAN.kind) != is_autoencoder:
            raise ValueError(
                f"network kind must be one of {sorted(NETWORKS)}, got {kind!r}: update bbdm"
            )
        network, config_class = NETWORKS[kind]
        config = config_class(**settings["config"])
        weights = content.states.get("weights")
        ema = content.states.get("ema")
        if weights is None and ema is None:
            raise ValueError("it holds neither weights nor their moving average")
        base = Base(**settings["base"]) if "base" in settings else None
        if "lora" in settings:  # whose weights are compared with a base, where there is one
            return cls(config, weights, ema, kind, base=base, lora=LoRA(**settings["lora"]))
        for state in (weights, ema):
            if state is not None and issubclass(network, ConfiguredNetwork):
                fitting(network.from_config, config, state)
        return cls(config, weights, ema, kind, content.training, base)

    def build(self, ema: bool = True, network: Network | None = None) -> Any:
        """The network in float32 and evaluation mode; see :meth:`Checkpoint.build_unet`."""
        network_class, _ = NETWORKS[self.kind]
        state = self._state(ema)
        if not issubclass(network_class, ConfiguredNetwork):
            return self._build_wrapped(state, network)
        if network is not None:
            raise ValueError(
                f"a network was given, and the file describes its own, a {network_class.__name__}"
            )
        if self.lora is not None:
            beside = self.beside_base()
            beside.load_state_dict(completed(beside, state))
            state = merged(beside)
        built: Any = restore(network_class.from_config, self.config, state, "the checkpoint's")
        built.base = self.base
        return built

    def _state(self, ema: bool) -> Any:
        """The moving average or the weights; a file that was read has one of them at least."""
        preferred = self.ema if ema else self.weights
        if preferred is not None:
            return preferred
        return self.weights if ema else self.ema

    def _build_wrapped(self, state: State, network: Network | None) -> Any:
        """A network of a user's own class: registered by its name, or a copy of the one given."""
        described = f"of a {self.config.module} with {self.config.channels} channels"
        if network is not None:
            template = copy.deepcopy(network)
        elif self.config.module in FACTORIES:
            template = Wrapped.from_config(self.config)
        else:
            raise IncompleteFileError(
                f"the file holds weights {described}, wrapped: give it in Python, network=bbdm.wrap(module, ...), or "
                "import the module that registers it, bbdm --import MODULE"
            )
        expected = settings_of_wrapped(self.config)
        got = settings_of_wrapped(template.network_config)
        if template.kind != self.kind or expected != got:
            raise ValueError(
                f"the file holds weights {described}, wrapped with {expected}; the one given has {got}"
            )
        built = fitting(lambda _: template, None, state, "the checkpoint's")
        built.load_state_dict(state)
        return built.float().eval()

    def beside_base(self, path: Path | None = None) -> Any:
        """The network of a file that has only what LoRA trained, before it takes these weights.

        Args:
            path: of the network that it began with; None for where that was.

        Raises:
            IncompleteFileError: that network is not at hand.
            ValueError: there is another network.
        """
        lora = cast(LoRA, self.lora)
        if path is None and is_local(lora.base):
            path = Path(lora.base)
        network = None if path is None else self._base(path)
        if network is None:
            raise IncompleteFileError(
                f"the file has only what LoRA trained, and {lora.base}, the network that it began with, is not here: "
                "name it as init_from, without ckpt_path, where a run resumes, or take the run's final weights, which "
                "need it no more"
            )
        add_lora(network, lora.rank, f"{path}", lora.dtype)
        lora.check(network.lora)
        network.base = self.base
        return network

    def _base(self, path: Path) -> Any:
        """The network in a folder or a file, for the channels of this one; None where there is none."""
        endpoint = self.config.endpoint
        if path.is_file():
            with weights.opened(path, FORMAT, "network that LoRA began with") as content:
                stored = NetworkState.read(content.settings["unet"], content)
                if stored.kind != Pretrained.kind or stored.lora is not None:
                    raise ValueError("it has not all weights of a pretrained network")
                return replace(stored, config=replace(stored.config, endpoint=endpoint)).build()
        if network_folder(path) is None:
            return None
        config = self.config
        bridge = BrownianBridge()
        return read_pretrained(
            path, bridge, config.condition_channels, config.channels, None, endpoint
        )[0]


def plain_state(network: Network, dtype: torch.dtype | None) -> State:
    """The weights, with LoRA merged into them, in a dtype if given."""
    state = network.state_dict() if network.lora is None else merged(network)
    return state if dtype is None else converted(state, dtype)


def settings_of_wrapped(config: Any) -> dict[str, Any]:
    """What must agree of a wrapped network; its class may have moved to another module."""
    return {name: value for name, value in asdict(config).items() if name != "module"}


def vqgan_snapshot(
    vqgan: VQGAN, ema: VQGAN | None = None, training: dict[str, Any] | None = None
) -> Snapshot:
    """The content of an autoencoder's file; ``ema`` has the moving average of the weights."""
    states = {"weights": vqgan.state_dict()}
    if ema is not None:
        states["ema"] = ema.state_dict()
    return Snapshot(VQGAN_FORMAT, {"config": asdict(vqgan.config)}, states, training)


@dataclass(frozen=True)
class CodecState:
    """A codec in a file: its :meth:`~bbdm.codec.base.Codec.config`, and its weights or their hash."""

    config: dict[str, Any]
    weights: State | None
    sha256: str | None = None
    codec: Codec | None = None  # the user's, for files that have only the hash

    @classmethod
    def of(cls, codec: Codec) -> CodecState:
        """The state of a codec, whose tensors are not copied."""
        return cls(codec.config(), codec.module.state_dict(), codec=codec)

    @classmethod
    def read(
        cls, settings: dict[str, Any], states: dict[str, State], codec: Codec | None
    ) -> CodecState:
        """What a file describes; ``codec`` is the one that a file with only its hash means."""
        config = {name: value for name, value in settings.items() if name != "sha256"}
        if "sha256" not in settings:
            codecs.from_config(config, states["codec"], fitting)  # or it raises what is wrong
            return cls(config, states["codec"])
        sha256 = settings["sha256"]
        if not isinstance(sha256, str) or not sha256:
            raise ValueError(f"the codec's sha256 must be text, got {sha256!r}")
        return cls(config, None, sha256, codec)

    @property
    def statistics(self) -> LatentStatistics | None:
        """The statistics that latents are normalised by, or None."""
        statistics = self.config["statistics"]
        return None if statistics is None else LatentStatistics(**statistics)

    def digest(self) -> str:
        """SHA-256 of the weights in float32."""
        return self.sha256 or state_hash(self.weights or {}, torch.float32)

    def same_latents(self, codec: Codec) -> bool:
        """Whether a codec has the same settings and weights, and so the same latents before normalisation."""
        settings = as_json({**self.config, "statistics": None})
        others = as_json({**codec.config(), "statistics": None})
        return settings == others and self.digest() == codec.digest()


def origin_of(path: Path, settings: Mapping[str, Any]) -> Origin:
    """Where the weights of a file come from, by its settings.

    Raises:
        ValueError: the run or the record that they name is no text.
    """
    run = settings.get("run", "")
    record = settings.get("record", "")
    if not isinstance(run, str) or not isinstance(record, str):
        raise ValueError(f"run and record must be texts, got {run!r} and {record!r}")
    folder = path.parent / run if run and is_local(run) else None
    return Origin(path, folder, record or None)


def is_local(path: str) -> bool:
    """Whether a path is none of a share in the network, to which a stranger's file must not connect."""
    return not path.startswith(("//", "\\\\"))


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: what :func:`~bbdm.files.checkpoint.load_checkpoint` returns."""

    unet: NetworkState
    bridge: Bridge
    codec: CodecState | None = None  # of the space of the bridge; None for image space
    # side or (height, width) of the pictures of training, where known
    image_size: Size | None = None
    training: dict[str, Any] | None = None
    defaults: Defaults = NO_DEFAULTS  # what samplers take where solver and steps are left out
    pictures: Spec = Spec()
    origin: Origin | None = None  # the file, and the run that wrote it

    def __post_init__(self) -> None:
        if self.defaults.solver is not None:
            self.defaults.table(self.bridge)  # or the bridge cannot take its steps

    @classmethod
    def read(cls, content: Snapshot, codec: Codec | None = None) -> Checkpoint:
        """What a file of our own describes; ``codec`` has weights that it only refers to."""
        settings = content.settings
        network = NetworkState.read(settings["unet"], content)
        bridge = bridges.from_config(settings["bridge"])
        codec_state = None
        if settings["codec"] is not None:
            codec_state = CodecState.read(settings["codec"], content.states, codec)
        image_size = settings.get("image_size")
        if image_size is not None:
            image_size = as_size(image_size, network.config.axes)
        defaults = Defaults.from_config(settings)
        pictures = Spec.from_config(settings)
        return cls(network, bridge, codec_state, image_size, content.training, defaults, pictures)

    def snapshot(self) -> Snapshot:
        """The content of a file; with training state, or a wrapped codec, with only the hash of the codec."""
        unet: dict[str, Any] = {"kind": self.unet.kind, "config": asdict(self.unet.config)}
        if self.unet.base is not None:
            unet["base"] = asdict(self.unet.base)
        if self.unet.lora is not None:
            unet["lora"] = asdict(self.unet.lora)
        states: dict[str, State] = {}
        if self.unet.weights is not None:
            states["weights"] = self.unet.weights
        if self.unet.ema is not None:
            states["ema"] = self.unet.ema
        codec: dict[str, Any] | None = None
        if self.codec is not None:
            codec = self.codec.config
            weights = self.codec.weights
            if weights is None or self.training is not None or codec["kind"] == WRAPPED:
                codec = {**codec, "sha256": self.codec.digest()}
            else:
                states["codec"] = weights
        settings = {
            "unet": unet,
            "bridge": self.bridge.config(),
            "codec": codec,
            "image_size": self.image_size,
            **self.defaults.config(),
            **self.pictures.config(),
        }
        return Snapshot(FORMAT, settings, states, self.training)

    def build_unet(self, ema: bool = True, network: Network | None = None) -> Network:
        """The network in float32 and evaluation mode; ``ema`` picks if the file has both kinds of weights.

        ``network`` is the one that a file of a wrapped network is of; it is copied.

        Raises:
            IncompleteFileError: that network is missing.
            ValueError: another network was given.
        """
        return self.unet.build(ema, network)

    def build_codec(self) -> Codec | None:
        """The codec in float32, or None for a network of image space.

        Raises:
            IncompleteFileError: the file refers to the codec by a hash, as training checkpoints and those of
                wrapped codecs do, and :func:`~bbdm.files.checkpoint.load_checkpoint` was not given it.
        """
        stored = self.codec
        if stored is None:
            return None
        if stored.codec is not None:
            return stored.codec.with_statistics(stored.statistics)
        if stored.weights is None:
            known = f"{stored.digest()[:8]}... of kind {stored.config.get('kind')!r}"
            raise IncompleteFileError(
                f"the file has only the SHA-256 of its codec, {known}: pass the codec, load_checkpoint(path, codec=...)"
                ", or take the run's final weights"
            )
        return codecs.from_config(stored.config, stored.weights)
