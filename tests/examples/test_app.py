"""examples/app.py: its functions, and the page in a browser, with a network too small to be good."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from bbdm import BridgeSampler
from bbdm.runtime import OnnxBridgeSampler
from examples import app
from examples.app import AppConfig, Model, Source
from tests.conftest import ROOT
from tests.export.exports import SIZE, checkpoint, export

EXPORT = ROOT / "examples" / "demo" / "onnx"  # 20 calls of sde-dpm2m, in float16
SECONDS = 60  # for the page to do anything
Found = TypeVar("Found")


def noise(seed: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(made: Image.Image, wanted: Image.Image) -> bool:
    """Whether two pictures differ by rounding alone."""
    assert made.size == wanted.size
    return int(np.abs(np.asarray(made.convert("RGB"), int) - np.asarray(wanted, int)).max()) <= 1


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, with two pictures in drawings/ beside it."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "drawings").mkdir()
    for i in range(2):
        noise(i).save(folder / "drawings" / f"{i}.png")
    (folder / "drawings" / "LICENSE").write_text("none")
    return checkpoint(folder / "bridge.pt")


@pytest.fixture(scope="module")
def static(file: Path) -> Path:
    return export(file, file.parent / "static", "--steps", "3", "--static", f"2,{SIZE},{SIZE}")


@pytest.fixture(scope="module")
def model(file: Path) -> Model:
    return app.load(AppConfig(file, device="cpu"))


@pytest.fixture(scope="module")
def sampler(file: Path) -> BridgeSampler:
    return BridgeSampler.from_checkpoint(file)


def last(*arguments: Any) -> app.Progress:
    return list(app.translate(*arguments))[-1]


# Functions


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "fast", "posterior", "ddim", "consistency"])
def test_the_last_preview_is_what_the_sampler_returns(solver: str, model: Model, sampler: BridgeSampler):
    sources = [Source("a", noise(0)), Source("b", noise(1, 24, 8))]
    progress = list(app.translate(model, sources, solver, 3, 5, 2))
    assert [each.done for each in progress] == [1, 2, 3, 4, 5, 6]
    assert {each.total for each in progress} == {6}
    assert [len(each.results) for each in progress] == [2, 2, 2, 4, 4, 4]
    wanted = sampler([noise(0)] * 2 + [noise(1, 24, 8)] * 2, seed=5, solver=solver, steps=3)
    results = progress[-1].results
    assert [(each.source.name, each.seed) for each in results] == [("a", 5), ("a", 6), ("b", 7), ("b", 8)]
    assert all(same(each.picture, picture) for each, picture in zip(results, wanted, strict=True))
    assert not same(results[0].picture, results[1].picture)
    assert not same(progress[0].results[0].picture, results[0].picture)


def test_no_seed_draws_one(model: Model):
    first, second = (last(model, [Source("a", noise(0))], "dpm2m", 2, None, 1).results[0] for _ in range(2))
    assert first.seed != second.seed


def test_an_export_has_its_own_solver_and_steps():
    model = app.load(AppConfig(EXPORT))
    assert (model.solver, model.size, model.exported, model.results) == ("sde-dpm2m", 64, True, None)
    progress = last(model, [Source("a", noise(0))], "dpm2m", 9, 1, 1)
    assert (progress.done, progress.total) == (20, 20)
    assert same(progress.results[0].picture, OnnxBridgeSampler(EXPORT)(noise(0), seed=1)[0])


@pytest.mark.nightly
def test_a_static_export_has_its_size_and_number(static: Path, sampler: BridgeSampler):
    model = app.load(AppConfig(static))
    assert (model.size, model.resize, model.results) == ((SIZE, SIZE), "stretch", 2)
    source = app.read(noise(0, 40, 8), model, SIZE**2)
    assert source.picture.size == (SIZE, SIZE)
    results = last(model, [source], "dpm2m", 3, 4, 2).results
    wanted = sampler([source.picture] * 2, seed=4, steps=3)
    assert all(same(each.picture, picture) for each, picture in zip(results, wanted, strict=True))
    with pytest.raises(ValueError, match=r"size is fixed: .*static takes height x width \(16, 16\) alone"):
        app.load(AppConfig(static, size=32))


def test_an_export_needs_no_torch():
    code = "import sys; from examples.app import *; load(AppConfig(Path(sys.argv[1]))); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(EXPORT)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"


def test_sources_are_made_to_fit(file: Path, model: Model, tmp_path: Path):
    noise(2, 64, 32).save(tmp_path / "wide.png")
    source = app.read(str(tmp_path / "wide.png"), model, SIZE**2)
    assert (source.name, source.picture.size) == ("wide", (SIZE, SIZE // 2))
    larger = app.load(AppConfig(file, device="cpu", size=(20, 48)))
    assert app.read(noise(2, 64, 32), larger, 1000).picture.size == (40, 20)


def test_a_drawing_is_laid_on_white(model: Model):
    drawn = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    drawn.paste((255, 0, 0, 255), (0, 0, 512, 256))
    name, picture = app.read(drawn, model, SIZE**2)
    assert (name, picture.getpixel((8, 2)), picture.getpixel((8, 13))) == ("drawing", (255, 0, 0), (255, 255, 255))


def test_what_a_visitor_gives_is_limited(model: Model, tmp_path: Path):
    with pytest.raises(ValueError, match="at most 255 pixels, got drawing of height x width 16 x 16"):
        app.read(noise(0), model, SIZE**2 - 1)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^cannot read the picture text\.png: .*[^/]text\.png"):
        app.read(str(tmp_path / "text.png"), model, SIZE**2)
    config = AppConfig(Path("c.pt"), max_steps=9, max_results=3, max_files=2)
    app.check(config, 9, 3, 2)
    for numbers, text in {
        (10, 3, 2): "network calls must be from 1 to 9, got 10",
        (9, 0, 2): "results must be from 1 to 3, got 0",
        (9, 3, 0): "pictures must be from 1 to 2, got 0",
    }.items():
        with pytest.raises(ValueError, match=text):
            app.check(config, *numbers)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_results must be at least 1, got 0"):
        AppConfig(Path("c.pt"), max_results=0)
    with pytest.raises(ValueError, match="device, dtype and compile are for checkpoints, and .*onnx is an ONNX export"):
        AppConfig(EXPORT, device="cpu")


def test_examples_lie_beside_the_model(file: Path, tmp_path: Path):
    wanted = ["0.png", "1.png"]
    assert [path.name for path in app.example_pictures(AppConfig(file))] == wanted
    assert [path.name for path in app.example_pictures(AppConfig(EXPORT))] == sorted(
        os.listdir(EXPORT.parent / "drawings")
    )
    assert app.example_pictures(AppConfig(file, examples=tmp_path)) == []


def test_the_archive_holds_each_result(model: Model):
    results = last(model, [Source("a", noise(0)), Source("a", noise(1))], "dpm2m", 1, 3, 2).results
    with zipfile.ZipFile(app.archive(results)) as made:
        assert made.namelist() == ["a_3.png", "a_4.png", "a_5.png", "a_6.png"]
        for result in results:
            picture = Image.open(io.BytesIO(made.read(f"a_{result.seed}.png")))
            assert np.array_equal(picture, result.picture)


# The page without a browser


def controls(page: Any) -> dict[str, dict[str, Any]]:
    """Properties of the page's components, by label."""
    properties = [component["props"] for component in page.get_config_file()["components"]]
    return {each["label"]: each for each in properties if each.get("label")}


