"""examples/web: the built page in Chromium, and its library in Node, against the pictures of Python.

Chromium and its driver come from the system, Selenium from PyPI, and the page from `npm ci && npm run build`
in examples/web. Tests are skipped where one of them is missing.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from bbdm import demo
from bbdm.base.atomic import file_sha256
from bbdm.networks.windows import Windowing
from bbdm.pictures.images import to_array
from bbdm.runtime import OnnxBridgeSampler
from examples.web import tables
from tests.conftest import ROOT, noise
from tests.onnx.exports import SIZE, checkpoint, export, tiny_codec

pytest.importorskip("selenium", reason="needs Selenium")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions import interaction
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.cli.browser import PATIENCE, Page, Site

WEB = ROOT / "examples" / "web"
EXPORT = ROOT / "examples" / "demo" / "onnx"
DIST = WEB / "dist"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NPM = shutil.which("npm")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1000"
)
SOFTWARE_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")

in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and (DIST / "index.html").exists()),
    reason="needs chromium, chromedriver, and the page: npm ci && npm run build in examples/web",
)
in_node = pytest.mark.skipif(
    not (NPM and (WEB / "node_modules").exists()), reason="needs npm, and npm ci in examples/web"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a tiny network, version 3 of bridge.json, with other tables beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    export(checkpoint(folder / "tiny.pt"), folder / "onnx", "--solver", "sde-dpm2m", "--steps", "4")
    tables.main([str(folder / "onnx")])
    return folder / "onnx"


@pytest.fixture
def site(tiny: Path, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in DIST.iterdir():
        if path.name != "model":
            (folder / path.name).symlink_to(path)
    shutil.copytree(tiny, folder / "model")
    site = Site(folder)
    yield site
    site.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """start(*flags): a browser without a past."""
    drivers: list[Any] = []

    def start(*flags: str) -> Any:
        assert CHROMIUM, "in_browser skips without it"
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        drivers.append(webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.quit()


@pytest.fixture
def page(site: Site, start: Callable[..., Any]) -> Page:
    return Page(start(), site)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of random colours."""
    noise(0).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def made(folder: Path, source: Path, seed: int, count: int, **settings: Any) -> np.ndarray:
    """(count, H, W, 3): Python's results for a picture."""
    return np.stack(OnnxBridgeSampler(folder)([source] * count, seed=seed, **settings)).astype(int)


@in_browser
def test_a_seed_is_the_picture_of_python(page: Page, tiny: Path, picture: Path):
    """Three seeds of the export's own table, and another solver; 8 bits round differences."""
    page.open("?pictures=3&seed=7").give(picture).translate()
    assert page.results.shape == (3, SIZE, SIZE, 3)
    assert abs(page.results - made(tiny, picture, 7, 3)).max() <= 1
    page.choose(solver="dpm2m", calls=3, pictures=1).translate()
    assert abs(page.results - made(tiny, picture, 7, 1, solver="dpm2m", steps=3)).max() <= 1
    assert "solver=dpm2m&calls=3" in page.driver.current_url


