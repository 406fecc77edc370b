import struct
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data.examples import PairExamples
from bbdm.data.pairs import Pair, PairedDataset, load_dataset
from tests.conftest import SavePicture, noise

RED, BLUE = (255, 0, 0), (0, 0, 255)
COLOURS = {RED: (1.0, -1.0, -1.0), BLUE: (-1.0, -1.0, 1.0)}  # as they must come out
SIDE = 16


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new("RGB", size, colour)


def halves() -> Image.Image:
    """Red on the left, blue on the right, each a square."""
    sheet = flat(RED, (2 * SIDE, SIDE))
    sheet.paste(flat(BLUE), (SIDE, 0))
    return sheet


PICTURES = {"source": flat(RED), "target": flat(BLUE), "both": halves(), "other": flat((0, 255, 0))}

LAYOUTS = {  # dataset, data_dir, files
    "edge2shoes-jpg": ("edge2shoes", "ROOT", {"train/7.jpg": "both"}),
    "edge2shoes-png": ("edge2shoes", "ROOT", {"train/7.png": "both"}),
    "edge2shoes-webp": ("edge2shoes", "ROOT", {"train/7.webp": "both"}),
    "edge2handbags": ("edge2handbags", "ROOT", {"train/7.jpg": "both", "test/8.jpg": "other"}),
    "celeba": ("celeba", "ROOT", {"train/A/7.png": "source", "train/B/7.png": "target", "val/A/8.png": "other"}),
    "face2comics": ("face2comics", "ROOT", {"train/A/7.jpg": "source", "train/B/7.jpg": "target"}),
    "cityscapes": (
        "cityscapes",
        "ROOT",
        {
            "gtFine/train/ulm/ulm_000007_000019_gtFine_color.png": "source",
            "gtFine/train/ulm/ulm_000007_000019_gtFine_labelIds.png": "other",
            "leftImg8bit/train/ulm/ulm_000007_000019_leftImg8bit.png": "target",
            "gtFine/val/bonn/bonn_000008_000019_gtFine_color.png": "other",
        },
    ),
    "paired": ("paired", "ROOT/x,ROOT/y", {"x/7.png": "source", "y/7.png": "target"}),
    "paired-split": (
        "paired",
        "ROOT/{split}/x,ROOT/y/{split}",
        {"train/x/7.png": "source", "y/train/7.png": "target", "val/x/8.png": "other"},
    ),
}


def build(root: Path, layout: str, save_picture: SavePicture, direction: str = "AtoB") -> PairExamples:
    name, data_dir, files = LAYOUTS[layout]
    for file, content in files.items():
        save_picture(root / file, PICTURES[content])
    return load_dataset(name, data_dir.replace("ROOT", str(root)), "train", image_size=SIDE, direction=direction)


def assert_colour(tensor: torch.Tensor, colour: tuple[int, int, int]) -> None:
    expected = torch.tensor(COLOURS[colour])[:, None, None].expand_as(tensor)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_gives_source_and_target(layout: str, tmp_path: Path, save_picture: SavePicture) -> None:
    dataset = build(tmp_path, layout, save_picture)
    assert len(dataset) == 1
    source, target = dataset[0]
    for tensor, colour in ((source, RED), (target, BLUE)):
        assert tensor.shape == (3, SIDE, SIDE)
        assert tensor.dtype == torch.float32
        assert -1 <= tensor.min() <= tensor.max() <= 1
        assert_colour(tensor, colour)


