"""`bbdm app` without a browser, with a network too small to be good."""

import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import BridgeSampler, demo, save_checkpoint
from bbdm.data.spec import Spec
from bbdm.pictures.images import to_array
from bbdm.runtime import OnnxBridgeSampler
from bbdm.serving import app
from bbdm.serving.app import Panel
from bbdm.serving.app_model import DRAWING, PICTURES, Network, Result, load
from bbdm.serving.config import AppConfig
from tests.conftest import ROOT, noise, tiny_unet
from tests.onnx.exports import BRIDGE, SIZE, export
from tests.serving.pages import same

VISITOR: Any = SimpleNamespace(session_hash="visitor")


@pytest.fixture(scope="module")
def network(file: Path) -> Panel:
    return Panel(AppConfig(file, device="cpu"), "tiny")


def last(network: Network, sources: dict[str, Image.Image], count: int, seed: int | None, **options: Any) -> Any:
    return list(network.translate(sources, count, seed, lambda *_: None, **options))[-1]


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "fast", "posterior", "ddim"])
def test_the_last_preview_is_what_the_sampler_returns(solver: str, network: Panel, sampler: BridgeSampler):
    pictures, calls = {"a": noise(0), "b": noise(1, 24, 8)}, list[tuple[int, int]]()
    progress = list(network.translate(pictures, 2, 5, lambda *call: calls.append(call), solver=solver, steps=3))
    assert calls == [(i + 1, 6) for i in range(6)]
    assert [len(each) for each in progress] == [2, 2, 2, 4, 4, 4]
    outputs = sampler([noise(0)] * 2 + [noise(1, 24, 8)] * 2, seed=5, solver=solver, steps=3)
    assert [(each.name, each.kind) for each in progress[-1]] == [("a", "5"), ("a", "6"), ("b", "7"), ("b", "8")]
    assert all(same(each.picture, output) for each, output in zip(progress[-1], outputs, strict=True))
    assert not same(progress[0][0].picture, outputs[0])


def test_results_are_compared_by_their_mean_and_standard_deviation(network: Panel, sampler: BridgeSampler):
    """Of two sources, in turns; against NumPy's of the results, rounded to levels of 255."""
    pictures, calls = {"a": noise(0), "b": noise(1, 24, 8)}, list[tuple[int, int]]()
    options: dict[str, Any] = {"solver": "sde-dpm2m", "steps": 3}
    (results,) = network.compare(pictures, 4, 5, lambda *call: calls.append(call), **options)
    assert calls == [(i + 1, 6) for i in range(6)]
    for i, (name, source) in enumerate(pictures.items()):
        mean, std, *others = results[6 * i : 6 * i + 6]
        seeds = [5 + i + 2 * j for j in range(4)]
        assert [each.kind for each in (mean, std, *others)] == ["mean", "std", *map(str, seeds)]
        assert {each.name for each in (mean, std, *others)} == {name}
        levels = 127.5 * np.moveaxis(sampler(np.stack([to_array(source)] * 4), seeds, **options), 1, -1)
        assert np.abs(np.asarray(mean.picture) - 127.5 - levels.mean(0)).max() < 0.51
        assert np.abs(np.asarray(std.picture) - levels.std(0, ddof=1)).max() < 0.51
        assert all(np.abs(np.asarray(each.picture) - 127.5 - levels[j]).max() < 0.51 for j, each in enumerate(others))
        grey = np.asarray(std.picture.convert("L"), int)
        assert np.array_equal(np.asarray(std.pair()[1]), np.minimum(2 * grey, 255))
        assert np.asarray(mean.pair()[1]).shape == (*grey.shape, 3)


@pytest.mark.parametrize("by_export", [False, True])
def test_a_larger_picture_by_windows(by_export: bool, file: Path, sampler: BridgeSampler, tmp_path: Path):
    """72 x 40 has 8 x 4 windows that overlap by a half: 2 calls of 16 a step, results one after the other."""
    settings: dict[str, Any] = {"window": SIZE, "overlap": 0.5}
    config = AppConfig(export(file, tmp_path / "onnx"), **settings) if by_export else AppConfig(file, **settings)
    network, calls = Network(config), list[tuple[int, int]]()
    noise(2, 72, 40).save(tmp_path / "large.png")
    picture = network.read(str(tmp_path / "large.png"))
    assert picture.size == (72, 40)
    options = {"solver": "sde-dpm2m", "steps": 3, **config.call}
    progress = list(network.translate({"a": picture}, 2, 5, lambda *call: calls.append(call), **options))
    assert calls == [(i + 1, 12) for i in range(12)]
    assert [len(each) for each in progress] == [1, 1, 1, 2, 2, 2]
    outputs = sampler([picture] * 2, 5, solver="sde-dpm2m", steps=3, **settings)
    assert all(same(each.picture, output) for each, output in zip(progress[-1], outputs, strict=True))
    assert not same(progress[-1][0].picture, sampler(picture, 5, solver="sde-dpm2m", steps=3)[0])


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
    noise(2, 40, 24).save(tmp_path / "large.png")
    network = Network(AppConfig(tmp_path / "c.pt", device="cpu", **settings))
    assert network.read(str(tmp_path / "large.png")).size == size
    assert network.read(noise(2, 64, 32)).size == drawn
    assert Result("a", "5", noise(0, 3200, 8), noise(0)).pair()[0].size == (1600, 4)


