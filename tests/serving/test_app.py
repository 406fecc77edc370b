"""`bbdm app` without a browser, with a network too small to be good."""

import asyncio
import io
import zipfile
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from gradio.components.image_editor import EditorData
from gradio.data_classes import FileData
from PIL import EpsImagePlugin, Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bbdm import BridgeSampler, demo, save_checkpoint
from bbdm.data.spec import Spec
from bbdm.serving import app, uploads
from bbdm.serving.config import App
from bbdm.serving.panel import Panel
from tests.conftest import noise, tiny_unet
from tests.onnx.exports import BRIDGE, SIZE
from tests.serving.conftest import HOSTILE_NAMES, encoded, png_of, same, tree

INPUTS: dict[str, Any] = {
    "drawing": None,
    "files": None,
    "count": 1,
    "maps": False,
    "direction": None,
}
INPUTS |= {"solver": "sde-dpm2m", "steps": 3, "seed": 5}


def panel(checkpoint: Path, **settings: Any) -> Panel:
    return Panel(App(model=checkpoint, device="cpu", **settings), "tiny")


def saved(folder: Path, *pictures: Image.Image) -> list[tuple[str, None]]:
    """Pictures as a page's gallery gives them: 0.png, 1.png, ..."""
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    return [(str(folder / f"{i}.png"), None) for i in range(len(pictures))]


