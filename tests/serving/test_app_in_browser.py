"""`bbdm app` as visitors use it, in Chromium."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbdm import BridgeSampler, demo
from bbdm.runtime import OnnxBridgeSampler
from tests.conftest import ROOT
from tests.onnx.exports import SIZE
from tests.serving.pages import Visitor, noise, same, until

pytestmark = pytest.mark.nightly
Visit = Callable[[str], Visitor]
AXE = ROOT / "examples" / "web" / "node_modules" / "axe-core" / "axe.min.js"
MAIN = "import sys; from bbdm.cli import main; main(['app', *sys.argv[1:]])"
BUNDLED = f"""
from bbdm import demo
from bbdm.serving import app
app.BUNDLED = [(name, demo.WEIGHTS, about, tabs) for name, _, about, tabs in app.BUNDLED]
{MAIN}
"""  # with the network of drawings in the place of that of photographs


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """serve(model, *flags, code=the command): starts the app, and returns its address."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and its chromedriver are not installed")
    running: list[subprocess.Popen[str]] = []

    def start(*words: str | Path, code: str = MAIN) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", code, *map(str, words), "--port", str(port)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        running.append(process := subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True))
        assert process.stdout is not None
        address = f"http://127.0.0.1:{port}/"
        assert process.stdout.readline() == f"the app is at {address}; Ctrl-C ends it\n"  # and of no public link
        return address

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


def test_an_upload_and_each_number(visit: Visit, url: str, sampler: BridgeSampler, tmp_path: Path):
    page = visit(url)
    noise(7).save(tmp_path / "mine.png")
    page.upload(tmp_path / "mine.png")
    page.choose("sde-dpm2m")
    page.enter(calls=6, seed=11, results=3)
    made = page.translate("3 results, seeds 11 to 13")
    wanted = dict(
        zip(("seed 11", "seed 12", "seed 13"), sampler([noise(7)] * 3, 11, solver="sde-dpm2m", steps=6), strict=True)
    )
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


def test_where_results_differ(visit: Visit, url: str, sampler: BridgeSampler, tmp_path: Path):
    page = visit(url)
    noise(7).save(tmp_path / "mine.png")
    page.upload(tmp_path / "mine.png")
    page.choose("sde-dpm2m")
    page.enter(calls=6, seed=11)
    page.click("Where it is uncertain")
    until(lambda: page.status().startswith("8 results, seeds 11 to 18"), "the results")
    assert "Bright: the results differ here. Dark: they agree." in page.status()
    captions = [each.text for each in page.all(".results .caption-label")]
    assert captions == ["average", "where they differ", *(f"seed {seed}" for seed in range(11, 19))]
    found = sampler.distribution(noise(7), 8, 11, solver="sde-dpm2m", steps=6)
    assert same(page.compared()[1], found.mean[0])
    page.all(".results button")[1].click()
    wanted = np.asarray(found.std[0], float).mean(-1) * 2
    until(lambda: np.abs(np.asarray(page.compared()[1], float)[..., 0] - wanted).max() < 2, "the map in the slider")
    page.enter(calls=100)
    page.click("Where it is uncertain")
    until(lambda: page.status().startswith("network call "), "progress")
    page.click("Stop")
    until(lambda: page.status().startswith("stopped at network call "), "the end")


def test_an_example_and_a_drawn_seed(visit: Visit, url: str, sampler: BridgeSampler):
    from selenium.webdriver.common.keys import Keys

    page = visit(url)
    until(lambda: len(page.all(".examples button")) == 2, "the examples")
    page.all(".examples button")[1].click()
    until(lambda: page.all(".source img"), "the example")
    page.enter(calls=2, results=1)
    (field,) = page.all(".seed :is(input, textarea)")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE, Keys.TAB)
    page.click("Translate")
    seed = until(
        lambda: page.status().removeprefix("1 result, seed ") if "1 result" in page.status() else None, "a seed"
    )
    assert int(seed) != 0
    assert same(page.compared()[1], sampler(noise(1), int(seed), steps=2)[0])


def test_a_drawing(visit: Visit, url: str, sampler: BridgeSampler):
    """A line is 2 to 3 pixels of 64 wide, as the bundled network knows them, whatever the sheet's size."""
    page = visit(url)
    page.click("Drawing", "[role=tab]")
    page.draw_line()
    sheet = page.all("canvas")[0].size["width"]
    page.enter(seed=2, calls=3, results=1)
    page.translate("1 result, seed 2")
    source, result = page.compared()
    rows = np.asarray(source.convert("L"), int).mean(1)
    assert rows[:6].min() == rows[-6:].min() == 255
    width = (255 - rows).sum() / 255 / (300 / sheet) / SIZE  # of a line of 300 pixels of the sheet
    assert 2 / 64 < width < 3 / 64
    assert same(result, sampler(source, 2, steps=3)[0])


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
    stopped = until(lambda: page.status() if page.status().startswith("stopped at network call ") else None, "the end")
    time.sleep(2)  # which a preview that was on its way would need
    assert page.status() == stopped
    page.enter(calls=3, results=1)
    made = page.translate("3 results, seeds 4 to 6")
    wanted = sampler([noise(i) for i in range(3)], 4, steps=3)
    assert list(made) == ["0, seed 4", "1, seed 5", "2, seed 6"]
    assert all(same(picture, other) for picture, other in zip(made.values(), wanted, strict=True))


