"""The checkpoint file: one file that holds a network, its bridge and, while training, the state to go on from.

``.pt`` is torch.save of plain containers and loads with weights_only=True; ``.safetensors`` keeps the settings in its
metadata and carries no training state. Loading never runs code from the file.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from bbdm import bridges
from bbdm.bridges import Bridge
from bbdm.networks.unet import UNet, UNetConfig

FORMAT = "bbdm"
VERSION = 1
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class UNetState:
    """A network in a file: its shape, and its weights, their moving average, or both."""

    config: UNetConfig
    weights: State | None
    ema: State | None


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load_checkpoint` read."""

    unet: UNetState
    bridge: Bridge
    codec: dict[str, Any] | None = None  # of the space that the network works in; None for image space
    image_size: int | None = None  # side of the square pictures it was trained on, where known
    training: dict[str, Any] | None = None
    format: str = FORMAT
    version: int = VERSION

    def build_unet(self, ema: bool = True) -> UNet:
        """The network in float32, in evaluation mode; ``ema`` picks where the file has both kinds of weights."""
        first, second = (self.unet.ema, self.unet.weights) if ema else (self.unet.weights, self.unet.ema)
        state = second if first is None else first
        assert state is not None  # checked when the file was read
        with torch.device("meta"):  # memory without values, which would take longer to draw than the file to read
            unet = UNet.from_config(self.unet.config)
        unet.to_empty(device="cpu")
        try:
            unet.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"the checkpoint's weights do not fit its settings: {error}") from error
        return unet.eval()


def save_checkpoint(
    path: str | os.PathLike[str],
    unet: UNet,
    bridge: Bridge,
    *,
    ema: UNet | None = None,
    image_size: int | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint, atomically: a reader sees the old file or the whole new one.

    Args:
        path: ends in ``.pt`` or ``.safetensors``.
        unet: the network; its weights are stored in the dtype that they have.
        bridge: what the network was trained on.
        ema: a network with the moving average of the weights.
        image_size: side of the square pictures that it was trained on.
        training: state to go on from, of plain containers and tensors; only in a ``.pt``.

    Raises:
        ValueError: another suffix, or training state for a ``.safetensors``.
    """
    path = Path(path)
    settings = {
        "format": FORMAT,
        "version": VERSION,
        "bridge": bridge.config(),
        "codec": None,
        "image_size": image_size,
    }
    config = asdict(unet.config)
    states = {"weights": _state(unet), "ema": None if ema is None else _state(ema)}
    if path.suffix == ".pt":
        content = {**settings, "unet": {"config": config, **states}, "training": training}
        write_atomically(path, lambda temporary: torch.save(content, temporary))
    elif path.suffix == ".safetensors":
        if training is not None:
            raise ValueError(f"training state needs a .pt file, got {path}")
        tensors = {f"{kind}.{key}": v for kind, state in states.items() if state for key, v in state.items()}
        metadata = {FORMAT: json.dumps({**settings, "unet": {"config": config}})}
        write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))
    else:
        raise ValueError(f"a checkpoint's name ends in .pt or .safetensors, got {path}")


def load_checkpoint(
    path: str | os.PathLike[str], num_steps: int | None = None, c_lambda: float | None = None
) -> Checkpoint:
    """Read a checkpoint. Tensors come to the CPU.

    Args:
        path: a file that :func:`save_checkpoint` wrote.
        num_steps: T, and
        c_lambda: the noise scale, for files that leave them out. Our own files hold both; a value that differs is an
            error, since a network works only with what it was trained on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is damaged, is of a newer version, or disagrees with an argument.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    with _readable(path):
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pt(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its content is not a {FORMAT} checkpoint")
        if content["version"] > VERSION:
            raise ValueError(f"version {content['version']} is newer than this library reads ({VERSION}): update bbdm")
        if content["codec"] is not None:
            raise ValueError("it belongs to a latent space, which this version of bbdm does not read")
        unet = content["unet"]
        state = UNetState(UNetConfig(**unet["config"]), unet["weights"], unet["ema"])
        if state.weights is None and state.ema is None:
            raise ValueError("it holds neither weights nor their moving average")
        bridge = bridges.from_config(content["bridge"])
        for name, value in {"num_steps": num_steps, "c_lambda": c_lambda}.items():
            stored = getattr(bridge, name, None)
            if value is not None and value != stored:
                raise ValueError(f"{name}={value} was given, but the network was trained with {name}={stored}")
        rest = {name: content[name] for name in ("codec", "training", "format", "version")}
    return Checkpoint(state, bridge, image_size=content.get("image_size"), **rest)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns whatever a bad file raises into one kind of error that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"missing entry {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise ValueError(f"cannot read {path} as a checkpoint: {reason}") from error


def _read_pt(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises nearly anything, and torch's own advice is to trust it
            raise ValueError("it is damaged, or holds more than tensors and plain containers") from error


def _read_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        if FORMAT not in metadata:
            raise ValueError(f"its metadata has no {FORMAT!r} entry")
        content = json.loads(metadata[FORMAT])
        states: dict[str, State] = {"weights": {}, "ema": {}}
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            kind, _, key = name.partition(".")
            states[kind][key] = file.get_tensor(name)
    content["unet"] |= {kind: state or None for kind, state in states.items()}
    return {**content, "training": None}


def _state(unet: UNet) -> State:
    return {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in unet.state_dict().items()
    }


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, flush it to the disk, and rename it into place."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode  # as the user's umask has it; safetensors makes its files private
    try:
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
