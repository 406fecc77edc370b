"""`bbdm app` as visitors use it, in Chromium."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from bbdm import BridgeSampler
from tests.cli.browser import chromium, needs_browser
from tests.conftest import ROOT, noise
from tests.onnx.exports import SIZE
from tests.serving.conftest import png_of, same

pytestmark = [pytest.mark.nightly, needs_browser]
SECONDS = 180  # for the page to do anything, on a busy machine


class Visitor:
    """A browser on the page of an app that starts, whose files are in a folder of its own."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.downloads, self.files = folder, folder / "files"
        self.files.mkdir()
        command = [
            sys.executable,
            "-m",
            "bbdm",
            "app",
            *map(str, words),
            "--device",
            "cpu",
            "--port",
            str(port),
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.files)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{port}/"
        # and no public link
        assert self.process.stdout.readline() == f"the app is at {self.url}; Ctrl-C ends it\n"
        self.driver = chromium(folder, "performance")
        self.driver.get(self.url)
        self.until(lambda: self.button("Translate"), "the page")

    def until(self, found: Callable[[], Any], what: str) -> Any:
        """What a function finds as soon as it does; elements that are drawn anew are found again."""
        drawn_anew = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, SECONDS, 0.1, drawn_anew).until(lambda _: found(), what)

    def says(self, text: str) -> None:
        """Wait until the page says a text."""
        self.until(lambda: text in self.text(), text)

    def all(self, selector: str, by: str = "css selector") -> list[Any]:
        return [each for each in self.driver.find_elements(by, selector) if each.is_displayed()]

    def button(self, text: str) -> Any:
        return next((each for each in self.all("button") if each.text == text), None)

    def click(self, text: str) -> None:
        self.until(lambda: self.button(text), text).click()

    def open(self, tab: str) -> None:
        """Open a tab."""
        self.until(
            lambda: next((each for each in self.all("button[role=tab]") if each.text == tab), None),
            tab,
        ).click()

    def upload(self, *paths: Path) -> None:
        """Give files to the tab of pictures, in place of those that are there."""
        for each in self.all("button[aria-label='Clear']"):
            each.click()
        before = len(self.all("button[aria-label^=Thumbnail] img"))
        (field, *_) = self.driver.find_elements("css selector", "input[type=file]")
        field.send_keys("\n".join(map(str, paths)))
        self.until(
            lambda: len(self.all("button[aria-label^=Thumbnail] img")) == before + len(paths),
            "the upload",
        )

    def enter(self, **values: int | str) -> None:
        """Enter numbers, by label, with _ in place of spaces."""
        if not self.all("input[aria-label='Network calls']"):
            self.all("button.label-wrap")[0].click()
            self.until(lambda: self.all("input[aria-label='Network calls']"), "the settings")
        for name, value in values.items():
            label = name.replace("_", " ")
            (field,) = self.all(f"input[aria-label='{label}']")
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(str(value) or Keys.DELETE, Keys.TAB)

    def text(self) -> str:
        """All that the page says."""
        return self.driver.find_element("tag name", "body").text

    def running(self) -> bool:
        """Whether the page shows a translation's progress."""
        return "network calls" in self.text() or "/100" in self.text()

    def translate(self, end: str, gone: str = "nothing") -> dict[str, Image.Image]:
        """The pictures of a translation that ends with a status, and without other text, by caption."""
        self.click("Translate")
        self.until(lambda: end in self.text() and gone not in self.text(), end)
        found: dict[str, Image.Image] = {}
        for each in self.until(lambda: self.all(".caption-label"), "captions"):
            address = each.find_element("xpath", "./ancestor::button[1]//img").get_attribute("src")
            with urllib.request.urlopen(address or "") as answer:
                found[each.text] = Image.open(io.BytesIO(answer.read())).convert("RGB")
        return found


CUT = """return [...document.querySelectorAll(".results .thumbnail-item")].filter((each) => {
    const outer = each.closest(".block").getBoundingClientRect(), own = each.getBoundingClientRect();
    return own.bottom > outer.bottom || own.right > outer.right;
}).length"""  # pictures of results that are cut off


def test_an_example_its_four_results_and_a_picture_that_is_too_large(tmp_path: Path):
    """Of the bundled networks: nothing is cut off, and the large one is refused at once."""
    page = Visitor(tmp_path)
    try:
        page.until(lambda: page.all(".gallery-item"), "the examples")[1].click()
        page.says("done, seeds 0 to 3")
        captions = page.until(lambda: page.all(".results .caption-label"), "the results")
        assert [each.text for each in captions] == [
            "1F383",
            *(f"1F383_{seed}" for seed in range(4)),
        ]
        assert page.driver.execute_script(CUT) == 0
        fits = "return getComputedStyle(document.querySelector('.results img')).objectFit"
        assert page.driver.execute_script(fits) == "contain"
        large = tmp_path / "large.png"
        large.write_bytes(png_of(20_000, 20_000, bytes(20_000 * 20_001)))
        page.all("button[aria-label='Clear']")[0].click()
        page.until(
            lambda: page.driver.find_elements("css selector", "input[type=file]"), "the field"
        )
        began = time.monotonic()
        (field, *_) = page.driver.find_elements("css selector", "input[type=file]")
        field.send_keys(str(large))
        page.says("the picture large.png may have at most 33554432 pixels")
        assert time.monotonic() - began < 10
    finally:
        page.driver.quit()
        page.process.terminate()
        page.process.wait()


