"""`bbdm restore` as a user runs it, with a network too small to be good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageCms

from bbdm import BridgeSampler, BrownianBridge, UNet, cli, pictures, save_checkpoint
from bbdm.base.scripts import StoppedError
from bbdm.base.seeds import seed_of
from bbdm.cli import restore
from bbdm.data.spec import Spec
from bbdm.evaluation.results import ResultsError

WINDOW = 16


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, trained on crops."""
    torch.manual_seed(0)
    unet = UNet(3, 3, condition_channels=3, model_channels=8, channel_mult=(1, 2), head_channels=8, num_groups=4)
    torch.nn.init.normal_(unet.out[2].weight, std=0.1)  # pyright: ignore[reportArgumentType]
    bridge = BrownianBridge(objective="pinned", spread=0.1)
    save_checkpoint(tmp_path / "c.pt", unet, bridge, image_size=WINDOW, pictures=Spec(crop=WINDOW))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> None:
    restore.main([*words, "-o", "out", "--model", "c.pt", "--dtype", "fp32", *(() if "--mean" in words else STEPS)])


STEPS = ("--steps", "2")


def picture(height: int = 20, width: int = 24, channels: int = 3) -> npt.NDArray[np.uint8]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels if channels > 1 else pixels[:, :, 0]


def made(name: str = "a.png") -> npt.NDArray[np.int64]:
    return np.asarray(Image.open(Path("out") / name)).astype(int)


def test_it_is_the_call_by_windows(place: Path) -> None:
    Image.fromarray(picture()).save("a.bmp")
    run("a.bmp")
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    (wanted,) = sampler([picture()], seed=seed_of("a.bmp"), window=WINDOW)
    assert np.abs(made() - wanted.astype(int)).max() <= 1


def test_the_mean_is_one_call_of_its_solver(place: Path) -> None:
    Image.fromarray(picture()).save("a.bmp")
    run("a.bmp", "--mean")
    (wanted,) = BridgeSampler.from_checkpoint("c.pt", solver="mean")([picture()], window=WINDOW)
    assert np.abs(made() - wanted.astype(int)).max() <= 1
    with pytest.raises(ValueError, match="samples and steps are of random results"):
        run("a.bmp", "--mean", "--samples", "2")


def test_samples_differ_and_have_numbers(place: Path) -> None:
    Image.fromarray(picture()).save("a.bmp")
    run("a.bmp", "--samples", "2")
    assert np.abs(made("a_0.png") - made("a_1.png")).mean() > 1
    run("a.bmp", "--seed", "1")
    assert np.array_equal(made(), made("a_1.png"))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (17, 5)], ids=str)
def test_any_size(place: Path, size: tuple[int, int]) -> None:
    Image.fromarray(picture(*size)).save("a.bmp")
    run("a.bmp")
    assert made().shape == (*size, 3)


def test_alpha_stays_and_colours_under_it_too(place: Path) -> None:
    colours, alpha = picture(), picture(channels=1)
    Image.fromarray(colours).save("b.bmp")
    with_alpha = Image.fromarray(colours)
    with_alpha.putalpha(Image.fromarray(alpha))
    with_alpha.save("a.png")
    run("a.png", "b.bmp", "--mean")
    assert np.array_equal(made()[:, :, 3], alpha)
    assert np.array_equal(made()[:, :, :3], made("b.png"))


def test_grey_stays_grey(place: Path) -> None:
    Image.fromarray(picture(channels=1)).save("a.png")
    run("a.png")
    assert Image.open("out/a.png").mode == "L"
    assert made().shape == (20, 24)


def test_sixteen_bits_stay(place: Path) -> None:
    array = np.random.default_rng(0).integers(0, 2**16, (1, 20, 24)).astype(np.uint16)
    pictures.write("a.png", array)
    Image.fromarray((array[0] / 257).round().astype(np.uint8)).save("b.png")
    run("a.png", "b.png", "--mean")
    found = np.asarray(pictures.read("out/a.png"))
    assert (found.dtype, found.shape) == (np.uint16, (1, 20, 24))
    assert np.abs(found[0] / 257 - made("b.png")).max() < 2
    assert (found % 257).any()  # not 8 bits in 16


