"""`bbdm eval`, `bbdm calibrate`, `bbdm translate --maps` as a user runs them, by tiny networks."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bbdm
from bbdm import ABridge, BridgeSampler, Intervals, Values, pictures, save_checkpoint
from bbdm.base.atomic import file_sha256
from bbdm.cli import eval as eval_script
from bbdm.cli import train, translate
from bbdm.cli.eval import Calibrate
from bbdm.data import provenance
from bbdm.data.spec import Spec
from bbdm.evaluation import perceptual
from bbdm.evaluation.metrics import METRICS, Metric, psnr
from bbdm.pictures import Picture
from bbdm.sampling.options import GuidanceOptions
from tests.cli.conftest import SIZE, pixels, sides
from tests.conftest import SavePicture, load_pairs, noise, tiny_unet
from tests.evaluation.test_metrics import Features, frechet

NAMES = ("04", "05", "06")


pytestmark = pytest.mark.usefixtures("world")


def run(*flags: str, scores: tuple[str, ...] = ("psnr",), data: str = "data") -> dict[str, Any]:
    given = ["edge2shoes", data, "c.pt", "results", "-b", "2", "--steps", "3", *flags]
    eval_script.main([*given, "--metrics", *scores])
    return json.loads(Path("results/scores.json").read_text())


def test_scores_are_of_the_pictures_that_are_there(capsys: pytest.CaptureFixture[str]):
    """The report says what was done."""
    report = run("--seed", "4", "--dtype", "bf16", scores=("psnr", "ssim"))
    pairs = [(pixels(f"results/{name}.png"), sides(name)[1]) for name in NAMES]
    expected = np.mean(
        [20 * np.log10(255 / np.sqrt(((result - target) ** 2).mean())) for result, target in pairs]
    )
    assert report["scores"]["psnr"] == pytest.approx(expected, rel=1e-5)
    assert list(report["scores"]) == ["psnr", "ssim"]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "| solver | NFE | pictures | PSNR ↑ | SSIM ↑ | s / picture |"
    assert out[2].startswith(f"| dpm2m | 3 | 3 | {expected:.2f} | ")
    assert (report["solver"], report["nfe"], report["pictures"]) == ("dpm2m", 3, 3)
    assert report["seconds_per_picture"] > 0
    settings, environment = report["settings"], report["environment"]
    assert (settings["seed"], settings["dtype"], settings["image_size"]) == (4, "bfloat16", SIZE)
    assert settings["bridge"]["num_steps"] == settings["timesteps"][0] == 100
    assert len(settings["timesteps"]) == 3
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert environment["bbdm"] == bbdm.__version__
    assert environment["cpu"]


def test_the_file_of_infinite_scores_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """PSNR of a picture that is exact, as of any metric: the file says so by a text, which float reads."""
    exact = Metric(lambda results, targets: psnr(targets, targets), True, takes="unit", form=".2f")
    monkeypatch.setitem(METRICS, "exact", exact)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    run(scores=("exact",))
    report = json.loads(Path("results/scores.json").read_text(), parse_constant=refuse)
    assert report["scores"] == {"exact": "Infinity"}
    assert "| inf |" in capsys.readouterr().out


def test_a_metric_of_volumes_is_refused_before_any_picture_is_made(count: list[int]):
    with pytest.raises(ValueError, match=r"^ms_ssim is of volumes, .* take others, such as ssim$"):
        run(scores=("ms_ssim",))
    assert count == []


def test_diversity_needs_and_gets_several_samples(capsys: pytest.CaptureFixture[str]):
    report = run("-r", "3", scores=("diversity", "crps"))
    stacks = np.array([[pixels(f"results/{name}_{j}.png") for j in range(3)] for name in NAMES])
    assert report["scores"]["diversity"] == pytest.approx(stacks.std(axis=1).mean(), rel=1e-6)
    near = abs(stacks - np.array([sides(name)[1] for name in NAMES])[:, None]).mean()
    apart = abs(stacks[:, :, None] - stacks[:, None]).mean() * 9 / 6
    assert report["scores"]["crps"] == pytest.approx(near - apart / 2)
    assert report["pictures"] == 9
    assert "| diversity | CRPS ↓ |" in capsys.readouterr().out


def test_what_is_missing_is_made_and_results_of_other_settings_or_data_are_not_mixed(
    count: list[int], capsys: pytest.CaptureFixture[str]
):
    """A copy of all files is the same data; of another picture of the same name, the result is made anew."""
    whole = run()
    shutil.copytree("data", "copy")
    Path("results/06.png").unlink()
    assert run(data="copy")["scores"] == whole["scores"]
    assert run()["seconds_per_picture"] is None  # of this run
    assert count == [2, 1, 1]
    for words, difference in (
        (["--steps", "2"], "nfe 3, now 2, timesteps"),
        (["--dtype", "bf16", "-r", "2"], r"num_samples 1, now 2, dtype float32, now bfloat16\)"),
        (["--image_size", "12"], r"image_size 16, now 12\)"),
    ):
        with pytest.raises(
            ValueError, match=rf"results holds results of other settings \({difference}"
        ):
            run(*words)
    Image.new("RGB", (2 * SIZE, SIZE), "red").save("copy/val/04.png")
    count.clear()
    before = [Path(f"results/{name}.png").read_bytes() for name in NAMES]
    capsys.readouterr()
    run(data="copy")
    assert count == [1]
    assert (
        "1 results are made anew: their sources, seeds or files have changed\n"
        in capsys.readouterr().out
    )
    now = [Path(f"results/{name}.png").read_bytes() for name in NAMES]
    assert [one == other for one, other in zip(before, now, strict=True)] == [False, True, True]
    save_checkpoint("c.pt", tiny_unet(1), ABridge(num_steps=100), image_size=SIZE)
    with pytest.raises(ValueError, match=r"other settings \(weights "):
        run()


FIT = ["--preset", "demo", "--image_size", str(SIZE), "-b", "2", "-e", "1", "--quiet"]


def test_pairs_that_were_in_training_are_named_and_scored(
    tiny_demo: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """Two of three, of which one has another name. All of `train` may be scored on purpose."""
    train.main(["edge2shoes", "data", "c.pt", *FIT])
    capsys.readouterr()
    assert run()["in_training"] == []
    assert "in training" not in capsys.readouterr().out
    shutil.copyfile("data/train/00.png", "data/val/05.png")
    shutil.copyfile("data/train/01.png", "data/val/06.png")
    shutil.move("data/train/01.png", "elsewhere.png")  # what was trained on is known by the run
    assert run()["in_training"] == ["05", "06"]
    line = "2 of 3 pairs were in training, by c.run: 05 (as 00), 06 (as 01)\n"
    assert line in capsys.readouterr().out
    shutil.copyfile("elsewhere.png", "data/train/01.png")
    assert run("--split", "train", "--overwrite")["in_training"] == ["00", "01", "02", "03"]
    shutil.rmtree("c.run/records")
    assert run("--split", "train")["in_training"] is None
    assert "no record says which pairs were in the training of c.pt: they " in caplog.text


def test_the_run_of_a_network_is_known_where_it_lies_elsewhere(
    tiny_demo: None, caplog: pytest.LogCaptureFixture
):
    """In a folder of its own, beside that of an earlier run with the name of the weights."""
    train.main(["edge2shoes", "data", "c.pt", *FIT])
    shutil.move("data/train", "before")
    Path("data/train").mkdir()
    for index in range(4):
        noise(20 + index, 2 * SIZE, SIZE).save(f"data/train/{index:02d}.png")
    train.main(["edge2shoes", "data", "c.pt", *FIT, "--experiment", "runs/one"])
    shutil.copyfile("data/train/00.png", "data/val/05.png")
    shutil.rmtree("data/train")
    assert run()["in_training"] == ["05"]
    shutil.copyfile("c.pt", "copy.pt")
    flags = ["edge2shoes", "data", "--alpha", "0.5", *FLAGS]
    with pytest.raises(
        ValueError, match=r"^1 of 3 pairs were in training, by .*runs/one: 05 \(as 00\)"
    ):
        Calibrate.main(["copy.pt", *flags])
    save_checkpoint("alone.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    Calibrate.main(["alone.pt", *flags])
    assert "no record says which pairs were in the training of alone.pt: they " in caplog.text


def test_pairs_that_weights_were_trained_on_before_are_named(
    tiny_demo: None, caplog: pytest.LogCaptureFixture
):
    """Before a file changed, and before another training began with them; also for validation."""
    shutil.copytree("data", "first")
    train.main(["edge2shoes", "first", "c.pt", *FIT])
    noise(20, 2 * SIZE, SIZE).save("first/train/00.png")
    train.main(["edge2shoes", "first", "c.pt", *FIT[:-3], "-e", "2", "--quiet"])
    shutil.copytree("data", "second")
    for index in range(4):
        noise(30 + index, 2 * SIZE, SIZE).save(f"second/train/{index:02d}.png")
    shutil.copyfile("second/train/03.png", "second/val/06.png")
    shutil.copyfile("data/train/00.png", "second/val/05.png")
    for _ in range(2):  # to begin, and to resume
        train.main(
            ["edge2shoes", "second", "d.pt", *FIT, "--init_from", "c.pt", "--max_steps", "2"]
        )
        line = "validation: 2 of 3 pairs were in training, by this run: 05 (as 00), 06 (as 03)"
        assert caplog.messages == [line]
        caplog.clear()
    shutil.copyfile("d.pt", "c.pt")
    assert run("--split", "train", data="first")["in_training"] == ["00", "01", "02", "03"]
    assert run("--overwrite", data="second")["in_training"] == ["05", "06"]


def test_weights_that_moved_with_their_run_keep_its_record(tiny_demo: None):
    """A run on other pairs is where they were."""
    shutil.copytree("data", "others")
    for index in range(4):
        noise(40 + index, 2 * SIZE, SIZE).save(f"others/train/{index:02d}.png")
    train.main(["edge2shoes", "data", "before/c.pt", *FIT])
    shutil.move("before", "after")
    train.main(["edge2shoes", "others", "before/c.pt", *FIT])
    shutil.copyfile("after/c.pt", "c.pt")
    shutil.copytree("after/c.run", "c.run")
    assert run("--split", "train")["in_training"] == ["00", "01", "02", "03"]


def test_calibration_reads_each_picture_once(
    four: Path, monkeypatch: pytest.MonkeyPatch, tiny_demo: None
):
    """For the part train of the data set, and for the record of the run."""
    train.main(["edge2shoes", "data", "c.pt", *FIT])
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(f"{path.parent.name}/{path.stem}")
        return file_sha256(path)

    monkeypatch.setattr(provenance, "file_sha256", counted)
    calibrate()
    assert sorted(read) == [
        *(f"train/0{index}" for index in range(4)),
        *(f"val/0{index}" for index in range(4, 8)),
    ]


def test_a_group_on_both_sides_is_refused(tiny_demo: None):
    """In training, scores and calibration; of pairs that were in training, the group may be scored."""
    data = "data,group=films_{split}.csv"
    Path("films_train.csv").write_text("00,x\n01,x\n02,y\n03,y\n")
    Path("films_val.csv").write_text("04,y\n05,z\n06,z\n")
    shared = r"^1 group is on both sides of the split: 'y' \(03, and 04 for validation\); keep each on one side"
    with pytest.raises(ValueError, match=shared):
        train.main(["edge2shoes", data, "c.pt", *FIT])
    Path("films_val.csv").write_text("04,w\n05,z\n06,z\n")
    train.main(["edge2shoes", data, "c.pt", *FIT])
    Path("films_val.csv").write_text("04,y\n05,z\n06,z\n")
    with pytest.raises(
        ValueError, match=r"^1 group is in training too, by c\.run: 'y' \(of 04\); score others"
    ):
        run(data=data)
    with pytest.raises(
        ValueError,
        match=r"^1 group is in training too, by the part 'train' .*: 'y' \(of 04\); cali",
    ):
        Calibrate.main(["c.pt", "edge2shoes", data, "--alpha", "0.5", *FLAGS])
    run("--split", "train", data=data)


def test_fid_is_that_of_the_pictures_that_are_there(monkeypatch: pytest.MonkeyPatch):
    """By SciPy, of a network of two features in place of Inception."""
    network = Features(2)
    monkeypatch.setattr(perceptual, "inception", lambda: network)
    score = run(scores=("fid",))["scores"]["fid"]
    results = np.stack([pixels(f"results/{name}.png") for name in NAMES])
    targets = np.stack([sides(name)[1] for name in NAMES])
    with torch.no_grad():
        features = [
            network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
            for images in (results, targets)
        ]
    assert score == pytest.approx(frechet(*features), rel=1e-3)


def test_sweep(count: list[int], capsys: pytest.CaptureFixture[str]):
    """It is checked before it starts, and kept when it ended."""
    flags = [
        "edge2shoes",
        "data",
        "c.pt",
        "sweep",
        "-b",
        "2",
        "--metrics",
        "psnr",
        "ssim",
        "--sweep",
    ]
    for words, message in (
        (["dpm2m:5,x"], "sweep .* got 'dpm2m:5,x'"),
        (["ancestral:7"], "takes every time"),
    ):
        with pytest.raises(ValueError, match=message):
            eval_script.main([*flags, *words])
    assert count == []
    eval_script.main([*flags, "dpm2m:1,2", "mean"])
    reports = json.loads(Path("sweep/sweep.json").read_text())
    found = [f"{report['solver']}-{report['nfe']}" for report in reports]
    assert found == ["dpm2m-1", "dpm2m-2", "mean-1"]
    assert sorted(found) == sorted(path.name for path in Path("sweep").iterdir() if path.is_dir())
    assert json.loads(Path("sweep/dpm2m-2/scores.json").read_text()) == reports[1]
    assert min(Image.open("sweep/quality_nfe.png").size) > 200
    assert min(Image.open("sweep/mean-1/scores.png").size) > 200
    rows = capsys.readouterr().out.splitlines()
    assert [row.count("|") for row in rows[:5]] == [7] * 5
    highest = {
        name: max(reports, key=lambda report: report["scores"][name]) for name in ("psnr", "ssim")
    }
    lines: list[str] = []
    for name, form in (("psnr", ".2f"), ("ssim", ".4f")):
        report = highest[name]
        lines.append(
            f"best {name}: {report['solver']}:{report['nfe']}, {report['scores'][name]:{form}}"
        )
    assert rows[5:8] == [*lines, "without --solver: dpm2m:10"]
    count.clear()
    eval_script.main([*flags, "dpm2m:1,2", "mean:1"])  # the default by its number; all kept
    assert count == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("folder data c.pt", "'folder' has no targets: degrade"),
        ("edge2shoes data c.pt --sweep ddim:2 --steps 3", "sweep names solvers"),
        ("edge2shoes data c.pt --size keep", "image_size keep"),
        (
            "unpaired A,B c.pt --metrics psnr",
            "metrics must be fid, and num_samples 1, .* got psnr and 1",
        ),
    ],
)
def test_what_the_command_line_refuses(flags: str, message: str):
    """So do Python's callers of the settings."""
    with pytest.raises(ValueError, match=message):
        eval_script.main(flags.split())


