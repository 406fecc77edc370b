"""`bbdm app` without a browser, with a network too small to be good."""

import io
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from gradio.components.gallery import GalleryData, GalleryImage
from gradio.data_classes import ImageData
from PIL import Image

from bbdm import BridgeSampler, UNet, demo, save_checkpoint
from bbdm.data.spec import Spec
from bbdm.serving import app
from bbdm.serving.app import DRAWING, PICTURES, Panel, load, shown
from bbdm.serving.config import AppConfig
from tests.conftest import noise, tiny_unet
from tests.onnx.exports import BRIDGE, SIZE


def same(picture: Image.Image, output: Image.Image) -> bool:
    """Whether two pictures differ by rounding alone."""
    assert picture.size == output.size
    return int(np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(output, int)).max()) <= 1


@pytest.fixture(scope="module")
def panel(file: Path) -> Panel:
    return Panel(AppConfig(file, device="cpu", max_files=2), "tiny")


def saved(folder: Path, *pictures: Image.Image) -> list[tuple[str, None]]:
    """Pictures as a page's gallery gives them: 0.png, 1.png, ..."""
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    return [(str(folder / f"{i}.png"), None) for i in range(len(pictures))]


def run(panel: Panel, *inputs: Any, progress: Any = lambda *_, **__: None) -> tuple[str, dict[str, Image.Image], Any]:
    """The status, pictures and zip that a page shows at the end; inputs are in the order of its fields."""
    first, *_, (status, gallery, button) = panel.run(progress, *inputs)
    assert (first[:2], first[2].interactive) == (("", []), False)  # nothing of before stays
    return status, {name: picture for picture, name in gallery}, button


def zipped(button: Any) -> dict[str, Image.Image]:
    """The pictures of a zip."""
    with zipfile.ZipFile(button.value["path"] if isinstance(button.value, dict) else button.value) as archive:
        return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