def test_exif_turns_and_the_profile_stays(place: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(picture()).save("a.jpg", exif=turned, icc_profile=profile)
    run("a.jpg")
    assert made().shape == (24, 20, 3)
    assert Image.open("out/a.png").info["icc_profile"] == profile
    Image.fromarray(picture()).convert("CMYK").save("c.jpg", icc_profile=b"of inks")
    run("c.jpg")
    assert "icc_profile" not in Image.open("out/c.png").info


def test_a_bad_file_is_named_and_the_others_are_done(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(picture()).save(f"photos/{name}.png")
    Path("photos/b.png").write_bytes(Path("photos/b.png").read_bytes()[:100])
    with pytest.raises(StoppedError, match="2 photographs were not restored") as stopped:
        run("photos", "gone.png")
    assert stopped.value.status == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "c.png", "settings.json"]
    errors = capsys.readouterr().err
    assert "photos/b.png" in errors
    assert "there is no picture gone.png" in errors


def test_results_that_are_there_stay_unless_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture()).save("a.bmp")
    run("a.bmp")
    first = made()
    run("a.bmp")
    assert "out/a.png was there: --overwrite makes it again" in capsys.readouterr().out
    run("a.bmp", "--seed", "5", "--overwrite")
    assert not np.array_equal(made(), first)


def test_results_of_other_settings_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture()).save("a.bmp")
    Image.fromarray(picture()).save("b.bmp")
    run("a.bmp")
    first = made()
    with pytest.raises(ResultsError, match=r"^out/a.png is a result of other settings \(seed 0, now 5\)$"):
        run("b.bmp", "a.bmp", "--seed", "5")
    with pytest.raises(SystemExit, match=r"\(seed 0, now None, mean False, now True.*\); give another folder for"):
        cli.run("restore", ["a.bmp", "-o", "out", "--model", "c.pt", "--mean"])
    assert np.array_equal(made(), first)
    run("b.bmp", "--mean")  # another picture's
    run("a.bmp", "--mean", "--overwrite")
    run("a.bmp", "b.bmp", "--mean")
    assert capsys.readouterr().out.count("was there") == 2


def test_results_without_a_record_are_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of earlier versions, also in a folder that has a record."""
    Image.fromarray(picture()).save("a.bmp")
    run("a.bmp")
    Path("out/settings.json").unlink()
    for seed in "56":
        run("a.bmp", "--seed", seed)
        assert "out/a.png was there" in capsys.readouterr().out
    Path("out/settings.json").write_text('{"a.png": 1}')
    with pytest.raises(ValueError, match=r"cannot read out/settings.json: give another output_dir, or delete it"):
        run("a.bmp")


def test_a_folder_without_pictures_is_an_error(place: Path) -> None:
    Path("empty").mkdir()
    Path("empty/a.gif").touch()
    with pytest.raises(ValueError, match=r"there is no picture in empty; suffixes are .bmp, .jpeg, .jpg, "):
        run("empty")


def test_a_photograph_is_never_replaced(place: Path) -> None:
    Path("out").mkdir()
    Image.fromarray(picture()).save("out/a.png")
    Image.fromarray(picture()).save("a.bmp")
    with pytest.raises(ValueError, match=r"the result of out/a.png would replace out/a.png: give another output_dir"):
        run("out/a.png")
    with pytest.raises(ValueError, match=r"a.bmp and a.tif would both become out/a.png: rename one"):
        run("a.bmp", "a.tif")


def test_larger_than_memory_is_the_same_from_file_to_file(place: Path) -> None:
    np.save("a.npy", picture(300, 200).transpose(2, 0, 1))
    run("a.npy")
    whole = made()
    run("a.npy", "--overwrite", "--memory", "3M")
    assert np.abs(made() - whole).max() <= 1
    np.save("b.npy", np.zeros((3, 300, 200), np.uint16))
    with pytest.raises(StoppedError):
        run("b.npy", "--memory", "3M")


def test_the_bundled_network_removes_the_squares_of_jpeg(place: Path) -> None:
    """A photograph that no network was trained on, and that a library bundles: the mean is nearer to it."""
    import skimage.data as data

    clean = Image.fromarray(data.astronaut()).crop((96, 0, 288, 160))
    clean.save("a.jpg", quality=10)
    cli.run("restore", ["a.jpg", "-o", "out", "--mean", "--quiet"])
    errors = [
        np.square(np.asarray(Image.open(file), float) - np.asarray(clean, float)).mean()
        for file in ("a.jpg", "out/a.png")
    ]
    assert errors[1] < 0.9 * errors[0]


def test_values_of_other_kinds_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("a.npy", np.zeros((4, 20, 20), np.float32))
    with pytest.raises(SystemExit):
        cli.run("restore", ["a.npy", "--model", "c.pt", "-o", "out"])
    assert "a.npy has 4 channels of float32, and a photograph is grey or colour" in capsys.readouterr().err
