"""The checkpoint file: one file that holds a network, its bridge, its codec and, in training, what to go on from.

``.pt`` is torch.save of plain containers and loads with weights_only=True; ``.safetensors`` keeps the settings in its
metadata and carries no training state. A VQGAN alone is a file of the same two kinds. Loading never runs code from the
file. What other people's programs wrote is read by :mod:`bbdm.importers`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from bbdm import bridges
from bbdm import codec as codecs
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.files import write_atomically
from bbdm.networks.restore import restore
from bbdm.networks.unet import UNet, UNetConfig
from bbdm.networks.vqgan import VQGAN, VQGANConfig

FORMAT = "bbdm"
VQGAN_FORMAT = "bbdm vqgan"
VERSION = 1
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class UNetState:
    """A network in a file: its shape, and its weights, their moving average, or both."""

    config: UNetConfig
    weights: State | None
    ema: State | None


@dataclass(frozen=True)
class CodecState:
    """A codec in a file: see :meth:`bbdm.codec.Codec.config` and :meth:`~bbdm.codec.Codec.state_dict`."""

    config: dict[str, Any]
    weights: State

    @classmethod
    def of(cls, codec: Codec) -> CodecState:
        """The state of a codec, on the CPU."""
        return cls(codec.config(), _state(codec.state_dict()))


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load_checkpoint` read."""

    unet: UNetState
    bridge: Bridge
    codec: CodecState | None = None  # of the space that the network works in; None for image space
    image_size: int | None = None  # side of the square pictures it was trained on, where known
    training: dict[str, Any] | None = None
    format: str = FORMAT
    version: int = VERSION

    def build_unet(self, ema: bool = True) -> UNet:
        """The network in float32, in evaluation mode; ``ema`` picks where the file has both kinds of weights."""
        first, second = (self.unet.ema, self.unet.weights) if ema else (self.unet.weights, self.unet.ema)
        state = second if first is None else first
        assert state is not None  # checked when the file was read
        return restore(UNet, self.unet.config, state, "the checkpoint's")

    def build_codec(self) -> Codec | None:
        """The codec in float32, or None for a network of image space."""
        return None if self.codec is None else codecs.from_config(self.codec.config, self.codec.weights)


def save_checkpoint(
    path: str | os.PathLike[str],
    unet: UNet,
    bridge: Bridge,
    *,
    ema: UNet | None = None,
    codec: Codec | None = None,
    image_size: int | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint, atomically: a reader sees the old file or the whole new one.

    Args:
        path: ends in ``.pt`` or ``.safetensors``.
        unet: the network; its weights are stored in the dtype that they have.
        bridge: what the network was trained on.
        ema: a network with the moving average of the weights.
        codec: of the space that it was trained in, None for image space; the file holds its weights too.
        image_size: side of the square pictures that it was trained on.
        training: state to go on from, of plain containers and tensors; only in a ``.pt``.

    Raises:
        ValueError: another suffix, or training state for a ``.safetensors``.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and training is not None:
        raise ValueError(f"training state needs a .pt file, got {path}")
    states = {
        "weights": _state(unet.state_dict()),
        "ema": None if ema is None else _state(ema.state_dict()),
        "codec": None if codec is None else _state(codec.state_dict()),
    }
    settings = {
        "format": FORMAT,
        "version": VERSION,
        "unet": {"config": asdict(unet.config)},
        "bridge": bridge.config(),
        "codec": None if codec is None else codec.config(),
        "image_size": image_size,
    }

    def whole() -> dict[str, Any]:
        described = {**settings["unet"], "weights": states["weights"], "ema": states["ema"]}
        coded = None if codec is None else {**codec.config(), "weights": states["codec"]}
        return {**settings, "unet": described, "codec": coded, "training": training}

    _write(path, FORMAT, settings, states, whole)


def save_vqgan(path: str | os.PathLike[str], vqgan: VQGAN) -> None:
    """Write a VQGAN alone, atomically.

    Raises:
        ValueError: the name does not end in ``.pt`` or ``.safetensors``.
    """
    state = _state(vqgan.state_dict())
    settings = {"format": VQGAN_FORMAT, "version": VERSION, "config": asdict(vqgan.config)}
    _write(Path(path), VQGAN_FORMAT, settings, {"weights": state}, lambda: {**settings, "weights": state})


def _write(
    path: Path, name: str, settings: dict[str, Any], states: dict[str, State | None], whole: Callable[[], Any]
) -> None:
    """Write a .safetensors of settings and states, or a .pt of the whole content."""
    if path.suffix == ".pt":
        write_atomically(path, lambda temporary: torch.save(whole(), temporary))
    elif path.suffix == ".safetensors":
        tensors = {f"{kind}.{key}": v for kind, state in states.items() if state for key, v in state.items()}
        metadata = {name: json.dumps(settings)}
        write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))
    else:
        raise ValueError(f"the name of a file of weights ends in .pt or .safetensors, got {path}")


