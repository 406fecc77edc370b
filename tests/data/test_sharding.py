"""Shards that are written: read by WebDataset and by us, completed, without what is broken."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from bbdm.cli import shard
from bbdm.data.examples import PairExamples
from bbdm.data.pairs import PairedDataset, load_dataset
from bbdm.data.sharding import write_shards
from bbdm.data.survey import BadPicturesError
from tests.conftest import SIZE, SavePicture
from tests.data.conftest import COUNT


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(folder: Path, **settings: Any) -> PairExamples:
    return load_dataset("shards", str(folder), image_size=SIZE, **settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_pairs_are_those_of_the_files(workers: int, pairs: PairedDataset, tmp_path: Path) -> None:
    assert write_shards(pairs, tmp_path / "out", 2, workers=workers) == (COUNT, 0)
    assert sorted(content(tmp_path / "out")) == ["000000.tar", "000001.tar", "000002.tar", "index.json"]
    urls = [str(tmp_path / "out" / f"{i:06d}.tar") for i in range(3)]
    theirs = list(WebDataset(urls, shardshuffle=False))
    found = load(tmp_path / "out")
    for i, (pair, sample) in enumerate(zip(pairs.pairs, theirs, strict=True)):
        assert sample["__key__"] == pair.name
        assert sample["source.png"] == pair.source.read_bytes()
        assert sample["target.png"] == tmp_path.joinpath("B", f"{pair.name}.png").read_bytes()
        assert all(torch.equal(a, b) for a, b in zip(found.pixels(i), pairs.pixels(i), strict=True))


def test_the_index_is_that_of_wids(pairs: PairedDataset, tmp_path: Path) -> None:
    write_shards(pairs, tmp_path, 2)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1"
    counts = {entry["url"]: entry["nsamples"] for entry in index["shardlist"]}
    assert counts == {"000000.tar": 2, "000001.tar": 2, "000002.tar": 1}
    for entry in index["shardlist"]:
        data = (tmp_path / entry["url"]).read_bytes()
        assert (entry["filesize"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_any_layout(tmp_path: Path, save_picture: SavePicture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in one file, JPEG beside PNG, pictures alone, and shards again; names with dots."""
    generator = np.random.default_rng(0)
    for place in ("side/train/a.b.png", "two/A/deep/x.jpg", "two/B/deep/x.webp", "alone/train/y.jpg"):
        pixels = generator.integers(0, 256, (SIZE, 2 * SIZE, 3), dtype=np.uint8)
        save_picture(tmp_path / place, Image.fromarray(pixels))
    for name, place, columns in (
        ("edge2shoes", "side", None),
        ("paired", f"{tmp_path}/two/A,{tmp_path}/two/B", None),
        ("folder", "alone", "source"),
    ):
        place = place if name == "paired" else str(tmp_path / place)
        shard.main([name, place, str(tmp_path / "out" / name), "--splits", "train"])
        before = load_dataset(name, place, image_size=SIZE)
        flags = [] if columns is None else ["--columns", columns]
        shard.main(["shards", str(tmp_path / "out" / name), str(tmp_path / "again" / name), "--quiet", *flags])
        for folder in ("out", "again"):
            after = load(tmp_path / folder / name, columns=columns)
            assert [pair.name.replace(".", "_") for pair in before.pairs] == [pair.name for pair in after.pairs]
            sides = zip(before.images(0), after.images(0), strict=True)
            assert all(a is b or np.array_equal(np.asarray(a), np.asarray(b)) for a, b in sides)


def test_resized(pairs: PairedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard.main(["paired", f"{tmp_path}/A,{tmp_path}/B", str(tmp_path / "out"), "--image_size", str(SIZE)])
    printed = capsys.readouterr().out
    assert f"{tmp_path}/out/train: {COUNT} pairs" in printed
    assert "without the split val: it is another one's pairs" in printed
    found = load(tmp_path / "out")
    assert found.pairs[0].sizes() == [(SIZE, SIZE)] * 2
    assert all(torch.equal(a, b) for a, b in zip(found.pixels(1), pairs.pixels(1), strict=True))


def test_what_is_broken(pairs: PairedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = pairs.pairs[2].source
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-60])
    with pytest.raises(BadPicturesError, match=rf"cannot read the picture {victim}"):
        write_shards(pairs, tmp_path / "stopped", 2)
    assert sorted(content(tmp_path / "stopped")) == ["000000.tar", "index.json"]
    with pytest.raises(ValueError, match="is not finished: 2 shards are still to be written"):
        load(tmp_path / "stopped")
    lines: list[str] = []
    assert write_shards(pairs, tmp_path / "skipped", 2, skip_bad=True, report=lines.append) == (COUNT - 1, 1)
    assert len(lines) == 1
    assert str(victim) in lines[0]
    index = json.loads((tmp_path / "skipped" / "index.json").read_text())
    assert [list(entry["left_out"]) for entry in index["shardlist"]] == [[], ["2"], []]
    assert [pair.name for pair in load(tmp_path / "skipped").pairs] == ["0", "1", "3", "4"]
    victim.write_bytes(whole)
    write_shards(pairs, tmp_path / "stopped", 2)  # goes on
    write_shards(pairs, tmp_path / "whole", 2)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


def test_other_shards_are_refused(pairs: PairedDataset, tmp_path: Path) -> None:
    write_shards(pairs, tmp_path / "out", 2)
    with pytest.raises(ValueError, match=r"holds other shards \(pairs_in_shard 2, now 3, shards 3, now 2\)"):
        write_shards(pairs, tmp_path / "out", 3)
    (tmp_path / "out" / "index.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards without index\.json"):
        write_shards(pairs, tmp_path / "out", 2)
    with pytest.raises(ValueError, match="pairs_in_shard must be at least 1, got 0"):
        write_shards(pairs, tmp_path / "new", 0)
    with pytest.raises(ValueError, match="direction must be 'AtoB'"):
        write_shards(PairedDataset(pairs.pairs, SIZE, "BtoA"), tmp_path / "new")


def test_shards_that_changed_are_not_completed(pairs: PairedDataset, tmp_path: Path) -> None:
    for name, entry, message in (
        ("count", {"nsamples": 1}, r"cannot read .*index\.json: delete"),
        ("kind", {"nsamples": [2]}, r"cannot read .*index\.json: delete"),
        ("url", {"url": "../000001.tar"}, r"cannot read .*index\.json: delete"),
        ("left out", {"left_out": 1.5}, r"cannot read .*index\.json: delete"),
        ("hash", {"sha256": "0"}, r"000001\.tar has changed since it was written: delete"),
    ):
        write_shards(pairs, tmp_path / name, 2)
        index = json.loads((tmp_path / name / "index.json").read_text())
        index["shardlist"][1] |= entry
        (tmp_path / name / "index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=message):
            write_shards(pairs, tmp_path / name, 2)
    write_shards(pairs, tmp_path / "gone", 2)
    (tmp_path / "gone" / "000001.tar").unlink()
    with pytest.raises(ValueError, match=r"000001\.tar has changed"):
        write_shards(pairs, tmp_path / "gone", 2)


def test_two_pairs_of_a_name(tmp_path: Path, save_picture: SavePicture) -> None:
    for name in ("a.b", "a_b"):
        save_picture(tmp_path / "train" / f"{name}.png", Image.new("RGB", (4, 2)))
    with pytest.raises(ValueError, match="two pairs of a shard are named 'a_b'"):
        write_shards(load_dataset("edge2shoes", str(tmp_path)), tmp_path / "out")