def run(
    of: Panel, progress: Any = lambda *_, **__: None, **inputs: Any
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The status, pictures and files of the zip that a page shows at the end."""
    updates = list(of.run(progress, *{**INPUTS, **inputs}.values()))
    status, gallery, button = updates[0]
    assert status == ""  # nothing of before stays
    assert gallery == []
    assert button.interactive is False

    status, gallery, button = updates[-1]
    pictures = {name: picture for picture, name in gallery}
    path = button.value
    if isinstance(path, dict):
        path = path["path"]
    with zipfile.ZipFile(path) as archive:
        files = {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}
    return status, pictures, files


@pytest.mark.parametrize(
    ("solver", "settings", "first"),
    [
        ("sde-dpm2m", {}, (16, 16)),
        ("posterior", {}, (16, 16)),
        ("dpm2m", {"window": SIZE, "overlap": 0.5}, (40, 24)),
    ],
)
def test_results_are_those_of_the_sampler(
    solver: str,
    settings: dict[str, Any],
    first: Any,
    checkpoint: Path,
    sampler: BridgeSampler,
    tmp_path: Path,
):
    """Of two sources, each before its results, by windows in turn; the zip has them all, but no source."""
    pictures, calls = [noise(0, *first), noise(1, 16, 8)], list[tuple[int, int]]()
    status, gallery, files = run(
        panel(checkpoint, **settings),
        progress=lambda call, unit: calls.append(call),
        **{"files": saved(tmp_path, *pictures), "count": 2, "solver": solver},
    )
    total = 12 if settings else 6
    assert calls == [(i + 1, total) for i in range(total)]
    assert status == "done, seeds 5 to 8"
    assert [*gallery] == ["0", "0_5", "0_6", "1", "1_7", "1_8"]
    assert same(gallery["1"], pictures[1])
    outputs = sampler(
        [pictures[i // 2] for i in range(4)], seed=5, solver=solver, steps=3, **settings
    )
    assert [*files] == [f"{i // 2}_{5 + i}.png" for i in range(4)]
    for (name, picture), output in zip(files.items(), outputs, strict=True):
        assert same(picture, output)
        assert same(gallery[name[:-4]], output)


@pytest.mark.parametrize("maps", [False, True])
def test_a_restoration_begins_with_the_expected_picture(
    maps: bool, checkpoint: Path, sampler: BridgeSampler, tmp_path: Path
):
    """As `bbdm restore` gives it, by one call; random results follow, of which alone averages are."""
    pictures, calls = [noise(0), noise(1, 16, 8)], list[tuple[int, int]]()
    of = Panel(App(model=checkpoint, device="cpu"), "tiny", expected=True)
    status, gallery, files = run(
        of,
        progress=lambda call, unit: calls.append(call),
        **{"files": saved(tmp_path, *pictures), "count": 2, "maps": maps},
    )
    assert status.startswith(
        "done, seeds 5 to 8<br>expected: the mean of all results, which is nearest to the true one"
    )
    assert calls == [(i + 1, 8) for i in range(8)]
    averages = ["0_mean", "0_spread"] if maps else []
    assert [*gallery][: 4 + len(averages)] == ["0", "0_expected", *averages, "0_5", "0_6"]
    for name, picture in zip(("0", "1"), pictures, strict=True):
        (expected,) = sampler(picture, seed=0, solver="mean", steps=1)
        assert same(gallery[f"{name}_expected"], expected)
        assert same(files[f"{name}_expected.png"], expected)
    if maps:
        found = sampler.distribution(pictures[0], 2, [[5, 6]], solver="sde-dpm2m", steps=3)
        assert same(files["0_mean.png"], found.mean[0])


def test_the_tab_of_photographs_begins_with_the_expected_picture():
    expecting = {name: rest[-1] for _, name, *rest in app.BUNDLED}
    assert expecting == {"Drawings": False, "Photographs": True}


@pytest.mark.parametrize(("count", "samples"), [(4, 4), (1, 2)])
def test_mean_and_spread_of_each_source(
    count: int, samples: int, checkpoint: Path, sampler: BridgeSampler, tmp_path: Path
):
    """Against those of the distribution of the same seeds, but for the rounding of results."""
    pictures = [noise(0), noise(1, 16, 8)]
    status, _, files = run(
        panel(checkpoint), files=saved(tmp_path, *pictures), count=count, maps=True
    )
    assert status.startswith(
        f"done, seeds 5 to {4 + 2 * samples}<br>mean: their average; spread: white is"
    )
    assert [*files][:3] == ["0_mean.png", "0_spread.png", "0_5.png"]
    for i, picture in enumerate(pictures):
        seeds = [[*range(5 + samples * i, 5 + samples * (i + 1))]]
        found = sampler.distribution(picture, samples, seeds, solver="sde-dpm2m", steps=3)
        assert same(files[f"{i}_mean.png"], found.mean[0])
        levels = 127.5 * found.scaled_std[0].mean(0)
        assert (
            np.abs(np.asarray(files[f"{i}_spread.png"]) - np.minimum(2 * levels, 255)).max() < 2.5
        )


@pytest.mark.parametrize(
    ("settings", "crop", "size"),
    [
        ({}, None, (16, 10)),
        ({"window": SIZE}, None, (40, 24)),
        ({}, SIZE, (40, 24)),
        ({"window": None}, SIZE, (16, 10)),
    ],
)
def test_sources_are_made_to_fit_unless_by_windows(
    settings: Any, crop: Any, size: Any, tmp_path: Path
):
    """Drawings always; of one name, each has a name of its own."""
    unet = tiny_unet(0, condition_channels=3)
    save_checkpoint(tmp_path / "c.pt", unet, BRIDGE, image_size=SIZE, pictures=Spec(crop=crop))
    sheet = Image.new("RGBA", (64, 32), "white")
    sheet.putpixel((20, 20), (0, 0, 0, 255))
    of, files = panel(tmp_path / "c.pt", **settings), saved(tmp_path, noise(2, 40, 24))
    found = of.sources({"composite": sheet}, files * 2)
    assert {name: each.size for name, each in found.items()} == {
        "drawing": (16, 8),
        "0": size,
        "0_2": size,
    }
    noise(2, 40, 24).save(tmp_path / "drawing.png")  # which was not drawn here
    assert of.sources(None, [(str(tmp_path / "drawing.png"), None)])["drawing"].size == size


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"files": None}, "choose a picture first, or draw one"),
        (
            {"files": None, "drawing": {"composite": Image.new("RGBA", (64, 64), "white")}},
            "choose a picture first",
        ),
        (
            {"files": ["<b>.png"]},
            "cannot read the picture &lt;b&gt;.png: it is not BMP, JPEG, PNG, WEBP",
        ),
        ({"files": ["0.png"] * 3}, "at most 2 pictures, got 3"),
        (
            {"files": ["1.png"]},
            "the picture 1.png may have at most 256 pixels (max_pixels); got height x width 17 x 16: the commands",
        ),
        ({"solver": "ancestral"}, "'ancestral' takes every time, steps=100; got steps=3"),
        ({"seed": 2**63 - 1, "count": 2}, "seed must be in"),  # of the second result
    ],
)
def test_an_error_is_a_message_without_old_results(
    inputs: dict[str, Any],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("bbdm.serving.panel.FILES", 2)
    (tmp_path / "<b>.png").write_bytes(b"")
    saved(tmp_path, noise(0), noise(1, 16, 17))
    names = inputs.get("files", ["0.png"])
    files = names and [(str(tmp_path / name), None) for name in names]
    with pytest.raises(gr.Error) as caught:
        run(panel(checkpoint, max_pixels=SIZE**2, window=SIZE), **{**inputs, "files": files})
    assert message in caught.value.message
    assert str(tmp_path) not in caught.value.message


def eps(path: Path) -> Path:
    """A file of PostScript, which Pillow would give to Ghostscript."""
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    )
    return path


def test_no_file_reaches_another_program(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As an upload, and as a drawing, whatever its name says."""
    run_programs: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: run_programs.append(args))
    path = eps(tmp_path / "x.png")
    with pytest.raises(
        ValueError, match=r"cannot read the picture x\.png: it is not BMP, JPEG, PNG, WEBP$"
    ):
        panel(checkpoint).sources(None, [(str(path), None)])
    blocks = app.build(App(model=checkpoint, device="cpu")).blocks.values()
    (editor,) = [block for block in blocks if isinstance(block, gr.ImageEditor)]
    for composite in (path, large(tmp_path / "large.png")):
        with pytest.raises(gr.Error) as caught:
            editor.preprocess(
                EditorData(background=None, layers=[], composite=FileData(path=str(composite)))
            )
        assert str(tmp_path) not in caught.value.message
    assert run_programs == []
    sheet = tmp_path / "sheet.png"
    Image.new("RGBA", (64, 64), (0, 0, 0, 255)).save(sheet)
    drawn = editor.preprocess(
        EditorData(background=None, layers=[], composite=FileData(path=str(sheet)))
    )
    assert drawn is not None
    assert panel(checkpoint).sources(drawn, None)["drawing"].getpixel((8, 8)) == (0, 0, 0)


