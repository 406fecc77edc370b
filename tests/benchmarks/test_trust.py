"""Splits of a data set into pairs that calibrate and pairs that test, on a network too small to be good."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbdm import ABridge, save_checkpoint
from benchmarks import trust
from tests.conftest import SavePicture, save_random_pairs, tiny_unet


@pytest.mark.nightly
def test_it_prints_tables_and_resumes(
    tmp_path: Path, save_picture: SavePicture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    save_random_pairs(tmp_path / "data", 0, 40, save_picture, 8)
    save_checkpoint(tmp_path / "c.pt", tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=8)
    flags = ["--checkpoint", str(tmp_path / "c.pt"), "--steps", "2", "--samples", "4", "--splits", "3"]
    words = [str(tmp_path / "data"), str(tmp_path / "out.json"), *flags, "--alpha", "0.2", "--calibrating", "24"]
    trust.main(words)
    report, out = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert len(report["splits"]) == 4  # 11 of 24 pairs are needed
    for name, splits in report["splits"].items():
        risks = np.array([each["risk"] for each in splits])
        assert 0 < risks.mean() <= 0.2, name  # pictures of noise are alike
        for each in splits:
            assert each["risk"] == pytest.approx(np.mean([loss for loss, _ in each["quartiles"]]))
    assert "| quantiles | hoeffding-bentkus | 0.00 |" in out
    assert "| mean of 4 | " in out
    monkeypatch.setattr(trust, "measure", None)
    trust.main([*words, "--figure", str(tmp_path / "figure.png")])
    assert Image.open(tmp_path / "figure.png").size == (7 * 10 + 2, 8 * 10 + 2)
    assert json.loads((tmp_path / "out.json").read_text()) == report
    with pytest.raises(SystemExit, match="name another file"):
        trust.main([*words, "--samples", "3"])
