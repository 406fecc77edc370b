"""`bbdm translate` as a user runs it, with a network too small to be good."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from bbdm import ABridge, BridgeSampler, VQGANCodec, cli, save_checkpoint, save_vqgan
from bbdm.base import progress
from bbdm.base.seeds import seed_of
from bbdm.cli import eval as eval_script
from bbdm.cli import train, translate
from bbdm.cli.translate import Translate
from bbdm.data.degradations import Degradation
from bbdm.execution.processes import Processes
from bbdm.networks.base import state_hash
from bbdm.pictures import images
from bbdm.translation import specs
from bbdm.translation.translator import Translator
from tests.cli.conftest import SIZE, pixels, sides
from tests.conftest import SavePicture, noise, tiny_unet
from tests.data.test_names import HOSTILE
from tests.networks.test_vqgan import tiny_vqgan

RESULTS = ["04.png", "05.png", "06.png", "grid.png", "results.jsonl", "settings.json"]


pytestmark = pytest.mark.usefixtures("world")


def run(*flags: str, output: str = "results") -> None:
    translate.main(["edge2shoes", "data", "c.pt", output, "--steps", "3", *flags])


def made() -> list[str]:
    return sorted(path.name for path in Path("results").iterdir())


def test_a_single_batch_shows_its_steps(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    """None of its results is done before the last step; of a log in which a minute passes at each look."""
    minutes = iter(range(1000))
    monkeypatch.setattr(progress, "clock", lambda: 60.0 * next(minutes))
    run("--quiet", output="quiet")
    assert capsys.readouterr().err == ""
    run()
    lines = [line.partition(";")[0] for line in capsys.readouterr().err.splitlines()]
    steps = [f"translating: 0 of 3 results, step {step} of 3" for step in (1, 2, 3)]
    assert lines == ["translating data with c.pt", *steps, "translating: 3 of 3 results"]


def test_flags_of_the_public_code():
    """And of this library, by other names."""
    words = [
        "edge2shoes",
        "data",
        "c.pt",
        "--t",
        "9",
        "-l",
        "1.5",
        "-vq",
        "v.pt",
        "-b",
        "8",
        "-use_multi_gpus",
    ]
    for repeat, size in (("-r", "--size"), ("--repeat", "--image_size"), ("--samples", "--size")):
        config = Translate.parse(
            [*words, repeat, "2", size, "64x128", "--maps", "mean,std", "--fast_sampling"]
        )
        values = {
            "time_steps": 9,
            "c_lambda": 1.5,
            "vqgan_path": Path("v.pt"),
            "batch_size": 8,
            "num_samples": 2,
        }
        assert values.items() <= vars(config).items()
        assert (config.image_size, config.maps, config.use_multi_gpus) == (
            (64, 128),
            ("mean", "std"),
            True,
        )
        assert (config.solver, config.folder) == ("fast", Path("out/c"))


def test_results_have_names_seeds_and_a_grid(capsys: Any):
    """Source i has the seed plus i at any batch size; the grid is source, result, target."""
    run("--seed", "5", "-b", "2")
    assert made() == RESULTS
    assert "3 results in results" in capsys.readouterr().out
    source, target = sides("06")
    (wanted,) = BridgeSampler.from_checkpoint("c.pt", steps=3)([source], seed=7)
    assert np.abs(pixels("results/06.png") - np.asarray(wanted, int)).max() <= 1
    grid = pixels("results/grid.png")[images.NAME_HEIGHT :]
    assert grid.shape == (3 * (SIZE + 2) + 2, 3 * (SIZE + 2) + 2, 3)
    cells = [grid[-SIZE - 2 : -2, 2 + i * (SIZE + 2) :][:, :SIZE] for i in range(3)]
    for cell, expected in zip(
        cells, (np.asarray(source), pixels("results/06.png"), target), strict=True
    ):
        assert np.abs(cell - expected).max() <= 1


def description(path: str) -> str:
    """What a PNG says of what made it."""
    return str(Image.open(path).info.get("Description", ""))


def test_a_single_file_has_the_result_that_it_has_in_its_folder() -> None:
    cli.run("translate", ["folder", "data/val", "c.pt", "all", "--image_size", "keep"])
    cli.run("translate", ["folder", "data/val/05.png", "c.pt", "one", "--image_size", "keep"])
    assert sorted(path.name for path in Path("one").glob("*.png")) == ["05.png", "grid.png"]
    # batches of 3 and 1 agree to rounding
    assert abs(pixels("one/05.png") - pixels("all/05.png")).max() <= 1


def test_results_say_what_made_them_and_plain_files_do_not():
    """With the seed of each; of a map with those of its samples. The pixels are the same."""
    run("--seed", "5")
    model = state_hash(tiny_unet().state_dict())[:10]
    assert description("results/06.png") == f"made by bbdm: model {model}, seed 7, 3 steps, dpm2m"
    run("--seed", "5", "--plain_files", output="plain")
    assert description("plain/06.png") == ""
    assert pixels("plain/06.png").tolist() == pixels("results/06.png").tolist()
    with pytest.raises(ValueError, match=r"other settings \(plain_files None, now True\)"):
        run("--seed", "5", "--plain_files")
    run("--solver", "sde-dpm2m", "--maps", "std", "--samples", "4", output="maps")
    assert (
        description("maps/04_std.png")
        == f"made by bbdm: model {model}, seed 0 and 3 more, 3 steps, sde-dpm2m"
    )


def test_processes_compile_in_the_dtype_of_the_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Processes, "gather", lambda *_: [torch.bfloat16, torch.float32])
    translator = Translator(Translate.parse(["edge2shoes", "data", "c.pt", "--compile"]))
    assert translator.sampler("dpm2m", 3).dtype == torch.bfloat16


def test_results_are_kept_without_overwrite_and_leftovers_are_deleted(
    capsys: pytest.CaptureFixture[str],
):
    """What a killed run was writing, and nothing that has another form of name."""
    run()
    before = pixels("results/05.png")
    Path("results/06.png").unlink()
    for name in (".04.png.0123abcd.tmp", ".settings.json.0123abcd.tmp", ".04.png.0123.tmp"):
        Path("results", name).touch()
    Path("results/.06.png.0123abcd.tmp").mkdir()  # of a format that is written in a folder
    run()
    assert "1 results in results, and 2 that were there" in capsys.readouterr().out
    assert made() == [".04.png.0123.tmp", *RESULTS]
    os.utime("results/05.png", (0, 0))
    run("--overwrite")
    assert os.stat("results/05.png").st_mtime > 0
    assert np.array_equal(pixels("results/05.png"), before)


def test_results_of_another_solver_are_never_kept(capsys: pytest.CaptureFixture[str]):
    """Maps, which have other names, replace them; and then samples replace the maps."""
    run("--solver", "sde-dpm2m", "-r", "2")
    run("--solver", "ddim", "-r", "2", "--maps", "mean", "--overwrite")
    assert made() == ["04_mean.png", "05_mean.png", "06_mean.png", *RESULTS[3:]]
    with pytest.raises(
        ValueError, match=r"results holds results of other settings \(maps \['mean'\], now \[\]\)"
    ):
        run("--solver", "ddim", "-r", "2")
    capsys.readouterr()
    run("--solver", "ddim", "-r", "2", "--overwrite")
    assert "6 results in results (" in capsys.readouterr().out
    run("--solver", "ddim", "-r", "2", output="alone")
    for name in ("04_0", "04_1", "05_0", "05_1", "06_0", "06_1"):
        assert Path(f"results/{name}.png").read_bytes() == Path(f"alone/{name}.png").read_bytes()


def test_a_folder_that_grew_by_a_picture_makes_that_one(
    count: list[int], capsys: pytest.CaptureFixture[str]
):
    """With seeds by index, those behind it have other seeds, and are made anew."""
    Path("own").mkdir()
    for index, name in enumerate("ac"):
        noise(index).save(f"own/{name}.png")
    words = ["folder", "own", "c.pt", "results", "--solver", "ddim", "--steps", "2"]
    translate.main(words)
    noise(2).save("own/b.png")
    count.clear()
    translate.main(words)
    assert count == [1]
    assert "1 results in results, and 2 that were there" in capsys.readouterr().out
    run(output="pairs")
    noise(3, 2 * SIZE, SIZE).save("data/val/055.png")
    count.clear()
    capsys.readouterr()
    run(output="pairs")
    assert sum(count) == 2
    printed = capsys.readouterr().out
    assert "1 results are made anew: their sources, seeds or files have changed\n" in printed
    assert "2 results in pairs, and 2 that were there" in printed
    (expected,) = BridgeSampler.from_checkpoint("c.pt", steps=3)([sides("06")[0]], seed=3)
    assert np.abs(pixels("pairs/06.png") - np.asarray(expected, int)).max() <= 1


def test_own_sources_keep_their_shape_whatever_the_batch():
    def found(*flags: str) -> list[tuple[int, int]]:
        translate.main(["folder", "own", "c.pt", "out", "--steps", "2", "--overwrite", *flags])
        return [Image.open(f"out/{name}.png").size for name in ("wide", "high", "same")]

    Path("own").mkdir()
    for name, size in (("wide", (40, 20)), ("high", (12, 25)), ("same", (16, 16))):
        noise(0, *size).save(f"own/{name}.png")
    assert found() == found("--size", "fit") == [(16, 8), (8, 16), (16, 16)]
    assert found("--size", "train") == [(16, 16)] * 3
    assert found("--size", "20x8") == [(8, 20)] * 3
    assert found("--size", "keep") == [(40, 20), (12, 25), (16, 16)]
    together = pixels("out/high.png")
    found("--size", "keep", "-b", "1")
    assert np.abs(pixels("out/high.png") - together).max() <= 1


def test_bad_pictures_are_skipped_and_listed(capsys: pytest.CaptureFixture[str]):
    """The seeds of others stay."""
    run()
    expected = pixels("results/06.png")
    Path("data/val/05.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cannot read the picture data/val/05\.png"):
        run("--overwrite")
    run("--overwrite", "--skip_bad")
    printed = capsys.readouterr().out
    assert "left out: cannot read the picture data/val/05.png" in printed
    assert "2 results in results" in printed
    assert made() == [name for name in RESULTS if name != "05.png"]
    assert np.abs(pixels("results/06.png") - expected).max() <= 1  # in a batch of two, not of three


def test_latents_and_a_pickled_network_with_everything_from_flags():
    """A file that holds its autoencoder takes no other one; the public A-Bridge code saves a bare network."""
    save_vqgan("vqgan.pt", tiny_vqgan())
    save_vqgan("other.pt", tiny_vqgan(1))
    network = tiny_unet(model_channels=32, num_groups=32)  # as published ones have
    save_checkpoint(
        "c.pt", network, ABridge(100, 1.5), codec=VQGANCodec(tiny_vqgan()), image_size=SIZE
    )
    torch.save(network, "bare.model")
    run()
    run("-vq", "vqgan.pt", output="same")
    bare = ["edge2shoes", "data", "bare.model", "bare", "--steps", "3", "--image_size", str(SIZE)]
    translate.main([*bare, "-t", "100", "-l", "1.5", "-vq", "vqgan.pt"])
    first, *others = (pixels(f"{folder}/04.png").tolist() for folder in ("results", "same", "bare"))
    assert others == [first, first]
    with pytest.raises(
        ValueError, match="another codec was given than the one that the network was trained with"
    ):
        run("-vq", "other.pt")
    with pytest.raises(ValueError, match=r"cannot read bare.model"):
        translate.main(bare)


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BridgeSampler, "__call__", fail)
    with pytest.raises(
        ValueError, match="the device is out of memory: lower --batch_size 64 or --image_size 16"
    ):
        run()


def test_no_picture_of_the_user_is_overwritten_and_a_grid_has_16():
    Path("pictures").mkdir()
    for i in range(17):
        noise(i).save(f"pictures/{'grid' if i == 0 else i}.png")
    before = Path("pictures/grid.png").read_bytes()
    with pytest.raises(ValueError, match=r"\.png would replace another picture"):
        translate.main(
            ["folder", "pictures", "c.pt", "pictures", "--solver", "mean", "--overwrite"]
        )
    assert Path("pictures/grid.png").read_bytes() == before
    translate.main(["folder", "pictures", "c.pt", "results", "--solver", "mean"])
    assert (len(made()), Image.open("results/grid.png").size) == (20, (SIZE, SIZE))
    grid, cell = pixels("results/grid_of_results.png")[images.NAME_HEIGHT :], SIZE + 2
    assert grid.shape[0] == 6 * cell + 2  # of three pairs each
    assert not grid[-cell:-2, 2 + 2 * cell :].std()  # the last has one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "edge2shoes data c.pt --fast_sampling --solver ddim",
            "--fast_sampling means --solver fast, got --solver ddim",
        ),
        (
            "edge2shoes data c.pt out --maps mean",
            "--maps are of several results: --num_samples must be at least 2",
        ),
        (
            "edge2shoes data c.pt results --image_size 0",
            "image_size must be an integer .* at least 1, got 0",
        ),
        ("edge2shoes data c.pt file", "file is a file, and a folder is needed there"),
        ("edge2shoes data c.pt out --device gpu", "device 'gpu' cannot be used here: "),
    ],
)
def test_what_the_command_refuses(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    Path("file").touch()
    with pytest.raises(SystemExit) as end:
        cli.run("translate", words.split())
    assert re.search(message, f"{capsys.readouterr().err}{end.value}")
    assert not Path("results").exists()


def test_the_size_of_files_that_do_not_hold_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """It is 256; the test takes less."""
    assert specs.DEFAULT_SIZE == 256
    monkeypatch.setattr(specs, "DEFAULT_SIZE", 24)
    save_checkpoint("c.pt", tiny_unet(), ABridge(num_steps=100))
    run()
    assert (
        "c.pt does not hold the size of its pictures: image_size is 24\n" in capsys.readouterr().out
    )
    assert Image.open("results/04.png").size == (24, 24)


@pytest.fixture
def own(world: Path, save_picture: SavePicture) -> None:
    """Pictures in own/val, wider than high."""
    for index, name in enumerate("ab"):
        save_picture(world / "own" / "val" / f"{name}.png", noise(index, 2 * SIZE, SIZE))


def test_training_degrades_and_refuses_another_degradation(own: None, tiny_demo: None) -> None:
    """From cached pictures too; `val` is what there is to train on."""
    Path("own/val").rename("own/train")
    words = [
        "folder",
        "own",
        "m.pt",
        "--preset",
        "demo",
        "--image_size",
        str(SIZE),
        "-b",
        "2",
        "-e",
        "1",
    ]
    train.main([*words, "--degrade", "photo", "--cache_images", "cache"])
    assert json.loads(Path("m.run/config.json").read_text())["pairs"]["degradation"] == "photo@0"
    with pytest.raises(
        ValueError, match=r"pairs.degradation photo@0, now blur@0,.*: resume with the same"
    ):
        train.main([*words, "--degrade", "blur", "-e", "2"])
    with pytest.raises(ValueError, match="degrade is for pictures without targets"):
        train.main(["edge2shoes", "data", *words[2:], "--degrade", "sr4"])


def original(name: str, size: tuple[int, int]) -> Image.Image:
    return Image.open(f"own/val/{name}.png").resize(size, Image.Resampling.BILINEAR)


def test_results_are_of_the_degraded_pictures_and_the_grid_and_scores_of_the_originals(
    own: None,
) -> None:
    """And results of another degradation are refused."""
    words = ["folder", "own", "c.pt", "results", "--steps", "2"]
    translate.main([*words, "--degrade", "blur"])
    grid, gap = pixels("results/grid.png")[images.NAME_HEIGHT :], 2
    height, width = SIZE // 2, SIZE  # val pictures fit inside SIZE x SIZE with their shape
    cells = [grid[gap:, gap + i * (width + gap) :][:height, :width] for i in range(3)]
    clean = np.asarray(original("a", (width, height)))
    assert np.array_equal(cells[2], clean)
    blurred = gaussian_filter(clean.astype(np.float64), (2, 2, 0), mode="nearest")
    assert abs(cells[0] - blurred).max() < 0.6  # rounded to whole numbers
    assert np.array_equal(cells[1], pixels("results/a.png"))
    with pytest.raises(ValueError, match="degradation blur@0, now sr4@0"):
        translate.main([*words, "--degrade", "sr4"])
    eval_script.main([*words[:3], "scored", *words[4:], "--metrics", "psnr", "--degrade", "photo"])
    report, wanted = json.loads(Path("scored/scores.json").read_text()), list[float]()
    for name in "ab":
        source = Degradation.read("photo").picture(original(name, (SIZE, SIZE)), name)
        (result,) = BridgeSampler.from_checkpoint("c.pt", steps=2)([source], seed=seed_of(name))
        assert abs(pixels(f"scored/{name}.png") - np.asarray(result, dtype=int)).max() <= 1
        gap = pixels(f"scored/{name}.png") - np.asarray(original(name, (SIZE, SIZE)), float)
        wanted.append(20 * np.log10(255 / np.sqrt((gap**2).mean())))
    assert report["scores"]["psnr"] == pytest.approx(np.mean(wanted), rel=1e-5)
    assert report["settings"]["degradation"] == "photo@0"


@pytest.mark.parametrize("text", HOSTILE)
def test_names_that_lead_outside_write_nothing(text: str):
    """Whoever gives the rows; also where all that exists may be written again."""
    Image.new("RGB", (SIZE, SIZE)).save("source.png")
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    config = Translate.parse(["folder", "own", "c.pt", "out/deep", "--overwrite"])
    with pytest.raises(ValueError, match="the name of a row must be a relative path"):
        Translator(config, [{"name": text, "source": Path("source.png")}]).run(
            None, 2, config.folder
        )
    assert {path: path.read_bytes() for path in Path().rglob("*.*")} == before


def test_a_name_in_a_table_and_a_link_write_nothing_outside(capsys: pytest.CaptureFixture[str]):
    noise(0, SIZE, SIZE).save("a.png")
    Path("rows.csv").write_text("name,source\n../a,a.png\n")
    before = Path("a.png").read_bytes()
    with pytest.raises(SystemExit, match=r"the name of a row must be .*got '\.\./a'"):
        cli.run("translate", ["table", "rows.csv", "c.pt", "out", "--steps", "2", "--overwrite"])
    Path("rows.csv").write_text("source\na.png\n")
    Path("out").mkdir()
    Path("out/a.png").symlink_to(Path("elsewhere.png").resolve())
    with pytest.raises(SystemExit, match=r"out/a\.png leads out of out by a link"):
        cli.run("translate", ["table", "rows.csv", "c.pt", "out", "--steps", "2", "--overwrite"])
    assert Path("a.png").read_bytes() == before
    assert not Path("elsewhere.png").exists()


def test_what_is_done_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """On a CPU, a picture at a time of 256 x 256; the same command makes the others."""
    Path("own").mkdir()
    for name in "abc":
        noise(0, 256, 256).save(f"own/{name}.png")
    call, calls = BridgeSampler.__call__, list[int]()

    def stop(self: BridgeSampler, source: Any, *args: Any, **settings: Any) -> Any:
        calls.append(len(source))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, source, *args, **settings)

    monkeypatch.setattr(BridgeSampler, "__call__", stop)
    words = ["folder", "own", "c.pt", "results", "--solver", "mean", "--size", "keep"]
    with pytest.raises(SystemExit):
        cli.run("translate", words)
    assert "interrupted: the same command makes what is missing" in capsys.readouterr().err
    assert made() == ["a.png", "b.png", "results.jsonl", "settings.json"]
    cli.run("translate", words)
    assert "1 results in results, and 2 that were there" in capsys.readouterr().out
    assert calls == [1] * 4


@pytest.mark.parametrize(
    "wrong", ["there is no picture b.png", "cannot read the picture b.png: [Errno 13]"]
)
def test_files_that_are_missing_or_may_not_be_read_are_left_out(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in "abc":
        noise(0).save(f"{name}.png")
    Path("rows.csv").write_text("source\na.png\nb.png\nc.png\n")
    if "no picture" in wrong:
        Path("b.png").unlink()
    opened = open

    # as a system does for who is not its administrator
    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith("b.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    if "13" in wrong:
        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr("io.open", refuse)
    cli.run("translate", ["table", "rows.csv", "c.pt", "results", "--steps", "2", "--skip_bad"])
    assert f"left out: {wrong}" in capsys.readouterr().out
    assert made() == ["a.png", "c.png", "grid.png", "results.jsonl", "settings.json"]