FLAGS = [
    "--samples",
    "3",
    "--bound",
    "conformal",
    "--steps",
    "2",
    "--solver",
    "sde-dpm2m",
    "--quiet",
]
MAPS = ["edge2shoes", "data", "c.pt", "maps", "--maps", "low,high", "--quiet"]
SAMPLES = [[2 + 4 * j for j in range(3)]]  # the seeds of the third of four sources


@pytest.fixture
def four(world: Path, save_picture: SavePicture) -> Path:
    """With a fourth pair for validation, so that alpha may be 0.2."""
    save_picture(world / "data" / "val" / "07.png", noise(7, 2 * SIZE, SIZE))
    return world


def calibrate(*flags: str) -> dict[str, Any]:
    Calibrate.main(["c.pt", "edge2shoes", "data", "--alpha", "0.2", *FLAGS, *flags])
    return json.loads(Path("c.intervals.json").read_text())


def calibrated() -> BridgeSampler:
    return BridgeSampler.from_checkpoint("c.pt", solver="sde-dpm2m", steps=2)


def test_the_file_and_its_maps_have_the_intervals_of_the_library(
    four: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Solver, steps and samples are those of the file."""
    made, sampler = calibrate("--seed", "5"), calibrated()
    pairs = load_pairs("edge2shoes", "data", "val", size=SIZE)
    wanted = Intervals.calibrate(sampler, pairs, 0.2, samples=3, bound="conformal", seed=5)
    assert vars(Intervals.load("c.intervals.json", sampler)) == vars(wanted)
    assert made["pairs"] == 4
    assert capsys.readouterr().out.startswith("4 pairs: ")
    with pytest.raises(ValueError, match=r"c.intervals.json exists already"):
        calibrate()
    translate.main(MAPS)
    for kind, end in zip(("low", "high"), wanted(sides("06")[0], seed=SAMPLES), strict=True):
        assert np.array_equal(pixels(f"maps/06_{kind}.png"), np.asarray(end[0]))
    with monkeypatch.context() as patch:
        patch.setattr(BridgeSampler, "distribution", None)  # nothing is sampled before
        with pytest.raises(
            ValueError,
            match=r"on pictures of 16 x 16, got 8 x 8: calibrate on pictures of this size",
        ):
            translate.main([*MAPS, "--overwrite", "--size", "8"])
    assert calibrate("--overwrite", "--alpha", "0.3")["alpha"] == 0.3
    Path("c.intervals.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"there are no intervals c.intervals.json: bbdm calibrate"
    ):
        translate.main([*MAPS, "--overwrite"])


def test_errors_are_compared_with_the_length_of_intervals(four: Path):
    """Scores are of the mean, and solver, steps and samples those of the calibration."""
    calibrate()
    words = [
        "edge2shoes",
        "data",
        "c.pt",
        "results",
        "--metrics",
        "mae",
        "--intervals",
        "c.intervals.json",
    ]
    eval_script.main(words)
    report = json.loads(Path("results/scores.json").read_text())
    errors: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for name in (*NAMES, "07"):
        mean, low, high = (
            pixels(f"results/{name}_{kind}.png").astype(float) for kind in ("mean", "low", "high")
        )
        errors.append(abs(mean - sides(name)[1]))
        lengths.append(high - low)
    assert report["scores"]["mae"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert report["pictures"] == 4  # of three maps each
    found = report["intervals"]
    assert found["expected"] == 0.8
    assert found["length"] == pytest.approx(np.mean(lengths))
    assert found["coverage"] >= 0.8  # of the pairs that calibrated
    for key, wanted in (
        ("error", np.mean(errors)),
        ("length", np.mean(lengths)),
        ("coverage", found["coverage"]),
    ):
        assert sum(part["share"] * part[key] for part in found["by_length"]) == pytest.approx(
            wanted
        )
    with Image.open("results/scores.png") as plot:
        assert plot.width > 1.5 * plot.height  # two panels
    with pytest.raises(
        ValueError, match=r"--steps is 3, and c.intervals.json was calibrated with 2"
    ):
        eval_script.main([*words, "--steps", "3"])
    with pytest.raises(
        ValueError, match=r"--intervals are of pairs and of one solver: leave out --sweep"
    ):
        eval_script.main([*words, "--sweep", "dpm2m"])


def test_pairs_that_were_in_training_are_refused(four: Path):
    """By their content in the part train."""
    copied = four / "data" / "train" / "copy.png"
    copied.write_bytes((four / "data" / "val" / "05.png").read_bytes())
    by = r"by the part 'train' of data: 05 \(as copy\): calibrate on others"
    with pytest.raises(ValueError, match=rf"^1 of 4 pairs were in training, {by}"):
        calibrate()
    # which training leaves out, and is no reason to leave out the check
    copied.write_bytes(b"broken")
    (four / "data" / "train" / "other.png").write_bytes(
        (four / "data" / "val" / "05.png").read_bytes()
    )
    with pytest.raises(ValueError, match=r"^1 of 4 pairs were in training, .*: 05 \(as other\)"):
        calibrate()
    (four / "data" / "train" / "other.jpg").touch()
    with pytest.raises(
        ValueError, match=r"other\.jpg and .*other\.png have the same name: rename or remove one"
    ):
        calibrate()
    shutil.rmtree("data/train")
    assert calibrate()["pairs"] == 4


def test_columns_of_the_pairs_alone_and_a_data_set_of_one_part_are_calibrated_on(four: Path):
    """The part `train` has not the column, or is the same folder."""
    Path("seasons.csv").write_text("04,a\n05,b\n06,a\n07,b\n")
    words = ["--alpha", "0.2", *FLAGS, "--overwrite"]
    Calibrate.main(["c.pt", "edge2shoes", "data,season=seasons.csv", *words])
    Calibrate.main(["c.pt", "paired", "data/val,data/val", *words])
    (four / "data" / "train" / "copy.png").write_bytes(
        (four / "data" / "val" / "05.png").read_bytes()
    )
    with pytest.raises(
        ValueError,
        match=r"^1 of 4 pairs were in training, by the part 'train' of .*: 05 \(as copy\)",
    ):
        Calibrate.main(["c.pt", "paired", "data/{split},data/{split}", *words])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--solver dpm2m",
            "--solver is dpm2m, and c.intervals.json was calibrated with sde-dpm2m: leave it out",
        ),
        ("--steps 3", "--steps is 3, and .* with 2"),
        ("-r 1", "--num_samples is 1, and .* with 3"),
        ("--window none", "--window is None, and .* with 8"),
    ],
)
def test_flags_that_contradict_intervals(
    four: Path, monkeypatch: pytest.MonkeyPatch, flags: str, message: str
):
    """Also those that name the command's default, which another calibration lacks."""
    options = GuidanceOptions(window=8, overlap=0.5)
    sampled = {"solver": "sde-dpm2m", "timesteps": [1.0, 0.5]}
    values = (
        0.1,
        0.1,
        3,
        "std",
        "conformal",
        1.0,
        10,
        0.0,
        0.1,
        (SIZE, SIZE),
        sampled,
        asdict(options),
    )
    Intervals(None, *values).save("c.intervals.json")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(BridgeSampler, "distribution", None)
    with pytest.raises(ValueError, match=message):
        translate.main([*MAPS, *flags.split()])


def test_windows_are_those_of_the_calibration(four: Path):
    """And pictures have the size of training, as there; flags that say so too are taken."""
    save_checkpoint(
        "c.pt", tiny_unet(attention_resolutions=()), ABridge(num_steps=100), image_size=SIZE
    )
    assert calibrate("--window", "8", "--overlap", "0.5")["options"]["window"] == 8
    translate.main(MAPS)
    sampler, source = calibrated(), sides("06")[0]
    low, _ = Intervals.load("c.intervals.json", sampler)(source, seed=SAMPLES)
    written = pixels("maps/06_low.png")
    assert np.array_equal(written, np.asarray(low[0]))
    other = sampler.distribution(source, 3, SAMPLES, window=None)
    assert not np.array_equal(
        written, np.asarray(Intervals.load("c.intervals.json", sampler).of(other)[0][0])
    )
    translate.main(
        [
            *MAPS,
            *FLAGS[4:],
            "--samples",
            "3",
            "--window",
            "8",
            "--overlap",
            "0.5",
            "--size",
            "train",
        ]
    )


def test_volumes_by_their_slices(four: Path):
    """A volume is one of the pairs that calibrate; its maps are volumes on its grid."""
    rng, hu = np.random.default_rng(0), Values(-1024, 3071, "HU", "int16")
    for name in (f"{side}/{i}" for side in ("MR", "CT") for i in range(4)):
        Path(name).parent.mkdir(exist_ok=True)
        Picture(rng.integers(-1024, 3072, (1, 3, SIZE, SIZE), dtype=np.int16)).save(f"{name}.npy")
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    kind = Spec(source=hu, target=hu, slices="axial")
    save_checkpoint("c.pt", unet, ABridge(num_steps=100), image_size=SIZE, pictures=kind)
    Calibrate.main(["c.pt", "paired", "MR,CT", *FLAGS, "--alpha", "0.4"])
    made = json.loads(Path("c.intervals.json").read_text())
    assert (made["pairs"], made["size"]) == (4, [SIZE, SIZE])
    translate.main(
        ["paired", "MR,CT", "c.pt", "out", *FLAGS[:2], *FLAGS[4:], "--maps", "low,mean,high,std"]
    )
    low, mean, high, std = (
        pictures.read(f"out/2_{name}.npy") for name in ("low", "mean", "high", "std")
    )
    assert (std.shape, std.dtype) == ((1, 3, SIZE, SIZE), np.int16)
    assert ((low <= mean) & (mean <= high)).all()
    each = [np.asarray(calibrated()(Path("MR/2.npy"), seed=2 + 4 * j)[0], float) for j in range(3)]
    assert abs(np.mean(each, axis=0) - mean).max() <= 1.5
