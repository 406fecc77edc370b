"""Cached pictures equal decoded ones, are made again after an interruption, are refused if they differ."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge
from bbdm.base.atomic import LOCK
from bbdm.data import image_cache
from bbdm.data.image_cache import ImageCache
from bbdm.data.pairs import PairedDataset
from bbdm.files.checkpoint import load_checkpoint
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from tests.conftest import SIZE, SavePicture, tiny_unet
from tests.data.conftest import COUNT


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "PAIRS_AT_ONCE", 2)


def assert_same(cached: PairedDataset, pairs: PairedDataset) -> None:
    assert len(cached) == len(pairs)
    for i in range(len(pairs)):
        for made, wanted in zip((*cached[i], *cached.pixels(i)), (*pairs[i], *pairs.pixels(i)), strict=True):
            assert made.dtype == wanted.dtype
            assert torch.equal(made, wanted)


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_are_those_of_the_data_set(workers: int, pairs: PairedDataset, tmp_path: Path):
    cached = ImageCache(pairs, tmp_path / "cache", workers=workers)
    assert_same(cached, pairs)
    assert (cached.image_size, cached.direction, cached.digest()) == (SIZE, "AtoB", pairs.digest())
    packed = np.load(tmp_path / "cache" / "train.npy")
    assert packed.dtype == np.uint8
    assert packed.shape == (COUNT, 2, 3, SIZE, SIZE)


def test_pictures_are_decoded_once(pairs: PairedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = ImageCache(pairs, tmp_path / "cache")
    sent = pickle.dumps(first)
    first[0]
    assert len(pickle.dumps(first)) == len(sent)  # a worker's copy holds no pictures
    expected = [pairs[i] for i in range(COUNT)]
    monkeypatch.setattr(PairedDataset, "images", lambda *_: pytest.fail("decoded again"))
    for cached in (first, ImageCache(pairs, tmp_path / "cache"), pickle.loads(sent)):
        for i, pair in enumerate(expected):
            assert all(torch.equal(made, wanted) for made, wanted in zip(cached[i], pair, strict=True))


def test_two_runs_make_a_cache_once(pairs: PairedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[Path] = []
    write = image_cache.write_atomically

    def slow(path: Path, content: Any) -> None:
        written.append(path)
        time.sleep(0.2)
        write(path, content)

    monkeypatch.setattr(image_cache, "write_atomically", slow)
    with ThreadPoolExecutor(2) as both:
        one, other = both.map(lambda _: ImageCache(pairs, tmp_path / "cache"), range(2))
    assert len(written) == 1
    for cached in (one, other):
        assert_same(cached, pairs)


def test_indices_are_those_of_a_list(pairs: PairedDataset, tmp_path: Path):
    cached = ImageCache(pairs, tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(cached[-1], cached[COUNT - 1], strict=True))
    with pytest.raises(IndexError):
        cached[COUNT]


@pytest.mark.parametrize("during", ["pictures", "manifest"])
def test_an_interrupted_cache_is_made_again(
    during: str, pairs: PairedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *((np.lib.format, "write_array_header_1_0") if during == "pictures" else (image_cache, "file_sha256")),
            interrupted,
        )
        with pytest.raises(KeyboardInterrupt):
            ImageCache(pairs, tmp_path / "cache")
    left = {"train.json"} if during == "pictures" else {"train.json", "train.npy"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {*left, LOCK}
    (tmp_path / "cache" / ".train.json.0123abcd.tmp").touch()  # of a killed process
    assert_same(ImageCache(pairs, tmp_path / "cache"), pairs)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"train.json", "train.npy", LOCK}


def test_a_full_disk_leaves_no_part(pairs: PairedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OSError, match=r"no room for 10 MiB of pictures: make some.*train\.npy"):
        ImageCache(PairedDataset(pairs.pairs, 590), tmp_path / "cache")  # 5 x 2 x 3 x 590 x 590 bytes are 9.96 MiB
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"train.json", LOCK}


@pytest.mark.parametrize("change", ["image_size", "direction", "pictures"])
def test_a_cache_of_other_pictures_is_refused(
    change: str, pairs: PairedDataset, tmp_path: Path, save_picture: SavePicture
):
    ImageCache(pairs, tmp_path / "cache")
    if change == "image_size":
        pairs = PairedDataset(pairs.pairs, 2 * SIZE)
    elif change == "direction":
        pairs = PairedDataset(pairs.pairs, SIZE, "BtoA")
    else:
        save_picture(tmp_path / "A" / "0.png", Image.new("RGB", (SIZE, SIZE), "red"))
    with pytest.raises(
        ValueError, match=rf"train\.npy is of other pictures \({change}[. ].*, now .*\): give another folder"
    ):
        ImageCache(pairs, tmp_path / "cache")


@pytest.mark.parametrize(
    "change", [lambda content: bytes([*content[:-1], content[-1] ^ 1]), lambda content: content[:-1]]
)
def test_a_changed_file_is_refused(change: Any, pairs: PairedDataset, tmp_path: Path):
    path = ImageCache(pairs, tmp_path / "cache").path
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train\.npy has changed since it was written: delete it"):
        ImageCache(pairs, tmp_path / "cache")
    path.unlink()
    assert_same(ImageCache(pairs, tmp_path / "cache"), pairs)


def test_files_of_something_else_are_kept(pairs: PairedDataset, tmp_path: Path):
    (tmp_path / "train.npy").write_bytes(b"my own numbers")
    with pytest.raises(ValueError, match=r"train\.npy is no cache of pictures, without .*train\.json: give another"):
        ImageCache(pairs, tmp_path)
    (tmp_path / "train.json").write_text("my own text")
    with pytest.raises(ValueError, match=r"cannot read .*train\.json: delete it and .*train\.npy"):
        ImageCache(pairs, tmp_path)
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(ValueError, match=r"cannot read .*train\.json: delete it and .*train\.npy"):
        ImageCache(pairs, tmp_path)
    assert (tmp_path / "train.npy").read_bytes() == b"my own numbers"


def test_a_cache_of_an_earlier_version_is_read(pairs: PairedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its files, written by hand in the layout of version 1."""
    folder = tmp_path / "cache"
    folder.mkdir()
    pixels = np.stack([np.stack([v.numpy() for v in pairs.pixels(i)]) for i in range(COUNT)])
    np.save(folder / "train.npy", pixels)
    content = {
        "version": 1,
        "pictures": {"count": COUNT, "files": pairs.digest()},
        "direction": "AtoB",
        "image_size": SIZE,
        "channels": 3,
        "sha256": hashlib.sha256((folder / "train.npy").read_bytes()).hexdigest(),
    }
    (folder / "train.json").write_text(json.dumps(content, indent=2))
    expected = [pairs[i] for i in range(COUNT)]
    monkeypatch.setattr(PairedDataset, "images", lambda *_: pytest.fail("decoded again"))
    cached = ImageCache(pairs, folder)
    for i, pair in enumerate(expected):
        assert all(torch.equal(made, wanted) for made, wanted in zip(cached[i], pair, strict=True))