@pytest.mark.parametrize("layout", ["edge2shoes-png", "celeba", "cityscapes", "paired"])
def test_b_to_a_swaps(layout: str, tmp_path: Path, save_picture: SavePicture) -> None:
    source, target = build(tmp_path, layout, save_picture, direction="BtoA")[0]
    assert_colour(source, BLUE)
    assert_colour(target, RED)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_iteration_ends_after_the_last_pair(skip_bad: bool, tmp_path: Path, save_picture: SavePicture) -> None:
    files = [save_picture(tmp_path / f"{i}.png", flat((90 * i, 0, 0))) for i in range(3)]
    dataset = PairedDataset([Pair(str(i), path, path) for i, path in enumerate(files)], SIDE, skip_bad=skip_bad)
    reds = [round((source[0, 0, 0].item() + 1) * 127.5) for source, _ in islice(iter(dataset), 9)]
    assert reds == [0, 90, 180]
    assert dataset[-1][0].equal(dataset[2][0])
    with pytest.raises(IndexError):
        dataset[3]


def test_a_folder_has_sources_alone(tmp_path: Path, save_picture: SavePicture) -> None:
    """Hidden files, and those of no picture, are passed over."""
    save_picture(tmp_path / "7.png", flat(RED, (20, 10)))
    for name in ("._3.png", "Thumbs.db", "README.md"):
        (tmp_path / name).write_text("no picture")
    dataset = load_dataset("folder", str(tmp_path), image_size=SIDE)
    assert [pair.name for pair in dataset.pairs] == ["7"]
    source, target = dataset.images(0)
    assert (source.size, source.mode, target) == ((SIDE, SIDE), "RGB", None)
    with pytest.raises(ValueError, match=r"7\.png has no target"):
        dataset[0]
    with pytest.raises(ValueError, match="'BtoA' needs a dataset with targets"):
        load_dataset("folder", str(tmp_path), direction="BtoA").images(0)


class TestMatching:
    def test_by_stem_across_suffixes_and_below_subfolders(self, tmp_path: Path, save_picture: SavePicture) -> None:
        for name in ("3.png", "10.webp", "deep/3.png"):
            save_picture(tmp_path / "x" / name, flat(RED))
        for name in ("3.jpg", "10.PNG", "deep/3.bmp"):
            save_picture(tmp_path / "y" / name, flat(BLUE))
        dataset = load_dataset("paired", f"{tmp_path}/x,{tmp_path}/y", image_size=SIDE)
        assert [pair.name for pair in dataset.pairs] == ["10", "3", "deep/3"]
        (tmp_path / "x").rename(tmp_path / "moved")
        moved = load_dataset("paired", f"{tmp_path}/moved,{tmp_path}/y", image_size=SIDE)
        digest = moved.digest()
        (tmp_path / "moved").rename(tmp_path / "x")
        assert dataset.digest() == digest  # by names and content, wherever it lies
        for pair, (source, target) in zip(dataset.pairs, map(dataset.__getitem__, range(3)), strict=True):
            assert pair.target is not None
            assert pair.source.stem == pair.target.stem
            assert_colour(source, RED)
            assert_colour(target, BLUE)

    def test_pictures_of_kinds_that_are_not_read_are_counted(self, tmp_path: Path, save_picture: Any, caplog: Any):
        for file in ("1.png", "2.gif", "3.GIF"):
            save_picture(tmp_path / file, flat(RED))
        (tmp_path / "notes.txt").touch()
        assert len(load_dataset("folder", str(tmp_path))) == 1
        warning = f"2 pictures are skipped in {tmp_path}, of kinds that are not read (.gif)"
        assert [record.getMessage() for record in caplog.records] == [warning]

    @pytest.mark.parametrize(
        ("dataset", "more", "message"),
        [
            ("celeba", "A/5.png", r"A/5\.png has no counterpart in .*/B: files are matched by name"),
            ("celeba", "B/5.png", r"B/5\.png has no counterpart in .*/A: files are matched by name"),
            ("celeba", "A/5.png B/6.png", r"A/5\.png has no counterpart in .*/B, nor has 1 other: files are matched"),
            ("celeba", "A/5.png B/6.png B/7.png", r"A/5\.png has no counterpart in .*/B, nor have 2 others: files are"),
            ("celeba", "A/3.jpg", r"A/3\.jpg and .*A/3\.png have the same name"),
            ("edge2shoes", "", r"train has the folders A and B, which is the layout of 'celeba'"),
        ],
    )
    def test_files_that_make_no_pairs_are_named(
        self, dataset: str, more: str, message: str, tmp_path: Path, save_picture: SavePicture
    ) -> None:
        for file in ("A/3.png", "B/3.png", *more.split()):
            save_picture(tmp_path / "train" / file, flat(RED))
        with pytest.raises(ValueError, match=message):
            load_dataset(dataset, str(tmp_path))

    def test_one_name_in_two_cities_is_two_pairs(self, tmp_path: Path, save_picture: SavePicture) -> None:
        for city in ("bonn", "ulm"):
            save_picture(tmp_path / f"gtFine/train/{city}/1_gtFine_color.png", flat(RED))
            save_picture(tmp_path / f"leftImg8bit/train/{city}/1_leftImg8bit.png", flat(BLUE))
        assert [pair.name for pair in load_dataset("cityscapes", str(tmp_path)).pairs] == ["bonn/1", "ulm/1"]


