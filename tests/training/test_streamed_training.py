"""Training from tables of tars; that interrupted runs resume exactly is in tests/hardening."""

import json
from pathlib import Path
from typing import Any

import pytest

from bbdm.base.scripts import StoppedError
from bbdm.cli import eval, train
from tests.conftest import SavePicture
from tests.hardening.scripts import assert_content, content, from_tars, make_place, make_small


@pytest.fixture
def place(tmp_path: Path, save_picture: SavePicture, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_small(monkeypatch)
    return make_place(tmp_path / "place", save_picture)


@pytest.mark.parametrize(
    ("layout", "other", "reason"),
    [("stream", "100000", r"number 12, now 14"), ("hub", "000000", r"names \w{8}, now \w{8}")],
)
def test_tables_that_changed_are_another_run(layout: str, other: str, reason: str, place: Path, tmp_path: Path) -> None:
    train.main(from_tars(place, tmp_path, "-e", "1", layout=layout))
    (place / f"tars/train/{other}.tar").write_bytes((place / "tars/val/000000.tar").read_bytes())
    with pytest.raises(ValueError, match=rf"was trained with pairs\.{reason}"):
        train.main(from_tars(place, tmp_path, layout=layout))


def test_a_bad_row_stops_the_run_or_is_skipped(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    victim = place / "tars" / "train" / "000006.tar"
    whole = victim.read_bytes()
    victim.write_bytes(whole.replace(b"IDAT", b"IDAX", 1))  # of the source of 06
    with pytest.raises(ValueError, match=r"\b06: cannot read"):  # before the run, when pairs are measured
        train.main(from_tars(place, tmp_path / "measured", "-e", "1"))
    known = "-e", "1", "--spread", "0.5"
    with pytest.raises(StoppedError, match=r"\b06: cannot read.*Repair the file; "):
        train.main(from_tars(place, tmp_path / "stopped", *known))
    train.main(from_tars(place, tmp_path / "skipped", "-e", "1", "--skip_bad", "--workers", "1"))
    assert "left out: " in caplog.text
    assert "06: cannot read" in caplog.text
    victim.write_bytes(whole)
    train.main(from_tars(place, tmp_path / "stopped", *known))  # from where it was
    train.main(from_tars(place, tmp_path / "whole", *known))
    assert_content(tmp_path / "stopped", content(tmp_path / "whole"))


def test_scores_are_those_of_the_files_that_the_tars_were_made_of(place: Path, tmp_path: Path) -> None:
    tars, network = f"{place}/tars/{{split}}/*.tar", str(place / "bridge.pt")
    scores: list[dict[str, Any]] = []
    for layout, source in (("edge2shoes", f"{place}/data"), ("hub", tars), ("stream", tars)):
        flags = ["--metrics", "psnr", "--device", "cpu", "--steps", "2"]
        eval.main([layout, source, network, str(tmp_path / layout), *flags])
        scores.append(json.loads((tmp_path / layout / "scores.json").read_text())["scores"])
    assert scores[0] == scores[1] == scores[2]
