"""The suites of benchmarks run with a small network; scores of results by PyTorch and by an export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import demo_quality
from tests.conftest import ROOT

SUITES = sorted(path.name for path in (ROOT / "benchmarks").glob("test_*.py"))
SLOW = ("test_latent.py",)  # it measures nothing with --quick


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
    assert {"test_onnx.py", "test_sampler.py", "test_training.py"} <= {*SUITES}


def test_an_export_has_the_scores_of_its_checkpoint(exported: Path, tmp_path: Path) -> None:
    data, runs = str(ROOT / "bbdm" / "demo"), ["--seeds", "2", "--runs", "dpm2m:2:2", "--checkpoint"]
    reports = [str(tmp_path / "torch.json"), str(tmp_path / "onnx.json")]
    demo_quality.main([data, reports[0], *runs, str(exported.parent / "bridge.pt")])
    demo_quality.main([data, reports[1], "--base", reports[0], *runs, str(exported)])
    by_torch, by_onnx = (json.loads(Path(report).read_text()) for report in reports)
    assert (by_torch["setting"]["dtype"], by_onnx["setting"]["dtype"]) == ("float32", "fp32")
    for score in ("energy", "spread", "saturation", "flatness"):
        first, second = by_torch["runs"]["dpm2m:2:2"][score], by_onnx["runs"]["dpm2m:2:2"][score]
        assert len(first) == 2
        assert second == pytest.approx(first, rel=0.01)
