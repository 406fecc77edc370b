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
from pathlib import Path
from typing import Any

import gradio
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageChops

from bbdm import demo, save_checkpoint
from bbdm.networks.windows import WindowGrid
from bbdm.pictures.images import to_array
from bbdm.runtime import OnnxBridgeSampler
from examples.web import exports, tables
from tests.cli.browser import WEB
from tests.conftest import ROOT, tiny_unet
from tests.onnx.exports import BRIDGE, checkpoint, export, tiny_codec

NPM = shutil.which("npm")


def run(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        command.split(), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def case(
    folder: Path,
    height: int,
    width: int,
    *table: Any,
    within: float = 1e-3,
    window: tuple[int, int] | None = None,
    classes: dict[str, int] | None = None,
    guidance: float = 1,
) -> dict[str, Any]:
    """Python's results for a random source, for tests/export.test.ts; ``table`` is of solver and steps."""
    sampler, chosen = OnnxBridgeSampler(folder), dict(zip(("solver", "steps"), table, strict=False))
    source = to_array(
        Image.fromarray(
            np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        )
    )
    seeds = [0, 2**40 + 5, 2**63 - 1]
    about: dict[str, Any] = {
        "window": window,
        "conditions": classes,
        "guidance": guidance if classes else None,
    }
    results = sampler(np.stack([source] * len(seeds)), seed=seeds, **chosen, **about)
    settings = json.loads((folder / "bridge.json").read_text())
    return {
        "folder": str(folder),
        "table": next(tables.tables(settings, [":".join(map(str, table))])) if table else None,
        "window": window,
        "told": classes and {"classes": classes, "guidance": guidance},
        "source": {
            "data": source.flatten().tolist(),
            "channels": 3,
            "height": height,
            "width": width,
        },
        "seeds": [str(seed) for seed in seeds],
        "results": [result.flatten().tolist() for result in results],
        "within": within,
    }


def side(size: int, length: int, overlap: float, unit: int) -> dict[str, Any]:
    """Python's windows of a side, for tests/export.test.ts."""
    (made,) = WindowGrid((length,), overlap, 0, (unit,), 1, False).sides((size,))
    return {
        "given": [size, length, overlap, unit],
        "starts": made.starts,
        "weights": made.gaussians().tolist(),
    }


def kinds() -> Iterator[dict[str, Any]]:
    """Pictures whose kind is known, for tests/kind.test.ts: drawings with their colours, and photographs."""

    def kind_of(name: str, kind: str, picture: Image.Image) -> dict[str, Any]:
        return {"name": name, "kind": kind, "data": list(picture.convert("RGBA").tobytes())}

    for path in sorted((demo.FOLDER / "val").glob("*.png")):
        pair = Image.open(path).convert("RGB")
        lines, coloured = (
            pair.crop((left, 0, left + pair.height, pair.height)) for left in (0, pair.height)
        )
        yield kind_of(f"lines of {path.name}", "lines", lines)
        # the penguin is grey
        yield kind_of(path.name, "lines" if path.stem == "1F427" else "filled", coloured)
        ink = Image.new("RGBA", lines.size)
        ink.putalpha(ImageChops.invert(lines.convert("L")))
        yield kind_of(f"lines of {path.name}, transparent", "lines", ink)
    for package, folder in ((matplotlib, "mpl-data/sample_data"), (gradio, "media_assets/images")):
        for path in sorted(Path(str(package.__file__)).parent.glob(f"{folder}/*.jpg")):
            photograph = Image.open(path).convert("RGBA").resize((200, 200))
            yield kind_of(path.name, "photograph", photograph)
            photograph.putalpha(Image.fromarray(np.pad(np.full((100, 100), 255, np.uint8), 50)))
            yield kind_of(f"{path.name}, cut out", "photograph", photograph)


@pytest.mark.nightly
@pytest.mark.skipif(
    not (NPM and (WEB / "node_modules").exists()), reason="needs npm, and npm ci in examples/web"
)
def test_the_library_makes_the_pictures_of_python(
    exported: Path, bundled_export: Path, tmp_path: Path
):
    """float32 within 1e-3, float16 within 2e-2: classes, guidance, padding, noise at the start, a codec."""
    latent = export(
        checkpoint(tmp_path / "latent.pt", 0, tiny_codec()), tmp_path / "latent", "--steps", "3"
    )
    unet = tiny_unet(
        0, condition_channels=3, classes={"style": ("ink", "oil")}, drop={"style": 0.1}
    )
    save_checkpoint(tmp_path / "style.pt", unet, BRIDGE)
    style = export(tmp_path / "style.pt", tmp_path / "style", "--steps", "3")
    cases = [
        case(style, 16, 16, classes={"style": 1}),
        case(style, 37, 18, window=(16, 24), classes={"style": 0}, guidance=3),
        case(exported, 13, 18),
        case(exported, 16, 16, "consistency", 2),
        case(latent, 16, 16),
        case(export(demo.WEIGHTS, tmp_path / "bundled", "--steps", "5"), 16, 16),
        case(exported, 16, 12, window=(16, 16)),  # no larger than a window
        case(exported, 37, 18, window=(16, 24)),
        case(latent, 30, 44, window=(16, 16)),
        case(bundled_export, 72, 16, "dpm2m", 3, within=2e-2, window=(64, 64)),
    ]
    sides = [
        side(64, 64, 0.25, 8),
        side(752, 64, 0.25, 8),
        side(4000, 96, 0.3, 4),
        side(51, 17, 0.9, 1),
    ]
    written = {"cases": cases, "sides": sides, "kinds": [*kinds()]}
    assert {each["kind"] for each in written["kinds"]} == {"lines", "filled", "photograph"}
    (tmp_path / "cases.json").write_text(json.dumps(written))
    done = run("npm test", WEB, BBDM_CASES=str(tmp_path / "cases.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(NPM is None, reason="needs npm")
def test_the_page_is_built_from_its_lock_file(tmp_path: Path):
    """With the package and its weights beside it, of which Python exports what the page computes with."""
    web = Path(
        shutil.copytree(
            WEB, tmp_path / "examples/web", ignore=shutil.ignore_patterns("node_modules", "dist")
        )
    )
    (tmp_path / "bbdm").symlink_to(ROOT / "bbdm")
    assert '"resolved"' not in (web / "package-lock.json").read_text()
    for command in ("npm ci", "npm run build"):
        done = run(command, web, PYTHON=sys.executable)
        if "npm error network" in done.stderr:
            pytest.skip("npm reaches no registry")
        assert done.returncode == 0, done.stdout + done.stderr
    for name in exports.WEIGHTS:
        written, built = (
            json.loads((web / each / name / "bridge.json").read_text())
            for each in ("exports", "dist")
        )
        assert built == {**written, "packed": True}
        assert (built["dtype"], built["solver"], len(built["timesteps"])) == (
            "fp16",
            "sde-dpm2m",
            5,
        )
        unpacked = gzip.decompress((web / f"dist/{name}/unet.onnx.gzip").read_bytes())
        assert hashlib.sha256(unpacked).hexdigest() == built["files"]["unet.onnx"]
    assert "https://" not in (web / "dist/index.html").read_text()
