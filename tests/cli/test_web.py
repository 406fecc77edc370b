"""examples/web: the built page in Chromium, against the pictures of Python.

Chromium and its driver come from the system, Selenium from PyPI, and the page from `npm ci && npm run build`
in examples/web. Tests are skipped where one of them is missing.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions import interaction
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from torch import nn

from bbdm import demo, save_checkpoint
from bbdm.base.atomic import file_sha256
from bbdm.pictures.images import to_array
from bbdm.runtime import OnnxBridgeSampler
from examples.web import tables
from tests.cli.browser import WEB, Page, Site, chromium, needs_browser
from tests.conftest import noise, tiny_unet
from tests.onnx.exports import BRIDGE, SIZE, export
from tests.serving.conftest import png_of

DIST = WEB / "dist"
TABS = ("drawings", "photographs")  # and the folders of their exports
KEPT = "navigator.serviceWorker.ready.then(arguments[0])"  # waits until all files are kept
# that are kept
NETWORKS = "caches.open('bbdm-weights').then((c) => c.keys()).then((k) => arguments[0](k.length))"
AXE = WEB / "node_modules/axe-core/axe.min.js"
SOFTWARE_WEBGPU = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
)

pytestmark = [
    needs_browser,
    pytest.mark.skipif(
        not (DIST / "index.html").exists(), reason="needs npm ci && npm run build in examples/web"
    ),
]


@pytest.fixture
def site(exported: Path, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in DIST.iterdir():
        if path.name not in TABS:
            (folder / path.name).symlink_to(path)
    for name in TABS:
        tables.main([str(shutil.copytree(exported, folder / name))])
    site = Site(folder)
    yield site
    site.stop()


@pytest.fixture
def page(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[Page]:
    """In a browser without a past, with the flags of a parameter."""
    driver = chromium(tmp_path, "browser", *getattr(request, "param", ()))
    yield Page(driver, site)
    driver.quit()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of random colours."""
    noise(0).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def made(folder: Path, source: Path, seed: int, count: int, **settings: Any) -> np.ndarray:
    """(count, H, W, 3): Python's results for a picture."""
    return np.stack(OnnxBridgeSampler(folder)([source] * count, seed=seed, **settings)).astype(int)


def test_a_seed_is_the_picture_of_python(page: Page, exported: Path, picture: Path):
    """Three seeds of the export's own table; the spread of eight by NumPy, until none is asked for;
    and another solver. 8 bits round differences."""
    page.open("?pictures=3&seed=7").give(picture).until("Done")
    assert page.results.shape == (3, SIZE, SIZE, 3)
    assert abs(page.results - made(exported, picture, 7, 3)).max() <= 1
    sources = np.stack([to_array(Image.open(picture))] * 8)
    levels = 127.5 * np.moveaxis(OnnxBridgeSampler(exported)(sources, seed=7), 1, -1) + 127.5
    page.watch().forget().by_id("compare").click()
    expected = levels[0], levels.std(0, ddof=1).mean(-1)[..., None], levels.mean(0)
    for found, wanted in zip(page.until("Done").results, expected, strict=True):
        assert abs(found - wanted).max() <= 1
    assert "Comparing pictures: 8 of 8." in page.seen
    page.forget().by_id("compare").click()
    page.until("Done").choose(solver="dpm2m", calls=3, pictures=1).until("Done")
    assert abs(page.results - made(exported, picture, 7, 1, solver="dpm2m", steps=3)).max() <= 1


@pytest.mark.nightly
def test_classes_have_menus_and_guidance_a_slider(
    page: Page, site: Site, picture: Path, tmp_path: Path
):
    unet = tiny_unet(
        0, condition_channels=3, classes={"style": ("ink", "oil")}, drop={"style": 0.1}
    )
    for module in unet.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    save_checkpoint(tmp_path / "told.pt", unet, BRIDGE, image_size=SIZE)
    export(tmp_path / "told.pt", site.folder / "told", "--steps", "3")
    page.open("?model=told&pictures=1&seed=7").give(picture).until("Done").forget()
    menu = Select(page.by_id("told-style"))
    assert [each.text for each in menu.options] == ["ink", "oil", "none"]
    menu.select_by_visible_text("oil")
    page.until("Done").forget().by_id("told-guidance").send_keys(*[Keys.ARROW_RIGHT] * 4)
    guided, plain = (
        made(site.folder / "told", picture, 7, 1, conditions={"style": "oil"}, guidance=each)
        for each in (3, None)
    )
    assert abs(page.until("Done").results - guided).max() <= 1 < abs(guided - plain).max()


