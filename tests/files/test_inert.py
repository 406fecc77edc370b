"""Files of torch.save, honest and hostile: what is read of them, and that nothing of them runs."""

import argparse
import collections
import contextlib
import io
import os
import pickle
import re
import shlex
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm.files import inert
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.importers.states import File
from tests.conftest import ROOT
from tests.files.importers.common import save

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def error_of(path: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the callers look)
        load_checkpoint(path)
    return str(caught.value)


class Thing:
    def __init__(self) -> None:
        self.size, self.weights = 3, torch.ones(2)

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("it ran")


class Named(dict[str, int]):
    pass


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Identity())
        self.none = None
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("hidden", torch.zeros(1), persistent=False)


@FORMATS
@pytest.mark.parametrize("plain", [True, False])
def test_values_are_those_of_torch_load(zipped: bool, plain: bool, tmp_path: Path):
    base = torch.randn(6, 4)
    dtypes = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    )
    tensors = {
        **{
            "scalar": torch.tensor(3.0),
            "empty": torch.empty(0, 3),
            "parameter": nn.Parameter(torch.randn(3)),
        },
        **{
            "column": base[:, 1],
            "transposed": base.t(),
            "channels_last": torch.randn(2, 3, 4, 5).mT,
        },
        **{str(dtype): base.to(dtype) for dtype in dtypes},
    }
    others = {
        **{"text": ["é", "a" * 300, ""], "numbers": (1, -2, 300, 70_000, 2**70, 1.5, True, None)},
        ("a", 1): collections.OrderedDict(b=1, a={"nested": [[], {}, (), {1, 2}]}),
    }
    content = {**tensors, **others, **({} if plain else {"thing": Thing()})}
    outputs, is_plain = inert.load(save(content, tmp_path / "a.pt", zipped))
    assert is_plain == (plain and zipped)
    assert {key: outputs[key] for key in others} == others
    expected = torch.load(save(tensors, tmp_path / "b.pt", zipped), weights_only=True)
    for key, value in expected.items():
        assert (outputs[key].dtype, outputs[key].stride()) == (value.dtype, value.stride()), key
        assert torch.equal(outputs[key], value.detach()), key
    assert (
        outputs["column"].untyped_storage().data_ptr()
        == outputs["transposed"].untyped_storage().data_ptr()
    )


@FORMATS
def test_objects_become_stubs(zipped: bool, tmp_path: Path):
    content = [Thing(), Named(a=1), Thing, collections.deque([1, 2]), {argparse.Namespace: 1}]
    (thing, named, kind, queue, _), _ = inert.load(save(content, tmp_path / "a.pt", zipped))
    assert thing.kind == kind.kind == f"{__name__}.Thing"
    assert (thing.entries.keys(), thing.entries["size"]) == ({"size", "weights"}, 3)
    assert torch.equal(thing.entries["weights"], torch.ones(2))
    assert (named.kind, queue.kind) == (f"{__name__}.Named", "collections.deque")


@FORMATS
def test_state_dict_of_a_pickled_module(zipped: bool, tmp_path: Path):
    module = Outer()
    state = File(inert.load(save({"epoch": 3, "net": module}, tmp_path / "a.pt", zipped))[0]).below(
        "net."
    )
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


def test_what_is_within_itself_or_deep_is_entered_once(tmp_path: Path):
    cycle = nn.Sequential(nn.Linear(1, 1))
    cycle.add_module("again", cycle)
    doubled: nn.Module = nn.Linear(1, 1)
    for _ in range(40):  # 2**40 modules, of 40 in the file
        doubled = nn.Sequential(doubled, doubled)
    for module in (cycle, doubled):
        file = File(inert.load(save(module, tmp_path / "a.pt"))[0])
        assert [name.rpartition(".")[2] for name in sorted(file.tensors)] == ["bias", "weight"]
    deep: Any = {"leaf": 1}
    for i in range(100):
        deep = {f"{i}": deep}
    assert inert.flat({"a" * 201: 1, "b": 2, "deep": deep}) == {"b": 2}


class Runs:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def traps(marker: Path) -> dict[str, Any]:
    touch = f"touch {shlex.quote(str(marker))}"
    system = Runs(os.system, touch)
    in_module = nn.Linear(1, 1)
    in_module.trap = system  # pyright: ignore[reportArgumentType]
    return {
        "nested": {"a": [({"b": (system,)},)]},
        "key": {Runs(os.system, touch): 1},
        "argument": Runs(Thing, system),
        "in a module": in_module,
        "in a file of ours": {
            "format": "bbdm",
            "version": 1,
            "unet": system,
            "states": {},
            "training": None,
        },
        "eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "import": Runs(__import__, "antigravity"),
    }


@FORMATS
@pytest.mark.parametrize("name", list(traps(Path())))
def test_nothing_runs_and_nothing_is_imported(name: str, zipped: bool, tmp_path: Path):
    marker = tmp_path / "marker"
    path = save(traps(marker)[name], tmp_path / "a.pt", zipped)
    before = {*sys.modules}
    error_of(path)
    with contextlib.suppress(ValueError):
        inert.load(path)
    assert not marker.exists()
    assert "antigravity" not in {*sys.modules} - before
    if name != "import":  # the trap works
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=False)
        assert marker.exists()


