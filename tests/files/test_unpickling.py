"""The unpickler that runs no code, and the files of torch.save that it reads."""

import argparse
import collections
import contextlib
import io
import os
import pickle
import re
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm.files import torchfile, unpickling
from bbdm.files.records import Global, Record, StoredTensor
from bbdm.files.torchfile import opened
from tests.files.importers.common import save
from tests.nightly import sweep

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def read(path: Path) -> None:
    with opened(path) as content:
        for value in content.values() if isinstance(content, dict) else ():
            if isinstance(value, StoredTensor):
                value.load()


def error_of(path: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the callers look)
        read(path)
    return str(caught.value)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    return {
        "plain": base.clone(),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(3, generator=generator)),
        "column": base[:, 1],
        "transposed": base.t(),
        **{str(dtype): base.to(dtype) for dtype in dtypes},
    }


@FORMATS
def test_tensors_are_those_of_torch_load(zipped: bool, tmp_path: Path):
    path = save(tensors(), tmp_path / "a.pt", zipped)
    wanted = torch.load(path, weights_only=True)
    with opened(path) as content:
        got = {key: value.load() for key, value in content.items()}
        assert content["column"].storage is content["transposed"].storage  # read once
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert (got[key].dtype, got[key].stride()) == (value.dtype, value.stride()), key
        assert torch.equal(got[key], value.detach()), key


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_containers(zipped: bool, protocol: int, tmp_path: Path):
    content = {
        "text": ["é", "a" * 300, b"bytes", b"b" * 300, ""],
        "numbers": (1, -2, 300, 70_000, 2**70, -(2**2100), 1.5, True, None),
        3: {"nested": [[], {}, (), [1, [2, (3, 4, 5, 6)]]]},
        ("a", 1): collections.OrderedDict(b=1, a=2),
        "set": {1, 2} if protocol >= 4 else 0,
        "frozen": frozenset({1}) if protocol >= 4 else 0,
    }
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with opened(tmp_path / "a.pt") as got:
        if protocol == 2:  # which writes bytes as a call
            assert [value.kind for value in got["text"] if isinstance(value, Record)] == [
                Global("_codecs", "encode")
            ] * 2
            got["text"] = content["text"]
        assert got == content
        assert list(got[("a", 1)]) == ["b", "a"]


def test_one_object_twice_is_one(tmp_path: Path):
    shared = [1]
    cycle: list[Any] = [shared, shared]
    cycle.append(cycle)
    with opened(save(cycle, tmp_path / "a.pt")) as got:
        assert got[0] is got[1]
        assert got[2] is got


class Thing:
    def __init__(self) -> None:
        self.size = 3
        self.weights = torch.ones(2)

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("it ran")


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Named(dict[str, int]):
    pass


@FORMATS
def test_objects_become_records(zipped: bool, tmp_path: Path):
    content = [Thing(), Slotted(), Named(a=1), torch.float32, Thing, torch.Size([2]), collections.deque([1, 2])]
    with opened(save(content, tmp_path / "a.pt", zipped)) as got:
        thing, slotted, named, dtype, kind, size, queue = got
        assert isinstance(thing, Record)
        assert thing.kind == kind == Global(__name__, "Thing")
        assert (thing.args, thing.get("size"), thing.get("other", 7)) == ((), 3, 7)
        assert torch.equal(thing.get("weights").load(), torch.ones(2))
        assert slotted.attributes == {"a": 1}
        assert named.items == [("a", 1)]
        assert dtype == Global("torch", "float32")
        assert (str(size.kind), size.args) == ("torch.Size", ((2,),))
        assert (str(queue.kind), queue.items) == ("collections.deque", [1, 2])


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Identity())
        self.none = None
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("hidden", torch.zeros(1), persistent=False)


@FORMATS
def test_state_dict_of_a_pickled_module(zipped: bool, tmp_path: Path):
    module = Outer()
    with opened(save(module, tmp_path / "a.pt", zipped)) as got:
        state = {key: value.load() for key, value in torchfile.state_dict(got).items()}
    wanted = module.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], value) for key, value in wanted.items())


def test_modules_within_themselves_are_refused(tmp_path: Path):
    module = nn.Sequential(nn.Linear(1, 1))
    module.add_module("again", module)
    with opened(save(module, tmp_path / "a.pt")) as got, pytest.raises(ValueError, match="too deep within each other"):
        torchfile.state_dict(got)
    module = nn.Linear(1, 1)
    for _ in range(40):  # 2**40 modules, of 40 in the file
        module = nn.Sequential(module, module)
    with opened(save(module, tmp_path / "a.pt")) as got, pytest.raises(ValueError, match="more than 20000 modules"):
        torchfile.state_dict(got)
    with opened(save(Thing(), tmp_path / "a.pt")) as got, pytest.raises(ValueError, match=r"a .*Thing was found where"):
        torchfile.state_dict(got)


