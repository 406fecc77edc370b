"""Sequences: which frames they have, in which order, and what a network sees of the frames around one."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from bbdm.data import Pairs, Spec, read_rows
from bbdm.data.provenance import check_groups, columns_digest
from bbdm.data.sequences import natural
from tests.films import decoded, moving, write_film

FRAMES = moving(12)


def save_frames(folder: Path, count: int = 12, shift: int = 0) -> Path:
    """Frames whose names sort otherwise as text: 0.png, 1.png, 10.png."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(FRAMES[index] + np.uint8(shift)).save(folder / f"{index}.png")
    return folder


def test_numbers_in_names_count_by_their_value():
    assert sorted(["a10", "a9", "b1", "a9b", "1a"], key=natural) == ["1a", "a9", "a9b", "a10", "b1"]


def test_folders_films_and_time_lapses_are_sequences(tmp_path: Path):
    save_frames(tmp_path / "D/walk")
    save_frames(tmp_path / "D/deep/run", 2)
    film = write_film(tmp_path / "D/clip.mp4", FRAMES[:3])
    lapse = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    tifffile.imwrite(tmp_path / "D/lapse.tif", lapse, metadata={"axes": "ZYX"}, imagej=True)
    rows = read_rows("frames", str(tmp_path / "D"))
    names = [row["name"] for row in rows]
    assert names[:3] == ["clip/000000", "clip/000001", "clip/000002"]
    assert names[3:7] == [f"lapse/00000{index}" for index in range(4)]
    assert names[7:] == ["deep/run/0", "deep/run/1", *(f"walk/{index}" for index in range(12))]
    by_name = {row["name"]: row["source"] for row in rows}
    assert (np.moveaxis(np.asarray(by_name["clip/000002"].read()), 0, -1) == decoded(film)[2]).all()
    assert (np.asarray(by_name["lapse/000003"].read())[0] == lapse[3]).all()
    assert (np.moveaxis(np.asarray(by_name["walk/10"].read()), 0, -1) == FRAMES[10]).all()
    assert columns_digest({"source": [by_name["lapse/000001"]]}) != columns_digest(
        {"source": [by_name["lapse/000002"]]}
    )


def test_frames_in_the_folder_itself_and_one_film_are_sequences(tmp_path: Path):
    rows = read_rows("frames", str(save_frames(tmp_path / "walk", 2)))
    assert [row["name"] for row in rows] == ["walk/0", "walk/1"]
    film = write_film(tmp_path / "clip.mp4", FRAMES[:2])
    assert [row["name"] for row in read_rows("frames", str(film))] == ["clip/000000", "clip/000001"]


def test_pairs_are_matched_by_sequence_and_frame(tmp_path: Path):
    save_frames(tmp_path / "A/walk", 3)
    save_frames(tmp_path / "B/walk", 3, shift=5)
    folders = f"{tmp_path}/A,{tmp_path}/B"
    pairs = Pairs(read_rows("frames", folders), Spec())
    assert len(pairs) == 3
    (tmp_path / "B/walk/2.png").unlink()
    with pytest.raises(
        ValueError, match=r"walk/2 has no counterpart in .*/B: frames are matched by name"
    ):
        read_rows("frames", folders)
    save_frames(tmp_path / "B/run", 1)
    with pytest.raises(ValueError, match=r"the sequence run has no counterpart in .*/A"):
        read_rows("frames", f"{tmp_path}/B,{tmp_path}/A")


