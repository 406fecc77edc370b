"""Files of torch.save, in both of its formats, and pickled networks in them, without running their code."""

from __future__ import annotations

import io
import mmap
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bbdm.files.records import Global, Record, Storage, StoredTensor, check_sharing, describe
from bbdm.files.unpickling import Machine, damage

MAX_MODULES = 20_000  # bounds a network whose modules hold each other many times
MAX_TENSORS = 100_000
MAX_VALUES = 1_000_000  # bounds containers that hold each other many times
BLOCK = 2**20  # bytes read at a time
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch.save before PyTorch 1.6

SIGNATURES = {
    b"<": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS to a file that has not been fetched",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The content of a file of torch.save; its tensors can be loaded while the file is open.

    ValueError: it is another kind of file, is damaged, or has what no honest file has: calls of code, tensors
    of more bytes than are stored, or too many instructions.
    """
    with path.open("rb") as file:
        head = file.read(100)
        if head.startswith(b"PK\x03\x04"):
            with damage("its archive"):
                archive = zipfile.ZipFile(file)
            yield _read_zip(archive, path.stat().st_size)
        elif head.startswith(b"\x80"):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield _read_legacy(mapped)
        else:
            known = (name for start, name in SIGNATURES.items() if head.startswith(start))
            kind = next(known, "empty" if not head else "no file of torch.save")
            raise ValueError(f"it is {kind}; a file of torch.save was expected")


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    """The format since PyTorch 1.6. Every entry that is used is checked by its CRC-32."""
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) < len(archive.infolist()) or sum(info.file_size for info in entries.values()) > size:
        raise ValueError("its archive has entries that overlap")
    roots = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError("it is a zip archive without a data.pkl; a file of torch.save was expected")
    if f"{roots[0]}constants.pkl" in entries:
        raise ValueError("it is a TorchScript program; a file of torch.save was expected")

    def read(name: str) -> bytearray:
        info = entries[roots[0] + name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {name} is compressed, which torch.save does not do")
        content, place = bytearray(info.file_size), 0
        with damage(f"its entry {name}"), archive.open(info) as file:
            while block := file.read(BLOCK):  # the last read compares the checksum
                content[place : place + len(block)] = block
                place += len(block)
        if place != info.file_size:
            raise ValueError(f"its entry {name} should be {info.file_size} bytes, got {place}")
        return content

    storages: dict[str, Storage] = {}

    def persistent(key: str, kind: Global, numel: int) -> Storage:
        if key not in storages:
            storage = storages[key] = Storage(kind, numel, lambda: read(f"data/{key}"))
            info = entries.get(f"{roots[0]}data/{key}")
            if info is None or storage.nbytes not in (None, info.file_size):
                got = "none" if info is None else f"{info.file_size} bytes"
                raise ValueError(f"its storage {key} should be {storage.nbytes} bytes, got {got}")
        return storages[key]

    if f"{roots[0]}byteorder" in entries:
        _check_order(read("byteorder") == b"little")
    return Machine(io.BytesIO(read("data.pkl")), persistent).run()


def _read_legacy(mapped: mmap.mmap) -> Any:
    """The format before PyTorch 1.6: five pickles, then the storages. It has no checksums."""
    storages: dict[str, Storage] = {}
    places: dict[str, slice] = {}

    def persistent(key: str, kind: Global, numel: int) -> Storage:
        return storages.setdefault(key, Storage(kind, numel, lambda: bytearray(mapped[places[key]])))

    def pickled() -> Any:
        return Machine(mapped, persistent).run()

    if pickled() != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    pickled()  # the protocol's version
    system = pickled()
    _check_order(isinstance(system, dict) and system.get("little_endian") is True)
    content, keys = pickled(), pickled()
    if not isinstance(keys, list) or set(map(type, keys)) - {str} or set(keys) != storages.keys():
        raise ValueError("its list of storages is damaged")
    place = mapped.tell()
    for key in keys:
        storage = storages[key]
        if storage.nbytes is None:
            raise ValueError(f"it holds numbers of an unknown type, {storage.kind}")
        places[key] = slice(place + 8, place + 8 + storage.nbytes)
        place = places[key].stop
        if place > len(mapped) or mapped[places[key].start - 8 : places[key].start] != struct.pack("<q", storage.numel):
            raise ValueError(f"it ends within its storage {key}, or is damaged there")
    return content


def _check_order(little: bool) -> None:
    if not little or sys.byteorder != "little":
        raise ValueError("only little-endian files are read, and only on such machines")


def plain(content: Any) -> Any:
    """The content with its tensors loaded; ValueError where it is not plain values and containers."""
    tensors: list[StoredTensor] = []
    left = MAX_VALUES

    def visit(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {MAX_VALUES} values, or they hold each other many times")
        match value:
            case None | bool() | int() | float() | str() | bytes():
                return value
            case StoredTensor():
                tensors.append(value)
                return value.load()
            case dict():
                return {visit(key): visit(part) for key, part in value.items()}
            case list() | tuple() | set() | frozenset():
                return type(value)(map(visit, value))
            # Values that torch.save pickles as calls
            case Record(Global("_codecs", "encode"), (str() as text, "latin1")):
                left -= len(text)  # as one text can occur many times
                return text.encode("latin1")
            case Record(Global("builtins", "bytes"), ()):
                return b""
            case Record(Global("builtins", "set" | "frozenset" as kind), (list() as members,)):
                return (set if kind == "set" else frozenset)(map(visit, members))
        raise ValueError(f"it holds {describe(value)}, which is no plain value")

    made = visit(content)
    check_sharing(tensors)
    return made


def modules(module: Record) -> Iterator[tuple[str, Record]]:
    """The record of a torch.nn.Module and of its submodules, with the prefix of each in the state dict."""
    pending, count = [("", module)], 0
    while pending:
        prefix, module = pending.pop()
        yield prefix, module
        count += 1
        for name, child in _named(module, "_modules"):
            if not isinstance(child, Record):
                raise ValueError(f"its module {prefix}{name} is {describe(child)}")
            if count + len(pending) >= MAX_MODULES or len(prefix) > 1000:
                raise ValueError(f"it has more than {MAX_MODULES} modules, or they are too deep within each other")
            pending.append((f"{prefix}{name}.", child))


def state_dict(module: Record) -> dict[str, Any]:
    """The state dict of a module's record; its tensors are still in the file."""
    state = {}
    for prefix, part in modules(module):
        hidden = part.get("_non_persistent_buffers_set")
        hidden = hidden.args[0] if isinstance(hidden, Record) and hidden.args else hidden
        for group in ("_parameters", "_buffers"):
            for name, value in _named(part, group):
                if group == "_parameters" or not isinstance(hidden, set | list) or name not in hidden:
                    state[prefix + name] = value
                if len(state) > MAX_TENSORS:
                    raise ValueError(f"it has more than {MAX_TENSORS} tensors")
    return state


def _named(module: Record, group: str) -> Iterator[tuple[str, Any]]:
    members = module.attributes.get(group)
    if not isinstance(members, dict):
        raise ValueError(f"{describe(module)} was found where a torch.nn.Module was expected")
    for name, value in members.items():
        if not isinstance(name, str) or len(name) > 200:
            raise ValueError(f"{describe(module)} has a member whose name is no text, or too long")
        if value is not None:
            yield name, value
