"""The model card: what the Hub reads of it, its picture, its scores, and its lines, which run."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from bbdm import BridgeSampler, BrownianBridge, Values, demo
from bbdm.data.spec import Spec
from bbdm.pictures import images
from tests.conftest import noise, tiny_unet

BRIDGE = BrownianBridge(objective="pinned")
REPORT = {  # as bbdm eval writes it
    "scores": {"fid": 12.5, "lpips": 0.21},
    "solver": "sde-dpm2m",
    "nfe": 5,
    "pictures": 154,
    "settings": {"dataset": "edge2shoes", "split": "val", "weights": "0" * 64},
}


@pytest.fixture
def sampler() -> BridgeSampler:
    sampler = BridgeSampler(tiny_unet(condition_channels=3), BRIDGE, "sde-dpm2m", 3)
    sampler.image_size = 16
    return sampler


def written(sampler: BridgeSampler, folder: Path, **about: Any) -> str:
    sampler.save_pretrained(folder, **about)
    return (folder / "README.md").read_text()


def test_what_the_hub_reads(sampler: BridgeSampler, tmp_path: Path):
    """By its own library, of a sweep, which has a score for each solver."""
    (tmp_path / "sweep.json").write_text(json.dumps([REPORT, {**REPORT, "nfe": 20}]))
    about = {"license": "other", "license_name": "Mine", "base_model": "me/teacher", "data": "12 | pairs: no faces"}
    text = written(sampler, tmp_path / "a", metrics=tmp_path / "sweep.json", limits="Grey alone.", **about)
    data: Any = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("bbdm", "image-to-image", "me/teacher")
    assert (data.license, data.license_name, data.model_name) == ("other", "Mine", "a")
    scores = [(each.metric_type, each.metric_value, each.metric_args["steps"]) for each in data.eval_results]
    assert scores == [("fid", 12.5, 5), ("lpips", 0.21, 5), ("fid", 12.5, 20), ("lpips", 0.21, 20)]
    assert {(each.dataset_type, each.dataset_name) for each in data.eval_results} == {("edge2shoes", about["data"])}
    lines = text.splitlines()
    rows = [
        "| data | 12 \\| pairs: no faces |",
        "| licence of the weights | Mine |",
        "| trained from | me/teacher |",
        f"| bridge | `{BRIDGE}` |",
        "| image size | 16 x 16 |",
        "| `sde-dpm2m` | 3 |",
        "Grey alone.",
    ]
    assert [row for row in rows if row not in lines] == []
    assert f"{sum(parameter.numel() for parameter in sampler.unet.parameters()) / 1e6:.1f} M" in text
    assert "than 16 x 16 it knows little" in text
    assert not re.search(r"\|\n\n\||\|\n[^|\n]|\n\n\n", text)  # tables are in one piece
    (tmp_path / "a" / "README.md").write_text("mine")
    assert written(sampler, tmp_path / "a") == "mine"  # a card that is there stays


def test_nothing_is_assumed(sampler: BridgeSampler, tmp_path: Path):
    text = written(sampler, tmp_path / "a")
    data = huggingface_hub.ModelCard(text).data.to_dict()
    assert sorted(data) == ["library_name", "pipeline_tag", "tags"]
    assert [part for part in ("examples.png", "trained from") if part in text] == []
    assert text.count("not stated") == 2  # data and licence
    assert not (tmp_path / "a" / "examples.png").exists()


@pytest.mark.parametrize("license", ["CC-BY-SA-4.0", "CC BY-SA 4.0", "cc-by-sa-4.0"])
def test_licences_in_other_spellings(license: str, sampler: BridgeSampler, tmp_path: Path):
    data: Any = huggingface_hub.ModelCard(written(sampler, tmp_path / "a", license=license)).data
    assert data.license == "cc-by-sa-4.0"


def test_the_picture_has_each_source_beside_its_result(sampler: BridgeSampler, tmp_path: Path):
    sources = [noise(0), noise(1), noise(2)]
    sources[1].save(tmp_path / "b.png")
    text = written(sampler, tmp_path / "a", examples=[sources[0], tmp_path / "b.png", sources[2]])
    assert "](examples.png)" in text
    with Image.open(tmp_path / "a" / "examples.png") as image:
        sheet = np.asarray(image)[images.NAME_HEIGHT :]  # below the names of columns
    results = sampler(sources, seed=0, batch_size=1)
    pitch = 16 + (sheet.shape[0] - 3 * 16) // 4
    for i, (source, result) in enumerate(zip(sources, results, strict=True)):
        top = pitch * i + pitch - 16
        assert (sheet[top : top + 16, pitch - 16 : pitch] == np.asarray(source)).all()
        assert (sheet[top : top + 16, -pitch : 16 - pitch or None] == np.asarray(result)).all()


@pytest.mark.parametrize(
    ("about", "error", "message"),
    [
        ({"license": "other"}, ValueError, "'other' and license_name need each other, got 'other' and None"),
        ({"license": "mit", "license_name": "Mine"}, ValueError, "license_name need each other, got 'mit' and 'Mine'"),
        ({"base_model": "teacher"}, ValueError, "base_model must be OWNER/NAME on the Hub, got 'teacher'"),
        ({"base_model": "me/teacher@v1"}, ValueError, "base_model must be OWNER/NAME on the Hub, got 'me/teacher@v1'"),
        ({"metrics": "gone"}, FileNotFoundError, "gone"),
        ({"metrics": "other.json"}, ValueError, r"cannot read other\.json: metrics must be scores\.json or sweep"),
        ({"examples": ["gone.png"]}, FileNotFoundError, r"gone\.png"),
        ({"licence": "mit"}, TypeError, "licence"),
    ],
)
def test_what_is_refused(
    about: Any, error: Any, message: str, sampler: BridgeSampler, tmp_path: Path, monkeypatch: Any
):
    """Before anything is written."""
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("{}")
    with pytest.raises(error, match=message):
        sampler.save_pretrained("a", **about)
    assert not Path("a").exists()


@pytest.mark.parametrize("values", [False, True], ids=["8 bits", "values"])
def test_its_lines_run(values: bool, sampler: BridgeSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of Python, beside the folder, and give the sampler's own result."""
    source: Any = noise(3)
    if values:
        sampler.pictures = Spec(source=Values(0, 3000, dtype="uint16"), target=Values(-1000, 1000, dtype="int16"))
        source = np.random.default_rng(0).integers(0, 3000, (3, 16, 16)).astype("uint16")
        np.save(tmp_path / "source.npy", source)
        with pytest.raises(ValueError, match="examples of a model card is for pictures of 8 bits"):
            sampler.save_pretrained(tmp_path / "faces", examples=[noise(0)])
    else:
        source.save(tmp_path / "source.png")
    text = written(sampler, tmp_path / "faces")
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(lines, "card", "exec"), {})
    if values:
        assert (np.load("result.npy") == np.asarray(sampler("source.npy", seed=0)[0])).all()
    else:
        with Image.open("result.png") as result:
            assert (np.asarray(result) == np.asarray(sampler(source, seed=0))).all()


@pytest.mark.nightly
def test_its_lines_for_onnx_run(bundled_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of the bundled network and its export, each after the other on one drawing."""
    source = demo.DRAWINGS / "1F383.png"
    (tmp_path / "source.png").write_bytes(source.read_bytes())
    sampler = BridgeSampler.from_checkpoint(demo.WEIGHTS, solver="sde-dpm2m", steps=5)
    text = written(sampler, tmp_path / "colours", onnx=bundled_export)
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []
    for each in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        names: dict[str, Any] = {}
        exec(compile(each, "card", "exec"), names)
        found.append(np.asarray(names["result"], dtype=float))
    assert (found[0] == np.asarray(sampler(source, seed=0)[0])).all()
    assert np.abs(found[0] - found[1]).max() <= 5  # float16
