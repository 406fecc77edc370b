"""`bbdm translate` as a user runs it, with a network too small to be good."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, UNet, VQGANCodec, save_checkpoint, save_vqgan
from bbdm.base.seeds import seed_of
from bbdm.cli import translate
from bbdm.cli.translate import Translate
from bbdm.execution import device as device_module
from bbdm.execution.processes import Processes
from bbdm.pictures import images
from bbdm.translation.results import ResultsError
from bbdm.translation.translator import TooLargeError, Translator
from tests.conftest import tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

SIZE = 16


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pairs in the layout of edge2shoes, and a checkpoint."""
    (tmp_path / "data" / "val").mkdir(parents=True)
    for name, colour in (("b", "red"), ("a", "green"), ("c", "blue")):
        pair = Image.new("RGB", (2 * SIZE, SIZE), colour)
        pair.paste("white", (0, 0, SIZE, SIZE))
        pair.save(tmp_path / "data" / "val" / f"{name}.jpg")
    torch.manual_seed(0)
    unet = UNet(3, 3, model_channels=8, channel_mult=(1, 2), head_channels=8, num_groups=4, num_res_blocks=1)
    torch.nn.init.normal_(unet.out[2].weight, std=0.1)  # pyright: ignore[reportArgumentType]
    save_checkpoint(tmp_path / "c.pt", unet, ABridge(num_steps=100), image_size=SIZE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags: str) -> None:
    translate.main(["edge2shoes", "data", "c.pt", "results", "--steps", "3", *flags])


def made() -> list[str]:
    return sorted(path.name for path in Path("results").iterdir())


def test_pictures_keep_their_size_with_windows(place: Path):
    """The results of a call by windows; settings name the windows, and others are refused."""
    Path("large").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 27, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("large/one.png")
    flags = ["folder", "large", "c.pt", "results", "--steps", "3"]
    translate.main([*flags, "--window", "16", "--overlap", "0.5"])
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=3)
    (wanted,) = sampler([pixels], seed=seed_of("one"), window=16, overlap=0.5)
    found = np.asarray(Image.open("results/one.png"), dtype=int)
    assert np.abs(found - np.asarray(wanted, dtype=int)).max() <= 1
    kept = json.loads(Path("results/settings.json").read_text())
    assert (kept["settings"]["window"], kept["settings"]["overlap"]) == (16, 0.5)
    with pytest.raises(ResultsError, match="overlap"):
        translate.main([*flags, "--window", "16", "--overlap", "0.25"])