def test_what_a_visitor_gives_is_limited(file: Path, network: Panel, tmp_path: Path):
    few = Network(AppConfig(file, device="cpu", max_files=1, max_pixels=SIZE**2 - 1))
    (tmp_path / "text.png").write_text("no picture")
    noise(0).save(tmp_path / "a.png")
    paths: list[Any] = [(str(tmp_path / name), None) for name in ("text.png", "a.png")]
    white = Image.new("RGBA", (512, 512), "white")
    cases: list[tuple[Network, str, Any, Any, str]] = [
        (few, PICTURES, None, paths[1:], "at most 255 pixels, got a.png of height x width 16 x 16"),
        (few, PICTURES, None, paths, "at most 1 pictures, got 2"),
        (network, PICTURES, None, paths[:1], r"^cannot read the picture text\.png: it is not a picture$"),
        (network, PICTURES, None, None, "choose a picture"),
        (network, DRAWING, None, paths, "the sheet is empty"),
        (network, DRAWING, {"composite": white}, None, "the sheet is empty"),
    ]
    for each, tab, drawing, files, message in cases:
        with pytest.raises(ValueError, match=message):
            each.sources(tab, drawing, files)
    white.putpixel((100, 100), (0, 0, 0, 255))
    assert [*network.sources(DRAWING, {"composite": white}, None)[0]] == ["drawing"]
    sources, errors = network.sources(PICTURES, None, [*paths, paths[1]])
    assert ([*sources], errors) == (["a", "a_1"], ["cannot read the picture text.png: it is not a picture"])
    assert last(network, sources, 1, None, steps=1)[0].kind != last(network, sources, 1, None, steps=1)[0].kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_results": 0}, "max_results must be at least 1, got 0"),
        ({"port": 65536}, "port must be at most 65535, got 65536"),
        ({"overlap": 1}, r"overlap must be above 0 and at most 0\.9, got 1"),
        ({"device": "cpu"}, "device, dtype and compile are for checkpoints, .*onnx is an ONNX export"),
        ({"window": 15}, "window must be a multiple of the network's stride 2, got 15"),
        ({"max_steps": 3}, "max_steps must be at least the network's 4, got 3"),
    ],
)
def test_settings_that_no_network_takes(settings: dict[str, Any], message: str, exported: Path):
    with pytest.raises(ValueError, match=message):
        load(AppConfig(exported, **settings))


def test_photographs_are_restored_in_the_faster_arithmetic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bbdm.execution.device.best_dtype", lambda device: torch.bfloat16)
    configs = AppConfig(demo.PHOTOGRAPHS), AppConfig(demo.PHOTOGRAPHS, dtype="fp32"), AppConfig(demo.WEIGHTS)
    found = [sampler.dtype for sampler in map(load, configs) if isinstance(sampler, BridgeSampler)]
    assert found == [torch.bfloat16, torch.float32, torch.float32]


def test_folders_of_models(sampler: BridgeSampler, exported: Path, tmp_path: Path):
    """Of ``save_pretrained``, and exports, which take any solver and need no torch."""
    sampler.save_pretrained(tmp_path)
    results = last(Network(AppConfig(tmp_path, device="cpu")), {"a": noise(0)}, 1, 5, steps=2)
    assert same(results[0].picture, sampler(noise(0), 5, steps=2)[0])
    model, picture = Network(AppConfig(exported)), noise(0, 64, 64)
    for options in ({}, {"solver": "ddim", "steps": 3}):
        output = OnnxBridgeSampler(exported)(picture, 5, **options)[0]
        assert same(last(model, {"a": picture}, 1, 5, **options)[0].picture, output)
    code = (
        "import sys; from pathlib import Path; from bbdm.serving.app import *; from bbdm.serving.app_model import *; "
    )
    code += "load(AppConfig(Path(sys.argv[1]))); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(exported)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"


