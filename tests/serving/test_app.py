"""`bbdm app` without a browser, with a network too small to be good."""

import io
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import BridgeSampler, demo, save_checkpoint, solvers
from bbdm.data.spec import Spec
from bbdm.pictures.images import to_array
from bbdm.runtime import OnnxBridgeSampler
from bbdm.serving import app, app_visit
from bbdm.serving.app_model import Call, Model, Progress, Source, compare, read, translate
from bbdm.serving.config import AppConfig
from tests.conftest import ROOT, tiny_unet
from tests.onnx.exports import BRIDGE, SIZE, export
from tests.serving.pages import noise, same


@pytest.fixture(scope="module")
def model(file: Path) -> Model:
    return app.load(AppConfig(file, device="cpu"))


def last(model: Model, *asked: Any) -> Progress:
    return list(translate(model, Call(*asked)))[-1]


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "fast", "posterior", "ddim", "consistency"])
def test_the_last_preview_is_what_the_sampler_returns(solver: str, model: Model, sampler: BridgeSampler):
    sources = [Source("a", noise(0)), Source("b", noise(1, 24, 8))]
    progress = list(translate(model, Call(sources, solver, 3, 5, 2)))
    assert [each.done for each in progress] == [1, 2, 3, 4, 5, 6]
    assert {each.total for each in progress} == {6}
    assert [len(each.results) for each in progress] == [2, 2, 2, 4, 4, 4]
    wanted = sampler([noise(0)] * 2 + [noise(1, 24, 8)] * 2, seed=5, solver=solver, steps=3)
    results = progress[-1].results
    assert [(each.source.name, each.seed) for each in results] == [("a", 5), ("a", 6), ("b", 7), ("b", 8)]
    assert all(same(each.picture, picture) for each, picture in zip(results, wanted, strict=True))
    assert not same(results[0].picture, results[1].picture)
    assert not same(progress[0].results[0].picture, results[0].picture)


def test_results_are_compared_by_their_mean_and_standard_deviation(model: Model, sampler: BridgeSampler):
    """Of two sources, in turns; against NumPy's of the results, rounded to levels of 255."""
    sources = [Source("a", noise(0)), Source("b", noise(1, 24, 8))]
    progress = list(compare(model, Call(sources, "sde-dpm2m", 3, 5, 4)))
    assert [(each.done, each.total) for each in progress[:-1]] == [(i + 1, 6) for i in range(5)]
    assert not any(each.results for each in progress[:-1])
    made = progress[-1].results
    kinds = ["mean", "std", "", "", "", ""]
    assert [(each.source, each.map) for each in made] == [(source, kind) for source in sources for kind in kinds]
    for i, source in enumerate(sources):
        mean, std, *results = made[6 * i : 6 * i + 6]
        seeds = [5 + i + 2 * j for j in range(4)]
        assert [each.seed for each in results] == seeds
        wanted = sampler(np.stack([to_array(source.picture)] * 4), seeds, solver="sde-dpm2m", steps=3)
        levels = 127.5 * np.moveaxis(wanted, 1, -1)
        assert np.abs(np.asarray(mean.picture) - 127.5 - levels.mean(0)).max() < 0.51
        assert np.abs(np.asarray(std.picture) - levels.std(0, ddof=1)).max() < 0.51
        assert np.asarray(std.picture).max() > 0
        assert all(np.abs(np.asarray(each.picture) - 127.5 - levels[j]).max() < 0.51 for j, each in enumerate(results))
        grey = np.asarray(app_visit.displayed(std), float)
        assert np.abs(grey - (2 * levels.std(0, ddof=1).mean(-1)).clip(0, 255)).max() < 2.1  # rounded twice


def test_an_export_takes_any_solver_and_steps(exported: Path):
    model = app.load(AppConfig(exported))
    assert (model.solver, model.size) == ("sde-dpm2m", SIZE)
    progress = last(model, [Source("a", noise(0))], "dpm2m", 3, 1, 1)
    assert (progress.done, progress.total) == (3, 3)
    wanted = OnnxBridgeSampler(exported)(noise(0), seed=1, solver="dpm2m", steps=3)[0]
    assert same(progress.results[0].picture, wanted)