@pytest.mark.parametrize("solver", ["sde-dpm2m", "posterior"])
def test_results_are_those_of_the_sampler(solver: str, panel: Panel, sampler: BridgeSampler, tmp_path: Path):
    """Of two sources, each before its results; the zip has them all, but no source."""
    pictures, calls = [noise(0), noise(1, 16, 8)], list[tuple[int, int]]()
    inputs = PICTURES, None, saved(tmp_path, *pictures), 2, False, solver, 3, " 5 "
    status, gallery, button = run(panel, *inputs, progress=lambda call, unit: calls.append(call))
    assert calls == [(i + 1, 6) for i in range(6)]
    assert status == "done, seeds 5 to 8"
    assert [*gallery] == ["0", "0_5", "0_6", "1", "1_7", "1_8"]
    assert same(gallery["1"], pictures[1])
    outputs = sampler([pictures[i // 2] for i in range(4)], seed=5, solver=solver, steps=3)
    files = zipped(button)
    assert [*files] == [f"{i // 2}_{5 + i}.png" for i in range(4)]
    for (name, picture), output in zip(files.items(), outputs, strict=True):
        assert same(picture, output)
        assert same(gallery[name[:-4]], output)


def test_mean_and_spread_of_each_source(panel: Panel, sampler: BridgeSampler, tmp_path: Path):
    """Against those of the distribution of the same seeds, but for the rounding of results."""
    pictures = [noise(0), noise(1, 16, 8)]
    status, _, button = run(panel, PICTURES, None, saved(tmp_path, *pictures), 4, True, "sde-dpm2m", 3, "5")
    assert status.startswith("done, seeds 5 to 12<br>mean: their average; spread: white is")
    files = zipped(button)
    assert [*files][:3] == ["0_mean.png", "0_spread.png", "0_5.png"]
    for i, picture in enumerate(pictures):
        seeds = [[*range(5 + 4 * i, 9 + 4 * i)]]
        found = sampler.distribution(picture, 4, seeds, solver="sde-dpm2m", steps=3)
        assert same(files[f"{i}_mean.png"], found.mean[0])
        levels = 127.5 * found.scaled_std[0].mean(0)
        assert np.abs(np.asarray(files[f"{i}_spread.png"]) - np.minimum(2 * levels, 255)).max() < 2.5


def test_a_larger_picture_by_windows(file: Path, sampler: BridgeSampler, tmp_path: Path):
    """40 x 24 has 4 x 2 windows that overlap by a half, in a call a step; results come in turn."""
    settings: dict[str, Any] = {"window": SIZE, "overlap": 0.5}
    calls = list[tuple[int, int]]()
    inputs = PICTURES, None, saved(tmp_path, noise(2, 40, 24)), 2, False, "sde-dpm2m", 3, "5"
    panel = Panel(AppConfig(file, **settings), "tiny")
    _, gallery, _ = run(panel, *inputs, progress=lambda call, unit: calls.append(call))
    assert calls == [(i + 1, 6) for i in range(6)]
    options: dict[str, Any] = {"solver": "sde-dpm2m", "steps": 3}
    outputs = sampler([noise(2, 40, 24)] * 2, 5, **options, **settings)
    assert all(same(gallery[f"0_{5 + i}"], output) for i, output in enumerate(outputs))
    assert not same(gallery["0_5"], sampler(noise(2, 40, 24), 5, **options)[0])


@pytest.mark.parametrize(
    ("settings", "crop", "size", "drawn"),
    [
        ({}, None, (16, 10), (16, 8)),
        ({"size": (20, 48)}, None, (33, 20), (40, 20)),
        ({"window": SIZE}, None, (40, 24), (16, 8)),
        ({"window": SIZE, "size": 32}, None, (32, 19), (32, 16)),
        ({}, SIZE, (40, 24), (16, 8)),
        ({"window": None}, SIZE, (16, 10), (16, 8)),
    ],
)
def test_sources_are_made_to_fit_unless_by_windows(settings: Any, crop: Any, size: Any, drawn: Any, tmp_path: Path):
    unet = tiny_unet(0, condition_channels=3)
    save_checkpoint(tmp_path / "c.pt", unet, BRIDGE, image_size=SIZE, pictures=Spec(crop=crop))
    panel = Panel(AppConfig(tmp_path / "c.pt", device="cpu", **settings), "c")
    ((path, _),) = saved(tmp_path, noise(2, 40, 24))
    assert panel.read(path).size == size
    assert panel.read(noise(2, 64, 32)).size == drawn
    assert [shown(noise(0, 3200, 8)).size, shown(noise(0)).size] == [(1600, 4), noise(0).size]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"files": None}, "choose a picture"),
        ({"files": ["<b>.png"]}, "cannot read the picture &lt;b&gt;.png: it is not a picture"),
        ({"files": ["0.png"] * 3}, "at most 2 pictures, got 3"),
        ({"files": ["1.png"]}, "at most 256 pixels, got 1.png of height x width 17 x 16"),
        ({"tab": DRAWING}, "the sheet is empty"),
        ({"tab": DRAWING, "drawing": {"composite": Image.new("RGBA", (512, 512), "white")}}, "the sheet is empty"),
        ({"solver": "ancestral"}, "'ancestral' takes every time, steps=100; got steps=5"),
        ({"seed": "1.5"}, "seed must be an integer of at least 0, got '1.5'"),
        ({"seed": str(2**63 - 1), "count": 2}, "seed must be in"),  # of the second result
        ({"maps": True}, "results must be at least 2 to show where they differ, got 1"),
    ],
)
def test_an_error_is_a_message_without_old_results(inputs: dict[str, Any], message: str, file: Path, tmp_path: Path):
    limits: dict[str, Any] = {"max_files": 2, "max_pixels": SIZE**2, "window": SIZE}
    (tmp_path / "<b>.png").write_bytes(b"")
    saved(tmp_path, noise(0), noise(1, 16, 17))
    usual: dict[str, Any] = {"tab": PICTURES, "drawing": None, "files": ["0.png"], "count": 1, "maps": False}
    values = usual | {"solver": "dpm2m", "steps": 5, "seed": "0"} | inputs
    values["files"] = values["files"] and [(str(tmp_path / name), None) for name in values["files"]]
    with pytest.raises(gr.Error) as caught:
        run(Panel(AppConfig(file, device="cpu", **limits), "tiny"), *values.values())
    assert message in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_drawing_and_pictures_of_one_name(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sheet = Image.new("RGBA", (512, 512), "white")
    sheet.putpixel((100, 100), (0, 0, 0, 255))
    assert [*panel.sources(DRAWING, {"composite": sheet}, None)] == ["drawing"]
    monkeypatch.setattr(panel, "config", AppConfig(max_files=3))
    noise(2).save(tmp_path / "0_2.png")
    uploads = [(str(tmp_path / "0_2.png"), None), *saved(tmp_path, noise(0)) * 2]
    assert [*panel.sources(PICTURES, None, uploads)] == ["0_2", "0", "0_2_2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_results": 0}, "max_results must be at least 1, got 0"),
        ({"port": 65536}, "port must be at most 65535, got 65536"),
        ({"overlap": 1}, r"overlap must be above 0 and at most 0\.9, got 1"),
        ({"window": 15}, "window must be a multiple of the network's stride 2, got 15"),
        ({"max_steps": 3}, "max_steps must be at least the network's 10, got 3"),
    ],
)
def test_settings_that_no_network_takes(settings: dict[str, Any], message: str, file: Path):
    with pytest.raises(ValueError, match=message):
        load(AppConfig(file, **settings))