@pytest.fixture(scope="module")
def gradio() -> Any:
    return pytest.importorskip("gradio", reason="the extra 'app' is not installed")


def test_the_page_offers_what_a_checkpoint_takes(gradio: Any, file: Path, model: Model):
    found = controls(app.build(model, AppConfig(file, max_steps=30, max_results=6)))
    assert (found["Solver"]["value"], found["Solver"]["interactive"]) == ("dpm2m", True)
    assert (found["Network calls"]["value"], found["Network calls"]["maximum"]) == (10, 30)
    assert (found["Results"]["value"], found["Results"]["maximum"]) == (4, 6)


def test_the_page_fixes_what_an_export_fixes(gradio: Any):
    model = app.load(AppConfig(EXPORT))
    found = controls(app.build(model, AppConfig(EXPORT)))
    for label, value in {"Solver (as exported)": "sde-dpm2m", "Network calls (as exported)": 20}.items():
        assert (found[label]["value"], found[label]["interactive"]) == (value, False)
    assert found["Results"]["interactive"]
    with pytest.raises(ValueError, match="network calls must be from 1 to 19, got 20"):
        app.build(model, AppConfig(EXPORT, max_steps=19))


@pytest.mark.nightly
def test_the_page_fixes_the_results_of_a_static_export(gradio: Any, static: Path):
    found = controls(app.build(app.load(AppConfig(static)), AppConfig(static)))
    assert (found["Results (as exported)"]["value"], found["Results (as exported)"]["interactive"]) == (2, False)


