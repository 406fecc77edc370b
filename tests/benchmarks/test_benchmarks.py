"""The benchmarks: their suites with a small network, their report, and scores by PyTorch and by an export."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo_quality, report
from tests.conftest import ROOT

MACHINE: dict[str, Any] = {
    "cpu": "Some CPU",
    "cores": 8,
    "flags": ["avx2", "amx_bf16"],
    "ram_gb": 33.7,
    "gpu": None,
}
MACHINE |= {
    "threads": 4,
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "openvino": "2026.4.1"},
    "quick": False,
}
PEAKS = {"float32": 2.5e11, "bfloat16": 1.5e12, "copy": 4e10}
TABLE = """
**UNet call, batch 1**

|  | median | times as fast | of peak | relative error | samples |
| --- | --- | --- | --- | --- | --- |
| sde-bbdm float32 | 1.25 s | 1.00 | 48 % |  | 5 |
| compiled bfloat16 | 250 ms | 5.00 | 8.2 % | 1.3e-02 | 5 |

**noise_step, seeds**
"""


def result(case: str, row: str, median: float, **info: Any) -> dict[str, Any]:
    return {
        "group": case,
        "stats": {"median": median},
        "extra_info": {"row": row, "peaks": PEAKS, **info},
    }


COMPILED = {"times_as_fast": 5.0, "share_of_peak": 0.0816, "relative_error": 0.0131, "samples": 5}
BENCHMARKS = [
    result("noise_step, seeds", "copy", 4.25e-5, gb_per_s=37.0, relative_error=0.0),
    result(
        "UNet call, batch 1",
        "sde-bbdm float32",
        1.25,
        times_as_fast=1.0,
        share_of_peak=0.481,
        samples=5,
    ),
    result("UNet call, batch 1", "compiled bfloat16", 0.25, **COMPILED),
]


def test_tables_begin_with_the_hardware_and_bars_with_the_slowest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, svg = tmp_path / "results.json", tmp_path / "plot.svg"
    path.write_text(json.dumps({"machine_info": {"bbdm": MACHINE}, "benchmarks": BENCHMARKS}))
    report.main([str(path), "--svg", str(svg)])
    printed = capsys.readouterr().out
    assert printed.startswith(
        "Some CPU (avx2, amx_bf16), 8 cores, 4 threads, 34 GB; measured peaks 0.25 TFLOP/s float32, "
    )
    assert TABLE in printed
    assert printed.endswith("\n| copy | 42.5 µs | 37 | 0 |\n")
    assert re.search(r"<svg [^>]*>", svg.read_text())
    (axes,) = report.plot(report.read(path)).axes
    assert axes.get_title(loc="left") == "UNet call, batch 1"
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "sde-bbdm float32",
        "bbdm compiled bfloat16",
    ]
    longer, shorter = (bar.get_extents().width for bar in axes.patches)
    assert shorter / longer == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is not JSON: "),
        (
            '{"machine_info": {"node": "x"}, "benchmarks": []}',
            "is not of these benchmarks, want what pytest ",
        ),
        ('{"machine_info": {"bbdm": {}}, "benchmarks": []}', "holds no result, want what pytest "),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path):
    (path := tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=f"^{path} {message}[^\n]*$"):
        report.main([str(path)])


@pytest.mark.nightly
@pytest.mark.parametrize(
    "suite", sorted(path.name for path in (ROOT / "benchmarks").glob("test_*.py"))
)
def test_a_suite_runs(suite: str):
    """On the CPU. What needs a package that is missing is skipped."""
    flags = ["--benchmark-only", "--quick", "-n", "0", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", f"benchmarks/{suite}", *flags]
    # of xdist
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    # as on a machine without a GPU, where all have something to measure
    variables["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    # which measures nothing with --quick
    assert (" passed" in done.stdout) == (suite != "test_latent.py")


def test_an_export_has_the_scores_of_its_checkpoint(exported: Path, tmp_path: Path) -> None:
    data = str(ROOT / "bbdm" / "demo")
    runs = ["--seeds", "2", "--runs", "dpm2m:2:2", "--checkpoint"]
    reports = [str(tmp_path / "torch.json"), str(tmp_path / "onnx.json")]
    demo_quality.main([data, reports[0], *runs, str(exported.parent / "bridge.pt")])
    demo_quality.main([data, reports[1], *runs, str(exported)])
    by_torch, by_onnx = (json.loads(Path(report).read_text()) for report in reports)
    assert (by_torch["setting"]["dtype"], by_onnx["setting"]["dtype"]) == ("float32", "fp32")
    for score in ("energy", "spread", "saturation", "flatness"):
        first, second = by_torch["runs"]["dpm2m:2:2"][score], by_onnx["runs"]["dpm2m:2:2"][score]
        assert len(first) == 2
        assert second == pytest.approx(first, rel=0.01)