@pytest.mark.nightly
@in_browser
def test_a_dropped_picture_at_its_own_size(page: Page, tiny: Path, tmp_path: Path):
    """By windows, and saved whole; the sheet is what is translated otherwise, and after a change of it."""
    large = tmp_path / "large.png"
    noise(5, 60, 41).save(large)
    page.driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.open("?pictures=2&seed=3").give(large)
    assert page.text("own-text") == "At its own size, 60 x 41: 20 windows a call"
    page.translate()
    assert page.results.shape == (2, SIZE, SIZE, 3)
    page.by_id("own-size").click()
    page.watch().translate()
    assert abs(page.results - made(tiny, large, 3, 2, window=SIZE)).max() <= 1
    said = [text for text in page.seen if text.startswith("Picture")]
    assert said[:2] == ["Picture 1 of 2, call 1 of 4, window 4 of 20.", "Picture 1 of 2, call 1 of 4, window 8 of 20."]
    assert "Picture 2 of 2, call 4 of 4, window 20 of 20." in said
    page.driver.find_elements(By.CSS_SELECTOR, "figure button")[1].click()
    WebDriverWait(page.driver, PATIENCE).until(lambda _: (tmp_path / "seed-4.png").exists())
    with Image.open(tmp_path / "seed-4.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved.convert("RGB")), page.results[1])
    page.draw()
    assert not page.by_id("own").is_displayed()
    assert page.translate().results.shape == (2, SIZE, SIZE, 3)
    noise(6, SIZE, SIZE).save(tmp_path / "small.png")
    page.give(tmp_path / "small.png")
    assert not page.by_id("own").is_displayed()


@pytest.mark.nightly
@in_browser
@pytest.mark.parametrize("kind", [interaction.POINTER_MOUSE, interaction.POINTER_TOUCH, interaction.POINTER_PEN])
def test_draw_undo_erase_and_translate(page: Page, kind: str):
    page.open()
    assert page.ink == 0
    page.by_id("translate").click()
    assert page.until_warned() == "The sheet is empty: draw something, or choose a drawing."
    drawn = page.draw(kind).ink
    assert drawn > 1000
    page.by_id("undo").click()
    assert page.ink == 0
    assert not page.by_id("undo").is_enabled()
    page.draw(kind)
    page.driver.execute_script("document.getElementById('eraser').click()")
    assert page.draw(kind).ink == 0
    page.by_id("undo").click()
    assert page.ink == drawn
    page.translate()
    assert page.results.shape == (2, SIZE, SIZE, 3)
    assert page.results.std() > 0
    page.by_id("clear").click()
    assert page.ink == 0


@pytest.mark.nightly
@in_browser
def test_the_network_is_downloaded_once_and_again_when_it_changed(page: Page, site: Site):
    def downloads() -> int:
        return site.asked.count("/model/unet.onnx")

    page.open()
    assert downloads() == 1
    page.open()
    assert downloads() == 1
    unet, settings = site.folder / "model/unet.onnx", site.folder / "model/bridge.json"
    graph = onnx.load(unet)
    graph.doc_string = "changed"
    onnx.save(graph, unet)
    content = json.loads(settings.read_text())
    content["files"]["unet.onnx"] = file_sha256(unet)
    settings.write_text(json.dumps(content))
    page.open()
    assert downloads() == 2
    kept = "const done = arguments[0]; caches.open('bbdm-weights').then((c) => c.keys()).then((k) => done(k.length))"
    assert page.driver.execute_async_script(kept) == 1


@pytest.mark.nightly
@in_browser
def test_a_model_that_cannot_be_read_gives_a_message(page: Page, site: Site):
    page.driver.get(f"{site.address}?model=other")
    assert page.until_warned() == f"{site.address}other/bridge.json cannot be read: the server says 404."
    assert not page.by_id("translate").is_enabled()
    unet = site.folder / "model/unet.onnx"
    unet.write_bytes(unet.read_bytes()[:-1])
    page.driver.get(site.address)
    assert page.until_warned() == "unet.onnx is not what bridge.json describes: it is damaged, or of another export."


@pytest.mark.nightly
@in_browser
def test_the_page_works_and_opens_without_its_server(page: Page, site: Site, picture: Path):
    page.open("?pictures=1")
    ready = "navigator.serviceWorker.ready.then(arguments[0])"  # all files are kept by then
    page.driver.set_script_timeout(PATIENCE)
    page.driver.execute_async_script(ready)
    site.stop()
    page.give(picture).translate()
    online = page.results
    page.open("?pictures=1").give(picture).translate()
    assert abs(page.results - online).max() <= 1
    assert page.driver.execute_script("return crossOriginIsolated")


@pytest.mark.nightly
@in_browser
def test_an_error_of_a_stopped_translation_does_not_end_the_next(page: Page):
    worker = "window.Worker = class extends Worker { constructor(...given) { super(...given); window.worker = this } }"
    page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": worker})
    page.open().draw()
    begin_stop_begin_and_fail = """for (let i = 0; i < 3; i++) document.getElementById("translate").click();
        const data = { kind: "failed", id: 1, reason: "an error of the first" };
        worker.dispatchEvent(new MessageEvent("message", { data }))"""
    page.driver.execute_script(begin_stop_begin_and_fail)
    page.until("Done")
    assert page.text("warning") == ""


@pytest.mark.nightly
@in_browser
def test_nothing_is_drawn_or_dropped_before_the_size_is_known(page: Page):
    held = """window.Worker = class extends Worker {
        postMessage(message) { window.send = () => super.postMessage(message) } }"""  # the request for the export
    page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": held})
    page.driver.get(page.site.address)
    assert page.draw().ink == 0
    drop = """const done = arguments[0], dataTransfer = new DataTransfer();
        fetch(document.querySelector("#drawings img").src).then((response) => response.blob()).then((blob) => {
            dataTransfer.items.add(new File([blob], "drawing.png", { type: blob.type }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer }));
            createImageBitmap(blob).then(() => setTimeout(done)) })"""  # as the page reads it
    page.driver.execute_async_script(drop)
    assert page.ink == 0
    page.driver.execute_script("send()")
    assert page.until("Ready").draw().ink > 1000


@pytest.mark.nightly
@in_browser
def test_a_phone_shows_all_without_scrolling_sideways(page: Page):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.open("?pictures=4").draw(interaction.POINTER_TOUCH).translate()
    assert page.driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    outside = """return [...document.querySelectorAll("button, select, input, canvas")].filter(
        (each) => each.getBoundingClientRect().right > innerWidth).map((each) => each.id)"""
    assert page.driver.execute_script(outside) == []
    for element in page.driver.find_elements(By.CSS_SELECTOR, "button, select, input, canvas, progress"):
        assert element.accessible_name or not element.is_displayed(), element.get_attribute("outerHTML")


@pytest.mark.nightly
@in_browser
def test_webgpu_that_is_not_there_gives_a_message_and_wasm_goes_on(page: Page, tiny: Path, picture: Path):
    page.open("?device=webgpu&pictures=1").give(picture).translate()
    assert page.text("warning") == "WebGPU is not used: this browser offers no WebGPU. WASM goes on."
    assert page.by_id("device").get_attribute("value") == "wasm"
    assert abs(page.results - made(tiny, picture, 0, 1)).max() <= 1


@pytest.mark.nightly
@in_browser
def test_the_picture_is_right_whether_webgpu_agrees_or_not(
    site: Site, start: Callable[..., Any], tiny: Path, picture: Path
):
    """On Chromium's software adapter, where there is one."""
    page = Page(start(*SOFTWARE_WEBGPU), site).open("?device=webgpu&pictures=1").give(picture).translate()
    refused, device = page.text("warning"), page.by_id("device").get_attribute("value")
    if "offers no WebGPU" in refused:
        pytest.skip("this Chromium has no software adapter for WebGPU")
    assert (device, refused) == ("webgpu", "") or (device == "wasm" and "one call differs from WASM by" in refused)
    assert abs(page.results - made(tiny, picture, 0, 1)).max() <= 2


@pytest.mark.nightly
@in_browser
def test_a_file_that_is_no_picture_and_a_seed_that_is_no_number_give_messages(
    page: Page, tmp_path: Path, picture: Path
):
    (tmp_path / "letter.png").write_text("no picture")
    page.open("?pictures=1").give(tmp_path / "letter.png")
    assert page.until_warned() == "letter.png is not a picture that this browser can read."
    page.give(picture).translate()
    assert page.text("warning") == ""
    page.by_id("seed").send_keys("x")
    page.by_id("translate").click()
    assert page.until_warned() == "Seed must be a whole number from 0 to 9223372036854775807."


@pytest.mark.nightly
@in_browser
def test_a_result_is_saved_as_png(page: Page, tmp_path: Path, picture: Path):
    folder = tmp_path / "downloads"
    page.driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.open("?pictures=1&seed=3").give(picture).translate()
    page.driver.find_element(By.CSS_SELECTOR, "figure button").click()
    WebDriverWait(page.driver, PATIENCE).until(lambda _: (folder / "seed-3.png").exists())
    with Image.open(folder / "seed-3.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved.convert("RGB")), page.results[0])


@pytest.mark.nightly
@in_browser
def test_all_is_done_with_the_keyboard(page: Page):
    """Tab reaches every control and shows where it is; keys draw, choose a drawing and translate."""
    page.open("?pictures=1")

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    outlined = """const focused = document.activeElement;
        return [focused, focused.closest(".button, .switch label")].some((x) => x
            && getComputedStyle(x).outlineStyle === "solid")"""
    reached: list[str] = []
    for _ in range(20):
        press(Keys.TAB)
        focused = page.driver.switch_to.active_element
        if focused.tag_name == "body":
            break
        reached.append(focused.get_attribute("id") or focused.find_element(By.TAG_NAME, "img").get_attribute("alt"))
        assert page.driver.execute_script(outlined), reached[-1]
    drawings = [f"Translate the {name}" for name in ("lollipop", "pumpkin", "penguin", "crab")]
    tools, choices = ["file", "pen", "width", "clear", "sheet"], ["solver", "calls", "pictures", "device", "seed"]
    assert reached == [*drawings, *tools, *choices, "new-seed", "translate"]

    page.by_id("sheet").send_keys(" ", *[Keys.ARROW_RIGHT] * 3, " ", *[Keys.ARROW_DOWN] * 3)
    assert page.ink > 1000
    page.by_id("seed").send_keys(Keys.ENTER)
    page.until("Done")
    first = page.results
    page.driver.find_element(By.CSS_SELECTOR, "#drawings button").send_keys(Keys.ENTER)
    WebDriverWait(page.driver, PATIENCE).until(lambda _: page.finished() and (page.results != first).any())


@pytest.mark.nightly
@in_browser
def test_the_bundled_export(start: Callable[..., Any]):
    settings = [folder / "bridge.json" for folder in (DIST / "model", EXPORT)]
    assert settings[0].read_text() == settings[1].read_text(), "build the page again: the export was replaced"
    site = Site(DIST)
    drawing = demo.DRAWINGS / "1F383.png"
    try:
        page = Page(start(), site).open("?solver=dpm2m&calls=3&pictures=1").give(drawing).translate()
        off = abs(page.results - made(EXPORT, drawing, 0, 1, solver="dpm2m", steps=3))
    finally:
        site.stop()
    assert off.mean() < 0.5  # of 255: a trained network amplifies rounding at the edges of colours
    assert np.quantile(off, 0.99) <= 2


def case(
    folder: Path,
    height: int,
    width: int,
    solver: str | None = None,
    steps: int | None = None,
    within: float = 1e-3,
    window: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Python's results for a random source, for tests/export.test.ts."""
    sampler = OnnxBridgeSampler(folder, solver=solver, steps=steps)
    source = to_array(Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)))
    seeds = [0, 2**40 + 5, 2**63 - 1]
    results = sampler(np.stack([source] * len(seeds)), seed=seeds, window=window)
    settings = json.loads((folder / "bridge.json").read_text())
    word = f"{solver}:{steps}"
    return {
        "folder": str(folder),
        "table": None if solver is None else next(tables.tables(settings, [word])),
        "window": window,
        "source": {"data": source.flatten().tolist(), "channels": 3, "height": height, "width": width},
        "seeds": [str(seed) for seed in seeds],
        "results": [result.flatten().tolist() for result in results],
        "within": within,
    }


def side(size: int, length: int, overlap: float, unit: int) -> dict[str, Any]:
    """Python's windows of a side, for tests/export.test.ts."""
    (made,) = Windowing((length,), overlap, 0, unit, 1, False).sides((size,))
    given = [size, length, overlap, unit]
    return {"given": given, "starts": made.starts, "weights": made.gaussians().tolist()}


@pytest.mark.nightly
@in_node
def test_the_library_makes_the_pictures_of_python(tiny: Path, tmp_path: Path):
    """float32 within 1e-3, float16 within 2e-2: padding, noise at the start, a size, codec, windows, ours."""
    fixed = export(tiny.parent / "tiny.pt", tmp_path / "fixed", "--static", "2,16,24", "--steps", "3")
    latent = export(checkpoint(tmp_path / "latent.pt", 0, tiny_codec()), tmp_path / "latent", "--steps", "3")
    cases = [
        case(tiny, 16, 16),
        case(tiny, 13, 18),
        case(tiny, 16, 16, "consistency", 2),
        case(fixed, 16, 24),
        case(latent, 16, 16),
        case(export(demo.WEIGHTS, tmp_path / "bundled", "--steps", "5"), 16, 16),
        case(EXPORT, 16, 16, "dpm2m", 3, within=2e-2),
        case(tiny, 16, 12, window=(16, 16)),  # no larger than a window
        case(tiny, 37, 18, window=(16, 24)),
        case(fixed, 30, 51, window=(16, 24)),
        case(latent, 30, 44, window=(16, 16)),
        case(EXPORT, 72, 16, "dpm2m", 3, within=2e-2, window=(64, 64)),
    ]
    sides = [side(64, 64, 0.25, 8), side(752, 64, 0.25, 8), side(4000, 96, 0.3, 4), side(51, 17, 0.9, 1)]
    (tmp_path / "cases.json").write_text(json.dumps({"cases": cases, "sides": sides}))
    environment = {**os.environ, "BBDM_CASES": str(tmp_path / "cases.json")}
    done = subprocess.run(["npm", "test"], cwd=WEB, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(NPM is None, reason="needs npm")
def test_the_page_is_built_from_its_lock_file(tmp_path: Path):
    web = Path(shutil.copytree(WEB, tmp_path / "examples/web", ignore=shutil.ignore_patterns("node_modules", "dist")))
    for folder in ("examples/demo", "bbdm/demo"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(ROOT / folder)
    assert '"resolved"' not in (web / "package-lock.json").read_text()
    for command in ("npm ci", "npm run build"):
        done = subprocess.run(command.split(), cwd=web, capture_output=True, text=True, check=False)
        if "npm error network" in done.stderr:
            pytest.skip("npm reaches no registry")
        assert done.returncode == 0, done.stdout + done.stderr
    bundled = json.loads((web / "dist/model/bridge.json").read_text())
    assert file_sha256(web / "dist/model/unet.onnx") == bundled["files"]["unet.onnx"]
    assert "https://" not in (web / "dist/index.html").read_text()