def test_an_error_is_a_message_and_the_page_lives(visit: Visit, url: str, tmp_path: Path):
    page = visit(url)
    page.click("Files", "[role=tab]")
    (tmp_path / "text.png").write_text("no picture")
    page.upload(tmp_path / "text.png")
    page.click("Translate")
    until(lambda: "cannot read the picture text.png: it is not a picture" in page.said(), "a message")
    page.click("Picture", "[role=tab]")
    page.click("Translate")
    until(lambda: "a picture is missing" in page.said(), "a message")
    (tmp_path / "empty.png").write_bytes(b"")
    page.upload(tmp_path / "empty.png")
    page.click("Translate")
    until(lambda: "cannot read the picture empty.png: it is not a picture" in page.said(), "a message")
    assert "/tmp" not in page.said()
    page.all(".examples button")[0].click()
    until(lambda: page.all(".source img"), "the example")
    page.enter(seed="1.5", calls=5, results=2)
    page.click("Translate")
    message = "seed must be an integer from 0 to 9223372036854775807, got '1.5'"
    until(lambda: message in page.said(), message)
    page.enter(seed=0)
    assert len(page.translate("2 results, seeds 0 to 1")) == 2


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


def test_the_page_fetches_nothing_from_elsewhere(visit: Visit, url: str):
    page = visit(url)
    page.all(".examples button")[0].click()
    page.translate("4 results, seeds 0 to 3")
    events = [json.loads(each["message"])["message"] for each in page.driver.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert any(each.startswith(url) for each in sent)
    assert [each for each in sent if not each.startswith((url, "data:", "blob:", "chrome"))] == []


def test_an_export_is_translated_with(visit: Visit, serve: Callable[..., str], exported: Path):
    page = visit(serve(exported, "--examples", str(demo.DRAWINGS)))
    until(lambda: page.all(".examples button"), "the examples")[0].click()
    until(lambda: page.all(".source img"), "the example")
    page.enter(seed=5, results=1)
    made = page.translate("1 result, seed 5")
    drawing = sorted(demo.DRAWINGS.glob("*.png"))[0]
    assert same(made["seed 5"], OnnxBridgeSampler(exported)(drawing, 5)[0])


def test_a_larger_picture_by_windows(
    visit: Visit, serve: Callable[..., str], file: Path, sampler: BridgeSampler, tmp_path: Path
):
    page = visit(serve(file, "--device", "cpu", "--window", str(SIZE)))
    large = noise(9, 400, 300)
    large.save(tmp_path / "large.png")
    page.upload(tmp_path / "large.png")
    page.enter(calls=3, seed=6, results=2)
    made = page.translate("2 results, seeds 6 to 7")
    wanted = sampler([large] * 2, 6, steps=3, window=SIZE)
    assert list(made) == ["seed 6", "seed 7"]
    assert all(same(picture, other) for picture, other in zip(made.values(), wanted, strict=True))
    calls = [text for text in page.driver.execute_script("return seen") if text.startswith("network call ")]
    assert len({text.split()[2] for text in calls}) > 6  # within steps too: there are 3 for each result
    assert len({text.split()[4] for text in calls}) == 1


def test_the_bundled_networks(visit: Visit, serve: Callable[..., str], tmp_path: Path):
    """A drawing is coloured from lines as wide as the network knows; a photograph keeps its size."""
    page = visit(serve("--device", "cpu", "--window", "64", code=BUNDLED))
    page.draw_line()
    page.enter(seed=2, calls=3, results=1)
    page.translate("1 result, seed 2")
    source, _ = page.compared()
    assert source.size == (64, 64)
    dark = (255 - np.asarray(source.convert("L"), float)) / 255
    assert 1.7 < dark[:, 20:44].sum(0).mean() < 2.3  # pixels of 64
    page.click("Photographs", "[role=tab]")
    photograph = noise(9, 100, 70)
    photograph.save(tmp_path / "photograph.jpg", quality=95)
    page.upload(tmp_path / "photograph.jpg")
    page.enter(calls=2, seed=6)
    made = page.translate("1 result, seed 6")
    sampler = BridgeSampler.from_checkpoint(demo.WEIGHTS)
    with Image.open(tmp_path / "photograph.jpg") as given:
        assert same(made["seed 6"], sampler(given, 6, steps=2, window=64)[0])


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm ci in examples/web")
def test_axe_finds_nothing(visit: Visit, serve: Callable[..., str]):
    page = visit(serve("--device", "cpu", "--window", "64", code=BUNDLED))
    page.draw_line()
    page.enter(calls=1)
    page.click("Where it is uncertain")
    until(lambda: page.status().startswith("8 results"), "the results")
    for tab in ("Drawings", "Photographs"):
        page.click(tab, "[role=tab]")
        page.open_advanced()
        page.driver.execute_script(AXE.read_text())
        found = page.driver.execute_async_script("axe.run().then(arguments[0])")
        assert len(found["passes"]) > 10
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