@pytest.mark.parametrize(
    ("where", "error", "reason"),
    [
        ("missing", FileNotFoundError, "there is no folder"),
        ("empty", ValueError, "has neither folders of frames nor films"),
        ("A,B,C", ValueError, "data_dir of 'frames' must be a folder, or two, SOURCES,TARGETS"),
        ("a.png", ValueError, "is no film: it has 2 axes"),
    ],
)
def test_what_has_no_sequences_is_refused(
    where: str, error: type[Exception], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Image.fromarray(FRAMES[0]).save("a.png")
    with pytest.raises(error, match=reason):
        read_rows("frames", where)


def test_a_network_sees_the_frames_around_one(tmp_path: Path):
    save_frames(tmp_path / "A/walk", 4)
    save_frames(tmp_path / "B/walk", 4, shift=5)
    rows = read_rows("frames", f"{tmp_path}/A,{tmp_path}/B")
    pairs = Pairs(rows, Spec(neighbours=1))
    source, target = pairs[0]
    frames = np.moveaxis(FRAMES, -1, 1).astype(np.float32) / 127.5 - 1
    assert np.allclose(source.numpy(), np.concatenate([frames[0], frames[0], frames[1]]), atol=1e-6)
    source, target = pairs[2]
    assert np.allclose(source.numpy(), frames[1:4].reshape(9, 16, 16), atol=1e-6)
    assert target.shape == (3, 16, 16)
    assert pairs.spec.endpoint(pairs.source_channels, pairs.channels) == (3, 4, 5)


def test_neighbours_of_single_pictures_are_refused(tmp_path: Path):
    rows = read_rows("folder", str(save_frames(tmp_path / "walk", 2)))
    with pytest.raises(
        ValueError,
        match="is no frame of a sequence, and neighbours are those of the data set 'frames'",
    ):
        Pairs(rows, Spec(neighbours=1))


def test_no_sequence_is_on_both_sides_of_a_split(tmp_path: Path):
    save_frames(tmp_path / "A/walk", 3)
    save_frames(tmp_path / "B/walk", 3)
    rows = read_rows("frames", f"{tmp_path}/A,{tmp_path}/B")
    with pytest.raises(ValueError, match=r"1 group is on both sides of the split: .*A/walk"):
        check_groups(rows[:2], rows[2:])


def test_whole_sequences_are_volumes_of_which_windows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_frames(tmp_path / "D/walk", 6)
    (row,) = read_rows("frames", str(tmp_path / "D"), axes=3)
    volume = row["source"]
    assert row["name"] == "walk"
    assert volume.header().shape == (3, 6, 16, 16)
    opened: list[str] = []
    cells = type(volume.frames[0])
    read = cells.read
    monkeypatch.setattr(
        cells, "read", lambda cell, window=(): opened.append(cell.path.name) or read(cell, window)
    )
    window = volume.read((slice(2, 4), slice(1, 5), slice(None)))
    assert opened == ["2.png", "3.png"]
    assert (np.moveaxis(np.asarray(window), 0, -1) == FRAMES[2:4, 1:5]).all()
    Image.fromarray(FRAMES[0, :8]).save(tmp_path / "D/walk/3.png")
    with pytest.raises(
        ValueError, match=r"3\.png is \(3, 8, 16\) of uint8, and .*0\.png \(3, 16, 16\)"
    ):
        volume.read()


def test_a_film_beside_pictures_is_no_picture_of_a_folder(tmp_path: Path):
    save_frames(tmp_path / "D", 2)
    write_film(tmp_path / "D/clip.mp4", FRAMES[:2])
    assert [row["name"] for row in read_rows("folder", str(tmp_path / "D"))] == ["0", "1"]


def test_a_whole_sequence_keeps_masks_and_labels(tmp_path: Path):
    save_frames(tmp_path / "A/walk", 3)
    for index in range(3):
        mask = np.full((16, 16), 60 * index, np.uint8)
        (tmp_path / "M/walk").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"M/walk/{index}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("walk/0,rain\nwalk/1,rain\nwalk/2,rain\n")
    where = f"{tmp_path}/A,mask={tmp_path}/M,weather={labels}"
    (row,) = read_rows("frames", where, axes=3)
    assert np.asarray(row["mask"].read())[0, :, 0, 0].tolist() == [0, 60, 120]
    assert row["weather"] == "rain"
    labels.write_text("walk/0,rain\nwalk/1,sun\nwalk/2,rain\n")
    with pytest.raises(ValueError, match="weather of walk is 'rain' and others"):
        read_rows("frames", where, axes=3)