def controls(*panels: Panel) -> dict[str, dict[str, Any]]:
    """Properties of a page's components, by label."""
    properties = [component["props"] for component in app.build(panels).get_config_file()["components"]]
    return {each["label"]: each for each in properties if each.get("label")}


def test_a_page_offers_what_a_network_takes(file: Path, exported: Path):
    found = controls(Panel(AppConfig(file, device="cpu", max_steps=30, max_results=6), "tiny"))
    assert [value for _, value in found["Solver"]["choices"]] == [
        *("dpm2m", "sde-dpm2m", "ddim", "posterior", "fast")  # not each takes 10 calls
    ]
    sliders = [(found[name]["value"], found[name]["maximum"]) for name in ("Network calls", "Results")]
    assert sliders == [(10, 30), (4, 6)]
    assert [Path(each["image"]["path"]).name for each in found["Examples"]["value"]] == ["0.png", "1.png"]
    assert "Guidance" not in found
    assert "Results" not in controls(Panel(AppConfig(file, device="cpu", max_results=1), "tiny"))
    found = controls(Panel(AppConfig(exported, examples=file.parent), "tiny"))
    assert (found["Solver"]["value"], found["Network calls"]["value"]) == ("sde-dpm2m", 4)
    assert "Examples" not in found


def test_each_bundled_network_has_a_tab(monkeypatch: pytest.MonkeyPatch):
    """With the network of drawings in the place of that of photographs."""
    monkeypatch.setattr(app, "BUNDLED", [(demo.WEIGHTS, *rest) for _, *rest in app.BUNDLED])
    config = app.build(app.panels(AppConfig(device="cpu", window=64))).get_config_file()
    tabs = [each["props"]["label"] for each in config["components"] if each["type"] == "tabitem"]
    assert tabs == ["Drawings", DRAWING, PICTURES, "Photographs", PICTURES]
    (sheet,) = [each["props"] for each in config["components"] if each["type"] == "imageeditor"]
    assert (sheet["canvas_size"], sheet["brush"]["default_size"]) == ([512, 512], 8)  # a radius: 2 pixels of 64


def test_uploads_are_of_known_formats_and_not_opened_by_gradio(tmp_path: Path):
    """The page refuses others before it shows them; an error of Gradio's would have the server's path."""
    from gradio.components.gallery import GalleryData, GalleryImage
    from gradio.data_classes import ImageData

    def uploaded(name: str) -> Any:
        (tmp_path / name).write_bytes(b"")
        image = GalleryImage(image=ImageData(path=str(tmp_path / name), orig_name=name), caption=None)
        return app.uploads().preprocess(GalleryData(root=[image]))

    assert uploaded("empty.png") == [(str(tmp_path / "empty.png"), None)]
    with pytest.raises(gr.Error, match="Invalid file type") as caught:
        uploaded("a.svg")
    assert str(tmp_path) not in caught.value.message
    assert ".svg" not in app.uploads().get_config()["file_types"]


def run(panel: Panel, *inputs: Any) -> list[tuple[Any, ...]]:
    """All that a page shows; inputs are in the order of its fields."""
    return list(panel.run(VISITOR, lambda *_, **__: None, *inputs))  # pyright: ignore[reportArgumentType]


def test_a_network_gets_a_class_and_is_guided(tmp_path: Path):
    conditions = {"classes": {"style": ("ink", "oil")}, "tokens": {"text": 4}, "drop": {"style": 0.1, "text": 0.1}}
    unet = tiny_unet(0, condition_channels=3, **conditions)
    for module in unet.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    save_checkpoint(tmp_path / "c.pt", unet.eval(), BRIDGE, steps=2)
    page = Panel(AppConfig(tmp_path / "c.pt", device="cpu"), "c")
    sampler = BridgeSampler.from_checkpoint(tmp_path / "c.pt")
    noise(0).save(tmp_path / "a.png")
    shown = run(page, False, PICTURES, None, [(str(tmp_path / "a.png"), None)], "dpm2m", 2, "5", 1, 3.0, 1)[-1]
    chosen: dict[str, Any] = {"conditions": {"style": "oil", "text": None}, "steps": 2}
    assert same(shown[3][0].picture, sampler(noise(0), 5, guidance=3, **chosen)[0])
    assert not same(shown[3][0].picture, sampler(noise(0), 5, **chosen)[0])
    found = controls(page)
    assert [list(each) for each in found["style"]["choices"]] == [["ink", 0], ["oil", 1], ["none", 2]]
    assert (found["Guidance"]["maximum"], found["Guidance"]["visible"]) == (6, True)
    needs = tiny_unet(0, condition_channels=3, classes={"style": 2}, images={"sar": 1})
    save_checkpoint(tmp_path / "needs.pt", needs, BRIDGE)
    with pytest.raises(ValueError, match="needs sar: images and tokens, which the app cannot give"):
        load(AppConfig(tmp_path / "needs.pt", device="cpu"))


