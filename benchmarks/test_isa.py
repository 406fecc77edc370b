"""The dtype and speed of ``compile=True`` without bfloat16 units, simulated by ONEDNN_MAX_CPU_ISA.

The variable applies to both rows, which take turns in one process. It limits oneDNN, which computes
convolutions and products; inductor's own loops use the vectors of the real processor, a few percent of the
time.
"""

from __future__ import annotations

import platform

import pytest

from benchmarks import peers, processes
from benchmarks.conftest import DEVICE, Record
from benchmarks.timing import Comparison

BASELINE = "sde-bbdm float32"
pytestmark = pytest.mark.skipif(
    DEVICE.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"), reason="about x86 processors"
)


@pytest.fixture(scope="module", params=["AVX2", "AVX512_CORE"])
def measured(request: pytest.FixtureRequest, quick: bool) -> Comparison:
    isa: str = request.param
    if quick:
        pytest.skip("only without --quick")
    if missing := peers.why_missing("sde_bbdm"):
        pytest.skip(missing)
    done = processes.run(processes.unet_call, {"ONEDNN_MAX_CPU_ISA": isa}, rounds=5)
    assert done["relative_error"] < 0.1, done
    info = {BASELINE: {}, "compiled": {"dtype": done["dtype"], "relative_error": done["relative_error"]}}
    return Comparison(f"ONEDNN_MAX_CPU_ISA={isa}: UNet call, batch 1", BASELINE, done["seconds"], info)


@pytest.mark.parametrize("row", [BASELINE, "compiled"])
def test_isa(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)