def large(path: Path) -> Path:
    """A file of 42 KB that would be decoded to 36 megapixels."""
    path.write_bytes(png_of(6000, 6000, bytes(6000 * 6001)))
    return path


def test_a_large_picture_is_refused_before_any_is_decoded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoded: list[str] = []
    monkeypatch.setattr(uploads, "read", lambda path, *_: decoded.append(path))
    files = [*saved(tmp_path, noise(0)), (str(large(tmp_path / "large.png")), None)]
    limit = r"^the picture large\.png may have at most 33554432 pixels \(max_pixels\); got"
    advice = "the commands bbdm restore and bbdm translate --window take larger ones$"
    with pytest.raises(ValueError, match=f"{limit} height x width 6000 x 6000: {advice}"):
        panel(checkpoint).sources(None, files)
    # at which Pillow would fail
    (tmp_path / "large.png").write_bytes(png_of(20_000, 20_000, bytes(1000)))
    with pytest.raises(ValueError, match=f"{limit} height x width 20000 x 20000: {advice}"):
        panel(checkpoint).sources(None, files)
    assert decoded == []


def test_an_upload_is_refused_by_its_header_before_a_browser_shows_it(tmp_path: Path):
    """Then those that are refused are deleted; good ones and other requests pass."""
    files = {
        "small.png": encoded(noise(0)),
        "large.png": png_of(20_000, 20_000, b""),
        "text.png": b"hello",
    }

    async def uploaded(request: Request) -> Response:
        form = await request.form()
        paths: list[str] = []
        for each in form.getlist("files"):
            assert isinstance(each, UploadFile)
            path = tmp_path / str(each.filename)
            path.write_bytes(await each.read())
            paths.append(str(path))
        return JSONResponse(paths)

    async def other(request: Request) -> Response:
        return PlainTextResponse("other")

    gradio = Starlette(
        routes=[Route("/gradio_api/upload", uploaded, methods=["POST"]), Route("/", other)]
    )
    transport = httpx.ASGITransport(app.CheckedUploads(gradio, 2**20))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://bbdm") as http:
            assert (await http.get("/")).text == "other"
            for names, status, words in (
                (["small.png"], 200, "small.png"),
                (
                    ["large.png", "small.png", "text.png"],
                    422,
                    "large.png may have at most 1048576 pixels",
                ),
                (["text.png"], 422, "text.png: it is not BMP, JPEG, PNG, WEBP"),
            ):
                sent = [("files", (name, files[name])) for name in names]
                reply = await http.post("/gradio_api/upload", files=sent)
                assert (reply.status_code, words in reply.text) == (status, True), reply.text
                assert (str(tmp_path) in reply.text) == (status == 200)
                assert [(tmp_path / name).exists() for name in names] == [
                    name == "small.png" for name in names
                ]

    asyncio.run(ask())


