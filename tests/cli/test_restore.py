"""`bbdm restore` as a user runs it, with a network too small to be good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from bbdm import BridgeSampler, BrownianBridge, cli, pictures, save_checkpoint
from bbdm.base.scripts import StoppedError
from bbdm.base.seeds import seed_of
from bbdm.cli.translate import Restore
from bbdm.data.spec import Spec
from tests.conftest import tiny_unet

WINDOW = 16
SAMPLE = ("--samples", "1", "--steps", "2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, trained on crops, and a photograph a.bmp."""
    unet, bridge = tiny_unet(condition_channels=3), BrownianBridge(objective="pinned", spread=0.1)
    save_checkpoint(tmp_path / "c.pt", unet, bridge, image_size=WINDOW, pictures=Spec(crop=WINDOW))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("a.bmp")
    return tmp_path


def run(*words: str) -> None:
    Restore.main([*words, "-o", "out", "--model", "c.pt", "--dtype", "fp32"])


def picture(height: int = 20, width: int = 24, channels: int = 3) -> npt.NDArray[np.uint8]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels if channels > 1 else pixels[:, :, 0]


def result(name: str = "a.png") -> npt.NDArray[np.int64]:
    return np.asarray(Image.open(Path("out") / name)).astype(int)


@pytest.mark.parametrize(
    ("flags", "call"), [((), {"solver": "mean"}), (SAMPLE, {"steps": 2})], ids=["mean", "sample"]
)
def test_it_is_the_call_by_windows(flags: tuple[str, ...], call: dict[str, Any]) -> None:
    """The expected picture, or a sample, whose seed is a function of the name."""
    run("a.bmp", *flags)
    (expected,) = BridgeSampler.from_checkpoint("c.pt", **call)(
        [picture()], seed=seed_of("a"), window=WINDOW
    )
    assert np.abs(result() - expected.astype(int)).max() <= 1


def test_results_say_what_made_them_unless_they_are_plain() -> None:
    run("a.bmp", *SAMPLE)
    text = Image.open("out/a.png").info["Description"]
    assert text.endswith(f", seed {seed_of('a')}, 2 steps, dpm2m")
    before = result()
    run("a.bmp", *SAMPLE, "--plain_files", "--overwrite")
    assert "Description" not in Image.open("out/a.png").info
    assert np.array_equal(result(), before)


def test_samples_have_numbers_and_the_mean_neither_steps_nor_seed() -> None:
    run("a.bmp", "--samples", "2", "--steps", "2")
    second = result("a_1.png")
    run("a.bmp", *SAMPLE, "--seed", "1", "--overwrite")
    assert np.array_equal(result(), second)
    for flag in ("--steps", "--seed"):
        with pytest.raises(
            ValueError, match="--steps and --seed are of random results: give --samples"
        ):
            run("a.bmp", flag, "2")


def test_pictures_keep_their_kind() -> None:
    """Any size; transparency, and colours under it; grey; the same of other formats."""
    sizes = [(1, 1), (3, 40), (16, 16), (17, 5)]
    for i, size in enumerate(sizes):
        Image.fromarray(picture(*size)).save(f"size{i}.bmp")
    alpha = picture(channels=1)
    with_alpha = Image.fromarray(picture())
    with_alpha.putalpha(Image.fromarray(alpha))
    with_alpha.save("b.png")
    Image.fromarray(picture(channels=1)).save("g.png")
    pictures.write("t.tif", picture().transpose(2, 0, 1))
    np.save("n.npy", picture(channels=1)[None])
    run("a.bmp", "b.png", "g.png", "t.tif", "n.npy", *(f"size{i}.bmp" for i in range(len(sizes))))
    assert [result(f"size{i}.png").shape for i in range(len(sizes))] == [
        (*size, 3) for size in sizes
    ]
    assert np.array_equal(result("b.png")[:, :, 3], alpha)
    assert np.array_equal(result("b.png")[:, :, :3], result())
    assert (Image.open("out/g.png").mode, result("g.png").shape) == ("L", (20, 24))
    assert np.array_equal(result("t.png"), result())
    assert np.array_equal(result("n.png"), result("g.png"))


