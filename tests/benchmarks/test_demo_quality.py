"""Scores of a network's results, by PyTorch and by its export."""

import json
from pathlib import Path

import pytest

from benchmarks import demo_quality
from tests.conftest import ROOT

DEMO = ROOT / "bbdm" / "demo"


def test_an_export_has_the_scores_of_its_checkpoint(exported: Path, tmp_path: Path) -> None:
    runs = ["--seeds", "2", "--runs", "dpm2m:2:2", "--checkpoint"]
    demo_quality.main([str(DEMO), str(tmp_path / "torch.json"), *runs, str(exported.parent / "bridge.pt")])
    base = ["--base", str(tmp_path / "torch.json")]
    demo_quality.main([str(DEMO), str(tmp_path / "onnx.json"), *base, *runs, str(exported)])
    by_torch, by_onnx = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("torch", "onnx"))
    assert (by_torch["setting"]["dtype"], by_onnx["setting"]["dtype"]) == ("float32", "fp32")
    for score in ("energy", "spread", "saturation", "flatness"):
        first, second = by_torch["runs"]["dpm2m:2:2"][score], by_onnx["runs"]["dpm2m:2:2"][score]
        assert len(first) == 2
        assert second == pytest.approx(first, rel=0.01)
