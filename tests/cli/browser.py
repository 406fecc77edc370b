"""The page of examples/web in Chromium, by Selenium, as a visitor uses it."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.actions import interaction
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.conftest import ROOT

WEB = ROOT / "examples" / "web"
PATIENCE = 120  # seconds: the machine may be busy

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1600"
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver, which .ci/nightly installs"
)


def chromium(folder: Path, log: str, *flags: str) -> Any:
    """A browser without a past, which downloads to a folder and logs its console, or its requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS.split(), f"--user-data-dir={folder / 'profile'}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {log: "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    return driver


class Site:
    """A server of the built page with exports beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []  # the paths of requests
        self.sent = 0  # bytes
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                site.asked.append(self.path.split("?")[0])

            def copyfile(self, source: Any, outputfile: Any) -> None:
                site.sent += outputfile.write(source.read())

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Page:
    """The page in a browser; what is named is of the tab that is shown."""

    def __init__(self, driver: Any, site: Site) -> None:
        self.driver, self.site, self.tab = driver, site, "drawings"
        self.script, self.command = driver.execute_script, driver.execute_cdp_cmd
        driver.set_script_timeout(PATIENCE)

    def open(self, query: str = "") -> Page:
        """Opens the page; what it begins with is finished then."""
        self.driver.get(self.site.address + query)
        return self.until("Ready", "Done")

    def show(self, tab: str) -> Page:
        self.tab = tab
        self.by_id("tab").click()
        return self

    def by_id(self, name: str) -> Any:
        return self.driver.find_element(By.ID, f"{self.tab}-{name}")

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, name: str) -> str:
        return self.by_id(name).text

    def wait(self, done: Any, message: str = "") -> None:
        WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: done(), message)

    def until(self, *status: str) -> Page:
        """Waits until the status starts with a text, and no pictures are being made."""
        busy = f"#{self.tab} [aria-busy=true]"
        message = f"wanted {status}, {self.driver.get_log('browser')}"
        found = self.driver.find_elements
        self.wait(
            lambda: self.text("status").startswith(status) and not found(By.CSS_SELECTOR, busy),
            message,
        )
        return self

    def until_warned(self) -> str:
        self.wait(lambda: self.text("warning"))
        return self.text("warning")

    def forget(self) -> Page:
        """Empties the status, so that what it says next is new."""
        self.script("arguments[0].textContent = ''", self.by_id("status"))
        return self

    def watch(self) -> Page:
        """Keeps what the status says from now on, for :attr:`seen`."""
        script = """window.seen = []; const [status] = arguments;
            new MutationObserver(() => seen.push(status.textContent)).observe(status, { childList: true })"""
        self.script(script, self.by_id("status"))
        return self

    @property
    def seen(self) -> list[str]:
        return self.script("return seen")

    def choose(self, **values: Any) -> Page:
        """Options under "Advanced", after each of which drawings are coloured."""
        self.script("arguments[0].open = true", self.by_id("advanced"))
        for name, value in values.items():
            Select(self.by_id(f"advanced-{name}")).select_by_value(str(value))
        return self

    def enter_seed(self, seed: str) -> Page:
        """Replaces what the field of the seed holds."""
        self.choose().by_id("advanced-seed").send_keys(
            Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE, seed, Keys.TAB
        )
        return self

    def give(self, file: Path) -> Page:
        """A picture, until it is translated, or refused."""
        self.forget().by_id("file").send_keys(str(file))
        self.wait(
            lambda: self.text("status").startswith("Done") or file.name in self.text("warning")
        )
        return self

    def pixels(self, selector: str, channels: int = 3) -> np.ndarray:
        """(number, H, W, channels) of canvases of one size."""
        script = """return [...document.querySelectorAll(arguments[0])].map((c) => [c.height, c.width,
            [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]])"""
        return np.array(
            [
                np.reshape(data, (h, w, 4))[:, :, :channels]
                for h, w, data in self.script(script, selector)
            ]
        )

    @property
    def results(self) -> np.ndarray:
        return self.pixels("#drawings-results canvas")

    @property
    def ink(self) -> int:
        """The number of black pixels on the sheet."""
        script = """const { height, width } = arguments[0];
            const { data } = arguments[0].getContext("2d").getImageData(0, 0, width, height);
            return new Uint32Array(data.buffer).filter((pixel) => pixel === 0xff000000).length"""
        return self.script(script, self.by_id("sheet"))

    def draw(self, kind: str = interaction.POINTER_PEN) -> Page:
        """A stroke across the middle of the sheet."""
        sheet, actions = self.by_id("sheet"), ActionBuilder(self.driver, PointerInput(kind, kind))
        actions.pointer_action.move_to(sheet, -50, 0).pointer_down().move_to(
            sheet, 50, 0
        ).pointer_up()
        actions.perform()
        return self