def test_a_page_shows_results_and_what_was_left_out(network: Panel, sampler: BridgeSampler, file: Path, tmp_path: Path):
    paths = [(str(file.parent / "drawings" / f"{i}.png"), None) for i in range(2)]
    (tmp_path / "<b>.png").write_bytes(b"")
    bad = (str(tmp_path / "<b>.png"), None)
    first, *_, shown = run(network, False, PICTURES, None, [paths[0], bad, paths[1]], "dpm2m", 2, " 3 ", 1)
    assert first[:4] == ("", None, [], [])
    assert not first[4].interactive
    status, slider, gallery, results, button = shown
    reason = "cannot read the picture &lt;b&gt;.png: it is not a picture"
    assert status == f"2 results, seeds 3 to 4; left out: {reason}"
    outputs = sampler([noise(0), noise(1)], 3, steps=2)
    assert [caption for _, caption in gallery] == ["0, seed 3", "1, seed 4"]
    assert all(same(each.picture, output) for each, output in zip(results, outputs, strict=True))
    assert same(slider[1], outputs[0])
    assert app.choose(results, SimpleNamespace(index=1))[1] == results[1].picture  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(button.value["path"] if isinstance(button.value, dict) else button.value) as archive:
        assert archive.namelist() == ["0_3.png", "1_4.png"]
        with archive.open("1_4.png") as picture:
            assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(outputs[1]))
    status, *_, button = run(network, True, PICTURES, None, paths[:1], "sde-dpm2m", 2, "3", 4)[-1]
    assert status.startswith("4 results, seeds 3 to 6<br>Where they differ: white is")
    with zipfile.ZipFile(button.value["path"] if isinstance(button.value, dict) else button.value) as archive:
        assert archive.namelist() == [f"0_{kind}.png" for kind in ("mean", "std", 3, 4, 5, 6)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((PICTURES, None, None, "dpm2m", 2, "0", 1), "choose a picture"),
        (("BAD", "dpm2m", 2, "0", 1), "cannot read the picture &lt;b&gt;.png: it is not a picture"),
        (("GOOD", "ancestral", 5, "0", 1), "'ancestral' takes every time, steps=100; got steps=5"),
        (("GOOD", "dpm2m", 5, "1.5", 1), "seed must be an integer from 0 to 9223372036854775807, got '1.5'"),
        (("GOOD", "dpm2m", 5, str(2**63), 1), "seed must be an integer from 0"),
        (("GOOD", "dpm2m", 5, str(2**63 - 1), 2), "seed must be in"),  # of the second result
    ],
)
@pytest.mark.parametrize("compared", [False, True])
def test_an_error_is_a_message_without_old_results(
    compared: bool, inputs: Any, message: str, network: Panel, file: Path, tmp_path: Path
):
    (tmp_path / "<b>.png").write_bytes(b"")
    files = {"BAD": tmp_path / "<b>.png", "GOOD": file.parent / "drawings" / "0.png"}
    if inputs[0] in files:
        inputs = (PICTURES, None, [(str(files[inputs[0]]), None)], *inputs[1:-1], 2 if compared else inputs[-1])
    shown = network.run(VISITOR, lambda *_, **__: None, compared, *inputs)  # pyright: ignore[reportArgumentType]
    assert next(shown)[:4] == ("", None, [], [])
    with pytest.raises(gr.Error) as caught:
        list(shown)
    assert message in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("compared", [False, True])
def test_a_stopped_translation_ends_at_the_next_call(compared: bool, network: Panel, file: Path):
    calls = list[tuple[int, int]]()

    def progress(call: tuple[int, int], unit: str) -> None:
        calls.append(call)
        if len(calls) == 3:
            assert network.stop(VISITOR, "network call 3 of 100") == "stopped at network call 3 of 100"

    files = [(str(file.parent / "drawings" / "0.png"), None)]
    inputs: list[Any] = [compared, PICTURES, None, files, "ancestral", 100, "0", 2]
    shown = list(network.run(VISITOR, progress, *inputs))  # pyright: ignore[reportArgumentType]
    assert len(calls) == 3
    assert shown[-1][0] == "stopped at network call 3 of 100"
    assert network.stop(VISITOR, "1 result, seed 0") == "1 result, seed 0"