class TestPictures:
    @pytest.mark.parametrize(
        ("orientation", "red"),
        [
            (1, np.s_[:, :, : SIDE // 2]),
            (3, np.s_[:, :, SIDE // 2 :]),
            (6, np.s_[:, : SIDE // 2]),
            (8, np.s_[:, SIDE // 2 :]),
        ],
        ids=["upright-left", "turned-180-right", "turned-90-top", "turned-270-bottom"],
    )
    def test_exif_orientation_is_applied(
        self, orientation: int, red: tuple[slice, ...], tmp_path: Path, save_picture: SavePicture
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save_picture(tmp_path / "7.jpg", halves(), exif=exif)
        save_picture(tmp_path / "8.png", flat(BLUE))
        source, _ = PairedDataset([Pair("7", path, tmp_path / "8.png")], SIDE)[0]
        expected = torch.tensor(COLOURS[BLUE])[:, None, None].repeat(1, SIDE, SIDE)
        expected[red] = torch.tensor(COLOURS[RED])[:, None, None]
        away = (source - expected).abs().amax(0) > 0.1
        assert away.sum() <= 2 * SIDE  # the seam, one pixel on each side

    def test_shrinking_averages_and_enlarging_is_bilinear(self, tmp_path: Path, save_picture: SavePicture) -> None:
        """Alternating pixels cancel in a filter as wide as the reduction, not in subsampling.

        Two pixels 0, 255 are seen at 1/4, 3/4, 5/4 and 7/4 of a pixel from the left.
        """
        board = np.indices((4 * SIDE, 4 * SIDE)).sum(0) % 2 * 255
        save_picture(tmp_path / "7.png", Image.fromarray(board.astype(np.uint8)))
        source, _ = load_dataset("folder", str(tmp_path), image_size=SIDE).images(0)
        assert np.abs(np.asarray(source, dtype=float) - 127.5).max() <= 1.5
        save_picture(tmp_path / "7.png", Image.fromarray(np.array([[0, 255]], dtype=np.uint8)))
        source, _ = load_dataset("folder", str(tmp_path), image_size=4).images(0)
        assert np.asarray(source)[:, :, 0].tolist() == [[0, 64, 191, 255]] * 4

    def test_of_any_shape_become_one_size(self, tmp_path: Path, save_picture: SavePicture) -> None:
        """Height comes before width."""
        save_picture(tmp_path / "x" / "7.png", flat(RED, (30, 7)))
        save_picture(tmp_path / "y" / "7.png", flat(BLUE, (5, 40)))
        dataset = load_dataset("paired", f"{tmp_path}/x,{tmp_path}/y", image_size=(SIDE // 2, SIDE))
        assert dataset.images(0)[0].size == (SIDE, SIDE // 2)
        source, target = dataset[0]
        assert source.shape == target.shape == (3, SIDE // 2, SIDE)
        assert PairedDataset(dataset.pairs, (SIDE, SIDE)).image_size == SIDE

    def test_grey(self, tmp_path: Path, save_picture: SavePicture) -> None:
        """Red is 0.299 of the luminance of ITU-R 601, blue 0.114."""
        save_picture(tmp_path / "train" / "7.png", halves())
        dataset = load_dataset("edge2shoes", str(tmp_path), image_size=SIDE, channels=1)
        for tensor, level in zip(dataset[0], (0.299, 0.114), strict=True):
            assert tensor.shape == (1, SIDE, SIDE)
            torch.testing.assert_close(tensor, torch.full_like(tensor, 2 * level - 1), rtol=0, atol=1 / 255)
        assert [image.mode for image in dataset.images(0) if image] == ["L", "L"]

    def test_odd_width_cannot_be_halved(self, tmp_path: Path, save_picture: SavePicture) -> None:
        save_picture(tmp_path / "train" / "7.png", flat(RED, (7, 4)))
        dataset = load_dataset("edge2shoes", str(tmp_path))
        for read in (dataset.images, lambda index: dataset.pairs[index].sizes()):
            with pytest.raises(ValueError, match=r"7\.png is 7 pixels wide"):
                read(0)


class TestDamagedPicture:
    @staticmethod
    def check_named(path: Path) -> None:
        dataset = load_dataset("folder", str(path.parent), image_size=SIDE)
        with pytest.raises(ValueError, match=rf"cannot read the picture .*{path.name}"):
            dataset.images(0)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
    def test_truncated(self, suffix: str, tmp_path: Path, save_picture: SavePicture) -> None:
        path = save_picture(tmp_path / f"7{suffix}", noise(0, SIDE, SIDE))
        whole = path.read_bytes()
        for content in (whole[:-200], b"", b"this is text"):
            path.write_bytes(content)
            self.check_named(path)

    def test_header_of_absurd_size(self, tmp_path: Path, save_picture: SavePicture) -> None:
        path = save_picture(tmp_path / "7.bmp", flat(RED, (2, 2)))
        content = bytearray(path.read_bytes())
        struct.pack_into("<ii", content, 18, 20_000, 20_000)  # width and height of a BMP
        path.write_bytes(content)
        self.check_named(path)


@pytest.mark.parametrize(
    ("dataset", "data_dir", "message"),
    [
        *((name, "gone", "no folder gone") for name in ("edge2shoes", "celeba", "cityscapes", "folder")),
        ("edge2shoes", ".", r"no pictures in train .*\.png"),
        ("cityscapes", ".", "no pictures .*_gtFine_color"),
        ("folder", "train/notes.txt", "notes.txt is a file, not a folder of pictures"),
        ("edges", ".", r"dataset must be one of .*'edge2shoes'.*, got 'edges'"),
        ("paired", "x", "two folders, SOURCES,TARGETS; got 'x'"),
        ("paired", "x,y,z", "two folders, SOURCES,TARGETS; got 'x,y,z'"),
    ],
)
def test_what_is_no_data_set(
    dataset: str, data_dir: str, message: str, tmp_path: Path, save_picture: SavePicture, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "notes.txt").touch()
    for file in ("gtFine/train/ulm/1_gtFine_labelIds.png", "leftImg8bit/train/ulm/1.png"):
        save_picture(tmp_path / file, flat(RED))
    with pytest.raises(FileNotFoundError if data_dir == "gone" else ValueError, match=message):
        load_dataset(dataset, data_dir)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": 8, "direction": "AB"}, r"direction must be one of .*, got 'AB'"),
        ({"image_size": 8, "channels": 2}, "channels of pictures must be 1 or 3, got 2"),
        ({"image_size": (4, 0)}, r"image_size must be at least 1, got \(4, 0\)"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairedDataset([], **given)
