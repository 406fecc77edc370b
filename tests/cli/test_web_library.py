"""examples/web's library in Node, against the pictures of Python, and the page's lock file.

It needs npm, and `npm ci` in examples/web.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from bbdm import demo, save_checkpoint
from bbdm.networks.windows import WindowGrid
from bbdm.pictures.images import to_array
from bbdm.runtime import OnnxBridgeSampler
from examples.web import exports, tables
from tests.cli.browser import WEB, export_tiny
from tests.conftest import ROOT, tiny_unet
from tests.onnx.exports import BRIDGE, checkpoint, export, tiny_codec

NPM = shutil.which("npm")
in_node = pytest.mark.skipif(
    not (NPM and (WEB / "node_modules").exists()), reason="needs npm, and npm ci in examples/web"
)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return export_tiny(tmp_path)


def case(
    folder: Path,
    height: int,
    width: int,
    solver: str | None = None,
    steps: int | None = None,
    within: float = 1e-3,
    window: tuple[int, int] | None = None,
    told: dict[str, int] | None = None,
    guidance: float = 1,
) -> dict[str, Any]:
    """Python's results for a random source, for tests/export.test.ts."""
    sampler = OnnxBridgeSampler(folder, solver=solver, steps=steps)
    source = to_array(Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)))
    seeds = [0, 2**40 + 5, 2**63 - 1]
    results = sampler(
        np.stack([source] * len(seeds)), seed=seeds, window=window, conditions=told, guidance=guidance if told else None
    )
    settings = json.loads((folder / "bridge.json").read_text())
    word = f"{solver}:{steps}"
    return {
        "folder": str(folder),
        "table": None if solver is None else next(tables.tables(settings, [word])),
        "window": window,
        "told": told and {"classes": told, "guidance": guidance},
        "source": {"data": source.flatten().tolist(), "channels": 3, "height": height, "width": width},
        "seeds": [str(seed) for seed in seeds],
        "results": [result.flatten().tolist() for result in results],
        "within": within,
    }


def side(size: int, length: int, overlap: float, unit: int) -> dict[str, Any]:
    """Python's windows of a side, for tests/export.test.ts."""
    (made,) = WindowGrid((length,), overlap, 0, unit, 1, False).sides((size,))
    given = [size, length, overlap, unit]
    return {"given": given, "starts": made.starts, "weights": made.gaussians().tolist()}


def kinds() -> Iterator[dict[str, Any]]:
    """Pictures whose kind is known, for tests/kind.test.ts."""
    for path in sorted((demo.FOLDER / "val").glob("*.png")):
        pair = Image.open(path).convert("RGBA")
        coloured = "lines" if path.stem == "1F427" else "filled"  # the penguin is grey
        for name, kind, left in ((f"lines of {path.name}", "lines", 0), (path.name, coloured, pair.height)):
            picture = pair.crop((left, 0, left + pair.height, pair.height))
            yield {"name": name, "kind": kind, "data": list(picture.tobytes())}
            if kind == "lines":
                ink = Image.new("RGBA", picture.size)
                ink.putalpha(ImageChops.invert(picture.convert("L")))
                yield {"name": f"{name}, transparent", "kind": kind, "data": list(ink.tobytes())}
    for package, folder in (("matplotlib", "mpl-data/sample_data"), ("gradio", "media_assets/images")):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for path in sorted(Path(spec.origin).parent.glob(f"{folder}/*.jpg")):
            photograph = Image.open(path).convert("RGBA").resize((200, 200))
            yield {"name": path.name, "kind": "photograph", "data": list(photograph.tobytes())}
            photograph.putalpha(Image.fromarray(np.pad(np.full((100, 100), 255, np.uint8), 50)))
            yield {"name": f"{path.name}, cut out", "kind": "photograph", "data": list(photograph.tobytes())}


@pytest.mark.nightly
@in_node
def test_the_library_makes_the_pictures_of_python(tiny: Path, bundled_export: Path, tmp_path: Path):
    """float32 within 1e-3, float16 within 2e-2: classes, guidance, padding, noise at the start, a codec."""
    latent = export(checkpoint(tmp_path / "latent.pt", 0, tiny_codec()), tmp_path / "latent", "--steps", "3")
    unet = tiny_unet(0, condition_channels=3, classes={"style": ("ink", "oil")}, drop={"style": 0.1})
    save_checkpoint(tmp_path / "told.pt", unet, BRIDGE)
    told = export(tmp_path / "told.pt", tmp_path / "told", "--steps", "3")
    cases = [
        case(told, 16, 16, told={"style": 1}),
        case(told, 37, 18, window=(16, 24), told={"style": 0}, guidance=3),
        case(tiny, 16, 16),
        case(tiny, 13, 18),
        case(tiny, 16, 16, "consistency", 2),
        case(latent, 16, 16),
        case(export(demo.WEIGHTS, tmp_path / "bundled", "--steps", "5"), 16, 16),
        case(bundled_export, 16, 16, "dpm2m", 3, within=2e-2),
        case(tiny, 16, 12, window=(16, 16)),  # no larger than a window
        case(tiny, 37, 18, window=(16, 24)),
        case(latent, 30, 44, window=(16, 16)),
        case(bundled_export, 72, 16, "dpm2m", 3, within=2e-2, window=(64, 64)),
    ]
    sides = [side(64, 64, 0.25, 8), side(752, 64, 0.25, 8), side(4000, 96, 0.3, 4), side(51, 17, 0.9, 1)]
    written = {"cases": cases, "sides": sides, "kinds": [*kinds()]}
    assert {each["kind"] for each in written["kinds"]} == {"lines", "filled", "photograph"}
    (tmp_path / "cases.json").write_text(json.dumps(written))
    environment = {**os.environ, "BBDM_CASES": str(tmp_path / "cases.json")}
    done = subprocess.run(["npm", "test"], cwd=WEB, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(NPM is None, reason="needs npm")
def test_the_page_is_built_from_its_lock_file(tmp_path: Path):
    """With the package and its weights beside it, of which Python exports what the page computes with."""
    web = Path(shutil.copytree(WEB, tmp_path / "examples/web", ignore=shutil.ignore_patterns("node_modules", "dist")))
    (tmp_path / "bbdm").symlink_to(ROOT / "bbdm")
    environment = {**os.environ, "PYTHON": sys.executable}
    assert '"resolved"' not in (web / "package-lock.json").read_text()
    for command in ("npm ci", "npm run build"):
        done = subprocess.run(command.split(), cwd=web, env=environment, capture_output=True, text=True, check=False)
        if "npm error network" in done.stderr:
            pytest.skip("npm reaches no registry")
        assert done.returncode == 0, done.stdout + done.stderr
    for name in exports.WEIGHTS:
        written, built = (json.loads((web / each / name / "bridge.json").read_text()) for each in ("exports", "dist"))
        assert built == {**written, "packed": True}
        assert (built["dtype"], built["solver"], len(built["timesteps"])) == ("fp16", "sde-dpm2m", 5)
        unpacked = gzip.decompress((web / f"dist/{name}/unet.onnx.gzip").read_bytes())
        assert hashlib.sha256(unpacked).hexdigest() == built["files"]["unet.onnx"]
    assert "https://" not in (web / "dist/index.html").read_text()
