"""`bbdm app` as visitors use it, in Chromium."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from bbdm import BridgeSampler
from tests.conftest import ROOT, noise
from tests.onnx.exports import SIZE
from tests.serving.pages import Visitor, same, until

pytestmark = pytest.mark.nightly
Visit = Callable[[str], Visitor]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[str, subprocess.Popen[str]]]]:
    """serve(model, *flags): the address of an app that starts, with its files in a folder of its own."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and its chromedriver are not installed")
    running: list[subprocess.Popen[str]] = []

    def start(*words: str | Path) -> tuple[str, subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "bbdm", "app", *map(str, words), "--port", str(port)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path_factory.mktemp("files"))}
        running.append(process := subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True))
        assert process.stdout is not None
        address = f"http://127.0.0.1:{port}/"
        assert process.stdout.readline() == f"the app is at {address}; Ctrl-C ends it\n"  # and of no public link
        return address, process

    yield start
    for process in running:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def url(serve: Callable[..., tuple[str, object]], file: Path) -> str:
    return serve(file, "--device", "cpu", "--max_steps", "100")[0]


@pytest.fixture
def visit(tmp_path: Path) -> Iterator[Visit]:
    """visit(url): a new browser on the page."""
    visitors: list[Visitor] = []

    def open_page(url: str) -> Visitor:
        visitors.append(Visitor(url, tmp_path / f"visitor{len(visitors)}"))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.driver.quit()


def test_two_visitors_with_uploads_numbers_and_a_zip(visit: Visit, url: str, sampler: BridgeSampler, tmp_path: Path):
    """At once, each with two pictures and three results of each."""
    pages = [visit(url), visit(url)]
    for i, page in enumerate(pages):
        for j in range(2):
            noise(10 * i + j).save(tmp_path / f"{10 * i + j}.png")
        page.upload(*(tmp_path / f"{10 * i + j}.png" for j in range(2)))
        page.enter(Network_calls=20, Seed=10 * i, Results=3)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda page, i: page.translate(f"done, seeds {10 * i} to"), pages, range(2)))
    for i, (page, results) in enumerate(zip(pages, found, strict=True)):
        outputs = sampler([noise(10 * i + j // 3) for j in range(6)], 10 * i, steps=20)
        assert [*results] == [f"{10 * i + j // 3}_{10 * i + j}" for j in range(6)]
        assert all(same(picture, output) for picture, output in zip(results.values(), outputs, strict=True))
        assert same(page.compared()[0], noise(10 * i))
        page.all(".caption-label")[4].click()
        until(lambda page=page, output=outputs[4]: same(page.compared()[1], output), "the chosen result in the slider")
    pages[0].click("Download as zip")
    path = until(lambda: next(pages[0].downloads.glob("*.zip"), None), "the zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{j // 3}_{j}.png" for j in range(6)]


def test_where_results_differ(visit: Visit, url: str, sampler: BridgeSampler, tmp_path: Path):
    page = visit(url)
    noise(1).save(tmp_path / "1.png")
    page.upload(tmp_path / "1.png")
    page.enter(Network_calls=6, Seed=11, Results=8)
    page.tick("Where it is uncertain")
    results = page.translate("done, seeds 11 to 18")
    assert [*results] == ["1_mean", "1_spread", *(f"1_{seed}" for seed in range(11, 19))]
    assert same(results["1_mean"], sampler.distribution(noise(1), 8, 11, steps=6).mean[0])
    page.tick("Where it is uncertain")
    page.enter(Seed="", Results=1)
    page.translate("done, seeds ", "mean")
    seed = int(page.text().split("done, seeds ")[1].split()[0])
    assert seed not in (0, 11)
    assert same(page.compared()[1], sampler(noise(1), seed, steps=6)[0])
    events = [json.loads(each["message"])["message"] for each in page.driver.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert any(each.startswith(url) for each in sent)
    assert [each for each in sent if not each.startswith((url, "data:", "blob:", "chrome"))] == []


def test_a_drawing(visit: Visit, url: str, sampler: BridgeSampler):
    """A line is 2 to 3 pixels of 64 wide, as the bundled network knows them, whatever the sheet's size."""
    page = visit(url)
    page.click("Drawing")
    page.draw_line()
    page.enter(Seed=2, Network_calls=3, Results=1)
    page.translate("done, seeds 2 to 2")
    source, result = page.compared()
    dark = (255 - np.asarray(source.convert("L"), float)) / 255
    width = dark[:, SIZE // 2].sum() / SIZE
    assert 1.7 / 64 < width < 3 / 64
    assert dark[[0, 1, -2, -1]].max() == 0
    assert same(result, sampler(source, 2, steps=3)[0])


def test_stop_and_errors(visit: Visit, url: str, tmp_path: Path):
    page = visit(url)
    (tmp_path / "text.png").write_text("no picture")
    noise(0).save(tmp_path / "a.png")
    page.click("Translate")
    until(lambda: "choose a picture" in page.text(), "a message")
    page.upload(tmp_path / "a.png")
    page.enter(Network_calls=100, Results=8)
    page.click("Translate")
    until(lambda: "network calls" in page.text() or "/100" in page.text(), "progress")
    page.click("Stop")
    until(lambda: "network calls" not in page.text() and "/100" not in page.text(), "the end")
    page.enter(Network_calls=2, Results=1)
    page.translate("done, seeds 0 to 0")
    page.upload(tmp_path / "text.png")
    page.click("Translate")
    until(lambda: "cannot read the picture text.png: it is not a picture" in page.text(), "a message")
    assert "/tmp" not in page.text()
    assert str(tmp_path) not in page.text()
    assert (page.all(".caption-label"), page.compared(), "done, seeds" in page.text()) == ([], [], False)


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_end_leaves_no_files(
    stop: int,
    status: int,
    visit: Visit,
    serve: Callable[..., tuple[str, subprocess.Popen[str]]],
    file: Path,
    tmp_path: Path,
):
    """While a larger picture is translated by windows."""
    url, process = serve(file, "--device", "cpu", "--window", str(SIZE))
    page = visit(url)
    noise(9, 400, 300).save(tmp_path / "large.png")
    page.upload(tmp_path / "large.png")
    page.enter(Network_calls=3, Results=1)
    page.translate("done, seeds 0 to 0")
    folder = Path(psutil.Process(process.pid).environ()["TMPDIR"])
    assert [each for each in folder.rglob("*") if each.suffix in (".png", ".zip")]
    page.enter(Network_calls=100)
    page.click("Translate")
    until(lambda: "network calls" in page.text() or "/100" in page.text(), "progress")
    process.send_signal(stop)
    assert process.wait(60) == status
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []  # Gradio makes a folder as it is imported