@pytest.mark.parametrize("exported", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_larger_picture_by_windows(exported: bool, file: Path, sampler: BridgeSampler, tmp_path: Path):
    """72 x 40 has 8 x 4 windows that overlap by a half: 2 calls of 16 a step, results one after the other."""
    noise(2, 72, 40).save(tmp_path / "large.png")
    if exported:
        config = AppConfig(export(file, tmp_path / "onnx"), window=SIZE, overlap=0.5)
    else:
        config = AppConfig(file, device="cpu", window=SIZE, overlap=0.5)
    model = app.load(config)
    source = read(str(tmp_path / "large.png"), model, model.max_pixels)
    assert source.picture.size == (72, 40)
    progress = list(translate(model, Call([source], "sde-dpm2m", 3, 5, 2)))
    assert [(each.done, each.total) for each in progress] == [(i + 1, 12) for i in range(12)]
    assert [len(each.results) for each in progress] == [0, 1, 0, 1, 0, 1, 0, 2, 0, 2, 0, 2]
    assert [each.first for each in progress] == [0] * 6 + [1] * 6
    assert app_visit.status(progress[2]) == 'network call 3 of 12<progress value="3" max="12"></progress>'
    wanted = sampler([source.picture] * 2, 5, solver="sde-dpm2m", steps=3, window=SIZE, overlap=0.5)
    assert all(same(each.picture, picture) for each, picture in zip(progress[-1].results, wanted, strict=True))
    whole = sampler(source.picture, 5, solver="sde-dpm2m", steps=3)
    assert not same(progress[-1].results[0].picture, whole[0])


def test_windows_are_for_pictures_larger_than_the_network_knows(file: Path, exported: Path):
    """Drawings fit as before; with windows 12 megapixels are taken."""
    model = app.load(AppConfig(file, device="cpu", window=SIZE))
    assert read(noise(2, 64, 32), model, model.max_pixels).picture.size == (SIZE, SIZE // 2)
    assert (model.max_pixels, app.load(AppConfig(file, device="cpu")).max_pixels) == (2**24, 2**20)
    assert app.load(AppConfig(exported, max_pixels=99, window=SIZE)).max_pixels == 99
    assert app_visit.shown(noise(0, 2 * app_visit.SHOWN, 8)).size == (app_visit.SHOWN, 4)
    with pytest.raises(ValueError, match="window must be a multiple of the network's stride 2, got 15"):
        app.load(AppConfig(exported, window=15))
    with pytest.raises(ValueError, match=r"overlap must be above 0 and at most 0\.9, got 1"):
        AppConfig(exported, overlap=1)


def test_a_network_trained_on_crops_is_called_on_windows(tmp_path: Path):
    network, pictures = tiny_unet(0, condition_channels=3), Spec(crop=SIZE)
    save_checkpoint(tmp_path / "crops.pt", network, BRIDGE, image_size=SIZE, pictures=pictures)
    noise(2, 40, 24).save(tmp_path / "large.png")
    several: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (40, 24)),
        ({"size": 32}, (32, 19)),
        ({"window": None}, (16, 10)),
    ]
    for settings, size in several:
        model = app.load(AppConfig(tmp_path / "crops.pt", device="cpu", **settings))
        assert read(str(tmp_path / "large.png"), model, model.max_pixels).picture.size == size


@pytest.mark.parametrize("follow", [translate, compare])
def test_a_translation_that_nobody_waits_for_ends(follow: Any, model: Model):
    progress: Any = follow(model, Call([Source("a", noise(0))], "ancestral", 100, 0, 2))
    before = set(threading.enumerate())
    next(progress)
    threads = set(threading.enumerate()) - before
    assert threads
    progress.close()
    for each in threads:
        each.join(60)
        assert not each.is_alive()


def test_an_export_needs_no_torch(exported: Path):
    load = "from pathlib import Path; from bbdm.serving.app import *; load(AppConfig(Path(sys.argv[1])))"
    code = f"import sys; {load}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(exported)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"


