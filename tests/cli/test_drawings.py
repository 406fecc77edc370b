"""examples/demo/drawings.py: pairs for the bundled network, from a small package laid out as OpenMoji's."""

from pathlib import Path

import numpy as np
import pytest

from examples.demo import drawings
from examples.demo.drawings import Style

SVG = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{}</svg>'
FRAME = '<g fill="none" stroke="#000" stroke-width="2"><path d="M-9 36H81"/></g>'  # across the whole picture


@pytest.fixture
def package(tmp_path: Path) -> Path:
    colour = '<rect width="72" height="36" fill="#f00"/>'
    for kind, inside in {"black": FRAME, "color": colour + FRAME}.items():
        (tmp_path / kind / "svg").mkdir(parents=True)
        (tmp_path / kind / "svg" / "1F383.svg").write_text(SVG.format(inside))
        (tmp_path / kind / "svg" / "other.svg").write_text(SVG.format(inside.replace("M-9 36H81", "M36-9V81")))
    return tmp_path


def draw(package: Path, style: Style, size: int = 64, name: str = "1F383") -> tuple[np.ndarray, np.ndarray]:
    """The drawing's darkness and the picture, (size, size) and (size, size, 3) in [0, 1]."""
    both = np.asarray(drawings.pair(package, name, size, style, np.random.default_rng(0))) / 255
    return 1 - both[:, :size].mean(-1), both[:, size:]


@pytest.mark.parametrize(("width", "size"), [(1.0, 128), (5.0, 64)])
def test_lines_have_the_width_that_is_asked_for_in_pixels_of_64(package: Path, width: float, size: int):
    drawing, picture = draw(package, Style(width=width), size)
    np.testing.assert_allclose(drawing.sum(0) * 64 / size, width, atol=0.12)  # a line's darkness is its width
    np.testing.assert_array_equal(picture, draw(package, Style(), size)[1])


def test_emoji_of_training_are_drawn_several_times_and_each_time_alike(package: Path, tmp_path: Path, monkeypatch):
    split = tmp_path / "split.json"
    split.write_text('{"train": ["1F383"], "val": ["other"]}')
    monkeypatch.setattr(drawings, "__file__", str(tmp_path / "drawings.py"))
    for out in ("a", "b"):
        drawings.main([str(package), str(tmp_path / out), "--size", "32", "--drawings", "3"])
    files = sorted(path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.png"))
    assert files == ["train/1F383.1.png", "train/1F383.2.png", "train/1F383.png", "val/other.png"]
    pictures = {name: (tmp_path / "a" / name).read_bytes() for name in files}
    assert pictures == {name: (tmp_path / "b" / name).read_bytes() for name in files}
    assert len(set(pictures.values())) == 4