@pytest.mark.nightly
def test_a_photograph_is_restored_at_its_own_size(
    page: Page, site: Site, exported: Path, tmp_path: Path
):
    """The expected picture, and a random one; by windows, with its time, and saved whole."""
    large, canvas = tmp_path / "large.png", "#photographs-compare canvas"
    noise(5, 60, 41).save(large)
    page.open("?seed=3").show("photographs").until("Ready").watch().give(large).until("Done")
    assert (
        abs(
            page.pixels(canvas)[1]
            - made(exported, large, 3, 1, window=SIZE, solver="mean", steps=1)
        ).max()
        <= 1
    )
    begun = r"large\.png: 60 x 41 pixels in 20 windows, about \d+ s\."
    assert [text for text in page.seen if re.fullmatch(begun, text)]
    own = json.loads((exported / "bridge.json").read_text())["solver"]
    page.choose(solver=own)
    assert re.fullmatch(r"With these choices: about \d+ s\.", page.text("status"))
    page.watch().forget().by_id("again").click()
    before, after = page.until("Done").pixels(canvas)
    assert abs(after - made(exported, large, 3, 1, window=SIZE)).max() <= 1
    np.testing.assert_array_equal(before, np.asarray(Image.open(large)))
    first, *_, last = [text for text in page.seen if text.startswith("Step")]
    assert first == "Step 1 of 4, window 4 of 20."
    assert re.fullmatch(r"Step 4 of 4, window 20 of 20: .* s left\.", last)
    page.by_id("save").click()
    page.wait(lambda: (tmp_path / "large-restored.png").exists())
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "large-restored.png").convert("RGB")), after
    )
    clip = f"return getComputedStyle(document.querySelectorAll('{canvas}')[1]).clipPath"
    assert "50%" in page.script(clip)
    page.find("#photographs-compare input").send_keys(Keys.HOME)
    assert "50%" not in page.script(clip)
    alpha, small = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE), noise(5, SIZE, SIZE)
    small.putalpha(Image.fromarray(alpha))
    small.save(tmp_path / "small.png")
    page.give(tmp_path / "small.png").until("Done")
    np.testing.assert_array_equal(page.pixels(canvas, 4)[1, :, :, 3], alpha)


@pytest.mark.nightly
def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(page: Page, tmp_path: Path):
    """A PNG of 0.4 gigapixels, which would take a browser seconds; in both tabs."""
    (tmp_path / "large.png").write_bytes(png_of(20_000, 20_000, bytes(20_000 * 20_001)))
    page.open("?pictures=1")
    page.script("window.createImageBitmap = () => { throw new Error('decoded') }")
    limits = {
        "drawings": "and this page opens up to 67.1: make it smaller first.",
        "photographs": "and this page restores up to 16.8. The command takes any size: bbdm restore large.png",
    }
    for tab, limit in limits.items():
        page.show(tab).until("Ready", "Done").by_id("file").send_keys(str(tmp_path / "large.png"))
        assert page.until_warned() == f"large.png has 400.0 megapixels, {limit}"


@pytest.mark.nightly
def test_photographs_are_there_offline_after_a_visit_of_drawings(
    page: Page, site: Site, tmp_path: Path
):
    noise(5, 20, 20).save(tmp_path / "photo.png")
    page.open().driver.execute_async_script(KEPT)
    page.wait(lambda: page.driver.execute_async_script(NETWORKS) == 2)
    site.stop()
    page.show("photographs").until("Ready").give(tmp_path / "photo.png").until("Done")
    page.tab = "drawings"
    page.open()
    page.show("photographs").until("Ready").give(tmp_path / "photo.png").until("Done")
    assert page.text("warning") == ""