def test_a_refusal_deletes_no_picture_that_was_sent_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Gradio keeps equal files as one: that of a visitor whose picture another sends beside one too large."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with gr.Blocks(analytics_enabled=False) as page:
        gr.File()
    check = Middleware(app.CheckedUploads, max_pixels=2**20)
    _, address, _ = page.launch(
        quiet=True, prevent_thread_lock=True, app_kwargs={"middleware": [check]}
    )
    small = ("files", ("small.png", encoded(noise(0))))
    large = ("files", ("large.png", png_of(20_000, 20_000, b"")))
    try:
        sent = httpx.post(f"{address}gradio_api/upload", files=[small])
        assert httpx.post(f"{address}gradio_api/upload", files=[small, large]).status_code == 422
    finally:
        page.close(verbose=False)
    (path,) = sent.json()
    assert Path(path).is_relative_to(tmp_path)
    assert Image.open(path).size == noise(0).size


def test_a_picture_far_from_the_size_of_training_is_said_on_the_page(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that is made to fit has a short side still."""
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    run(panel(checkpoint), files=saved(tmp_path, noise(0), noise(1, 6, 24)))
    assert said == [
        "1: the network was trained on pictures of 16 x 16, and is given 16 x 4: it may know nothing of them, so "
        "resize them"
    ]
    run(panel(checkpoint, window=SIZE), files=saved(tmp_path, noise(1, 6, 24)))
    assert len(said) == 1  # by windows, at its own size


def test_uploads_of_equal_names_have_a_result_each(checkpoint: Path, tmp_path: Path):
    """Also where one has the name that another would get, or differs in case, which some disks ignore."""
    files: list[tuple[str, None]] = []
    for index, name in enumerate(["x", "x_2", "x", "X"]):
        (tmp_path / str(index)).mkdir()
        noise(index).save(tmp_path / str(index) / f"{name}.png")
        files.append((str(tmp_path / str(index) / f"{name}.png"), None))
    sources = panel(checkpoint).sources(None, files)
    assert [*sources] == ["x", "x_2", "x_3", "X_4"]
    assert all(same(picture, noise(index)) for index, picture in enumerate(sources.values()))
    _, _, results = run(panel(checkpoint), files=files)
    assert [*results] == ["x_5.png", "x_2_6.png", "x_3_7.png", "X_4_8.png"]


def test_no_name_of_an_upload_leads_elsewhere(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each is refused in a sentence, or has a result inside of the folder that the zip is unpacked to."""
    of, inbox = panel(checkpoint), tmp_path / "inbox" / "deep"
    inbox.mkdir(parents=True)
    accepted: dict[str, tuple[str, None]] = {}
    for name in HOSTILE_NAMES:
        path = inbox / Path(name).name
        with suppress(ValueError, OSError):  # of names that a disk does not take
            noise(0).save(path, "png")
        with suppress(ValueError):
            accepted[path.name] = (str(path), None)
            of.sources(None, [accepted[path.name]])
            continue
        del accepted[path.name]
    assert {"x.png", "con.png", "%2e%2e"}.isdisjoint(accepted) is False
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "inbox"))
    before = {path for path in tree(tmp_path) if not path.startswith("inbox")}
    _, _, results = run(of, files=[*accepted.values()])
    assert len(results) == len(accepted)
    for name in results:
        entry = PureWindowsPath(name)
        assert not entry.is_absolute()
        assert (entry.drive, entry.root) == ("", "")
        assert ".." not in entry.parts
    assert {path for path in tree(tmp_path) if not path.startswith("inbox")} == before