def test_errors_of_the_library_are_messages(gradio: Any, file: Path, model: Model):
    page = app.build(model, AppConfig(file))
    (run,) = (function.fn for function in page.fns.values() if getattr(function.fn, "__name__", "") == "run")
    picture = str(file.parent / "drawings" / "0.png")
    with pytest.raises(gradio.Error, match="'ancestral' takes every time, steps=100; got steps=5"):
        list(run("Picture", picture, None, None, "ancestral", 5, 0, 1))
    with pytest.raises(gradio.Error, match="the number of pictures must be from 1 to 50, got 0"):
        list(run("Picture", None, None, None, "dpm2m", 5, 0, 1))
    with pytest.raises(gradio.Error, match="seed must be in"):
        list(run("Picture", picture, None, None, "dpm2m", 5, 2**63, 1))


# The page in a browser, as two visitors use it

BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1600",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
WATCH = """
window.seen = [];
new MutationObserver(() => {
    const text = document.querySelector(".status .prose")?.innerText;
    if (text && text !== seen.at(-1)) seen.push(text);
}).observe(document.body, {subtree: true, childList: true, characterData: true});
"""


def until(found: Callable[[], Found | None], what: str) -> Found:
    """What a function finds as soon as it finds something."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except (NoSuchElementException, StaleElementReferenceException):
            pass  # the page is drawn anew
        time.sleep(0.1)
    raise AssertionError(f"not within {SECONDS} seconds: {what}")


def fetch(url: str) -> Image.Image:
    with urllib.request.urlopen(url) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


class Visitor:
    """A browser on the page, with a camera of test pictures, and a folder for downloads."""

    def __init__(self, url: str, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self.downloads = folder / "downloads"
        options = webdriver.ChromeOptions()
        for flag in [*BROWSER_FLAGS, f"--user-data-dir={folder / 'profile'}"]:
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(self.downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        self.driver.get(url)
        until(lambda: self.button("Translate"), "the page")
        self.driver.execute_script(WATCH)

    def all(self, selector: str) -> list[Any]:
        return [each for each in self.driver.find_elements("css selector", selector) if each.is_displayed()]

    def button(self, text: str, selector: str = "button") -> Any:
        return next((each for each in self.all(selector) if each.text == text), None)

    def click(self, text: str, selector: str = "button") -> None:
        until(lambda: self.button(text, selector), text).click()

    def click_icon(self, label: str) -> None:
        until(lambda: self.all(f"button[aria-label='{label}']"), label)[0].click()

    def upload(self, *paths: Path) -> None:
        """Give files to the open tab."""
        (field,) = self.driver.find_elements("css selector", "[role=tabpanel][style*='flex'] input[type=file]")
        field.send_keys("\n".join(map(str, paths)))
        until(lambda: self.all(".source img") or len(self.all("tr.file")) == len(paths), "the upload")

    def enter(self, **numbers: int) -> None:
        from selenium.webdriver.common.keys import Keys

        labels = {"calls": "number input for Network calls", "results": "number input for Results"}
        for name, number in numbers.items():
            (field,) = self.all(f"input[aria-label='{labels.get(name, 'Seed, or empty')}']")
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(str(number), Keys.TAB)

    def choose(self, solver: str) -> None:
        (field,) = self.all("input[aria-label='Solver']")
        field.click()
        self.click(solver, "[role=option]")

    def status(self) -> str:
        return self.driver.execute_script("return document.querySelector('.status .prose')?.innerText || ''")

    def translate(self, end: str) -> dict[str, Image.Image]:
        """The gallery of a translation that ends with a status, by caption."""
        self.click("Translate")
        until(lambda: self.status() == end, end)
        images = until(lambda: self.all(".results img"), "the gallery")
        return {each.get_attribute("alt"): fetch(each.get_attribute("src")) for each in images}

    def compared(self) -> tuple[Image.Image, Image.Image]:
        """What the slider shows: source and result."""
        source, result = (fetch(each.get_attribute("src")) for each in self.all("[data-testid=imageslider-image]"))
        return source, result


@pytest.fixture(scope="module")
def serve(gradio: Any) -> Iterator[Callable[..., str]]:
    """serve(model, *flags): starts the app, and returns its address."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and its chromedriver are not installed")
    running: list[subprocess.Popen[bytes]] = []

    def start(model: Path, *flags: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "examples/app.py", str(model), "--port", str(port), *flags]
        running.append(process := subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}))

        def answers() -> bool:
            assert process.poll() is None, "the app ended"
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        until(answers, "the app")
        return f"http://127.0.0.1:{port}/"

    yield start
    for process in running:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def url(serve: Callable[..., str], file: Path) -> str:
    return serve(file, "--device", "cpu", "--max_steps", "100")


