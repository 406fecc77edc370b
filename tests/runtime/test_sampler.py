"""OnnxBridgeSampler: the same call as BridgeSampler, without torch, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import BridgeSampler, solvers
from bbdm.data.spec import Spec
from bbdm.pictures.values import Values
from bbdm.runtime.command import Runtime
from bbdm.runtime.sampler import OnnxBridgeSampler
from tests.conftest import ROOT, noise

RNG = np.random.default_rng(0)
SOURCE = RNG.uniform(-1, 1, (5, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def sampler(exported: Path) -> OnnxBridgeSampler:
    return OnnxBridgeSampler(exported)


@pytest.fixture(scope="module")
def reference(exported: Path) -> BridgeSampler:
    return BridgeSampler.from_checkpoint(exported.parent / "bridge.pt", solver="sde-dpm2m", steps=4)


def near(made: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(made, np.asarray(wanted), rtol=0, atol=tolerance)


def tensors(options: dict[str, Any]) -> dict[str, Any]:
    """Arrays as the other sampler takes them."""
    return {
        name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in options.items()
    }


ODD, LARGE = SOURCE[:2, :, :15, :13], RNG.uniform(-1, 1, (2, 3, 29, 45)).astype(np.float32)
NOISE = RNG.standard_normal((4, 2, 3, 16, 14)).astype(np.float32)
MASK = np.zeros((2, 1, 15, 13), np.float32)
MASK[:, :, 3:9, 2:11] = 1
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "seed": (SOURCE, {}),
    "seeds": (SOURCE, {"seed": [9, 1, 1, 5, 3]}),
    "padding": (ODD, {}),
    "noise": (ODD, {"noise": NOISE}),
    "mask": (ODD, {"mask": MASK}),
    "steps": (SOURCE, {"steps": 7}),
    "solver": (SOURCE, {"solver": "ddim", "steps": 3}),
    "times": (SOURCE, {"timesteps": [100, 40, 3]}),
    "mean": (SOURCE, {"solver": "mean"}),
    "windows": (LARGE, {"window": 16, "overlap": 0.4, "margin": 2}),
    "values": (LARGE * 2000, {"source_values": (-2000, 2000), "target_values": (0, 1)}),
    "mapped values": (
        abs(LARGE) * 900 + 1,
        {"source_values": "log:1:1000", "target_values": "sqrt:0:1"},
    ),
}


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_gives_pytorchs_pictures(
    call: str, batch_size: int | None, sampler: OnnxBridgeSampler, reference: BridgeSampler
):
    """One seed is one picture of both, at every batch size; a stream's steps are those of the call."""
    source, options = CALLS[call]
    options = {"seed": 7, **options}
    wanted = reference(torch.from_numpy(source), **tensors(options))
    made = sampler(source, **options, batch_size=batch_size)
    near(made, wanted)
    if call == "mask":
        np.testing.assert_array_equal(np.where(MASK == 0, made, 0), np.where(MASK == 0, source, 0))
    if batch_size == 2:
        ours = list(sampler.stream(source, **options, batch_size=2))
        theirs = list(reference.stream(torch.from_numpy(source), **tensors(options), batch_size=2))
        for one, other in zip(ours, theirs, strict=True):
            assert (one.index, one.t, one.images) == (other.index, other.t, other.images)
            near(one.x, other.x)
            near(one.x0hat, other.x0hat)


def test_threads_and_solvers(sampler: OnnxBridgeSampler):
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: sampler(SOURCE[i : i + 1], seed=i), range(5)))
    near(np.concatenate(together), sampler(SOURCE, seed=0), 1e-5)
    for solver, steps in (("sde-dpm2m", 4), ("dpm2m", 10)):
        assert len(list(sampler.stream(SOURCE, seed=0, solver=solver))) == steps


def test_what_a_network_returns_is_checked(
    sampler: OnnxBridgeSampler, monkeypatch: pytest.MonkeyPatch
):
    class Grey:
        def run(self, _: None, inputs: dict[str, Any]) -> list[Any]:
            return [inputs["x"][:, :1]]

    monkeypatch.setitem(sampler.backend.graphs, "unet", Grey())
    with pytest.raises(
        ValueError, match=r"shape \(5, 3, 16, 16\), got float32 of \(5, 1, 16, 16\)"
    ):
        sampler(SOURCE, seed=0)