def components(config: App) -> dict[str, dict[str, Any]]:
    """Properties of a page's components, by label or else by type."""
    found = app.build(config).get_config_file()["components"]
    return {each["props"].get("label") or each["type"]: each["props"] for each in found}


def test_a_page_offers_what_a_network_takes(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """The bundled ones have a tab each; that of drawings stands for both here."""
    found = components(App(model=checkpoint, device="cpu", max_steps=30))
    assert [value for _, value in found["Solver"]["choices"]] == [
        *("dpm2m", "sde-dpm2m", "midpoint", "ddim", "posterior", "fast")  # not each takes 10 calls
    ]
    numbers = [
        (found[name]["value"], found[name]["maximum"]) for name in ("Network calls", "Results")
    ]
    assert numbers == [(10, 30), (4, 8)]
    assert not found["Direction"]["visible"]
    monkeypatch.setattr(app, "BUNDLED", [(demo.WEIGHTS, *rest) for _, *rest in app.BUNDLED])
    found = components(App(device="cpu", window=64))
    assert {"Drawings", "Photographs", "Drawing", "Pictures"} <= {*found}
    assert found["Results"]["value"] == 1
    examples = [Path(file["path"]).name for (file,) in found["Examples"]["samples"]]
    assert examples == ["1F36D.png", "1F383.png", "1F427.png", "1F980.png"]
    sheet = found["imageeditor"]
    # a radius: 2 pixels of 64
    assert (sheet["canvas_size"], sheet["brush"]["default_size"]) == ([512, 512], 8)


def test_a_network_of_two_directions_has_a_switch_and_others_no_conditions(tmp_path: Path):
    unet = tiny_unet(0, condition_channels=3, classes={"direction": ("AtoB", "BtoA")})
    for module in unet.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    save_checkpoint(tmp_path / "c.pt", unet.eval(), BRIDGE, steps=2)
    files, sampler = saved(tmp_path, noise(0)), BridgeSampler.from_checkpoint(tmp_path / "c.pt")
    for way in ("AtoB", "BtoA"):
        _, gallery, _ = run(
            panel(tmp_path / "c.pt"), files=files, direction=way, solver="dpm2m", steps=2
        )
        assert same(gallery["0_5"], sampler(noise(0), 5, direction=way)[0])
    found = components(App(model=tmp_path / "c.pt", device="cpu"))["Direction"]
    assert ([value for _, value in found["choices"]], found["value"], found["visible"]) == (
        *(["AtoB", "BtoA"], "AtoB", True),
    )
    save_checkpoint(
        tmp_path / "c.pt", tiny_unet(0, condition_channels=3, classes={"style": 2}), BRIDGE
    )
    with pytest.raises(
        ValueError, match="the app is for networks without conditions, and this one has style"
    ):
        panel(tmp_path / "c.pt")
