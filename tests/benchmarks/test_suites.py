"""The suites of benchmarks run, each with a small network, as the README's command runs them."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SUITES = sorted(path.name for path in (ROOT / "benchmarks").glob("test_*.py"))
SLOW = ("test_latent.py",)  # it measures nothing with --quick


def test_there_are_suites():
    assert {"test_onnx.py", "test_sampler.py", "test_training.py"} <= {*SUITES}


@pytest.mark.nightly
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs(suite: str):
    """On the CPU. What needs a package that is missing is skipped."""
    flags = ["--benchmark-only", "--quick", "-n", "0", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", f"benchmarks/{suite}", *flags]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of xdist
    variables["CUDA_VISIBLE_DEVICES"] = ""  # as on a machine without a GPU, where all have something to measure
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert (" passed" in done.stdout) == (suite not in SLOW)
