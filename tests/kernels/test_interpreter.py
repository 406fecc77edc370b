"""Runs the ``interpreted_*`` tests of this folder in a second process; see ``triton_aot.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bbdm.kernels.elementwise import AVAILABLE
from tests.conftest import ROOT


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
@pytest.mark.parametrize("marks", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)])
def test_kernels_in_the_interpreter(marks: str):
    folder = str(Path(__file__).parent)
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-m", marks, "-o", "python_functions=interpreted_*"]
    command = [sys.executable, "-m", "pytest", *options, folder]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