def by_hand(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of torch.save with a pickle that no pickler writes, and 4 floats."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data/k", struct.pack("<4f", 1, 2, 3, 4))
    return path


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00kX\x03\x00\x00\x00cpuK\x04tQ"
)
SYSTEM = b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R"
THING = b"cx\ny\n)R"  # a stub, so that the file is read by the inert unpickler


def tensor(offset: bytes, size: bytes, stride: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + offset + size + stride + b"\x89}tR"


BY_HAND = {
    "a tensor past the end": (
        tensor(b"K\x00", b"K\x05\x85", b"K\x01\x85"),
        "not resizable|beyond its storage",
    ),
    "a negative offset": (tensor(b"J\xff\xff\xff\xff", b"K\x02\x85", b"K\x01\x85"), "storage"),
    "a call of a call": (THING + b")R", "."),
    "a call as a persistent id": (SYSTEM + b"Q", "."),
    "INST": (b"(X\x04\x00\x00\x00trueiposix\nsystem\n", "a posix.system with no UNets"),
    "a state for a function": (b"ctorch._utils\n_rebuild_tensor\n}b", "."),
    "an extension": (b"\x82\x01", "."),
    "a gigabyte": (b"cbuiltins\nbytearray\nJ\x00\xca\x9a\x3b\x85R", "."),
    "deep lists": (b"]" * 100_000 + b"a" * 99_999, "."),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_pickles_by_hand_are_refused(name: str, tmp_path: Path):
    """Also beside an object, which torch.load alone would not read."""
    pickled, message = BY_HAND[name]
    assert re.search(message, error_of(by_hand(tmp_path / "a.pt", b"\x80\x02" + pickled + b".")))
    error_of(by_hand(tmp_path / "b.pt", b"\x80\x02" + THING + pickled + b"\x86."))


def legacy_numbers(path: Path) -> None:
    state = {"input_blocks.0.0.weight": torch.ones(7, dtype=torch.float64)}
    content, many = save(state, path, False).read_bytes(), b"\x8a\x05\x00\x00\x00\x00\x10"
    path.write_bytes(content.replace(b"K\x07t", many + b"t").replace(b"K\x07\x85", many + b"\x85"))


def doubling_lists(path: Path) -> None:
    inner: list[Any] = []
    for _ in range(60):
        inner = [inner, inner]
    save({"format": "bbdm", "version": 1, "states": {}, "training": inner}, path)


# What is kept for later has the number 402,653,184: a table of as many entries has 6 GB.
LARGE_INDEX = b"\x80\x02Nr\x00\x00\x00\x180" + THING + b"."


SMALL: dict[str, Callable[[Path], object]] = {  # by what the error says
    "are compressed": lambda path: by_hand(
        path, b"]" + bytes(500_000_000) + b".", zipfile.ZIP_DEFLATED
    ),
    "it is a x.y with no": lambda path: by_hand(path, LARGE_INDEX),
    "beyond its storage": legacy_numbers,
    "missing entry 'unet'": doubling_lists,
}
LOAD = """
import resource, sys
from bbdm import load_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try: load_checkpoint(path, 100, 1.0)
    except ValueError as error: print(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000, (path, grown)"""


def test_small_files_take_little_memory(tmp_path: Path):
    """In a process of its own, which may grow by 400 MB; each file would take more."""
    paths = [tmp_path / f"{i}.pt" for i in range(len(SMALL))]
    for path, make in zip(paths, SMALL.values(), strict=True):
        make(path)
        assert path.stat().st_size < 10_000_000
    command = [sys.executable, "-c", LOAD, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(
        message in line for message, line in zip(SMALL, done.stdout.splitlines(), strict=True)
    )


def script(path: Path) -> None:
    torch.jit.script(nn.Linear(1, 1)).save(str(path))


def tar(path: Path) -> None:
    """Which begins as a legacy file."""
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2).decode("latin1")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin1") as archive:
        archive.addfile(tarfile.TarInfo(start), io.BytesIO())


def twice(path: Path) -> None:
    with (
        zipfile.ZipFile(by_hand(path, THING + b"."), "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("archive/version", "3")


def longer(path: Path) -> None:
    """A tensor of one number more than its storage, which torch would enlarge."""
    save({"input_blocks.0.0.weight": torch.ones(7)}, path, zipped=False)
    path.write_bytes(path.read_bytes().replace(b"K\x07\x85", b"K\x08\x85"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (
            b"<!DOCTYPE html>",
            "it begins with b'<!DOCTYPE html>'; a file of torch.save was expected",
        ),
        (b"PK\x03\x04" + bytes(50), "its archive is damaged"),
        (pickle.dumps([1], 2), "a file of torch.save was expected"),
        (script, "compressed"),
        (twice, "its archive has entries that overlap"),
        (tar, "a file of torch.save was expected"),
        (longer, "beyond its storage"),
    ],
)
def test_other_files(content: Any, message: str, tmp_path: Path):
    path = tmp_path / "a.pt"
    content(path) if callable(content) else path.write_bytes(content)
    assert message in error_of(path)
