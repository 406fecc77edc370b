"""The commands of the guide to one's own data, on small volumes and scenes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm.cli import eval as eval_command
from bbdm.cli import presets, train, translate
from bbdm.pictures import formats
from bbdm.pictures.lazy import Geometry
from bbdm.pictures.picture import Picture
from tests.conftest import TINY

VOLUME = ((3.0, 0.0, 0.0, 5.0), (0.0, 1.0, 0.0, 6.0), (0.0, 0.0, 1.0, 7.0), (0.0, 0.0, 0.0, 1.0))
SCENE = ((0.0, 10.0, 5e5), (-10.0, 0.0, 5e6), (0.0, 0.0, 1.0))
RANDOM = np.random.default_rng(0)


def volumes(side: str) -> tuple[np.ndarray[Any, Any], Geometry]:
    low, high = (0, 900) if side == "A" else (-1000, 1500)
    return RANDOM.integers(low, high, (1, 3, 24, 20)).astype(np.int16), Geometry(VOLUME)


def scenes(side: str) -> tuple[np.ndarray[Any, Any], Geometry]:
    place = Geometry(SCENE, "geotiff", {"crs": "EPSG:32632"})
    if side == "A":
        return RANDOM.uniform(-30, 0, (2, 24, 20)).astype(np.float32), place
    return RANDOM.integers(0, 10000, (13, 24, 20)).astype(np.uint16), place


KINDS: dict[str, tuple[str, str, Any, list[str], list[str], tuple[int, ...], str]] = {
    "NIfTI": (
        *("SimpleITK", ".nii.gz", volumes),
        ["--slices", "axial", "--source_values", "p0.5:99.5", "--target_values", "-1024:3071:HU"],
        ["mae", "psnr", "ssim"],
        (1, 3, 24, 20),
        "int16",
    ),
    "GeoTIFF": (
        *("rasterio", ".tif", scenes),
        ["--crops_per_picture", "2", "--source_values", "-25:0:dB,-32:-5:dB", "--target_values", "0:10000"],
        ["mae", "sam"],
        (13, 24, 20),
        "uint16",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_commands(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    package, suffix, make, flags, metrics, shape, dtype = KINDS[kind]
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for side in "AB":
            (tmp_path / side / split).mkdir(parents=True)
            for number in range(2):
                array, geometry = make(side)
                Picture(array, geometry).save(tmp_path / side / split / f"{number}{suffix}")
    tiny = presets.PRESETS["demo"].__class__(3, 3, condition_channels=3, **TINY)
    monkeypatch.setitem(presets.PRESETS.maps[-1], "demo", tiny)  # pyright: ignore[reportAttributeAccessIssue]
    pairs = ["paired", "A/{split},B/{split}"]
    train.main([*pairs, "OUT.pt", "--preset", "demo", "--crop", "16", *flags, "-b", "2", "-e", "1"])
    translate.main(["folder", "A/val", "OUT.pt", "RESULTS", "--steps", "2"])
    for number in range(2):
        made, source = (formats.open(Path(folder, f"{number}{suffix}")) for folder in ("RESULTS", "A/val"))
        assert (made.shape, made.dtype) == (shape, dtype)
        np.testing.assert_allclose(made.geometry.affine, source.geometry.affine, atol=1e-5)  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert made.geometry.kept.get("crs") == source.geometry.kept.get("crs")
    eval_command.main([*pairs, "OUT.pt", "SCORES", "--metrics", *metrics, "--steps", "2"])
    assert "MAE HU" in capsys.readouterr().out or kind == "GeoTIFF"
