"""The page of examples/web in Chromium, by Selenium, as a visitor uses it."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path
from typing import Any

import numpy as np
from selenium.webdriver.common.actions import interaction
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

PATIENCE = 120  # seconds: the machine may be busy


class Site:
    """A server of the built page with an export of its own as ``model/``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []  # the paths of requests
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                asked.append(self.path.split("?")[0])

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Page:
    """The page in a browser, as a visitor uses it."""

    def __init__(self, driver: Any, site: Site) -> None:
        self.driver, self.site = driver, site

    def open(self, query: str = "") -> Page:
        self.driver.get(self.site.address + query)
        return self.until("Ready")

    def by_id(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return self.by_id(name).text

    def until(self, status: str) -> Page:
        """Waits until the status starts with a text."""
        message = f"wanted the status {status!r}, {self.driver.get_log('browser')}"
        WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: self.text("status").startswith(status), message)
        return self

    def until_warned(self) -> str:
        WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: self.text("warning"))
        return self.text("warning")

    def translate(self) -> Page:
        self.by_id("translate").click()
        WebDriverWait(self.driver, PATIENCE, 0.02).until(lambda _: self.text("status") != "" and self.finished())
        return self.until("Done")

    def watch(self) -> Page:
        """Keeps what the status says from now on in ``seen``."""
        script = """window.seen = []; const status = document.getElementById("status");
            new MutationObserver(() => seen.push(status.textContent)).observe(status, { childList: true })"""
        self.driver.execute_script(script)
        return self

    @property
    def seen(self) -> list[str]:
        return self.driver.execute_script("return seen")

    def finished(self) -> bool:
        return self.by_id("results").get_attribute("aria-busy") == "false"

    def choose(self, **values: Any) -> Page:
        for name, value in values.items():
            Select(self.by_id(name)).select_by_value(str(value))
        return self

    def give(self, file: Path) -> Page:
        self.by_id("file").send_keys(str(file))
        said = WebDriverWait(self.driver, PATIENCE, 0.05)
        said.until(lambda _: file.name in self.text("status") + self.text("warning"))
        return self

    def pixels(self, selector: str) -> np.ndarray:
        """(number, H, W, 3) of canvases of one size."""
        script = """return [...document.querySelectorAll(arguments[0])].map((c) => [c.height, c.width,
            [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]])"""
        canvases = self.driver.execute_script(script, selector)
        return np.array([np.reshape(data, (height, width, 4))[:, :, :3] for height, width, data in canvases])

    @property
    def results(self) -> np.ndarray:
        return self.pixels("#results canvas")

    @property
    def ink(self) -> int:
        """The number of black pixels on the sheet."""
        return int((self.pixels("#sheet") == 0).all(-1).sum())

    def draw(self, kind: str = interaction.POINTER_PEN) -> Page:
        """A stroke across the middle of the sheet."""
        sheet, actions = self.by_id("sheet"), ActionBuilder(self.driver, PointerInput(kind, kind))
        actions.pointer_action.move_to(sheet, -50, 0).pointer_down().move_to(sheet, 50, 0).pointer_up()
        actions.perform()
        return self
