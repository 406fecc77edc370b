"""Packages whose public names are imported at their first use."""

import importlib
import subprocess
import sys

import pytest

import bbdm
from tests.conftest import ROOT


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_importing_bbdm_is_cheap_and_submodules_are_attributes():
    heavy = "{'torch', 'numpy', 'PIL', 'onnxruntime'}"
    script = f"import sys, bbdm, bbdm.runtime; print(*{heavy} & sys.modules.keys()); print(bbdm.solvers.DEFAULT)"
    assert run(script) == "\ndpm2m\n"


@pytest.mark.parametrize("package", ["bbdm", "bbdm.data", "bbdm.evaluation", "bbdm.runtime", "bbdm.training"])
def test_public_names_are_listed_and_exist_and_others_do_not(package: str):
    module = importlib.import_module(package)
    names = set(module.__all__) - {"__version__"}
    assert names <= set(dir(module))
    assert None not in [getattr(module, name) for name in names]
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Unknown'"):
        _ = module.Unknown
    assert bbdm.wrap.__module__ == "bbdm.networks.base"


@pytest.mark.parametrize(
    ("hidden", "name", "message"),
    [
        ("onnxruntime", "runtime.OnnxBridgeSampler", "onnxruntime, which is not installed: pip install 'bbdm[export]'"),
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
    try:
        runpy.run_module("bbdm.runtime", run_name="__main__")
    except SystemExit as end:
        print(end)
"""
    shown = run(script)
    assert f"{name.split('.')[-1]} needs {message}" in shown
    assert ("\nerror: " in shown) == (hidden == "onnxruntime")