class Runs:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def traps(marker: Path) -> dict[str, tuple[Any, str]]:
    touch = f"touch {marker}"
    system = Runs(os.system, touch)
    code = f"open({str(marker)!r}, 'w')"
    return {
        "top": (system, r"(posix|nt)\.system"),
        "nested": ({"a": [({"b": (system,)},)]}, r"(posix|nt)\.system"),
        "key": ({Runs(os.system, touch): 1}, r"(posix|nt)\.system"),
        "argument": (Runs(Thing, system), r"(posix|nt)\.system"),
        "within-a-module": (nn.Sequential(nn.Linear(1, 1)).append(HoldsTrap(system)), r"(posix|nt)\.system"),
        "eval": (Runs(eval, code), r"builtins\.eval"),
        "exec": (Runs(exec, code), r"builtins\.exec"),
        "open": (Runs(open, str(marker), "w"), r"_?io\.open|builtins\.open"),
        "import": (Runs(__import__, "os"), r"builtins\.__import__"),
        "subprocess": (Runs(subprocess.call, ["touch", str(marker)]), r"subprocess\.call"),
        "popen": (Runs(subprocess.Popen, ["touch", str(marker)]), r"subprocess\.Popen"),
    }


class HoldsTrap(nn.Module):
    def __init__(self, trap: Runs) -> None:
        super().__init__()
        self.trap = trap


@FORMATS
@pytest.mark.parametrize("name", list(traps(Path())))
def test_forbidden_globals_run_nothing_and_are_named(name: str, zipped: bool, tmp_path: Path):
    marker = tmp_path / "marker"
    trap, wanted = traps(marker)[name]
    path = save(trap, tmp_path / "a.pt", zipped)
    message = error_of(path)
    assert not marker.exists()
    assert re.search(rf"asks for the forbidden global ({wanted})$", message), message
    if name not in ("import", "popen"):  # the trap works, and leaves a mark at once
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=False)
        assert marker.exists()


def handmade(path: Path, pickled: bytes, **storages: bytes) -> Path:
    """A zip of torch.save with a pickle written by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)
    return path


SYSTEM = b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R"


def stored(
    numel: bytes = b"K\x04", kind: bytes = b"ctorch\nFloatStorage\n", key: bytes = b"X\x01\x00\x00\x00k"
) -> bytes:
    """A storage's persistent id."""
    return b"(X\x07\x00\x00\x00storage" + kind + key + b"X\x03\x00\x00\x00cpu" + numel + b"tQ"


def tensor(storage: bytes, offset: bytes, size: bytes, stride: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89}tR"


GOOD = tensor(stored(), b"K\x00", b"K\x04\x85", b"K\x01\x85")
FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def test_handmade_file_reads(tmp_path: Path):
    with opened(handmade(tmp_path / "a.pt", b"\x80\x02" + GOOD + b".", k=FLOATS)) as got:
        assert got.load().tolist() == [1, 2, 3, 4]