def test_exif_turns_and_the_profile_stays() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(picture()).save("b.jpg", exif=turned, icc_profile=profile)
    Image.fromarray(picture()).convert("CMYK").save("c.jpg", icc_profile=b"of inks")
    run("b.jpg", "c.jpg")
    assert result("b.png").shape == (24, 20, 3)
    assert Image.open("out/b.png").info["icc_profile"] == profile
    assert "icc_profile" not in Image.open("out/c.png").info


def test_what_cannot_be_restored_is_named_and_the_others_are_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Damaged, of a kind that is not read, of other values, or not there; names are paths below folders.
    A run without results leaves no folder."""
    Path("photos/deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        Image.fromarray(picture()).save(f"photos/{name}.png")
    Path("photos/b.png").write_bytes(Path("photos/b.png").read_bytes()[:100])
    Image.fromarray(picture(channels=1)).save("photos/a.GIF")
    Path("photos/notes.txt").touch()
    np.save("photos/v.npy", np.zeros((3, 20, 20), np.uint16))
    for words in (["gone.png"], ["photos/b.png", "--window", "none", "--memory", "1K"]):
        with pytest.raises(StoppedError, match="1 photograph was not restored"):
            run(*words)
        assert not Path("out").exists()
    with pytest.raises(StoppedError, match="4 photographs were not restored") as stopped:
        run("photos", "gone.png")
    assert stopped.value.status == 1
    found = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.*"))
    assert found == ["a.png", "deep/c.png", "results.jsonl", "settings.json"]
    errors = capsys.readouterr().err
    for part in (
        "photos/b.png",
        "photos/a.GIF",
        "v.npy has 2 axes, 3 channels of uint16",
        "gone.png",
    ):
        assert part in errors
    assert "notes" not in errors


def test_results_that_are_there_stay_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of other settings are refused; more may come."""
    Image.fromarray(picture()).save("b.bmp")
    run("a.bmp")
    first = result()
    capsys.readouterr()
    run("a.bmp", "b.bmp")
    said = capsys.readouterr()
    assert said.out == "out/a.png was there: --overwrite makes it again\nout/b.png\n"
    assert "restoring a.bmp and 1 more with c.pt" in said.err
    with pytest.raises(
        ValueError, match=r"^out holds results of other settings \(.*solver mean, now"
    ):
        run("a.bmp", *SAMPLE)
    assert np.array_equal(result(), first)
    run("a.bmp", *SAMPLE, "--overwrite")
    assert not np.array_equal(result(), first)
    about = json.loads(Path("out/settings.json").read_text())
    assert (about["results"], about["settings"]["seeds"]) == (["a.png"], "by name")
    assert not Path("out/b.png").exists()  # which was of the other settings
    run("b.bmp", *SAMPLE)
    run("b.bmp", *SAMPLE, "--overwrite")
    assert Path("out/a.png").exists()  # which is of these


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty"], r"there is no picture in empty; suffixes are .bmp, .czi, .jpeg, .jpg, "),
        (["out/a.png"], r"out/a.png would replace another picture: give another folder"),
        (["a.bmp", "a.tif"], r"a.bmp and a.tif would both become a.png: rename one"),
    ],
)
def test_what_is_refused_before_any_work(words: list[str], message: str) -> None:
    for name in ("empty/a.gif", "out/a.png", "a.tif"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture()).save(name)
    before = Path("out/a.png").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(*words)
    assert Path("out/a.png").read_bytes() == before


def test_the_bundled_network_removes_the_squares_of_jpeg() -> None:
    """A photograph that no network was trained on, and that a library bundles: the mean is nearer to it."""
    import skimage.data as data

    clean = data.astronaut()[:160, 96:288]
    Image.fromarray(clean).save("a.jpg", quality=10)
    cli.run("restore", ["a.jpg", "-o", "out", "--quiet"])
    before, after = (np.asarray(Image.open(file), float) for file in ("a.jpg", "out/a.png"))
    assert np.square(after - clean).mean() < 0.9 * np.square(before - clean).mean()
