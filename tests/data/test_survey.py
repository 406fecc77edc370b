"""A look at all pictures before work begins."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbdm.data import survey as survey_module
from bbdm.data.examples import PairExamples
from bbdm.data.pairs import PairedDataset, load_dataset
from bbdm.data.survey import BadPicturesError, readable, survey
from tests.conftest import MakePairs

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def five(make_pairs: MakePairs, tmp_path: Path) -> PairExamples:
    return make_pairs(tmp_path / "data", 5)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def test_good_pictures(five: PairedDataset):
    for whole in (False, True):
        found = survey(five, whole)
        assert (found.bad, found.stretched) == ({}, [])
    assert readable(five, False, pytest.fail) is five


def test_headers_show_what_is_no_picture(five: PairedDataset):
    five.pairs[1].source.write_bytes(b"")
    five.pairs[3].target.write_text("no picture")
    found = survey(five)
    assert list(found.bad) == ["1", "3"]
    assert "A/1.png" in found.bad["1"]
    assert "B/3.png" in found.bad["3"]
    with pytest.raises(BadPicturesError, match=r"cannot read the picture .*A/1\.png: .*\(2 of 5 pairs\)"):
        readable(five, False, pytest.fail)


def test_bad_pairs_are_left_out(five: PairedDataset):
    """A truncated picture is found where pictures are decoded."""
    truncate(five.pairs[2].source)
    assert survey(five).bad == {}
    lines: list[str] = []
    left = readable(five, True, lines.append)
    assert [pair.name for pair in left.pairs] == ["0", "1", "3", "4"]
    assert (left.image_size, left.direction, left.channels) == (five.image_size, five.direction, five.channels)
    (line,) = lines
    assert line.startswith("left out: cannot read the picture")
    assert "A/2.png" in line
    for pair in five.pairs:
        pair.source.write_bytes(b"")
    with pytest.raises(BadPicturesError, match=r"\(5 of 5 pairs\)"):
        readable(five, True, pytest.fail)


def test_pairs_of_different_shapes_are_named_once(tmp_path: Path):
    for name, (width, height) in {"a": (8, 8), "b": (80, 80), "c": (87, 80), "d": (90, 80), "e": (40, 80)}.items():
        for side, size in (("A", (8, 8)), ("B", (width, height))):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.new("RGB", size).save(tmp_path / side / f"{name}.png")
    dataset = load_dataset("paired", f"{tmp_path}/A,{tmp_path}/B")
    assert survey(dataset).stretched == survey(dataset, whole=True).stretched == ["d", "e"]
    lines: list[str] = []
    assert readable(dataset, False, lines.append) is dataset
    assert lines == ["2 pairs have sides of different shapes, first 'd': each side is stretched to one size"]


class TestKept:
    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The pairs that were looked at."""
        seen: list[int] = []
        look = survey_module._look
        monkeypatch.setattr(survey_module, "_look", lambda pairs, i, *rest: seen.append(i) or look(pairs, i, *rest))
        return seen

    def test_changed_files_alone_are_looked_at_again(self, five: PairedDataset, tmp_path: Path, looks: list[int]):
        """They have another time, or another size."""
        kept, file = tmp_path / "run" / "pictures.json", five.pairs[1].source
        first = survey(five, kept=kept)
        assert survey(five, kept=kept) == first
        assert len(looks) == 5
        for content in (b"x" * file.stat().st_size, b""):
            file.write_bytes(content)
            os.utime(file, (1, 1))
            assert list(survey(five, kept=kept).bad) == ["1"]
        assert len(looks) == 15

    def test_headers_do_not_stand_for_whole_pictures(self, five: PairedDataset, tmp_path: Path):
        kept = tmp_path / "pictures.json"
        truncate(five.pairs[2].source)
        assert survey(five, kept=kept).bad == {}
        assert list(survey(five, whole=True, kept=kept).bad) == ["2"]

    @pytest.mark.parametrize("content", ["", "{}", "[1]", '{"files": 1, "whole": false}'])
    def test_a_damaged_file_is_made_again(self, five: PairedDataset, tmp_path: Path, content: str):
        kept = tmp_path / "pictures.json"
        kept.write_text(content)
        survey(five, kept=kept)
        assert kept.read_text() != content