HANDMADE = {
    "call in the storage's kind": (stored(kind=SYSTEM), r"forbidden global posix\.system"),
    "call in the storage's key": (stored(key=SYSTEM), r"forbidden global posix\.system"),
    "call in the storage's size": (stored(numel=SYSTEM), r"forbidden global posix\.system"),
    "call as a persistent id": (SYSTEM + b"Q", r"forbidden global posix\.system"),
    "INST": (b"(X\x04\x00\x00\x00trueiposix\nsystem\n", r"forbidden global posix\.system"),
    "OBJ": (b"(cposix\nsystem\nX\x04\x00\x00\x00trueo", r"forbidden global posix\.system"),
    "NEWOBJ": (b"cposix\nsystem\nX\x04\x00\x00\x00true\x85\x81", r"forbidden global posix\.system"),
    "STACK_GLOBAL": (b"\x8c\x05posix\x8c\x06system\x93", r"forbidden global posix\.system"),
    "os": (b"cos\nsystem\n", r"forbidden global os\.system"),
    "submodule": (b"cos.path\njoin\n", r"forbidden global os\.path\.join"),
    "python 2's eval": (b"c__builtin__\neval\n", r"forbidden global builtins\.eval"),
    "python 2's commands": (b"ccommands\ngetoutput\n", r"forbidden global subprocess\.getoutput"),
    "dotted name": (b"cbuiltins\ngetattr.x\n", r"forbidden global builtins\.getattr\.x"),
    "a call of a call": (b"cx\ny\n)R)R", "calls a x.y, not a function"),
    "a call of a list": (b"])R", "calls a list, not a function"),
    "arguments that are none": (b"cx\ny\n]R", "calls a x.y"),
    "state of a list": (b"]}b", "sets the state of a list"),
    "append to a dict": (b"}K\x01a", "appends to a dict"),
    "nested key": (b"}K\x01\x85\x85K\x01s", "a tuple as a key that is long, nested"),
    "list as a key": (b"}]K\x01s", "a list as a key"),
    "frozenset as a key": (b"\x80\x04}(K\x01\x91K\x01s", "a frozenset as a key"),
    "frozenset in a frozenset": (b"\x80\x04((K\x01\x91\x91", "a frozenset as a key"),
    "long tuple as a key": (b"}(" + b"K\x01" * 17 + b"tK\x01s", "a tuple as a key"),
    "long text as a key": (b"}X\x11\x27\x00\x00" + b"a" * 10_001 + b"K\x01s", "a str as a key"),
    "long text in a key": (b"}X\x11\x27\x00\x00" + b"a" * 10_001 + b"\x85K\x01s", "a str as a key"),
    "large number as a key": (b"}\x8a\x09" + b"\x7f" * 9 + b"K\x01s", "a int as a key"),
    "long global": (b"c" + b"a" * 10_001 + b"\nb\n", "a global of an impossible name"),
    "long storage": (stored(key=b"X\xe8\x03\x00\x00" + b"k" * 1000), "a storage of an impossible name$"),
    "extension": (b"\x82\x01", "instruction EXT1"),
    "text persistent id": (b"Pabc\n", "instruction PERSID"),
    "empty stack": (b"0", "pickle is damaged: IndexError"),
    "no mark": (b"t", "pickle is damaged: IndexError"),
    "no memo": (b"h\x05", "pickle is damaged: KeyError"),
    "too short": (b"K", "pickle exhausted"),
    "past the end": (tensor(stored(), b"K\x00", b"K\x05\x85", b"K\x01\x85"), r"ends at 4, in 4 numbers"),
    "offset past the end": (tensor(stored(), b"K\x01", b"K\x04\x85", b"K\x01\x85"), r"ends at 4, in 4 numbers"),
    "stride past the end": (tensor(stored(), b"K\x00", b"K\x04\x85", b"K\x02\x85"), r"ends at 6, in 4 numbers"),
    "negative offset": (
        tensor(stored(), b"J\xff\xff\xff\xff", b"K\x02\x85", b"K\x01\x85"),
        "impossible size or stride",
    ),
    "huge from little": (tensor(stored(), b"K\x00", b"J\x00\x00\x00\x7f\x85", b"K\x00\x85"), "of 2130706432 numbers"),
    "huge size": (tensor(stored(), b"K\x00", b"\x8a\x10" + b"\x7f" * 16 + b"\x85", b"K\x00\x85"), "impossible size"),
    "storage of another size": (stored(numel=b"K\x05"), "storage k should be 20 bytes, got 16 bytes"),
    "storage that is not there": (stored(key=b"X\x01\x00\x00\x00z"), "storage z should be 16 bytes, got none"),
    "path as a key": (stored(key=b"X\x09\x00\x00\x00../../etc"), r"storage ../../etc should be 16 bytes, got none"),
    "storage of two types": (stored() + stored(kind=b"ctorch\nIntStorage\n") + b"\x86", "of two types or sizes"),
    "no storage": (tensor(b"N", b"K\x00", b")", b")"), "a tensor without storage"),
}


@pytest.mark.parametrize("name", list(HANDMADE))
def test_handmade_files_are_refused(name: str, tmp_path: Path):
    pickled, message = HANDMADE[name]
    assert re.search(message, error_of(handmade(tmp_path / "a.pt", pickled + b".", k=FLOATS)))


def test_keys_that_honest_files_have(tmp_path: Path):
    module = nn.Linear(1, 1)
    content = {
        **dict.fromkeys([1, -(2**63), 2**64 - 1, 1.5, True, None, b"a", "a" * 1000, ("a", 1, None)], 0),
        module.weight: 1,  # as in an optimizer that is pickled whole
        argparse.Namespace: 2,
        frozenset: 3,
    }
    with opened(save(content, tmp_path / "a.pt")) as got:
        assert list(got.values()) == list(content.values())
        assert isinstance(list(got)[-3], StoredTensor)


