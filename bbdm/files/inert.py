"""Files of torch.save, read so that nothing of them runs or is imported.

Plain containers of tensors are read by ``torch.load(weights_only=True)``. Files with other objects, such as a
pickled network, are read by torch.load with an unpickler whose classes are a few functions of torch that
rebuild tensors; every other class or function that a file names becomes a :class:`Stub`, which does nothing.
"""

from __future__ import annotations

import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LONGEST = 200  # characters of a key, and of a name with keys below
# largest ratio of the bytes of tensors to those of their storages; usual files have 1
MAX_SHARING = 4
BLOCK = 2**20  # bytes read at a time
# in the first pickle of files before PyTorch 1.6
LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


class Stub:
    """An object of a class that is not imported, or the result of a function that is not called."""

    kind = ""  # the full name of the class or function
    dump_patches = False  # torch.load writes no file beside a class whose source has changed

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def discard(self, *items: Any) -> None:
        """Members of a list, a set or a mapping, which nothing needs."""

    append = extend = add = update = __setitem__ = discard

    @property
    def name(self) -> str:
        """The name of the class, without its module."""
        return self.kind.rpartition(".")[2]

    @property
    def entries(self) -> dict[Any, Any]:
        """The object's ``__dict__``; of a torch.nn.Module with its modules and what its state dict has."""
        attributes = self._attributes()
        parameters = attributes.get("_parameters")
        buffers = attributes.get("_buffers")
        modules = attributes.get("_modules")
        if not isinstance(parameters, dict) or not isinstance(buffers, dict):
            return attributes
        if not isinstance(modules, dict):
            return attributes
        entries: dict[Any, Any] = {}
        for name, value in attributes.items():
            if not isinstance(value, Tensor | dict):
                entries[name] = value
        entries.update(parameters)
        hidden = attributes.get("_non_persistent_buffers_set", ())
        for name, buffer in buffers.items():
            if name not in hidden:
                entries[name] = buffer
        entries.update(modules)
        return entries

    def _attributes(self) -> dict[Any, Any]:
        """The ``__dict__`` in the state, which is alone or followed by that of slots."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        for part in parts:
            if isinstance(part, dict):
                return part
        return {}


class Unpickler(pickle._Unpickler):
    """An unpickler that imports nothing; torch.load adds how storages are read.

    It is the one in Python: that in C makes a table of as many entries as a number in the file says.
    """

    size = 0  # of the file, in bytes

    def find_class(self, module: str, name: str) -> Any:
        """What rebuilds a tensor or a container of the standard library, or else a class of stubs."""
        known: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            # as a plain one
            "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, args, state: rebuild(
                *args
            ),
            "collections.OrderedDict": OrderedDict,
            **dict.fromkeys(["builtins.set", "__builtin__.set"], set),
        }
        kind = f"{module}.{name}"
        if kind not in known:
            return type(name[:100], (Stub,), {"kind": kind, "__module__": "stubs"})
        builder = known[kind]
        if isinstance(builder, type):
            return builder
        return partial(builder)  # a copy, as a pickle may set attributes of what it names

    def _tensor(
        self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> Tensor:
        """A tensor within its storage: torch would enlarge the storage."""
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        enlarged = storage.nbytes() > self.size
        beyond = 0 not in size and last >= len(storage)
        negative = min((offset, *size, *stride)) < 0
        if enlarged or beyond or negative:
            raise ValueError(
                f"it has a tensor of {size} numbers that ends at {last}, beyond its storage"
            )
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), offset, size, stride)


def load(path: Path) -> tuple[Any, bool]:
    """The content of a file of torch.save, on the CPU, and whether it has only plain values and tensors.

    Tensors are mapped where the file is a zip archive: those that are not used cost no memory, and those that
    are kept should be copied.

    Raises:
        ValueError: it is another kind of file, or its archive is damaged or compressed.
        Exception: its pickle is damaged.
    """
    with path.open("rb") as file:
        head = file.read(100)
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        check_archive(path)
    elif LEGACY_MAGIC not in head or tarfile.is_tarfile(path):
        begins = f"begins with {head[:20]}" if head else "is empty"
        raise ValueError(f"it {begins}; a file of torch.save was expected")
    inert: Any = type("Inert", (Unpickler,), {"size": path.stat().st_size})
    module = SimpleNamespace(
        Unpickler=inert, load=lambda file, **k: inert(file, **k).load(), __name__="inert"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old protocols, and classes whose source is not found
        if zipped:  # torch enlarges the storages of older files without bounds
            with suppress(pickle.UnpicklingError):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
        return torch.load(
            path, map_location="cpu", weights_only=False, pickle_module=module, mmap=zipped
        ), False


def check_archive(path: Path) -> None:
    """Compare each entry of a zip archive with its CRC-32; torch.save may leave these out, as zeros.

    Raises:
        ValueError: the archive is damaged, or has compressed entries.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            compressed = any(info.compress_type for info in entries)
            repeated = len({info.filename for info in entries}) < len(entries)
            overlapping = sum(info.file_size for info in entries) > path.stat().st_size
            if compressed or repeated or overlapping:
                raise ValueError("its archive has entries that overlap, or are compressed")
            for info in entries:
                if info.CRC:
                    read_through(archive, info)
    except ValueError:
        raise
    except Exception as error:  # a damaged archive can raise any error
        raise ValueError(f"its archive is damaged: {error}") from error


def read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry to its end, where zipfile compares the checksum."""
    with archive.open(entry.filename) as file:
        while file.read(BLOCK):
            pass


def check_sharing(tensors: Iterable[Tensor]) -> None:
    """Raise ValueError where tensors are many times larger than their storages: a network copies views."""
    size = 0
    storages: dict[int, int] = {}  # bytes by address
    for tensor in tensors:
        size += tensor.numel() * tensor.itemsize
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    stored = sum(storages.values())
    if size > MAX_SHARING * stored:
        raise ValueError(f"its tensors are of {size} bytes, and only {stored} are stored")


def describe(value: object) -> str:
    """The kind of a value, for an error; never its content, which can be of any size."""
    if isinstance(value, Stub):
        return f"a {value.kind}"[:200]
    return "a tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def flat(content: object) -> dict[str, Any]:
    """What a file holds by dotted names, as in a state dict: entries of mappings, and :attr:`Stub.entries`.

    Objects are values too, and the content itself has the name "". Each mapping and object is entered once.
    """
    values: dict[str, Any] = {}
    entered: set[int] = set()
    pending = [("", content)]
    while pending:
        name, value = pending.pop()
        if not isinstance(value, dict):
            values[name] = value
        entries = value.entries if isinstance(value, Stub) else value
        if not isinstance(entries, dict) or id(value) in entered or len(name) > LONGEST:
            continue
        entered.add(id(value))
        prefix = f"{name}." if name else ""
        for key in reversed(entries):
            if isinstance(key, str) and len(key) <= LONGEST:
                pending.append((prefix + key, entries[key]))
    return values
