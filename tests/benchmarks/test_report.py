"""The benchmarks' report, on results written by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

from benchmarks import report
from tests.conftest import ROOT

MACHINE = {
    "cpu": "Some CPU",
    "cores": 8,
    "flags": ["avx2", "amx_bf16"],
    "ram_gb": 33.7,
    "gpu": None,
    "threads": 4,
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "openvino": "2026.4.1"},
    "quick": False,
}
PEAKS = {"float32": 2.5e11, "bfloat16": 1.5e12, "copy": 4e10}
HARDWARE = (
    "Some CPU (avx2, amx_bf16), 8 cores, 4 threads, 34 GB; "
    "measured peaks 0.25 TFLOP/s float32, 1.5 TFLOP/s bfloat16, copy 40 GB/s; "
    "Python 3.11.7, torch 2.13.0, openvino 2026.4.1"
)
UNET = """**UNet call, batch 1**

|  | median | times as fast | of peak | relative error | samples |
| --- | --- | --- | --- | --- | --- |
| sde-bbdm float32 | 1.25 s | 1.00 | 48 % |  | 5 |
| compiled bfloat16 | 250 ms | 5.00 | 8.2 % | 1.3e-02 | 5 |"""
KERNEL = """**noise_step, seeds**

|  | median | GB/s | of a large copy's rate | relative error | samples |
| --- | --- | --- | --- | --- | --- |
| copy | 42.5 µs | 37 | 92 % |  | 20 |
| reference | 2.00 ms | 0.786 | 2.0 % | 0 | 20 |"""


def result(case: str, row: str, median: float, **info: Any) -> dict[str, Any]:
    return {"group": case, "stats": {"median": median}, "extra_info": {"row": row, "peaks": PEAKS, **info}}


COMPILED = {"times_as_fast": 5.0, "share_of_peak": 0.0816, "relative_error": 0.0131, "samples": 5}
MANY = {"samples": 20}
BENCHMARKS = [
    result("noise_step, seeds", "copy", 4.25e-5, gb_per_s=37.0, share_of_copy=0.924, **MANY),
    result(
        "noise_step, seeds", "reference", 2e-3, gb_per_s=0.7864, share_of_copy=0.0197, relative_error=0.0, samples=20
    ),
    result("UNet call, batch 1", "sde-bbdm float32", 1.25, times_as_fast=1.0, share_of_peak=0.481, samples=5),
    result("UNet call, batch 1", "compiled bfloat16", 0.25, **COMPILED),
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write(tmp_path / "results.json", {"machine_info": {"bbdm": MACHINE}, "benchmarks": BENCHMARKS})


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_tables_begin_with_the_hardware_and_the_main_comparison(results: Path, capsys: pytest.CaptureFixture[str]):
    report.main([str(results)])
    assert capsys.readouterr().out == f"{HARDWARE}\n\n{UNET}\n\n{KERNEL}\n"
    line = report.describe({**MACHINE, "gpu": "Some GPU", "flags": [], "quick": True}, PEAKS)
    assert line.startswith("Some GPU; Some CPU, 8 cores, ")
    assert line.endswith("; --quick: a small network, 3 x 32 x 32")


def test_durations_have_three_digits_and_small_shares_a_decimal():
    seconds = [163.4, 99.96, 0.99951, 0.9994, 9.996e-3, 1.5e-3, 4.2e-8]
    wanted = ["163 s", "100 s", "1.00 s", "999 ms", "10.0 ms", "1.50 ms", "0.04 µs"]
    assert [report.duration(each) for each in seconds] == wanted
    assert [report.percent(each) for each in (1.734, 0.7, 0.0996, 0.0994)] == ["173 %", "70 %", "10 %", "9.9 %"]


def test_plot_shows_the_main_comparisons_slowest_first(tmp_path: Path):
    benchmarks = [
        *BENCHMARKS,
        result("Cold start to the first image", "from package", 4.0),
        result("Cold start to the first image", "eager float32", 5.0),
    ]
    path = write(tmp_path / "results.json", {"machine_info": {"bbdm": MACHINE}, "benchmarks": benchmarks})
    unet, cold = report.plot(report.read(path)).axes
    assert unet.get_title(loc="left") == "UNet call, batch 1"
    assert [label.get_text() for label in unet.get_yticklabels()] == ["sde-bbdm float32", "bbdm compiled bfloat16"]
    assert [label.get_text() for label in cold.get_yticklabels()] == ["bbdm eager float32", "bbdm from package"]
    longer, shorter = (bar.get_extents().width for bar in cold.patches)
    assert shorter / longer == pytest.approx(4 / 5)
    assert [text.get_text() for text in unet.texts] == ["1.25 s", "250 ms"]
    theirs, ours = (to_hex(bar.get_facecolor()) for bar in unet.patches)
    assert theirs != ours
    path = write(path, {"machine_info": {"bbdm": MACHINE}, "benchmarks": BENCHMARKS[:2]})
    with pytest.raises(ValueError, match=r"nothing to plot: want one of .*'UNet call'.*, got \('noise_step, seeds',\)"):
        report.plot(report.read(path))


def test_svg_stays_the_same_for_the_same_results(results: Path, tmp_path: Path):
    """In a process of its own, where an error is one line."""
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    report.main([str(results), "--svg", str(first)])
    command = [sys.executable, "benchmarks/report.py", str(results), "--svg"]
    for path, end in ((second, ""), (tmp_path / "no" / "c.svg", r"error: .*no/c\.svg'\n")):
        done = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert re.fullmatch(end, done.stderr)
    assert re.search(r"<svg [^>]*>", first.read_text())
    assert first.read_bytes() == second.read_bytes()


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "other.json"
    for content, message in (
        ("[1, 2", "is not JSON: "),
        ("[1, 2]", "is not of these benchmarks, want what pytest benchmarks/ --benchmark-only "),
        ('{"machine_info": {"node": "x"}, "benchmarks": []}', "is not of these benchmarks, want what pytest "),
        ('{"machine_info": {"bbdm": {}}, "benchmarks": []}', "holds no result, want what pytest "),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"^{path} {message}[^\n]*$"):
            report.main([str(path)])