def test_grey_pictures_that_are_not_square(pairs: PairedDataset, tmp_path: Path):
    grey = PairedDataset(pairs.pairs, (SIZE, 2 * SIZE), "BtoA", channels=1)
    for _ in range(2):
        assert_same(ImageCache(grey, tmp_path / "cache"), grey)
    with pytest.raises(ValueError, match=r"train\.npy is of other pictures \(channels 1, now 3\)"):
        ImageCache(PairedDataset(pairs.pairs, (SIZE, 2 * SIZE), "BtoA"), tmp_path / "cache")


def test_splits_share_a_folder(pairs: PairedDataset, tmp_path: Path):
    few = PairedDataset(pairs.pairs[:2], SIZE)
    for _ in range(2):
        assert_same(ImageCache(pairs, tmp_path / "cache"), pairs)
        assert_same(ImageCache(few, tmp_path / "cache", "val"), few)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_training_on_the_cache_is_training_on_the_pictures(workers: int, pairs: PairedDataset, tmp_path: Path):
    config = TrainConfig(epochs=2, batch_size=2, flip=True, workers=workers)
    states, metrics = [], []
    for name, data in {"pictures": pairs, "cache": ImageCache(pairs, tmp_path / "cache")}.items():
        trainer = Trainer(tiny_unet(), ABridge(), config, data, data, tmp_path / f"on {name}")
        trainer.fit()
        states.append(load_checkpoint(trainer.run.checkpoint(trainer.step)).unet.ema)
        lines = (trainer.folder / "metrics.jsonl").read_text().splitlines()
        metrics.append([{**json.loads(line), "images_per_second": 0} for line in lines])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert metrics[0] == metrics[1]
    previews = [(tmp_path / f"on {name}" / "epoch_0002.png").read_bytes() for name in ("pictures", "cache")]
    assert previews[0] == previews[1]