def test_the_button_is_seen_without_scrolling(tmp_path: Path):
    """In each tab of the bundled networks, in a window as tall as a screen of 1280 x 800 leaves it."""
    page = Visitor(tmp_path)
    try:
        window = {"width": 1280, "height": 660, "deviceScaleFactor": 1, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        page.until(lambda: page.all(".gallery-item"), "the examples")
        for tab in ("Pictures", "Drawing", "Photographs"):
            page.open(tab)
            if tab == "Drawing":
                page.until(lambda: page.all("canvas"), "the canvas")
            button = page.until(lambda: page.button("Translate"), "the button")
            assert button.rect["y"] + button.rect["height"] < window["height"], tab
    finally:
        page.driver.quit()
        page.process.terminate()
        page.process.wait()


@pytest.fixture
def page(checkpoint: Path, tmp_path: Path) -> Iterator[Visitor]:
    """Of an app of the checkpoint, which translates larger pictures by windows."""
    visitor = Visitor(tmp_path, checkpoint, "--window", str(SIZE), "--max_steps", "100")
    yield visitor
    visitor.driver.quit()
    visitor.process.terminate()
    visitor.process.wait()


def test_uploads_maps_a_zip_and_a_drawing(page: Visitor, sampler: BridgeSampler, tmp_path: Path):
    """Two pictures, and where results differ; a seed that the app draws; a drawing; all from here."""
    for j in range(2):
        noise(j).save(tmp_path / f"{j}.png")
    page.upload(tmp_path / "0.png", tmp_path / "1.png")
    page.enter(Network_calls=6, Seed=10, Results=3)
    (box,) = page.all("//label[.//span[normalize-space()='Where it is uncertain']]//input", "xpath")
    box.click()
    results = page.translate("done, seeds 10 to 15")
    names = [
        "0",
        "0_mean",
        "0_spread",
        "0_10",
        "0_11",
        "0_12",
        "1",
        "1_mean",
        "1_spread",
        "1_13",
        "1_14",
        "1_15",
    ]
    assert [*results] == names
    assert same(results["1_mean"], sampler.distribution(noise(1), 3, 13, steps=6).mean[0])
    outputs = sampler([noise(j // 3) for j in range(6)], 10, steps=6)
    assert all(same(results[f"{j // 3}_{10 + j}"], output) for j, output in enumerate(outputs))
    page.click("Download as zip")
    path = page.until(lambda: next(page.downloads.glob("*.zip"), None), "the zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{name}.png" for name in names if "_" in name]
    page.upload(tmp_path / "1.png")
    box.click()
    page.enter(Seed="", Results=1)
    (_, result) = page.translate("done, seeds ", "mean").values()
    seed = page.text().split("done, seeds ")[1].split()[0]
    assert seed not in ("0", "10")
    assert same(result, sampler(noise(1), int(seed), steps=6)[0])
    for each in page.all("button[aria-label='Clear']"):
        each.click()
    page.click("Drawing")
    canvas = page.until(lambda: page.all("canvas"), "the canvas")[0]
    time.sleep(2)  # the brush is there a little later
    chain = ActionChains(page.driver).move_to_element_with_offset(canvas, -100, 0).click_and_hold()
    chain.move_by_offset(200, 0).release().perform()
    page.enter(Seed=2, Network_calls=3)
    source, result = page.translate("done, seeds 2 to 2").values()
    dark = (255 - np.asarray(source.convert("L"), float)) / 255
    assert 1.7 / 64 < dark[:, SIZE // 2].sum() / SIZE < 3 / 64  # as the bundled network knows lines
    assert dark[[0, 1, -2, -1]].max() == 0
    assert same(result, sampler(source, 2, steps=3)[0])
    events = [json.loads(each["message"])["message"] for each in page.driver.get_log("performance")]
    sent = [
        each["params"]["request"]["url"]
        for each in events
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert any(each.startswith(page.url) for each in sent)
    assert [
        each for each in sent if not each.startswith((page.url, "data:", "blob:", "chrome"))
    ] == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_errors_stop_and_an_end_that_leaves_no_files(stop: int, page: Visitor, tmp_path: Path):
    """The end comes while a larger picture is translated by windows."""
    page.click("Translate")
    page.says("choose a picture")
    noise(9, 400, 300).save(tmp_path / "large.png")
    page.upload(tmp_path / "large.png")
    page.enter(Network_calls=100)
    page.click("Translate")
    page.until(page.running, "progress")
    page.click("Stop")
    page.until(lambda: not page.running(), "the end")
    page.enter(Network_calls=3)
    page.translate("done, seeds 0 to 0")
    assert [each for each in page.files.rglob("*") if each.suffix in (".png", ".zip")]
    page.enter(Network_calls=100)
    page.click("Translate")
    page.until(page.running, "progress")
    page.process.send_signal(stop)
    assert page.process.wait(60) == 0
    # Gradio makes a folder as it starts
    assert [path for path in page.files.rglob("*") if not path.is_dir()] == []