def test_bad_calls(sampler: OnnxBridgeSampler):
    for arguments, message in (
        ({"solver": "euler"}, "solver must be one of"),
        ({"source": SOURCE.astype(np.uint8)}, r"floats in \[-1, 1\], got uint8"),
        (
            {"source": None},
            "an array, a picture, a path, a NumPy array or a list of them, got NoneType",
        ),
        ({"noise": [1]}, "noise must be an array of shape .*, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(**{"source": SOURCE, **arguments})
    with pytest.warns(
        UserWarning, match="was trained on pictures of 16 x 16, and is given 32 x 16"
    ):
        sampler(np.zeros((1, 3, 32, 16), np.float32), seed=0)


def edited(exported: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of an export whose settings have other values."""
    copy = Path(shutil.copytree(exported, tmp_path / "copy", dirs_exist_ok=True))
    settings = json.loads((copy / "bridge.json").read_text())
    (copy / "bridge.json").write_text(json.dumps(settings | changes))
    return copy


def test_an_exported_solver_needs_no_module(exported: Path, tmp_path: Path):
    """An export holds the table of a solver that was registered where it was made, and nowhere else."""
    theirs = OnnxBridgeSampler(edited(exported, tmp_path, solver="theirs"))
    assert (theirs.solver, len(theirs.table)) == ("theirs", 4)
    np.testing.assert_array_equal(theirs(SOURCE, seed=0, solver="theirs"), theirs(SOURCE, seed=0))
    with pytest.raises(ValueError, match="a table has its own steps, got steps=3"):
        theirs(SOURCE, seed=0, steps=3)


def test_a_damaged_or_missing_file(exported: Path, tmp_path: Path):
    path = edited(exported, tmp_path) / "step.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step\.onnx is not what bridge.json describes"):
        OnnxBridgeSampler(path.parent)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks step\.onnx"):
        OnnxBridgeSampler(path.parent)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"version": 99}, "version 99 is newer"),
    ({"version": 1}, "version 1 is too old: export the checkpoint again"),
    ({"format": "other"}, "its format is 'other'"),
    ({"files": {}}, r"lists no step\.onnx"),
    ({"files": {"../unet.onnx": "", "unet.onnx": "", "step.onnx": ""}}, r"lists \.\./unet\.onnx"),
    ({"files": {"evil.pkl": "", "unet.onnx": "", "step.onnx": ""}}, r"lists evil\.pkl"),
    (
        {"image_size": "16"},
        r"cannot read .*bridge\.json: image_size must be an integer or \(height, width\)",
    ),
    ({"bridge": 9}, r"cannot read .*bridge\.json: a bridge's settings must be a dictionary, got 9"),
    ({"stride": 0.5}, "stride must be of integers, got 0.5"),
    ({"solver": None}, "solver must be a str, got (null|None)"),
    ({"image_channels": 0}, "image_channels must be an integer of at least 1, got 0"),
    (
        {"prediction": [[1.0, 0.0]]},
        r"prediction of a table must be finite numbers of shape \(4, 3\), got \(1, 2\)",
    ),
    ({"start": [1.0, None]}, r"start of a table must be finite numbers of shape \(2,\)"),
]


def test_a_folder_that_is_no_export(exported: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*bridge.json"):
        OnnxBridgeSampler(tmp_path)
    for change, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            OnnxBridgeSampler(edited(exported, tmp_path, **change))
    (tmp_path / "copy" / "bridge.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*bridge\.json"):
        OnnxBridgeSampler(tmp_path / "copy")


def test_providers(exported: Path, sampler: OnnxBridgeSampler, monkeypatch: pytest.MonkeyPatch):
    one = OnnxBridgeSampler(exported, [("CPUExecutionProvider", {})], threads=1)
    near(one(SOURCE, seed=0), sampler(SOURCE, seed=0), 1e-5)
    message = r"provider 'FastExecutionProvider' did not start: it is none of \[.*'CPUExecutionProvider'\], or lacks"
    with pytest.warns(match="Fast"), pytest.raises(ValueError, match=message):
        OnnxBridgeSampler(exported, ["FastExecutionProvider"])
    # of a machine whose card does not start
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    with (
        pytest.warns(match="CUDA"),
        pytest.raises(ValueError, match="'CUDAExecutionProvider' did not start"),
    ):
        OnnxBridgeSampler(exported)


def test_the_command_with_values(exported: Path, reference: BridgeSampler, tmp_path: Path):
    """Results are files of the sources' kinds, in the target's values and type, those of PyTorch."""
    low, high = -1024, 3071
    values = Spec(source=Values(0, 4095, dtype="uint16"), target=Values(low, high, dtype="int16"))
    copy, source = edited(exported, tmp_path, **values.config()), tmp_path / "a.npy"
    levels = np.random.default_rng(0).integers(0, 4096, (3, 16, 12), dtype=np.uint16)
    np.save(source, levels)
    Runtime.main([str(copy), str(source), "-o", str(tmp_path / "out"), "--seed", "4"])
    (file,) = (tmp_path / "out").iterdir()
    scaled = torch.from_numpy(levels / 4095 * 2 - 1).float()
    expected = (
        (reference(scaled[None], seed=4)[0].clamp(-1, 1) + 1) / 2 * (high - low) + low
    ).numpy()
    assert (file.name, np.load(file).dtype) == ("a.npy", np.int16)
    assert np.abs(np.load(file) - expected).max() < 1.5


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("-b 16", {}),
        ("-b 1 --window none", {}),
        ("-b 3 --window 16 --overlap 0.5 --margin 2", {"window": 16, "overlap": 0.5, "margin": 2}),
    ],
    ids=["together", "apart", "windows"],
)
def test_the_command(
    flags: str,
    options: dict[str, Any],
    exported: Path,
    tmp_path: Path,
    sampler: OnnxBridgeSampler,
    capsys: Any,
):
    """Pictures of several sizes and modes get the seeds 4, 5 and 6."""
    sources = {
        "a": Image.new("RGB", (16, 12), "red"),
        "b": Image.new("L", (8, 8), 9),
        "wide": noise(0, 40, 24),
    }
    for name, picture in sources.items():
        picture.save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in sources]
    Runtime.main(
        [str(exported), *paths, "-o", str(tmp_path / "out"), "--seed", "4", *flags.split()]
    )
    assert "3 results in" in capsys.readouterr().out
    for seed, (name, picture) in enumerate(sources.items(), 4):
        near(
            Image.open(tmp_path / "out" / f"{name}.png"),
            sampler(picture, seed=seed, **options)[0],
            1,
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.png -o out -b 0", "batch_size must be at least 1, got 0"),
        ("a.png -o out --threads 0", "threads must be at least 1, got 0"),
        ("a.png -o .", "would replace a source"),
        ("a.png twice/a.jpg -o out", "2 of the pictures have the name a"),
        ("a.png text.png -o out -b 1", "cannot read the picture"),
        ("a.png none.png -o out -b 1", r"none\.png"),
        (". -o out", r"is a folder: give pictures, such as .*/\*\.png"),
    ],
)
def test_what_the_command_refuses(words: str, message: str, exported: Path, tmp_path: Path):
    """Before it makes anything."""
    (tmp_path / "twice").mkdir()
    for name in ("a.png", "twice/a.jpg"):
        Image.new("L", (8, 8), 9).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    paths = [
        each if each.startswith("-") or each.isdecimal() else str(tmp_path / each)
        for each in words.split()
    ]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Runtime.main([str(exported), *paths])
    assert not (tmp_path / "out").exists()


def test_without_torch(exported: Path, reference: BridgeSampler, tmp_path: Path):
    """In processes that can import no package but the three that it needs."""
    hidden = packages_distributions().keys() - {"numpy", "PIL", "onnxruntime", "bbdm"}
    start = f"import runpy, sys; sys.path[:0] = [{str(ROOT)!r}]; sys.modules |= dict.fromkeys({sorted(hidden)}); "

    def run(script: str, *words: Path | str) -> str:
        command = [sys.executable, "-c", start + script, *words]
        variables = {**os.environ, "PYTHONPATH": ""}
        return subprocess.run(
            command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True
        ).stderr

    source = noise(0, 20, 12)
    source.save(tmp_path / "a.png")
    words = [exported, tmp_path / "a.png", "-o", tmp_path / "out", "--seed", "0"]
    run("runpy.run_module('bbdm.runtime', run_name='__main__')", *words)
    near(
        np.asarray(Image.open(tmp_path / "out" / "a.png"), dtype=int),
        reference(source, seed=0)[0],
        1,
    )
    missing = "BridgeSampler needs PyTorch, which is not installed; bbdm.runtime runs without it"
    assert missing in run("from bbdm import BridgeSampler")


@pytest.mark.parametrize(("solver", "steps"), [("consistency", 2), ("sde-dpm2m", 4)])
def test_the_loop_of_the_documentation_makes_the_pictures_of_a_call(
    solver: str,
    steps: int,
    exported: Path,
    sampler: OnnxBridgeSampler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Also of a table that starts with noise."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    (snippet,) = re.findall(r"```python\n(import json\n.*?InferenceSession.*?)```", page, re.DOTALL)
    shutil.copytree(exported, tmp_path / "out" / "onnx")
    table = solvers.build(sampler.bridge, solver, None, steps)
    settings = {
        **sampler.settings,
        **table.description(),
        "solver": solver,
        "noise_rows": table.noisy,
    }
    (tmp_path / "out" / "onnx" / "bridge.json").write_text(json.dumps(settings))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)
    noises = RNG.standard_normal((steps, 2, 3, 16, 16)).astype(np.float32)
    result = names["translate"]("out/onnx", SOURCE[:2], noises[table.noisy])
    near(result, sampler(SOURCE[:2], solver=solver, steps=steps, noise=noises), 1e-5)
