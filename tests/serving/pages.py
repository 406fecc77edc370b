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

SECONDS = 180  # for the page to do anything, on a busy machine
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1600",
]
Found = TypeVar("Found")


def same(picture: Image.Image, output: Image.Image) -> bool:
    """Whether two pictures differ by rounding alone."""
    assert picture.size == output.size
    return int(np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(output, int)).max()) <= 1


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


def fetch(url: str | None) -> Image.Image:
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


class Visitor:
    """A browser on the page, with a folder for downloads."""

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

    def all(self, selector: str) -> list[Any]:
        return [each for each in self.driver.find_elements("css selector", selector) if each.is_displayed()]

    def button(self, text: str) -> Any:
        return next((each for each in self.all("button") if each.text == text), None)

    def click(self, text: str) -> None:
        until(lambda: self.button(text), text).click()

    def upload(self, *paths: Path) -> None:
        """Give files to the open tab of pictures, in place of those that are there."""
        for each in self.all("button[aria-label='Clear']"):
            each.click()
        opened = "return arguments[0].closest('[role=tabpanel]').offsetParent !== null"
        before = len(self.images())
        fields = self.driver.find_elements("css selector", "input[type=file]")
        next(each for each in fields if self.driver.execute_script(opened, each)).send_keys("\n".join(map(str, paths)))
        until(lambda: len(self.images()) == before + len(paths), "the upload")

    def images(self) -> list[Any]:
        """The images of all galleries."""
        return self.all("button[aria-label^=Thumbnail] img")

    def enter(self, **numbers: int | str) -> None:
        """Enter numbers, by label, with _ in place of spaces."""
        from selenium.webdriver.common.keys import Keys

        if not self.all("input[aria-label='number input for Network calls']"):
            self.all("button.label-wrap")[0].click()
            until(lambda: self.all("input[aria-label='number input for Network calls']"), "the settings")
        for name, number in numbers.items():
            label = name.replace("_", " ")
            path = f"//input[@aria-label='number input for {label}']"
            path += f" | //label[span[normalize-space()='{label}']]//textarea"
            (field,) = [each for each in self.driver.find_elements("xpath", path) if each.is_displayed()]
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(str(number) or Keys.DELETE, Keys.TAB)

    def tick(self, label: str) -> None:
        """Click on a checkbox."""
        path = f"//label[.//span[normalize-space()='{label}']]//input"
        next(each for each in self.driver.find_elements("xpath", path) if each.is_displayed()).click()

    def text(self) -> str:
        """All that the page says."""
        return self.driver.find_element("tag name", "body").text

    def draw_line(self) -> None:
        """Draw a line through the middle of the sheet."""
        from selenium.webdriver import ActionChains

        canvas = until(lambda: self.all("canvas"), "the canvas")[0]
        time.sleep(2)  # the brush is there a little later
        chain = ActionChains(self.driver).move_to_element_with_offset(canvas, -100, 0).click_and_hold()
        chain.move_by_offset(200, 0).release().perform()

    def translate(self, end: str, gone: str = "nothing") -> dict[str, Image.Image]:
        """The results of a translation that ends with a status, and without other text, by caption."""
        self.click("Translate")
        until(lambda: end in self.text() and gone not in self.text(), end)
        captions = until(lambda: self.all(".caption-label"), "captions")
        images = [each.find_element("xpath", "./ancestor::button[1]//img") for each in captions]
        return {each.text: fetch(image.get_attribute("src")) for each, image in zip(captions, images, strict=True)}

    def compared(self) -> list[Image.Image]:
        """What the slider shows: source and result."""
        path = "//label[contains(., 'Before and after')]/ancestor::div[contains(@class, 'block')][1]//img"
        images = [each for each in self.driver.find_elements("xpath", path) if each.is_displayed()]
        return [fetch(each.get_attribute("src")) for each in images]