def test_photographs_are_restored_in_the_faster_arithmetic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "best_dtype", lambda device: torch.bfloat16)
    configs = AppConfig(demo.PHOTOGRAPHS), AppConfig(demo.PHOTOGRAPHS, dtype="fp32"), AppConfig(demo.WEIGHTS)
    found = [sampler.dtype for sampler in map(load, configs)]
    assert found == [torch.bfloat16, torch.float32, torch.float32]


def test_a_folder_of_save_pretrained(sampler: BridgeSampler, tmp_path: Path):
    sampler.save_pretrained(tmp_path)
    panel = Panel(AppConfig(tmp_path, device="cpu"), "a model")
    _, gallery, _ = run(panel, PICTURES, None, saved(tmp_path, noise(0)), 1, False, "ddim", 3, "5")
    assert same(gallery["0_5"], sampler(noise(0), 5, solver="ddim", steps=3)[0])


def components(config: AppConfig) -> dict[str, dict[str, Any]]:
    """Properties of a page's components, by label or else by type."""
    found = app.build(config).get_config_file()["components"]
    return {each["props"].get("label") or each["type"]: each["props"] for each in found}


def test_a_page_offers_what_a_network_takes(file: Path, monkeypatch: pytest.MonkeyPatch):
    """The bundled ones have a tab each; that of drawings stands for both here."""
    found = components(AppConfig(file, device="cpu", max_steps=30, max_results=6))
    assert [value for _, value in found["Solver"]["choices"]] == [
        *("dpm2m", "sde-dpm2m", "midpoint", "ddim", "posterior", "fast")  # not each takes 10 calls
    ]
    numbers = [(found[name]["value"], found[name]["maximum"]) for name in ("Network calls", "Results")]
    assert numbers == [(10, 30), (4, 6)]
    assert "Guidance" not in found
    assert not components(AppConfig(file, device="cpu", max_results=1))["Results"]["visible"]
    monkeypatch.setattr(app, "BUNDLED", [(demo.WEIGHTS, *rest) for _, *rest in app.BUNDLED])
    found = components(AppConfig(device="cpu", window=64))
    assert {"Drawings", "Photographs", DRAWING, PICTURES} <= {*found}
    sheet = found["imageeditor"]
    assert (sheet["canvas_size"], sheet["brush"]["default_size"]) == ([512, 512], 8)  # a radius: 2 pixels of 64


