"""examples/demo/drawings.py: pairs for the bundled network, from a small package laid out as OpenMoji's."""

from pathlib import Path

import numpy as np
import pytest

from examples.demo import drawings
from examples.demo.drawings import LINE, Style

SVG = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{}</svg>'
FRAME = '<g fill="none" stroke="#000" stroke-width="2"><path d="M-9 36H81"/></g>'  # across the whole picture
SCALED = '<path d="M0 72V0" fill="none" stroke="#000" stroke-width="8" transform="translate(36) scale(.25)"/>'


@pytest.fixture
def package(tmp_path: Path) -> Path:
    colour = '<rect width="72" height="36" fill="#f00"/>'
    for kind, inside in {"black": FRAME, "color": colour + FRAME}.items():
        (tmp_path / kind / "svg").mkdir(parents=True)
        (tmp_path / kind / "svg" / "1F383.svg").write_text(SVG.format(inside))
    (tmp_path / "black" / "svg" / "scaled.svg").write_text(SVG.format(SCALED))
    (tmp_path / "color" / "svg" / "scaled.svg").write_text(SVG.format(SCALED))
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


def test_each_change_of_style_is_seen(package: Path):
    """Relative widths, gaps and dots; a bend moves drawing and picture alike, wobble the drawing alone."""
    drawing, _ = draw(package, Style(width=2 * LINE), name="scaled")
    np.testing.assert_allclose(drawing[:16].sum(1), 2 * LINE, atol=0.12)  # 8 / 4 of OpenMoji's units are LINE
    columns = draw(package, Style(gaps=1.0))[0].max(0)
    assert columns.min() < 0.05
    assert np.median(columns) > 0.8
    plain, dotted = draw(package, Style(width=3.0)), draw(package, Style(width=3.0, dots=4))
    assert 4 < (dotted[0] - plain[0]).sum() < 4 * np.pi * (0.9 * 3) ** 2  # radii are 0.5 to 0.9 of the width
    assert (dotted[1] - plain[1]).min() < -0.9

    def heights(style: Style) -> tuple[np.ndarray, np.ndarray]:  # of the middle of the line, in each column
        drawing, picture = draw(package, style)
        blue_side = 1 - picture[..., 1:].mean(-1)  # black and red
        return (drawing * np.arange(64)[:, None]).sum(0) / drawing.sum(0), blue_side.sum(0)

    line, area = heights(Style(bend=2.0))
    assert min(np.ptp(line), np.ptp(area)) > 1
    np.testing.assert_allclose(area - area.mean(), line - line.mean(), atol=0.7)
    line, area = heights(Style(wobble=0.8))
    assert np.ptp(line) > 0.5 > 0.1 > np.ptp(area)


def test_emoji_of_training_are_drawn_several_times_and_each_time_alike(package: Path, tmp_path: Path, monkeypatch):
    split = tmp_path / "split.json"
    split.write_text('{"train": ["1F383"], "val": ["scaled"]}')
    monkeypatch.setattr(drawings, "__file__", str(tmp_path / "drawings.py"))
    for out in ("a", "b"):
        drawings.main([str(package), str(tmp_path / out), "--size", "32", "--drawings", "3"])
    files = sorted(path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.png"))
    assert files == ["train/1F383.1.png", "train/1F383.2.png", "train/1F383.png", "val/scaled.png"]
    pictures = {name: (tmp_path / "a" / name).read_bytes() for name in files}
    assert pictures == {name: (tmp_path / "b" / name).read_bytes() for name in files}
    assert len(set(pictures.values())) == 4