@pytest.fixture
def visit(tmp_path: Path) -> Iterator[Callable[[str], Visitor]]:
    """visit(url): a new browser on the page."""
    visitors: list[Visitor] = []

    def open_page(url: str) -> Visitor:
        visitors.append(Visitor(url, tmp_path / f"visitor{len(visitors)}"))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.driver.quit()


Visit = Callable[[str], Visitor]


@pytest.mark.nightly
def test_an_upload_and_each_number(visit: Visit, url: str, sampler: BridgeSampler, tmp_path: Path):
    page = visit(url)
    noise(7).save(tmp_path / "mine.png")
    page.upload(tmp_path / "mine.png")
    page.choose("sde-dpm2m")
    page.enter(calls=6, seed=11, results=3)
    made = page.translate("3 results, seeds 11 to 13")
    wanted = dict(zip(("seed 11", "seed 12", "seed 13"), sampler([noise(7)] * 3, 11, solver="sde-dpm2m", steps=6)))
    assert made.keys() == wanted.keys()
    assert all(same(made[caption], picture) for caption, picture in wanted.items())
    assert any(text.startswith("network call ") for text in page.driver.execute_script("return seen"))
    assert same(page.compared()[0], noise(7))
    assert same(page.compared()[1], wanted["seed 11"])
    page.all(".results button")[1].click()
    until(lambda: same(page.compared()[1], wanted["seed 12"]), "the chosen result in the slider")
    page.click("Download as zip")
    path = until(lambda: next(page.downloads.glob("*.zip"), None), "the zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["mine_11.png", "mine_12.png", "mine_13.png"]
        assert same(Image.open(io.BytesIO(archive.read("mine_12.png"))), wanted["seed 12"])


@pytest.mark.nightly
def test_an_example_and_a_drawn_seed(visit: Visit, url: str, sampler: BridgeSampler):
    from selenium.webdriver.common.keys import Keys

    page = visit(url)
    until(lambda: len(page.all(".gallery-item")) == 2, "the examples")
    page.all(".gallery-item")[1].click()
    until(lambda: page.all(".source img"), "the example")
    page.enter(calls=2, results=1)
    (field,) = page.all("input[aria-label='Seed, or empty']")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE, Keys.TAB)
    page.click("Translate")
    seed = until(
        lambda: page.status().removeprefix("1 result, seed ") if "1 result" in page.status() else None, "a seed"
    )
    assert int(seed) != 0
    assert same(page.compared()[1], sampler(noise(1), int(seed), steps=2)[0])


@pytest.mark.nightly
def test_a_drawing(visit: Visit, url: str, sampler: BridgeSampler):
    from selenium.webdriver import ActionChains

    page = visit(url)
    page.click("Drawing", "[role=tab]")
    canvas = until(lambda: page.all("canvas"), "the canvas")[0]
    time.sleep(2)  # the brush is there a little later
    ActionChains(page.driver).move_to_element_with_offset(canvas, -150, 0).click_and_hold().move_by_offset(
        300, 0
    ).release().perform()
    page.enter(seed=2, calls=3, results=1)
    page.translate("1 result, seed 2")
    source, result = page.compared()
    rows = np.asarray(source.convert("L"), int).mean(1)
    assert rows[:6].min() == rows[-6:].min() == 255
    assert rows.min() < 200
    assert same(result, sampler(source, 2, steps=3)[0])


