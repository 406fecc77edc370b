"""Our own files of weights: settings, state dicts and training state, as a ``.pt`` or a ``.safetensors``.

Both have one layout: a dict with ``format``, ``version`` and the settings, all of plain values, and the state
dicts by name. A ``.pt`` is torch.save of that dict, with the state dicts under ``states`` and training state
under ``training``. A ``.safetensors`` has the dict as JSON in its metadata, and tensors named STATE.KEY.
Reading either runs nothing of the file and notices damage: a ``.pt`` has a CRC-32 of each entry, a
``.safetensors`` a SHA-256 of its settings and tensors. This module does not interpret the settings.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from bbdm.base.atomic import check_suffix, write_atomically
from bbdm.base.runs import folder_beside, weights_in
from bbdm.files import inert
from bbdm.files.header import FORMAT, read_header
from bbdm.networks.base import state_hash

VQGAN_FORMAT = "bbdm vqgan"
VERSION = 1  # of all formats
DIGEST = "sha256"
State = dict[str, torch.Tensor]


class IncompleteFileError(ValueError):
    """A file leaves out a setting that an argument can give."""


@dataclass(frozen=True)
class Snapshot:
    """The content of a file. Its tensors, which are not copied, may be on any device."""

    format: str  # its name
    settings: dict[str, Any]
    states: dict[str, State]
    # state to resume from, of plain containers and tensors; only in a .pt
    training: dict[str, Any] | None = None

    @property
    def header(self) -> dict[str, Any]:
        """Format, version and settings, as they stand in the file."""
        return {"format": self.format, "version": VERSION, **self.settings}


def write(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Write a file, atomically: a reader sees the old file or the complete new one.

    Tensors of states become contiguous, each with memory of its own.

    Raises:
        ValueError: the path has another suffix, or is a ``.safetensors`` and there is training state.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix != ".pt" and snapshot.training is not None:
        raise ValueError(f"training state needs a .pt file, got {path}")
    stored: dict[int, torch.Tensor] = {}  # by where it lies in memory
    states: dict[str, State] = {name: {} for name in snapshot.states}
    for name, state in snapshot.states.items():
        for key, tensor in state.items():
            tensor = tensor.detach().to("cpu").contiguous()
            if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in stored:
                tensor = tensor.clone()
            stored[tensor.data_ptr()] = tensor
            states[name][key] = tensor
    if path.suffix == ".pt":
        content = {**snapshot.header, "states": states, "training": snapshot.training}
        write_atomically(path, lambda temporary: _save(content, temporary))
    else:
        tensors: State = {}
        for name, state in states.items():
            for key, tensor in state.items():
                tensors[f"{name}.{key}"] = tensor
        metadata = described(snapshot.format, json.dumps(snapshot.header), tensors)
        write_atomically(
            path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata)
        )


def settings_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a checkpoint of our own, whose tensors are not read; empty of any other file."""
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        if path.suffix == ".safetensors":
            content = read_header(path).settings
        else:
            content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        return content if content["format"] == FORMAT else {}
    except Exception:  # who reads the file as what it may be instead says what is wrong
        return {}


@contextmanager
def opened(path: str | os.PathLike[str], format: str, kind: str) -> Iterator[Any]:
    """The content of a file: a :class:`Snapshot` where it is our own, else what another program saved.

    Tensors are on the CPU. Content of another program may have :class:`~bbdm.files.inert.Stub` objects.

    Args:
        path: of the file, with its suffix.
        format: the name of the format that a file of our own must have.
        kind: what errors call the file, such as "checkpoint"; each error in the ``with`` block names it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another format or a newer version, or is damaged.
    """
    path = Path(path)
    check_is_file(path, kind)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pt
    with readable(path, kind):
        yield read(path, format, kind)


def check_is_file(path: Path, kind: str) -> None:
    """Raise FileNotFoundError or ValueError unless there is a file; of ``kind``, such as "checkpoint"."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a {kind} is a file{_of_run(path)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} {path}{_of_run(folder_beside(path))}")


def _of_run(folder: Path) -> str:
    """How an error about a missing file of weights goes on, where a training run has some in a folder."""
    names = [str(path) for path in weights_in(folder)]
    if not names:
        return ""
    return f": the training run in {folder} has {' and '.join(names)}, and the command that began it goes on with it"


def _read_pt(path: Path, format: str, kind: str) -> Any:
    content, plain = inert.load(path)
    if not isinstance(content, dict) or "format" not in content:
        return content
    _check_format(content, format, kind)
    if not plain:
        raise ValueError(
            "it holds more than plain values, containers and tensors, which this library never saves"
        )
    # no longer mapped
    states, training = copy.deepcopy((content.pop("states"), content.pop("training", None)))
    for name, state in states.items():
        if not isinstance(state, dict) or any(
            not isinstance(tensor, torch.Tensor) for tensor in state.values()
        ):
            raise ValueError(f"its {name} are no state dict of tensors")
    inert.check_sharing(tensor for state in states.values() for tensor in state.values())
    return Snapshot(format, content, states, training)


def _read_safetensors(path: Path, format: str, kind: str) -> Snapshot:
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        if format not in metadata:
            raise ValueError(f"its metadata has no {format!r} entry")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    text = metadata[format]
    if metadata.get(DIGEST) != described(format, text, tensors)[DIGEST]:
        raise ValueError(
            "its settings or weights have changed since it was written: their SHA-256 differs"
        )
    header = json.loads(text)
    _check_format(header, format, kind)
    states: dict[str, State] = {}
    for name, value in tensors.items():
        state, _, key = name.partition(".")
        states.setdefault(state, {})[key] = value
    return Snapshot(format, header, states)


def _check_format(header: dict[str, Any], format: str, kind: str) -> None:
    """Take format and version out of a header; ValueError where they are others."""
    got = header.pop("format")
    version = header.pop("version")
    if got != format:
        if isinstance(got, str):
            raise ValueError(f"it is a {got[:100]!r}, not a {kind}")
        raise ValueError(f"it is not a {kind}")
    if version > VERSION:
        raise ValueError(
            f"version {version} is newer than this library reads ({VERSION}): update bbdm"
        )


@contextmanager
def readable(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns an error in the ``with`` block into a ValueError that names the file."""
    try:
        yield
    except (OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged file can raise any error
        reason = str(error).split("\n")[0] or type(error).__name__
        reason = f"missing entry {reason}" if isinstance(error, KeyError) else reason
        wrapper = IncompleteFileError if isinstance(error, IncompleteFileError) else ValueError
        raise wrapper(f"cannot read {path} as a {kind}: {reason}") from error


def described(format: str, text: str, tensors: State) -> dict[str, str]:
    """The metadata of a .safetensors: the header as JSON under its format, and a hash of that and tensors."""
    return {
        format: text,
        DIGEST: hashlib.sha256(f"{text}{state_hash(tensors)}".encode()).hexdigest(),
    }


def _save(content: dict[str, Any], path: Path) -> None:
    """torch.save into a file that is closed even where it fails: one that torch opens would keep its room."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch's own is about the end of a file whose write had failed
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