def test_uploads_are_of_known_formats_and_not_opened_by_gradio(tmp_path: Path):
    """The page refuses others before it shows them; an error of Gradio's would have the server's path."""

    def uploaded(name: str) -> Any:
        (tmp_path / name).write_bytes(b"")
        image = GalleryImage(image=ImageData(path=str(tmp_path / name), orig_name=name), caption=None)
        return app.uploads().preprocess(GalleryData(root=[image]))

    assert uploaded("empty.png") == [(str(tmp_path / "empty.png"), None)]
    with pytest.raises(gr.Error, match="Invalid file type") as caught:
        uploaded("a.svg")
    assert str(tmp_path) not in caught.value.message


def with_classes(path: Path, unet: UNet) -> tuple[AppConfig, BridgeSampler]:
    """The app's settings and the sampler of a network whose classes differ."""
    for module in unet.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    save_checkpoint(path, unet.eval(), BRIDGE, steps=2)
    return AppConfig(path, device="cpu"), BridgeSampler.from_checkpoint(path)


def test_a_network_gets_a_class_and_is_guided(tmp_path: Path):
    conditions = {"classes": {"style": ("ink", "oil")}, "tokens": {"text": 4}, "drop": {"style": 0.1, "text": 0.1}}
    config, sampler = with_classes(tmp_path / "c.pt", tiny_unet(0, condition_channels=3, **conditions))
    inputs = PICTURES, None, saved(tmp_path, noise(0)), 1, False, "dpm2m", 2, "5"
    _, gallery, _ = run(Panel(config, "c"), *inputs, 3.0, 1)
    chosen: dict[str, Any] = {"conditions": {"style": "oil", "text": None}, "steps": 2}
    assert same(gallery["0_5"], sampler(noise(0), 5, guidance=3, **chosen)[0])
    assert not same(gallery["0_5"], sampler(noise(0), 5, **chosen)[0])
    found = components(config)
    assert [list(each) for each in found["style"]["choices"]] == [["ink", 0], ["oil", 1], ["none", 2]]
    assert found["Guidance"]["visible"]
    needs = tiny_unet(0, condition_channels=3, classes={"style": 2}, images={"sar": 1})
    save_checkpoint(tmp_path / "needs.pt", needs, BRIDGE)
    with pytest.raises(ValueError, match="needs sar: images and tokens, which the app cannot give"):
        load(AppConfig(tmp_path / "needs.pt", device="cpu"))


def test_a_network_of_two_directions_has_a_switch(tmp_path: Path):
    unet = tiny_unet(0, condition_channels=3, classes={"direction": ("AtoB", "BtoA")})
    config, sampler = with_classes(tmp_path / "c.pt", unet)
    panel, inputs = Panel(config, "c"), (PICTURES, None, saved(tmp_path, noise(0)), 1, False, "dpm2m", 2, "5")
    for number, way in enumerate(("AtoB", "BtoA")):
        _, gallery, _ = run(panel, *inputs, 1, number)
        assert same(gallery["0_5"], sampler(noise(0), 5, direction=way)[0])
    found = components(config)
    assert [list(each) for each in found["direction"]["choices"]] == [["AtoB", 0], ["BtoA", 1]]
    assert not found["Guidance"]["visible"]


def test_the_end_of_the_app_ends_translations(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inputs = PICTURES, None, saved(tmp_path, noise(0)), 1, False, "ancestral", 100, "5"
    outputs = panel.run(lambda *_, **__: None, *inputs)  # pyright: ignore[reportArgumentType]
    assert [next(outputs) is not None for _ in range(2)]
    monkeypatch.setattr(Panel, "ended", type(Panel.ended)())
    Panel.ended.set()
    with pytest.raises(gr.Error, match="the app ends"):
        next(outputs)
