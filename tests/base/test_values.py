"""Seeds, amounts of memory, manifests; packages whose public names are imported at their first use."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm.base import machine, manifest, optional
from bbdm.base.seeds import resolve_seeds, seed_of
from bbdm.base.sizes import amount, read_memory
from tests.conftest import ROOT


def test_seeds_count_up_from_one_or_are_a_list_or_drawn_each_time():
    """Two draws of 32 bits are equal once in 4 billion."""
    kinds: list[Any] = [int, np.int64, torch.tensor, np.array]
    for kind in kinds:
        assert resolve_seeds(kind(7), 3) == [7, 8, 9]
    for kind in [list, *kinds[2:]]:
        seeds = resolve_seeds(kind([5, 1]), 2)
        assert (seeds, {type(s) for s in seeds}) == ([5, 1], {int})
    first, second = resolve_seeds(None, 2), resolve_seeds(None, 2)
    assert first[1] == first[0] + 1
    assert first != second


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ("12", "seed must be an integer or a list of integers, got '12'"),
        ([1, 2.5], "seed must be an integer or a list of integers"),
        ([1, 2, 3], "seed must be one integer or one for each of 2 images, got 3"),
        (-1, r"seed must be in \[0, 2\^63\), got -1"),
        (2**63 - 1, r"seed must be in \[0, 2\^63\)"),
    ],
)
def test_seeds_that_are_refused(seed: Any, message: str):
    with pytest.raises(ValueError, match=message):
        resolve_seeds(seed, 2)


def test_a_seed_by_name_is_the_start_of_a_hash():
    """The first 63 bits of ``printf '7 a/b' | sha256sum``."""
    assert seed_of("a/b", 7) == 0xE7B2032AC879BB65 >> 1
    assert seed_of("a/b") != seed_of("a/b", 7) != seed_of("a/c", 7)


def test_amounts_as_people_write_them():
    amounts = {
        "4G": 2**32,
        "500M": 500 * 2**20,
        "1.5g": 3 * 2**29,
        "2GiB": 2**31,
        "64KB": 2**16,
        "123": 123,
    }
    for text, count in amounts.items():
        assert read_memory(text) == count
        assert read_memory(amount(count).replace(" ", "")) == pytest.approx(count, rel=0.01)
    for text in ("", "G", "0G", "-1G", "4X", "4,5G", "inf"):
        with pytest.raises(
            ValueError, match=f"an amount of memory is written as 4G or 500M, got '{text}'"
        ):
            read_memory(text)


@pytest.mark.parametrize(
    ("limit", "used", "cached"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["v2", "v1"],
)
def test_free_in_a_container_is_its_limit_less_what_is_used(
    limit: str, used: str, cached: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Pages of files that can be dropped are free."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).with_name("memory.stat").write_text(f"anon 3\n{cached} 1500\n")
    for most, taken, wanted in (("9000", "5000", 9000 - 5000 + 1500), ("9000", "99000", 0)):
        (tmp_path / limit).write_text(most)
        (tmp_path / used).write_text(taken)
        assert machine.free_memory() == wanted
    (tmp_path / limit).write_text("max\n")
    assert 2**24 < machine.free_memory() < 2**50


def test_a_manifest_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path):
    content = manifest.as_json({"size": (2, 3), "codec": {"kind": "vqgan"}})
    assert content == {"size": [2, 3], "codec": {"kind": "vqgan"}}
    manifest.write(path := tmp_path / "deep" / "m.json", content)
    with manifest.reading(path, "delete it") as found:
        assert found == content
    for text in ("", "{", "[1]", '{"other": 1}', "null"):
        path.write_text(text)
        with (
            pytest.raises(ValueError, match=r"cannot read .*m\.json: delete all$"),
            manifest.reading(path, "delete all") as content,
        ):
            content["seed"]


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ({"a": 1, "b": None}, {"a": 1, "c": None}, ""),
        ({"seed": 0, "nfe": 3}, {"seed": 1, "nfe": 2}, "seed 0, now 1, nfe 3, now 2"),
        (
            {"codec": {"weights": 64 * "a"}},
            {"codec": {"weights": 64 * "b"}},
            "codec.weights aaaaaaaa, now bbbbbbbb",
        ),
        ({"codec": None}, {"codec": {"kind": "x"}}, "codec None, now {'kind': 'x'}"),
        ({"a": 100 * "x"}, {"a": 1}, f"a {18 * 'x'}...{18 * 'x'}, now 1"),
    ],
)
def test_differences(before: dict[str, Any], now: dict[str, Any], wanted: str):
    assert manifest.differences(before, now) == wanted


def run(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_importing_bbdm_is_cheap_and_submodules_are_attributes():
    heavy = "{'torch', 'numpy', 'PIL', 'onnxruntime'}"
    script = f"import sys, bbdm, bbdm.runtime; print(*{heavy} & sys.modules.keys()); print(bbdm.solvers.DEFAULT)"
    assert run(script) == "\ndpm2m\n"


@pytest.mark.parametrize(
    "package", ["bbdm", "bbdm.data", "bbdm.evaluation", "bbdm.runtime", "bbdm.training"]
)
def test_public_names_are_listed_and_exist_and_others_do_not(package: str):
    module = importlib.import_module(package)
    names = set(module.__all__) - {"__version__"}
    assert names <= set(dir(module))
    assert None not in [getattr(module, name) for name in names]
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Unknown'"):
        _ = module.Unknown


def test_without_pytorch_a_package_is_named_and_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"^this TIFF needs tifffile, .*not installed: pip install tifffile$",
    ):
        optional.package("tifffile", "this TIFF")


@pytest.mark.parametrize(
    ("hidden", "name", "message"),
    [
        (
            "onnxruntime",
            "runtime.OnnxBridgeSampler",
            "onnxruntime, which is not installed: pip install 'bbdm[export]'",
        ),
        ("torch", "UNet", "PyTorch, which is not installed; bbdm.runtime runs without it"),
    ],
)
def test_a_name_says_what_it_needs(hidden: str, name: str, message: str):
    script = f"""
import runpy, sys
sys.modules[{hidden!r}] = None
import bbdm.runtime
try:
    bbdm.{name}
except ModuleNotFoundError as error:
    print(error)
if {hidden!r} == "onnxruntime":  # a command says so in one line
    sys.argv[1:] = "folder a.png -o out".split()
    try:
        runpy.run_module("bbdm.runtime", run_name="__main__")
    except SystemExit as end:
        print(end)
"""
    shown = run(script)
    assert f"{name.split('.')[-1]} needs {message}" in shown
    assert ("\nerror: " in shown) == (hidden == "onnxruntime")