def test_files_carry_their_sources_names_and_a_grid_is_source_result_target(place: Path, capsys: Any):
    run()
    assert made() == ["a.png", "b.png", "c.png", "grid.png", "settings.json"]
    assert Image.open("results/a.png").size == (SIZE, SIZE)
    assert "3 results in results" in capsys.readouterr().out
    grid = Image.open("results/grid.png")
    assert grid.size == (3 * (SIZE + 2) + 2, images.NAME_HEIGHT + 3 * (SIZE + 2) + 2)
    row = [grid.getpixel((2 + SIZE // 2 + i * (SIZE + 2), images.NAME_HEIGHT + 2 + SIZE // 2)) for i in range(3)]
    assert row[0] == (255, 255, 255)
    assert row[1] == Image.open("results/a.png").getpixel((SIZE // 2, SIZE // 2))
    red, green, blue = row[2]  # pyright: ignore[reportGeneralTypeIssues]
    assert green > 100 > max(red, blue)


def test_image_i_has_the_seed_plus_i(place: Path):
    run("--seed", "5", "-b", "2")
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=3)
    source = images.from_array(images.to_array(Image.open("data/val/c.jpg").crop((0, 0, SIZE, SIZE))))
    expected = np.asarray(sampler(source, seed=7)[0], dtype=int)
    assert np.abs(np.asarray(Image.open("results/c.png"), dtype=int) - expected).max() <= 1


@pytest.mark.nightly
def test_compiled_results_are_the_same(place: Path):
    run("--compile")
    compiled = np.asarray(Image.open("results/c.png"), dtype=int)
    run("--overwrite")
    assert np.abs(np.asarray(Image.open("results/c.png"), dtype=int) - compiled).max() <= 4  # bfloat16 where it pays


def test_processes_compile_in_one_dtype(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Each process chooses by timing, and all take the first's choice."""
    monkeypatch.setattr(device_module, "best_dtype", lambda _: torch.float32)
    monkeypatch.setattr(Processes, "gather", lambda _, value: [torch.bfloat16, value])
    translator = Translator(Translate.parse(["edge2shoes", "data", "c.pt", "--compile"]))
    assert translator.sampler("dpm2m", 3).dtype == torch.bfloat16


def test_results_are_kept_without_overwrite(place: Path, capsys: pytest.CaptureFixture[str]):
    run()
    Image.new("RGB", (SIZE, SIZE), "black").save("results/b.png")
    Path("results/c.png").unlink()
    run()
    assert "1 results in results, and 2 that were there" in capsys.readouterr().out
    assert Image.open("results/b.png").getextrema() == ((0, 0), (0, 0), (0, 0))
    run("--overwrite")
    assert Image.open("results/b.png").getextrema() != ((0, 0), (0, 0), (0, 0))


def test_what_a_killed_run_was_writing_is_deleted(place: Path):
    """And nothing that has another form of name."""
    Path("results").mkdir()
    for name in (".a.png.0123abcd.tmp", ".settings.json.0123abcd.tmp", ".notes.tmp", ".a.png.0123.tmp"):
        Path("results", name).touch()
    run()
    assert made() == [".a.png.0123.tmp", ".notes.tmp", "a.png", "b.png", "c.png", "grid.png", "settings.json"]


def sizes(*flags: str) -> list[tuple[int, int]]:
    """Of the results for a wide, a high and a square source."""
    for name, size in (("wide", (40, 20)), ("high", (12, 25)), ("same", (16, 16))):
        Path("own").mkdir(exist_ok=True)
        Image.new("RGB", size, "navy").save(f"own/{name}.png")
    translate.main(["folder", "own", "c.pt", "out", "--steps", "2", "--overwrite", *flags])
    return [Image.open(f"out/{name}.png").size for name in ("wide", "high", "same")]


def test_own_sources_keep_their_shape(place: Path):
    assert sizes() == sizes("--size", "fit") == [(16, 8), (8, 16), (16, 16)]
    assert sizes("--size", "keep") == [(40, 20), (12, 25), (16, 16)]
    assert sizes("--size", "train") == [(16, 16)] * 3
    assert sizes("--size", "20x8") == sizes("--image_size", "20x8") == [(8, 20)] * 3


def test_results_of_several_sizes_do_not_depend_on_the_batch(place: Path):
    sizes("--size", "keep")
    together = np.asarray(Image.open("out/high.png"), dtype=int)
    sizes("--size", "keep", "-b", "1")
    assert np.abs(np.asarray(Image.open("out/high.png"), dtype=int) - together).max() <= 1


def test_bad_pictures_are_skipped_and_listed(place: Path, capsys: pytest.CaptureFixture[str]):
    run()
    expected = Path("results/c.png").read_bytes()
    Path("data/val/b.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cannot read the picture data/val/b\.jpg"):
        run("--overwrite")
    run("--overwrite", "--skip_bad")
    printed = capsys.readouterr().out
    assert "left out: cannot read the picture data/val/b.jpg" in printed
    assert "2 results in results" in printed
    assert made() == ["a.png", "c.png", "grid.png", "settings.json"]
    assert Path("results/c.png").read_bytes() == expected, "the seed depends on what was skipped"


def test_fast_sampling_is_the_papers_solver_and_bfloat16_is_near(place: Path):
    assert Translate.parse(["edge2shoes", "data", "c.pt", "--fast_sampling"]).chosen_solver == "fast"
    run("--fast_sampling")
    fast = Path("results/a.png").read_bytes()
    run("--overwrite", "--solver", "fast")
    assert Path("results/a.png").read_bytes() == fast
    run("--overwrite")
    assert Path("results/a.png").read_bytes() != fast
    wanted = np.asarray(Image.open("results/a.png"), dtype=int)
    run("--overwrite", "--dtype", "bf16")
    assert 0 < np.abs(np.asarray(Image.open("results/a.png"), dtype=int) - wanted).max() <= 4


def test_latents(place: Path):
    """A file that holds its autoencoder needs no -vq, and takes no other one."""
    save_vqgan("vqgan.pt", tiny_vqgan())
    save_vqgan("other.pt", tiny_vqgan(1))
    save_checkpoint("c.pt", tiny_unet(), ABridge(num_steps=100), codec=VQGANCodec(tiny_vqgan()), image_size=SIZE)
    run()
    results = Path("results/a.png").read_bytes()
    assert Image.open("results/a.png").size == (SIZE, SIZE)
    run("--overwrite", "-vq", "vqgan.pt")
    assert Path("results/a.png").read_bytes() == results
    with pytest.raises(ValueError, match="another codec was given than the one that the network was trained with"):
        run("-vq", "other.pt")


def test_a_pickled_network_with_everything_from_flags(place: Path):
    """The public A-Bridge code saves a bare network; its steps, noise and autoencoder are flags."""
    save_vqgan("vqgan.pt", tiny_vqgan())
    save_checkpoint("c.pt", tiny_unet(), ABridge(100, 1.5), codec=VQGANCodec(tiny_vqgan()), image_size=SIZE)
    run()
    results = Path("results/a.png").read_bytes()
    torch.save(tiny_unet(), "bare.model")
    flags = ["--steps", "3", "--image_size", str(SIZE)]
    translate.main(["edge2shoes", "data", "bare.model", "bare", *flags, "-t", "100", "-l", "1.5", "-vq", "vqgan.pt"])
    assert Path("bare/a.png").read_bytes() == results
    with pytest.raises(ValueError, match=r"cannot read bare.model"):
        translate.main(["edge2shoes", "data", "bare.model", "bare", *flags])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.OutOfMemoryError("CUDA"), TooLargeError, "out of memory at batch_size 64 and image_size 16"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), TooLargeError, "out of memory at batch_size 64"),
        (RuntimeError("MPS backend out of memory"), TooLargeError, "out of memory at batch_size 64 and image_size 16"),
        (MemoryError(), TooLargeError, "out of memory at batch_size 64 and image_size 16"),
        (RuntimeError("a wrong shape"), RuntimeError, "^a wrong shape$"),
    ],
    ids=["cuda", "cpu", "mps", "python", "another error"],
)
def test_out_of_memory_says_what_to_lower(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(BridgeSampler, "__call__", fail)
    with pytest.raises(kind, match=message):
        run()


def test_no_picture_of_the_user_is_overwritten(place: Path):
    Path("pictures").mkdir()
    Image.new("RGB", (SIZE, SIZE), "red").save("pictures/grid.png")
    before = Path("pictures/grid.png").read_bytes()
    with pytest.raises(ValueError, match=r"grid\.png would replace another picture"):
        translate.main(["folder", "pictures", "c.pt", "pictures", "--steps", "2", "--overwrite"])
    assert Path("pictures/grid.png").read_bytes() == before
    translate.main(["folder", "pictures", "c.pt", "results", "--steps", "2"])
    assert made() == ["grid.png", "grid_of_results.png", "settings.json"]
    assert Image.open("results/grid.png").size == (SIZE, SIZE)


def test_what_the_command_line_refuses(place: Path, capsys: pytest.CaptureFixture[str]):
    for flags, message in (
        (["edge2shoes"], "required: DATA_DIR, CHECKPOINT"),
        (["shoes", "data", "c.pt"], "argument DATASET: dataset must be one of celeba, "),
        (["edge2shoes", "data", "c.pt", "--image_size", "16x"], "a size is written as 256"),
        (["edge2shoes", "data", "c.pt", "--dtype", "fp16"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            Translate.parse(flags)
        assert message in capsys.readouterr().err
    for flags, message in (
        (["-b", "0"], "batch_size must be at least 1, got 0"),
        (["--fast_sampling", "--solver", "ddim"], "fast_sampling means the solver 'fast', got solver 'ddim' too"),
    ):
        with pytest.raises(ValueError, match=message):
            Translate.parse(["edge2shoes", "data", "c.pt", *flags])


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        ("-b 8", "batch_size", 8),
        ("-r 2; --repeat 2; --samples 2", "num_samples", 2),
        ("--size 64x128", "image_size", (64, 128)),
        ("-t 9; --t 9", "time_steps", 9),
        ("-l 1.5", "c_lambda", 1.5),
        ("-vq v.pt", "vqgan_path", Path("v.pt")),
        ("-use_multi_gpus", "use_multi_gpus", True),
        ("-r 2 --maps mean,q2.5", "maps", ("mean", "q2.5")),
    ],
)
def test_other_names_of_flags(written: str, field: str, value: Any):
    for words in written.split("; "):
        assert getattr(Translate.parse(["folder", "data", "c.pt", "out", *words.split()]), field) == value
    defaults = Translate(dataset="folder", data_dir="data", model=Path("c.pt"), output_dir=Path("out"))
    assert Translate.parse(["folder", "data", "c.pt", "out"]) == defaults


def test_the_size_of_files_that_do_not_hold_it(place: Path, capsys: pytest.CaptureFixture[str]):
    save_checkpoint("c.pt", tiny_unet(attention_resolutions=()), ABridge(num_steps=100))
    for name in "bc":
        Path(f"data/val/{name}.jpg").unlink()
    translate.main(["edge2shoes", "data", "c.pt", "results", "--steps", "1"])
    assert "c.pt does not hold the size of its pictures: image_size is 256\n" in capsys.readouterr().out
    assert Image.open("results/a.png").size == (256, 256)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        run("--image_size", "0", "--overwrite")


def test_files_and_folders_where_the_other_belongs(place: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="data is a folder, and a checkpoint is a file"):
        translate.main(["edge2shoes", "data", "data", "results"])
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json of an autoencoder in data"):
        run("-vq", "data")
    Path("file").touch()
    monkeypatch.setattr("bbdm.files.checkpoint.load_checkpoint", lambda *_: pytest.fail("loaded"))
    for results in ("file", "file/results"):
        with pytest.raises(ValueError, match="file is a file, and a folder is needed there"):
            translate.main(["edge2shoes", "data", "c.pt", results])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_is_not_there(place: Path, device: str):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here: "):
        run("--device", device)
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here: "):
        BridgeSampler.from_checkpoint("c.pt", device=device)
