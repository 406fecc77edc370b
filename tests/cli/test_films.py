"""Sequences as a user translates, scores and trains on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbdm import cli
from bbdm.cli.translate import Translate
from tests.films import decoded, moving, times, write_film

FRAMES = moving(5)


@pytest.fixture
def films(world: Path) -> Path:
    """A film and a folder of the same frames, in films/; three of them, in pairs/{train,val}/{A,B}."""
    folder = world / "films/walk"
    folder.mkdir(parents=True)
    for index, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{index}.png")
    write_film(world / "films/clip.mp4", FRAMES, sound=True)
    for split in ("train", "val"):
        for side, frames in (("A", FRAMES), ("B", 255 - FRAMES)):
            folder = world / "pairs" / split / side / f"{split} walk"
            folder.mkdir(parents=True)
            for index in range(3):
                Image.fromarray(frames[index]).save(folder / f"{index}.png")
    return world


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path), int)


def test_frames_of_a_sequence_have_one_noise(films: Path):
    still = films / "still/one"
    still.mkdir(parents=True)
    for index in range(3):
        Image.fromarray(FRAMES[0]).save(still / f"{index}.png")
    flags = ["--solver", "sde-dpm2m", "--steps", "2"]
    Translate.main(["frames", "still", "c.pt", "out", *flags])
    assert (pixels("out/one/0.png") == pixels("out/one/2.png")).all()
    Translate.main(["frames", "still", "c.pt", "out2", *flags, "--noise_by", "frame"])
    assert np.abs(pixels("out2/one/0.png") - pixels("out2/one/2.png")).mean() > 1


def test_a_film_comes_back_as_a_film(films: Path, capsys: pytest.CaptureFixture[str]):
    words = ["frames", "films", "c.pt", "out", "--steps", "2"]
    Translate.main(words)
    assert "10 results in out" in capsys.readouterr().out
    film = decoded(Path("out/clip.mp4"))
    results = np.stack([pixels(f"out/clip/00000{index}.png") for index in range(5)])
    colours = film.mean(axis=(1, 2)) - results.mean(axis=(1, 2))
    # the mean of each frame: a random network's noise itself is not kept
    assert np.abs(colours).max() < 8
    assert times(Path("out/clip.mp4")) == pytest.approx(times(Path("films/clip.mp4")), abs=0.002)
    written = Path("out/clip.mp4").stat().st_mtime_ns
    Translate.main(words)
    assert "a film: out/clip.mp4" in capsys.readouterr().out
    assert Path("out/clip.mp4").stat().st_mtime_ns == written
    Path("out/clip/000003.png").unlink()
    Translate.main(words)
    assert Path("out/clip.mp4").stat().st_mtime_ns > written


def test_exact_films_have_the_values_of_the_frames(films: Path):
    Translate.main(["frames", "films/clip.mp4", "c.pt", "out", "--steps", "2", "--film", "exact"])
    results = np.stack([pixels(f"out/clip/00000{index}.png") for index in range(5)])
    assert (decoded(Path("out/clip.mkv")) == results).all()


def test_a_film_of_results_never_replaces_its_source(films: Path):
    with pytest.raises(
        ValueError, match=r"clip\.mp4 would replace another picture: give another folder of results"
    ):
        Translate.main(["frames", "films/clip.mp4", "c.pt", "films", "--steps", "2"])


def test_scores_of_sequences_say_how_much_they_flicker(
    films: Path, capsys: pytest.CaptureFixture[str]
):
    cli.run(
        "eval",
        ["frames", "pairs/val/A,pairs/val/B", "c.pt", "scores", "--metrics", "mae", "--steps", "2"],
    )
    report = json.loads(Path("scores/scores.json").read_text())
    results = np.stack([pixels(f"scores/val walk/{index}.png") for index in range(3)])
    changes = np.diff(results, axis=0) - np.diff(255 - FRAMES[:3].astype(int), axis=0)
    assert report["flicker"] == {"val walk": pytest.approx(np.abs(changes).mean())}
    assert f"| {np.abs(changes).mean():.3f} |" in capsys.readouterr().out


def test_films_without_targets_are_scored_where_their_sources_stay(
    films: Path, capsys: pytest.CaptureFixture[str]
):
    cli.run("eval", ["frames", "films/walk", "c.pt", "scores", "--steps", "2"])
    report = json.loads(Path("scores/scores.json").read_text())
    results = np.stack([pixels(f"scores/walk/{index}.png") for index in range(len(FRAMES))])
    stays = (np.diff(FRAMES.astype(int), axis=0) == 0).all(axis=-1)
    changes = np.abs(np.diff(results, axis=0))
    of_frames = [of_frame[where].mean() for of_frame, where in zip(changes, stays, strict=True)]
    assert 0 < stays.mean() < 1
    assert report["scores"] == {}
    assert report["flicker_of_stills"] == {"walk": pytest.approx(np.mean(of_frames))}
    said = capsys.readouterr().out
    assert "flicker where the source stays" in said
    assert f"| {np.mean(of_frames):.3f} |" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["films/walk", "--metrics", "mae"], "has no target to compare with: without --metrics"),
        (["films/walk", "--sweep", "mean"], "has no target to compare with: without --metrics"),
    ],
)
def test_scores_that_need_targets_are_refused_before_any_result(
    films: Path, words: list[str], message: str
):
    data, *flags = words
    with pytest.raises(SystemExit, match=message):
        cli.run("eval", ["frames", data, "c.pt", "scores", *flags])
    assert not [*Path().glob("scores/**/*.png")]


def test_pictures_without_targets_are_refused_before_any_result(films: Path):
    Path("rows.csv").write_text("source\nfilms/walk/0.png\nfilms/walk/1.png\n")
    with pytest.raises(SystemExit, match=r"0\.png has no target to compare with"):
        cli.run("eval", ["table", "rows.csv", "c.pt", "scores", "--metrics", "mae", "--steps", "2"])
    assert not [*Path().glob("scores/**/*.png")]


@pytest.mark.usefixtures("tiny_demo")
def test_a_network_that_sees_neighbours_is_trained_and_translates(
    films: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--preset", "demo", "--image_size", "16", "--max_steps", "1", "-b", "2", "--quiet"]
    cli.run(
        "train", ["frames", "pairs/{split}/A,pairs/{split}/B", "n.pt", "--neighbours", "1", *flags]
    )
    Translate.main(["frames", "films/walk", "n.pt", "out", "--solver", "mean"])
    Image.fromarray(255 - FRAMES[4]).save("films/walk/4.png")  # which the frame before it sees
    Translate.main(["frames", "films/walk", "n.pt", "out", "--solver", "mean"])
    assert (
        "2 results are made anew: their sources, seeds or files have changed"
        in capsys.readouterr().out
    )
    with pytest.raises(SystemExit, match="--neighbours must be those of the network, 1, got 2"):
        cli.run("translate", ["frames", "films/walk", "n.pt", "out2", "--neighbours", "2"])