def load_checkpoint(
    path: str | os.PathLike[str],
    num_steps: int | None = None,
    c_lambda: float | None = None,
    codec: Codec | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Read a checkpoint: our own, or one that :mod:`bbdm.importers` knows. Tensors come to the CPU.

    Args:
        path: the file.
        num_steps: T,
        c_lambda: the noise scale, and
        codec: the autoencoder, for files that leave them out. What a file holds itself must not differ, since a network
            works only with what it was trained on.
        config: the YAML file of a network of the original BBDM.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is damaged, is of a newer version, disagrees with an argument, or leaves out
            what no argument gives.
    """
    content = _read(path, FORMAT, "checkpoint")
    if content is None:
        from bbdm import importers  # which build on this module

        return importers.read_checkpoint(Path(path), num_steps, c_lambda, codec, config)
    with readable(path, "checkpoint"):
        if config is not None:
            raise ValueError(f"config={config} was given, but the file describes its network itself")
        unet = content["unet"]
        state = UNetState(UNetConfig(**unet["config"]), unet["weights"], unet["ema"])
        if state.weights is None and state.ema is None:
            raise ValueError("it holds neither weights nor their moving average")
        bridge = bridges.from_config(content["bridge"])
        check_arguments(bridge, num_steps, c_lambda)
        coded = content["codec"]
        if coded is not None:
            coded = CodecState({k: v for k, v in coded.items() if k != "weights"}, coded["weights"])
        check_codec(coded, codec)
        rest = {name: content[name] for name in ("training", "format", "version")}
    return Checkpoint(state, bridge, coded, content.get("image_size"), **rest)


def check_arguments(bridge: Bridge, num_steps: int | None, c_lambda: float | None) -> None:
    """Raise ValueError where an argument was given that the bridge in a file does not have."""
    for name, value in {"num_steps": num_steps, "c_lambda": c_lambda}.items():
        stored = getattr(bridge, name, None)
        if value is not None and value != stored:
            raise ValueError(f"{name}={value} was given, but the network was trained with {name}={stored}")


def check_codec(stored: CodecState | None, given: Codec | None) -> None:
    """Raise ValueError where a codec was given to a file that holds another one, or that is of image space."""
    if given is None:
        return
    if stored is None:
        raise ValueError("a codec was given, but the network was trained in image space")
    weights = given.state_dict()
    networks = [json.dumps(config["config"], sort_keys=True) for config in (given.config(), stored.config)]
    if (
        networks[0] != networks[1]
        or weights.keys() != stored.weights.keys()
        or not all(torch.equal(value.cpu(), stored.weights[key]) for key, value in weights.items())
    ):
        raise ValueError("another codec was given than the one that the network was trained with, which the file holds")


def load_vqgan(path: str | os.PathLike[str]) -> VQGAN:
    """Read a VQGAN, our own or one that :mod:`bbdm.importers` knows, in float32, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no VQGAN, is damaged, or is of a newer version.
    """
    content = _read(path, VQGAN_FORMAT, "VQGAN")
    if content is None:
        from bbdm import importers  # which build on this module

        return importers.read_vqgan(Path(path))
    with readable(path, "VQGAN"):
        return restore(VQGAN, VQGANConfig(**content["config"]), content["weights"], "its")


def _read(path: str | os.PathLike[str], name: str, kind: str) -> Any:
    """The content of a file of our own, or None for a readable .pt or pickle of somebody else's."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a {kind} is a file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} {path}")
    with readable(path, kind):
        if path.suffix == ".safetensors":
            content = _read_safetensors(path, name)
        else:
            content = _read_pt(path)
            if not isinstance(content, dict) or "format" not in content:
                return None
        if content.get("format") != name:
            raise ValueError(f"it is a {content.get('format')!r}, not a {kind}")
        if content["version"] > VERSION:
            raise ValueError(f"version {content['version']} is newer than this library reads ({VERSION}): update bbdm")
    return content


@contextmanager
def readable(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns whatever a bad file raises into one kind of error that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = f"missing entry {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise ValueError(f"cannot read {path} as a {kind}: {reason}") from error


def _read_pt(path: Path) -> Any:
    """The content, or None where it needs more than tensors and plain containers."""
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # a damaged file raises nearly anything, and torch's own advice is to trust it
            return None


def _read_safetensors(path: Path, name: str) -> Any:
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        if name not in metadata:
            raise ValueError(f"its metadata has no {name!r} entry")
        content = json.loads(metadata[name])
        states: dict[str, State] = {"weights": {}, "ema": {}, "codec": {}}
        for full in file.keys():  # noqa: SIM118  (not a mapping)
            kind, _, key = full.partition(".")
            states[kind][key] = file.get_tensor(full)
    if name == VQGAN_FORMAT:
        return {**content, "weights": states["weights"]}
    content["unet"] |= {kind: states[kind] or None for kind in ("weights", "ema")}
    if content["codec"] is not None:
        content["codec"]["weights"] = states["codec"]
    return {**content, "training": None}


def _state(state: State) -> State:
    """A copy on the CPU, contiguous."""
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