@pytest.mark.parametrize("within", [b"\x91", b"\x85"], ids=["frozenset", "tuple"])
def test_keys_that_take_for_ever_to_compare_are_refused(within: bytes, tmp_path: Path):
    """Two equal keys of 60 levels, each holding the one below twice: 2**60 comparisons."""
    level = b"q\x000(h\x00(h\x00K\x00" + within * 2 if within == b"\x91" else b"q\x000h\x00h\x00\x86"
    chain = b"(K\x01\x91" + level * 60
    path = handmade(tmp_path / "a.pt", b"\x80\x04}" + chain + b"Ns" + chain + b"Ns.")
    assert "as a key that is long, nested or no key at all" in error_of(path)


def test_an_entry_that_is_shorter_than_it_says_or_damaged(tmp_path: Path):
    path = handmade(tmp_path / "a.pt", b"\x80\x02}K\x01" + GOOD + b"s.", k=FLOATS)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(b"archive/data/k"))
    struct.pack_into("<III", content, place + 16, zlib.crc32(FLOATS[:8]), 8, 16)
    path.write_bytes(content)
    assert re.search(r"data/k (is damaged|should be 16 bytes, got 8)", error_of(path))
    content = bytearray(save({"a": torch.ones(1000)}, path).read_bytes())
    content[content.index(struct.pack("<f", 1.0) * 10) + 100] ^= 1
    path.write_bytes(content)
    assert "CRC-32" in error_of(path)


def test_harmless_standard_library_stays_inert(tmp_path: Path):
    with opened(handmade(tmp_path / "a.pt", b"c__builtin__\ngetattr\ncx\ny\nX\x01\x00\x00\x00z\x86R.")) as got:
        assert (str(got.kind), got.args) == ("builtins.getattr", (Global("x", "y"), "z"))


@pytest.mark.parametrize("bound", sweep([50_000, unpickling.MAX_OPCODES], daily=[50_000]))
def test_memory_of_many_instructions_is_bounded(bound: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpickling, "MAX_OPCODES", bound)
    handmade(tmp_path / "a.pt", b"\x80\x04(" + b"\x8f" * (bound - 10) + b"l.")
    tracemalloc.start()
    with opened(tmp_path / "a.pt") as content:
        assert len(content) == bound - 10
    assert tracemalloc.get_traced_memory()[1] < 250 * bound
    tracemalloc.stop()


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpickling, "MAX_OPCODES", 1000)
    assert "longer than 1000 instructions" in error_of(save([[]] * 2000, tmp_path / "a.pt"))
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"]" * 10_000_000 + b".")
    assert "entries that overlap" in error_of(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"].", zipfile.ZIP_DEFLATED)
        archive.writestr("archive/data/0", bytes(100))
    assert "data.pkl is compressed" in error_of(tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes(pickle.dumps(torchfile.LEGACY_MAGIC, 2) + b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7f")
    assert "expected 9223372036854775807 bytes" in error_of(tmp_path / "d.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        (b"\x89PNG\r\n", "it is a picture"),
        (b"weights", "it is no file of torch.save"),
        (b"PK\x03\x04" + bytes(50), "its archive is damaged: BadZipFile"),
        (pickle.dumps([1], 2), "it is a pickle, but not one of torch.save"),
        (pickle.dumps(torchfile.LEGACY_MAGIC, 2), "pickle exhausted|damaged"),
    ],
)
def test_other_files(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(content)
    assert re.search(message, error_of(tmp_path / "a.pt"))
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("model.json", "{}")
    assert "a zip archive without a data.pkl" in error_of(tmp_path / "b.pt")
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / "c.pt"))  # pyright: ignore[reportAttributeAccessIssue]
    assert "a TorchScript program" in error_of(tmp_path / "c.pt")


def network(zipped: bool) -> tuple[bytes, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    buffer = io.BytesIO()
    torch.save({"model": module.state_dict(), "other": Slotted()}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue(), module.state_dict()


FILES = {zipped: network(zipped) for zipped in (True, False)}


@FORMATS
@pytest.mark.parametrize("step", sweep([7, 61], daily=[61]))
def test_every_truncation_is_an_error(step: int, zipped: bool, tmp_path: Path):
    content, _ = FILES[zipped]
    for kept in range(0, len(content), step):
        (tmp_path / "a.pt").write_bytes(content[:kept])
        error_of(tmp_path / "a.pt")