@pytest.mark.nightly
def test_draw_undo_erase_clear_and_other_colours(page: Page):
    """Each stroke is coloured by itself; a double click stops nothing."""
    mouse = interaction.POINTER_MOUSE
    page.open("?seed=1").by_id("clear").click()
    assert page.text("status") == "The sheet is empty: draw something."
    assert (page.by_id("other").is_enabled(), page.ink) == (False, 0)
    drawn, before = page.forget().draw(mouse).until("Done").ink, page.results
    assert drawn > 1000
    assert (before.shape, before.std() > 0) == ((4, SIZE, SIZE, 3), True)
    page.watch().forget()
    ActionChains(page.driver).double_click(page.by_id("other")).perform()
    assert (page.until("Done").results != before).any()
    assert not any("Stopped" in text for text in page.seen)
    page.by_id("undo").click()
    assert page.ink == 0
    page.draw(mouse).script("document.getElementById('drawings-eraser').click()")
    assert page.draw(mouse).ink == 0
    assert not page.until("The sheet is empty").results.any()
    page.by_id("undo").click()
    assert page.ink == drawn


@pytest.mark.nightly
def test_a_drawing_comes_back_after_a_reload_by_its_link_and_from_a_saved_picture(
    page: Page, tmp_path: Path
):
    """Strokes and a picture below them, with the same pictures, also of another visitor."""
    noise(3, SIZE, SIZE).save(tmp_path / "below.png")
    page.open("?seed=5").give(tmp_path / "below.png").until("Done").forget().draw().until("Done")
    page.choose(line=3, solver="dpm2m", calls=3).until("Done")
    drawn, results = page.pixels("#drawings-sheet"), page.results
    page.script("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.by_id("link").click()
    link = page.until("The link is copied").script("return copied")
    page.script("document.querySelectorAll('#drawings-results button')[2].click()")
    page.wait(lambda: (tmp_path / "seed-7.png").exists())

    def same(opened: Page, first: int = 0) -> None:
        np.testing.assert_array_equal(opened.pixels("#drawings-sheet"), drawn)
        np.testing.assert_array_equal(opened.results[: 4 - first], results[first:])
        page.script("localStorage.clear()")

    same(page.open())
    page.open().forget().by_id("file").send_keys(str(tmp_path / "seed-7.png"))
    same(page.until("Done"), 2)
    page.driver.get("about:blank")
    same(page.open(link.removeprefix(page.site.address)))
    page.driver.get(f"{page.site.address}#drawing=BAAA")
    assert page.until_warned() == "The drawing cannot be read: the drawing is cut short."


SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><path d="M9 36h54" stroke="#000" {}/></svg>'


@pytest.mark.nightly
def test_other_kinds_of_pictures_are_named(page: Page, tmp_path: Path):
    """An SVG is drawn; nothing is made of white, and the drawing of before stays."""
    for name, width in (("lines.svg", 4), ("dark.svg", 60)):
        (tmp_path / name).write_text(SVG.format(f'stroke-width="{width}"'))
    noise(1).save(tmp_path / "noise.png")
    (tmp_path / "letter.png").write_text("no picture")
    Image.new("RGB", (40, 30), (254, 255, 253)).save(tmp_path / "white.jpg")
    said = {
        "lines.svg": "",
        "white.jpg": "white.jpg is white all over: there is nothing to colour.",
        "letter.png": "letter.png is not a picture that this browser can read.",
        "dark.svg": "dark.svg has colours or dark areas.",
        "noise.png": "noise.png looks like a photograph.",
    }
    page.open()
    for name, warning in said.items():
        assert page.give(tmp_path / name).text("warning").startswith(warning), name
        if name in ("lines.svg", "white.jpg"):  # a line across, which stays
            columns = page.pixels("#drawings-sheet")[0].min(axis=(0, 2))
            assert columns[len(columns) // 4 : -len(columns) // 4].max() < 200
    page.find("#drawings-warning button").click()
    page.tab = "photographs"
    assert page.until("Done").text("warning") == ""
    lines = page.give(tmp_path / "lines.svg").text("warning")
    assert lines.startswith("lines.svg looks like a drawing. This network knows photographs alone.")


@pytest.mark.nightly
def test_a_later_file_wins_over_an_earlier_one_that_is_slower(page: Page, tmp_path: Path):
    slowly = """const open = createImageBitmap; window.createImageBitmap = async (file) => {
        if (file.name === "slow.png") await new Promise((resolve) => setTimeout(resolve, 1000));
        return open(file) }"""
    page.command("Page.addScriptToEvaluateOnNewDocument", {"source": slowly})
    page.open()
    for i, name in enumerate(("slow.png", "fast.png")):
        noise(i, 20, 20).save(tmp_path / name)
    for tab, canvas in zip(TABS, ("#drawings-sheet", "#photographs-compare canvas"), strict=True):
        page.show(tab).until("Ready", "Done").by_id("file").send_keys(str(tmp_path / "slow.png"))
        shown = page.give(tmp_path / "fast.png").until("Done").pixels(canvas)
        time.sleep(1.5)
        np.testing.assert_array_equal(page.until("Done").pixels(canvas), shown)
        assert "slow" not in page.text("warning")


@pytest.mark.nightly
def test_the_network_is_downloaded_once_and_again_when_it_changed(page: Page, site: Site):
    unet, settings = site.folder / "drawings/unet.onnx", site.folder / "drawings/bridge.json"
    for wanted in (1, 1, 2):
        if wanted == 2:
            graph = onnx.load(unet)
            graph.doc_string = "changed"
            onnx.save(graph, unet)
            content = json.loads(settings.read_text())
            content["files"]["unet.onnx"] = file_sha256(unet)
            settings.write_text(json.dumps(content))
        page.open()
        assert site.asked.count("/drawings/unet.onnx") == wanted
    page.wait(lambda: page.driver.execute_async_script(NETWORKS) == len(TABS))


@pytest.mark.nightly
def test_a_model_that_cannot_be_read_gives_a_message_and_is_tried_again(page: Page, site: Site):
    """One that is missing, for which a drawing waits, and one that is damaged."""
    page.driver.get(f"{site.address}?model=other")
    assert (
        page.until_warned()
        == f"{site.address}other/bridge.json cannot be read: the server says 404. Try again"
    )
    before = page.ink
    assert page.draw().ink > before + 1000
    shutil.copytree(site.folder / "drawings", site.folder / "other")
    page.find("#drawings-warning button").click()
    assert page.until("Done").text("warning") == ""
    assert page.results.shape == (4, SIZE, SIZE, 3)
    unet = shutil.copytree(site.folder / "drawings", site.folder / "damaged") / "unet.onnx"
    unet.write_bytes(unet.read_bytes()[:-1] + b"x")
    page.driver.get(f"{site.address}?model=damaged")
    assert page.until_warned().startswith(
        "unet.onnx is not what bridge.json describes: it is damaged, or of another"
    )


@pytest.mark.nightly
def test_the_page_works_and_opens_without_its_server(page: Page, site: Site, picture: Path):
    page.open("?pictures=1").driver.execute_async_script(KEPT)
    site.stop()
    online = page.give(picture).until("Done").results
    page.open("?pictures=1")
    assert abs(page.give(picture).until("Done").results - online).max() <= 1
    assert page.script("return crossOriginIsolated")


@pytest.mark.nightly
def test_a_phone_shows_sheet_and_button_at_once_and_nothing_outside(page: Page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.command("Emulation.setDeviceMetricsOverride", size)
    page.open().forget().draw(interaction.POINTER_TOUCH).until("Done")
    assert page.script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    *shown, picture = (
        page.script("""return ["#drawings-sheet", "#drawings-other", "#drawings-results figure"].map(
        (each) => document.querySelector(each).getBoundingClientRect().bottom)""")
    )
    assert max(shown) < 844 * 0.7
    assert picture < 844  # the first pictures are seen too, and so is what is between
    outside = """return [...document.querySelectorAll("button, select, input, canvas, progress")].filter(
        (each) => each.getBoundingClientRect().right > innerWidth).map((each) => each.id)"""
    for tab in TABS:
        assert page.show(tab).until("Ready", "Done").script(outside) == []


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("page", "software"), [((), False), (SOFTWARE_WEBGPU, True)], indirect=["page"]
)
def test_the_picture_is_right_whether_there_is_webgpu_or_not(
    page: Page, software: bool, exported: Path, picture: Path
):
    """And whether it agrees with WASM, which goes on otherwise, with a message."""
    page.open("?device=webgpu&pictures=1&seed=0")
    refused, device = page.text("warning"), page.by_id("advanced-device").get_attribute("value")
    none = "The graphics card is not used: this browser offers no WebGPU. The processor goes on."
    assert refused == none or (
        software and (not refused or "one call differs from WASM by" in refused)
    )
    assert device == ("wasm" if refused else "webgpu")
    page.give(picture).until("Done")
    assert abs(page.results - made(exported, picture, 0, 1)).max() <= (
        2 if device == "webgpu" else 1
    )


@pytest.mark.nightly
def test_a_seed_that_is_none_gives_a_message(page: Page):
    page.open("?pictures=4")
    for seed in ("1.5", "9223372036854775805"):
        said = "The seed must be a whole number from 0 to 9223372036854775804"
        assert page.enter_seed(seed).until_warned() == f"{said}; 4 pictures take it and the next 3."
    assert page.forget().enter_seed("9223372036854775804").until("Done").text("warning") == ""
    # an empty field draws one
    assert page.forget().enter_seed("").until("Done").text("warning") == ""
    drawn = int(page.by_id("advanced-seed").get_attribute("value"))
    assert 0 <= drawn < 2**32
    assert f"seed={drawn}&" in page.script("return localStorage['bbdm-drawing']")


@pytest.mark.nightly
def test_all_is_done_with_the_keyboard_and_axe_finds_no_violations(page: Page, picture: Path):
    """Tab reaches every control and shows where it is; keys draw, choose, compare and change tabs."""
    page.open("?pictures=1&seed=0")
    outlined = """const focused = document.activeElement;
        return [focused, focused.closest(".button, .switch label, .sheet")].some((x) => x
            && getComputedStyle(x).outlineStyle === "solid")"""
    reached: list[str] = []
    for _ in range(30):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        focused = page.driver.switch_to.active_element
        if focused.tag_name == "body":
            break
        reached.append(
            focused.get_attribute("id").removeprefix("drawings-") or focused.accessible_name
        )
        assert page.script(outlined), reached[-1]
    tools = ["tab", "sheet", "pen", "clear", "other", "compare", "Save this picture as PNG"]
    examples = [f"Colour the {name}" for name in ("pumpkin", "crab", "shirt", "face")]
    assert reached == [*tools, *examples, "file", "link", "Advanced"]
    page.script(AXE.read_text())

    def check() -> None:
        page.script("for (const each of document.querySelectorAll('details')) each.open = true")
        for scheme in ("light", "dark"):
            colours = [{"name": "prefers-color-scheme", "value": scheme}]
            page.command("Emulation.setEmulatedMedia", {"features": colours})
            passed, violated = (
                page.driver.execute_async_script("""axe.run().then(({ passes, violations }) =>
                arguments[0]([passes.length, violations.map(({ id, nodes }) => [id, nodes.map((n) => n.html)])]))""")
            )
            assert (passed > 10, violated) == (True, []), scheme

    check()
    page.by_id("clear").click()
    page.forget().by_id("sheet").send_keys(
        " ", *[Keys.ARROW_RIGHT] * 3, " ", *[Keys.ARROW_DOWN] * 3
    )
    assert page.until("Done").ink > 1000
    first = page.results
    page.forget().find("#drawings-examples button").send_keys(Keys.ENTER)
    assert (page.until("Done").results != first).any()
    page.forget().by_id("compare").send_keys(" ")
    page.until("Done")
    check()
    page.by_id("tab").send_keys(Keys.ARROW_RIGHT)
    page.tab = "photographs"
    assert page.until("Ready").by_id("tab").get_attribute("aria-selected") == "true"
    page.give(picture).until("Done")
    check()


@pytest.mark.nightly
def test_the_bundled_export(page: Page, bundled_export: Path):
    """The page opens with pictures of it, before it is there; a cold load is at most 22 MB, then 18."""
    page.site, drawing = Site(DIST), demo.DRAWINGS / "1F383.png"
    page.open().driver.execute_async_script(KEPT)
    page.wait(lambda: page.driver.execute_async_script(NETWORKS) == len(TABS))
    later = (DIST / "photographs" / "unet.onnx.gzip").stat().st_size
    assert later <= 18e6
    assert page.site.sent - later <= 22e6
    opening = page.results
    page.forget().choose(pictures=3)  # of the same drawing and seeds, made here
    assert abs(page.until("Done").results.astype(int) - opening[:3]).mean() < 0.5
    page.open("?solver=dpm2m&calls=3&pictures=1&seed=0").give(drawing).until("Done")
    off = abs(page.results - made(bundled_export, drawing, 0, 1, solver="dpm2m", steps=3))
    page.site.stop()
    assert off.mean() < 0.5  # of 255: a trained network amplifies rounding at the edges of colours
    assert np.quantile(off, 0.99) <= 2
