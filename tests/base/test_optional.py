"""Packages whose public names are imported at their first use."""

import importlib
import subprocess
import sys

import pytest

import bbdm
from tests.conftest import ROOT


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_importing_bbdm_is_cheap():
    script = (
        "import sys, bbdm, bbdm.runtime; print(sorted({'torch', 'numpy', 'PIL', 'onnxruntime'} & sys.modules.keys()))"
    )
    assert run(script).strip() == "[]"


@pytest.mark.parametrize("package", ["bbdm", "bbdm.data", "bbdm.evaluation", "bbdm.runtime", "bbdm.training"])
def test_public_names_are_listed_and_exist(package: str):
    module = importlib.import_module(package)
    names = set(module.__all__) - {"__version__"}
    assert names <= set(dir(module))
    for name in names:
        assert getattr(module, name) is not None


def test_each_network_can_be_imported_by_name():
    names = "DiT, Network, UNet, VQGAN, wrap"
    assert run(f"from bbdm import {names}; print(DiT.__module__)").strip() == "bbdm.networks.dit"


def test_submodules_are_attributes_and_other_names_are_not():
    assert run("import bbdm; print(bbdm.solvers.DEFAULT)").strip() == "dpm2m"
    with pytest.raises(AttributeError, match="module 'bbdm' has no attribute 'Unknown'"):
        _ = bbdm.Unknown  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("hidden", "name", "message"),
    [
        ("onnxruntime", "runtime.OnnxBridgeSampler", "onnxruntime, which is not installed: pip install 'bbdm[export]'"),
        ("torch", "UNet", "PyTorch, which is not installed; bbdm.runtime runs without it"),
    ],
)
def test_a_name_says_what_it_needs(hidden: str, name: str, message: str):
    script = f"""
import sys
sys.modules[{hidden!r}] = None
import bbdm.runtime
try:
    bbdm.{name}
except ModuleNotFoundError as error:
    print(error)
"""
    assert f"{name.split('.')[-1]} needs {message}" in run(script)