def test_sources_are_made_to_fit(file: Path, model: Model, tmp_path: Path):
    """A drawing is laid on white."""
    noise(2, 64, 32).save(tmp_path / "wide.png")
    source = read(str(tmp_path / "wide.png"), model, SIZE**2)
    assert (source.name, source.picture.size) == ("wide", (SIZE, SIZE // 2))
    larger = app.load(AppConfig(file, device="cpu", size=(20, 48)))
    assert read(noise(2, 64, 32), larger, 1000).picture.size == (40, 20)
    drawn = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    drawn.paste((255, 0, 0, 255), (0, 0, 512, 256))
    name, picture = read(drawn, model, SIZE**2)
    assert (name, picture.getpixel((8, 2)), picture.getpixel((8, 13))) == ("drawing", (255, 0, 0), (255, 255, 255))


def test_what_a_visitor_gives_is_limited(model: Model, exported: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="at most 255 pixels, got drawing of height x width 16 x 16"):
        read(noise(0), model, SIZE**2 - 1)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^cannot read the picture text\.png: it is not a picture$"):
        read(str(tmp_path / "text.png"), model, SIZE**2)
    config = AppConfig(Path("c.pt"), max_steps=9, max_results=3, max_files=2)
    app_visit.check(config, 9, 3, 2)
    for numbers, text in {
        (10, 3, 2): "network calls must be a whole number from 1 to 9, got 10",
        (9, 1.5, 2): "results must be a whole number from 1 to 3, got 1.5",
        (9, 0, 2): "results must be a whole number from 1 to 3, got 0",
        (9, 3, 3): "pictures must be a whole number from 1 to 2, got 3",
    }.items():
        with pytest.raises(ValueError, match=text):
            app_visit.check(config, *numbers)
    for settings, text in (
        ({"model": Path("c.pt"), "max_results": 0}, "max_results must be at least 1, got 0"),
        ({"model": Path("c.pt"), "port": 65536}, "port must be at most 65535, got 65536"),
        ({"model": exported, "device": "cpu"}, "device, dtype and compile are for checkpoints, .*onnx is an ONNX ex"),
    ):
        with pytest.raises(ValueError, match=text):
            AppConfig(**settings)
    first, second = (last(model, [Source("a", noise(0))], "dpm2m", 2, None, 1).results[0] for _ in range(2))
    assert first.seed != second.seed  # no seed draws one


def test_photographs_are_restored_in_the_faster_arithmetic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bbdm.execution.device.best_dtype", lambda device: torch.bfloat16)
    chosen: list[dict[str, Any]] = [{}, {"dtype": "fp32"}]
    samplers = [app.load(AppConfig(demo.PHOTOGRAPHS, **each)).sampler for each in chosen]
    samplers.append(app.load(AppConfig(demo.WEIGHTS)).sampler)
    found = [sampler.dtype for sampler in samplers if isinstance(sampler, BridgeSampler)]
    assert found == [torch.bfloat16, torch.float32, torch.float32]


def test_a_folder_of_save_pretrained_is_a_checkpoint(sampler: BridgeSampler, tmp_path: Path):
    sampler.save_pretrained(tmp_path)
    loaded = app.load(AppConfig(tmp_path, device="cpu"))
    assert isinstance(loaded.sampler, BridgeSampler)
    wanted = sampler(noise(0), 5, steps=2)[0]
    assert same(last(loaded, [Source("a", noise(0))], "dpm2m", 2, 5, 1).results[0].picture, wanted)


def test_examples_lie_beside_the_model(file: Path, tmp_path: Path):
    beside = [file.parent / "drawings" / name for name in ("0.png", "1.png")]
    assert app.example_pictures(AppConfig(file)) == beside
    assert app.example_pictures(AppConfig(file.parent / "onnx")) == beside  # an export
    assert app.example_pictures(AppConfig(demo.WEIGHTS)) == sorted((demo.FOLDER / "drawings").iterdir())
    assert app.example_pictures(AppConfig(file, examples=tmp_path)) == []


def test_the_archive_holds_each_result(model: Model):
    results = last(model, [Source("a", noise(0)), Source("a", noise(1))], "dpm2m", 1, 3, 2).results
    with zipfile.ZipFile(app_visit.archive(results)) as made:
        assert made.namelist() == ["a_3.png", "a_4.png", "a_5.png", "a_6.png"]
        for result in results:
            picture = Image.open(io.BytesIO(made.read(f"a_{result.seed}.png")))
            assert np.array_equal(np.asarray(picture), np.asarray(result.picture))


def controls(page: Any) -> dict[str, dict[str, Any]]:
    """Properties of the page's components, by label."""
    properties = [component["props"] for component in page.get_config_file()["components"]]
    return {each["label"]: each for each in properties if each.get("label")}


def page(model: Model, config: AppConfig) -> Any:
    return app.build([app.Panel("tiny", "", model, config, app.example_pictures(config))])


def told_file(tmp_path: Path, **further: Any) -> Path:
    unet = tiny_unet(0, condition_channels=3, **further)
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_()
    save_checkpoint(tmp_path / "told.pt", unet.eval(), BRIDGE, steps=2)
    return tmp_path / "told.pt"


def test_a_network_is_told_a_class_and_guided(gradio: Any, tmp_path: Path):
    file = told_file(tmp_path, classes={"style": ("ink", "oil")}, tokens={"text": 4}, drop={"style": 0.1, "text": 0.1})
    model, sampler = app.load(AppConfig(file, device="cpu")), BridgeSampler.from_checkpoint(file)
    made = last(model, [Source("a", noise(0))], "dpm2m", 2, 5, 1, {"style": 1}, 3.0).results[0].picture
    told = {"style": "oil", "text": None}
    assert same(made, sampler(noise(0), 5, conditions=told, guidance=3, solver="dpm2m", steps=2)[0])
    assert not same(made, sampler(noise(0), 5, conditions=told, solver="dpm2m", steps=2)[0])
    found = controls(page(model, AppConfig(file)))
    assert [list(each) for each in found["style"]["choices"]] == [["ink", 0], ["oil", 1], ["none", 2]]
    slider = found["How much it counts"]
    assert (slider["minimum"], slider["maximum"], slider["value"], slider["visible"]) == (0, 6, 1, True)


def test_menus_are_for_classes_alone(gradio: Any, model: Model, file: Path, tmp_path: Path):
    assert "How much it counts" not in controls(page(model, AppConfig(file)))
    told = told_file(tmp_path, classes={"style": 2})
    found = controls(page(app.load(AppConfig(told, device="cpu")), AppConfig(told)))
    assert ([text for text, _ in found["style"]["choices"]], found["How much it counts"]["visible"]) == (
        ["0", "1"],
        False,
    )
    needs = told_file(tmp_path, classes={"style": 2}, images={"sar": 1})
    with pytest.raises(ValueError, match="is told sar: images and tokens, which the app cannot give"):
        app.load(AppConfig(needs, device="cpu"))


@pytest.fixture(scope="module")
def gradio() -> Any:
    import gradio

    return gradio


def test_the_page_offers_what_a_checkpoint_takes(gradio: Any, file: Path, model: Model):
    found = controls(page(model, AppConfig(file, max_steps=30, max_results=6)))
    assert found["How it answers"]["value"] == "dpm2m"
    offered = [value for _, value in found["How it answers"]["choices"]]
    assert offered == ["dpm2m", "sde-dpm2m", "midpoint", "ddim", "posterior", "fast"]  # not each takes 10 calls
    calls = found["Network calls: more are finer and slower"]
    assert (calls["value"], calls["maximum"]) == (10, 30)
    assert (found["Results"]["value"], found["Results"]["maximum"]) == (4, 6)


def test_the_page_begins_with_the_solver_of_an_export(gradio: Any, exported: Path):
    model = app.load(AppConfig(exported))
    found = controls(page(model, AppConfig(exported)))
    assert (found["How it answers"]["value"], found["Network calls: more are finer and slower"]["value"]) == (
        "sde-dpm2m",
        4,
    )
    with pytest.raises(ValueError, match="network calls must be a whole number from 1 to 3, got 4"):
        page(model, AppConfig(exported, max_steps=3))


@pytest.fixture
def run(gradio: Any, file: Path, model: Model) -> Any:
    """run(tab, picture, drawing, files, solver, steps, seed, count): all that the page shows."""
    made = page(model, AppConfig(file))
    names = {getattr(function.fn, "__name__", ""): function.fn for function in made.fns.values()}
    return lambda *values, of="translated": list(names[of](*values))


def test_errors_of_the_library_are_messages(gradio: Any, file: Path, run: Any):
    picture = str(file.parent / "drawings" / "0.png")
    with pytest.raises(gradio.Error, match="'ancestral' takes every time, steps=100; got steps=5"):
        run("Picture", picture, None, None, "ancestral", 5, "0", 1)
    for seed, message in (
        ("1.5", r"seed must be an integer from 0 to 9223372036854775807, got '1\.5'"),
        (str(2**63), "seed must be an integer from 0"),
        (str(2**63 - 1), "seed must be in"),  # of the second result
    ):
        with pytest.raises(gradio.Error, match=message):
            run("Picture", picture, None, None, "dpm2m", 5, seed, 2)
    assert run("Picture", picture, None, None, "dpm2m", 1, f" {2**53 + 1} ", 1)[-1][0] == f"1 result, seed {2**53 + 1}"


def test_a_tab_without_a_picture_says_so(gradio: Any, run: Any):
    sheet = {"composite": Image.new("RGBA", (512, 512), "white")}
    for tab, given, message in (
        ("Picture", [None, None, None], "a picture is missing: upload one"),
        ("Drawing", [None, None, None], "the sheet is empty: draw something"),
        ("Drawing", [None, sheet, None], "the sheet is empty: draw something"),
        ("Files", [None, None, []], "pictures are missing: choose files"),
    ):
        with pytest.raises(gradio.Error, match=message):
            run(tab, *given, "dpm2m", 1, "0", 1)
    sheet["composite"].putpixel((100, 100), (0, 0, 0, 255))
    assert run("Drawing", None, sheet, None, "dpm2m", 1, "0", 1)[-1][0] == "1 result, seed 0"


def test_a_damaged_file_is_left_out_and_named(
    gradio: Any, file: Path, run: Any, sampler: BridgeSampler, tmp_path: Path
):
    good = [str(file.parent / "drawings" / name) for name in ("0.png", "1.png")]
    (tmp_path / "<b>.png").write_bytes(b"")
    bad = str(tmp_path / "<b>.png")
    status, _, gallery, results, button = run("Files", None, None, [good[0], bad, good[1]], "dpm2m", 2, "3", 1)[-1]
    reason = "cannot read the picture &lt;b&gt;.png: it is not a picture"
    assert status == f"2 results, seeds 3 to 4; left out: {reason}"
    wanted = sampler([noise(0), noise(1)], 3, steps=2)
    assert [text for _, text in gallery] == ["0, seed 3", "1, seed 4"]
    assert all(same(each.picture, picture) for each, picture in zip(results, wanted, strict=True))
    with zipfile.ZipFile(button.value["path"] if isinstance(button.value, dict) else button.value) as archive:
        assert archive.namelist() == ["0_3.png", "1_4.png"]
    for tab, given in (("Files", [None, None, [bad]]), ("Picture", [bad, None, None])):
        with pytest.raises(gradio.Error) as caught:
            run(tab, *given, "dpm2m", 2, "0", 1)
        assert caught.value.message == reason


def test_the_page_shows_where_results_differ(gradio: Any, file: Path, run: Any, model: Model):
    picture, _ = given = [str(file.parent / "drawings" / name) for name in ("0.png", "1.png")]
    status, slider, gallery, results, button = run(
        "Picture", picture, None, None, "sde-dpm2m", 2, "3", 4, of="compared"
    )[-1]
    captions = ["average", "where they differ", "seed 3", "seed 4", "seed 5", "seed 6"]
    assert status.startswith('4 results, seeds 3 to 6<div class="legend"><b>Bright:</b> the results differ here.')
    assert "levels of 0 to 255" in status
    assert [text for _, text in gallery] == captions
    assert same(slider[1], results[0].picture)
    assert (gallery[1][0].mode, app_visit.pair(results[1])[1].mode) == ("L", "L")
    with zipfile.ZipFile(button.value["path"] if isinstance(button.value, dict) else button.value) as archive:
        assert archive.namelist() == ["0_mean.png", "0_std.png", "0_3.png", "0_4.png", "0_5.png", "0_6.png"]
        std = Image.open(io.BytesIO(archive.read("0_std.png")))
        assert np.array_equal(np.asarray(std), np.asarray(results[1].picture))
    status, _, gallery, *_ = run("Files", None, None, given, "dpm2m", 1, "3", 2, of="compared")[-1]
    assert status.startswith("4 results, seeds 3 to 6<div")
    assert [text for _, text in gallery[4:]] == ["1, average", "1, where they differ", "1, seed 4", "1, seed 6"]
    with pytest.raises(gradio.Error, match="'ancestral' takes every time, steps=100; got steps=5"):
        run("Picture", picture, None, None, "ancestral", 5, "0", 2, of="compared")
    for most, count, offered in ((9, 8, True), (3, 3, True), (1, 1, False)):
        made = page(model, AppConfig(file, max_results=most))
        (button,) = [each for each in made.blocks.values() if getattr(each, "value", None) == "Where it is uncertain"]
        (click,) = [each for each in made.fns.values() if getattr(each.fn, "__name__", "") == "compared"]
        assert (click.inputs[7].value, button.visible) == (count, offered)


def test_an_uploaded_file_is_not_opened_by_gradio(gradio: Any, file: Path, model: Model, tmp_path: Path):
    """It would show visitors where the server keeps a file that it cannot open."""
    from gradio.data_classes import ImageData

    (tmp_path / "empty.png").write_bytes(b"")
    (field,) = [each for each in page(model, AppConfig(file)).blocks.values() if isinstance(each, gradio.Image)]
    given = ImageData(path=str(tmp_path / "empty.png"), orig_name="empty.png")
    assert field.preprocess(given) == str(tmp_path / "empty.png")
    assert field.preprocess(None) is None


def test_a_stopped_translation_says_so(model: Model):
    running = app_visit.status(Progress(8, 200, [], 0))
    assert app_visit.stopped(running) == "stopped at network call 8 of 200"
    ended = app_visit.status(last(model, [Source("a", noise(0))], "dpm2m", 1, 0, 1))
    assert app_visit.stopped(ended) == ended == "1 result, seed 0"


def test_each_bundled_network_has_a_tab(gradio: Any, monkeypatch: pytest.MonkeyPatch):
    """With the network of drawings in the place of that of photographs."""
    assert app.panels(AppConfig(device="cpu"))[0].name == "Drawings"
    several = [(name, demo.WEIGHTS, about, tabs) for name, _, about, tabs in app.BUNDLED]
    monkeypatch.setattr(app, "BUNDLED", several)
    drawings, photographs = app.panels(AppConfig(device="cpu", window=64))
    assert (drawings.tabs[0], len(drawings.examples)) == ("Drawing", 4)
    assert (photographs.tabs, list(photographs.examples)) == (("Picture", "Files"), [])
    config = app.build([drawings, photographs]).get_config_file()
    tabs = [each["props"]["label"] for each in config["components"] if each["type"] == "tabitem"]
    assert tabs == ["Drawings", "Drawing", "Picture", "Files", "Photographs", "Picture", "Files"]
    (sheet,) = [each["props"] for each in config["components"] if each["type"] == "imageeditor"]
    assert (sheet["canvas_size"], sheet["brush"]["default_size"]) == ([512, 512], 8)  # a radius: 2 pixels of 64


def test_each_solver_has_words():
    assert set(app.METHODS) == set(get_args(solvers.Solver))