@pytest.mark.nightly
def test_a_camera(visit: Visit, url: str, sampler: BridgeSampler):
    page = visit(url)
    page.click_icon("Capture from camera")
    page.click("Click to Access Webcam")
    page.click_icon("capture photo")
    until(lambda: page.all(".source img"), "the photo")
    page.enter(seed=3, calls=3, results=1)
    page.translate("1 result, seed 3")
    source, result = page.compared()
    assert max(source.size) == SIZE
    assert same(result, sampler(source, 3, steps=3)[0])


@pytest.mark.nightly
def test_files_and_stop(visit: Visit, url: str, sampler: BridgeSampler, tmp_path: Path):
    page = visit(url)
    page.click("Files", "[role=tab]")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        noise(i).save(path)
    page.upload(*paths)
    page.enter(seed=4, calls=100, results=8)
    page.click("Translate")
    until(lambda: page.status().startswith("network call "), "progress")
    page.click("Stop")
    time.sleep(2)
    stopped = page.status()
    assert stopped.startswith("network call ")
    time.sleep(2)
    assert page.status() == stopped
    page.enter(calls=3, results=1)
    made = page.translate("3 results, seeds 4 to 6")
    wanted = sampler([noise(i) for i in range(3)], 4, steps=3)
    assert list(made) == ["0, seed 4", "1, seed 5", "2, seed 6"]
    assert all(same(picture, other) for picture, other in zip(made.values(), wanted, strict=True))


@pytest.mark.nightly
def test_an_error_is_a_message_and_the_page_lives(visit: Visit, url: str, tmp_path: Path):
    page = visit(url)
    page.click("Files", "[role=tab]")
    (tmp_path / "text.png").write_text("no picture")
    page.upload(tmp_path / "text.png")
    page.click("Translate")
    until(
        lambda: "cannot read the picture text.png" in " ".join(each.text for each in page.all(".toast-body")),
        "a message",
    )
    page.click("Picture", "[role=tab]")
    page.all(".gallery-item")[0].click()
    until(lambda: page.all(".source img"), "the example")
    page.choose("ancestral")
    page.enter(seed=0, calls=5, results=2)
    page.click("Translate")
    message = "solver 'ancestral' takes every time, steps=100; got steps=5"
    until(lambda: message in " ".join(each.text for each in page.all(".toast-body")), message)
    page.choose("dpm2m")
    assert len(page.translate("2 results, seeds 0 to 1")) == 2


@pytest.mark.nightly
def test_two_visitors_at_once(visit: Visit, url: str, sampler: BridgeSampler, tmp_path: Path):
    pages = [visit(url), visit(url)]
    for i, page in enumerate(pages):
        noise(20 + i).save(tmp_path / f"{i}.png")
        page.upload(tmp_path / f"{i}.png")
        page.enter(seed=30 + i, calls=60, results=1)
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda page, i: page.translate(f"1 result, seed {30 + i}"), pages, range(2)))
    wanted = [sampler(noise(20 + i), 30 + i, steps=60)[0] for i in range(2)]
    assert not same(*wanted)
    for i in range(2):
        assert list(made[i]) == [f"seed {30 + i}"]
        assert same(made[i][f"seed {30 + i}"], wanted[i])


@pytest.mark.nightly
def test_the_page_fetches_nothing_from_elsewhere(visit: Visit, url: str):
    page = visit(url)
    page.all(".gallery-item")[0].click()
    page.translate("4 results, seeds 0 to 3")
    events = [json.loads(each["message"])["message"] for each in page.driver.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert any(each.startswith(url) for each in sent)
    assert [each for each in sent if not each.startswith((url, "data:", "blob:", "chrome:"))] == []


@pytest.mark.nightly
def test_the_controls_of_an_export_are_fixed(visit: Visit, serve: Callable[..., str]):
    page = visit(serve(EXPORT))
    assert not page.all("input[aria-label='Solver (as exported)']")[0].is_enabled()
    assert not page.all("input[aria-label='number input for Network calls (as exported)']")[0].is_enabled()
    page.all(".gallery-item")[0].click()
    until(lambda: page.all(".source img"), "the example")
    page.enter(seed=5, results=1)
    made = page.translate("1 result, seed 5")
    drawing = sorted((EXPORT.parent / "drawings").glob("*.png"))[0]
    assert same(made["seed 5"], OnnxBridgeSampler(EXPORT)(drawing, 5)[0])
