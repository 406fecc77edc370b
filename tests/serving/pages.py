"""What the tests of `bbdm app` share: a small model, pictures, and a browser on the page."""

import io
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tests.conftest import noise
from tests.onnx.exports import checkpoint

SECONDS = 180  # for the page to do anything, on a busy machine
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
const texts = document.getElementsByClassName("prose");
window.shownStatus = () => [...texts].find((each) => each.closest(".status") && each.offsetParent)?.innerText;
new MutationObserver(() => {
    const text = shownStatus();
    if (text && text !== seen.at(-1)) seen.push(text);
}).observe(document.body, {subtree: true, childList: true, characterData: true});
"""
Found = TypeVar("Found")


def same(made: Image.Image, wanted: Image.Image) -> bool:
    """Whether two pictures differ by rounding alone."""
    assert made.size == wanted.size
    return int(np.abs(np.asarray(made.convert("RGB"), int) - np.asarray(wanted, int)).max()) <= 1


def model_file(folder: Path) -> Path:
    """A checkpoint, with two pictures in drawings/ beside it."""
    (folder / "drawings").mkdir()
    for i in range(2):
        noise(i).save(folder / "drawings" / f"{i}.png")
    (folder / "drawings" / "LICENSE").write_text("none")
    return checkpoint(folder / "bridge.pt")


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
        fields = self.driver.find_elements("css selector", "input[type=file]")
        is_open = "return arguments[0].closest('[role=tabpanel]').offsetParent !== null"
        (field,) = [each for each in fields if self.driver.execute_script(is_open, each)]
        field.send_keys("\n".join(map(str, paths)))
        until(lambda: self.all(".source img") or len(self.all("tr.file")) == len(paths), "the upload")

    def enter(self, **numbers: int | str) -> None:
        from selenium.webdriver.common.keys import Keys

        fields = {
            "calls": "input[aria-label^='number input for Network calls']",
            "results": "input[aria-label='number input for Results']",
            "seed": ".seed :is(input, textarea)",
        }
        self.open_advanced()
        for name, number in numbers.items():
            (field,) = self.all(fields[name])
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(str(number), Keys.TAB)

    def open_advanced(self) -> None:
        if not self.all(".seed"):
            until(lambda: self.all("button.label-wrap"), "Advanced")[0].click()
            until(lambda: self.all(".seed"), "the settings")

    def choose(self, solver: str) -> None:
        self.open_advanced()
        (field,) = self.all("input[aria-label='How it answers']")
        field.click()
        until(lambda: [each for each in self.all("[role=option]") if each.text.endswith(f"({solver})")], solver)[
            0
        ].click()

    def status(self) -> str:
        return self.driver.execute_script("return shownStatus() || ''")

    def draw_line(self) -> None:
        """Draw a line through the middle of the sheet."""
        from selenium.webdriver import ActionChains

        canvas = until(lambda: self.all("canvas"), "the canvas")[0]
        time.sleep(2)  # the brush is there a little later
        chain = ActionChains(self.driver).move_to_element_with_offset(canvas, -150, 0).click_and_hold()
        chain.move_by_offset(300, 0).release().perform()

    def said(self) -> str:
        """The page's messages."""
        return " ".join(each.text for each in self.all(".toast-body"))

    def translate(self, end: str) -> dict[str, Image.Image]:
        """The gallery of a translation that ends with a status, by caption."""
        self.click("Translate")
        until(lambda: self.status() == end, end)
        captions, images = self.all(".results .caption-label"), self.all(".results .gallery-item img")
        return {
            caption.text: fetch(image.get_attribute("src")) for caption, image in zip(captions, images, strict=True)
        }

    def compared(self) -> tuple[Image.Image, Image.Image]:
        """What the slider shows: source and result."""
        source, result = (fetch(each.get_attribute("src")) for each in self.all(".compared img"))
        return source, result
