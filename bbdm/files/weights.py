"""Our own files of weights: a format's name, settings and state dicts, as a ``.pt`` or a ``.safetensors``.

``.pt`` is torch.save of plain containers; ``.safetensors`` has the settings in its metadata. Reading either
runs no code of the file and detects damage: a ``.pt`` has a CRC-32 of each entry, a ``.safetensors`` of ours
a SHA-256 of its settings and tensors. This module does not interpret the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

from bbdm.base.atomic import SUFFIXES, check_suffix, write_atomically
from bbdm.files import torchfile
from bbdm.networks.base import is_sharded
from bbdm.networks.restore import state_hash

VERSION = 1  # of all formats
DIGEST = "sha256"
State = dict[str, torch.Tensor]
Place = Callable[[dict[str, Any], dict[str, State]], dict[str, Any]]


class IncompleteFileError(ValueError):
    """A file leaves out a setting that an argument can give."""


def beside(settings: dict[str, Any], states: dict[str, State]) -> dict[str, Any]:
    """State dicts as entries among those of the settings."""
    return {**settings, **states}


@dataclass(frozen=True)
class Snapshot:
    """The content of a file, copied to the memory of the CPU: it can be written later, in another thread."""

    name: str  # of the format
    settings: dict[str, Any]
    states: dict[str, State]
    place: Place
    training: dict[str, Any] | None

    @classmethod
    def take(
        cls,
        name: str,
        settings: dict[str, Any],
        states: dict[str, State],
        place: Place = beside,
        training: dict[str, Any] | None = None,
    ) -> Snapshot:
        """Copy the content of a file.

        Args:
            name: the name of the format.
            settings: plain values by their names.
            states: state dicts by name.
            place: makes the content of a ``.pt`` of settings and states.
            training: state to resume from, of plain containers and tensors; only for a ``.pt``.
        """
        settings = {"format": name, "version": VERSION, **settings}
        return cls(name, settings, copied(states, torch.contiguous_format), place, copied(training))


def write(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Write a file, atomically: a reader sees the old file or the whole new one.

    A ``.safetensors`` has the tensors, each named STATE.KEY, and the settings in its metadata.

    Raises:
        ValueError: the path has another suffix, or is a ``.safetensors`` and there is training state.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix == ".pt":
        more = {} if snapshot.training is None else {"training": snapshot.training}
        content = {**snapshot.place(snapshot.settings, snapshot.states), **more}
        write_atomically(path, lambda temporary: _save(content, temporary))
    elif snapshot.training is not None:
        raise ValueError(f"training state needs a .pt file, got {path}")
    else:
        tensors = {f"{kind}.{key}": v for kind, state in snapshot.states.items() for key, v in state.items()}
        metadata = described(snapshot.name, snapshot.settings, tensors)
        write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))


def copied(content: Any, layout: torch.memory_format = torch.preserve_format) -> Any:
    """Plain containers with copies of their tensors in the memory of the CPU."""
    if isinstance(content, torch.Tensor):
        if is_sharded(content):
            content = _gathered(content)
        return content.detach().to("cpu", copy=True, memory_format=layout)
    if isinstance(content, dict):
        return {name: copied(each, layout) for name, each in content.items()}
    return type(content)(copied(each, layout) for each in content) if isinstance(content, list | tuple) else content


def _gathered(shares: Any) -> torch.Tensor:
    """A sharded tensor, all-gathered, in the first process, which writes; the others drop it."""
    whole = shares.full_tensor()
    return whole if shares.device_mesh.get_rank() == 0 else whole[:0]


@contextmanager
def opened(path: str | os.PathLike[str], name: str, kind: str, place: Place = beside) -> Iterator[tuple[Any, bool]]:
    """The content of a file, and whether it is our own; every error in the ``with`` block names the file.

    Tensors of our own files are on the CPU. The content of a foreign file is that of
    :func:`bbdm.files.torchfile.opened`. ``name`` and ``place`` are those of :meth:`Snapshot.take`; ``kind``
    is what errors call the file, such as "checkpoint".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another format or a newer version, or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        inside = [each.name for each in sorted(path.glob("*")) if each.suffix in SUFFIXES]
        found = f": it has {', '.join(inside[-3:])}" if inside else ""
        raise ValueError(f"{path} is a folder, and a {kind} is a file{found}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} {path}")
    with readable(path, kind):
        if path.suffix == ".safetensors":
            content = _read_safetensors(path, name, place)
            _check_format(content, name, kind)
            yield content, True
        else:
            with torchfile.opened(path) as content:
                own = isinstance(content, dict) and "format" in content
                if own:
                    _check_format(content, name, kind)
                    content = torchfile.plain(content)
                yield content, own


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


def is_own(path: Path) -> bool:
    """Whether a .safetensors is of this library."""
    with readable(path, "codec"), safe_open(path, framework="pt") as file:
        return any(name.startswith("bbdm") for name in file.metadata() or {})


def described(name: str, settings: dict[str, Any], tensors: State) -> dict[str, str]:
    """The metadata of a .safetensors: settings under a format's name, and a hash of these and the tensors."""
    text = json.dumps(settings)
    return {name: text, DIGEST: _digest(text, tensors)}


def intact(metadata: dict[str, str], name: str, tensors: State) -> bool:
    """Whether the metadata's hash is that of settings and tensors; earlier versions wrote settings alone."""
    return metadata.keys() == {name} or metadata.get(DIGEST) == _digest(metadata[name], tensors)


def _save(content: dict[str, Any], path: Path) -> None:
    """torch.save into a file that is closed even where it fails: one that torch opens would keep its room."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's own is about the end of a file whose write had failed
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _digest(text: str, tensors: State) -> str:
    return hashlib.sha256(f"{text}{state_hash(tensors)}".encode()).hexdigest()


def _check_format(content: dict[str, Any], name: str, kind: str) -> None:
    got = content["format"]
    if got != name:
        raise ValueError(f"it is a {got[:100]!r}, not a {kind}" if isinstance(got, str) else f"it is not a {kind}")
    if content["version"] > VERSION:
        raise ValueError(f"version {content['version']} is newer than this library reads ({VERSION}): update bbdm")


def _read_safetensors(path: Path, name: str, place: Place) -> dict[str, Any]:
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        if name not in metadata:
            raise ValueError(f"its metadata has no {name!r} entry")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    if not intact(metadata, name, tensors):
        raise ValueError("its settings or weights have changed since it was written: their SHA-256 differs")
    states: dict[str, State] = {}
    for full, value in tensors.items():
        kind, _, key = full.partition(".")
        states.setdefault(kind, {})[key] = value
    return place(json.loads(metadata[name]), states)
