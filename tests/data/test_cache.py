"""Caches: files are decoded and resized once; latents are encoded once, and refused if they differ."""

import os
import pickle
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bbdm.codec import Codec, wrap_codec
from bbdm.data import cache, latents
from bbdm.data.cells import cell_of
from bbdm.data.examples import Example
from bbdm.data.latents import LatentDataset, measure
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row, read_rows
from bbdm.data.spec import Spec, read_kinds
from bbdm.pictures import images
from tests.data.making import SIZE, load, located, pictures, pixels, save, valued
from tests.pictures.formats import write_dicom

COUNT = 5
ENTRIES = [f"{number:05d}.safetensors" for number in range(3)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are of two examples, codecs encode two pairs at a time, and three entries are mapped."""
    monkeypatch.setattr(latents, "BLOCK", 2)
    monkeypatch.setattr(latents, "ENCODED_AT_ONCE", 2)
    monkeypatch.setattr(cache, "MAPPED", 3)


def same(one: Example, other: Example) -> None:
    sides: Any = ([each.source, each.target, each.mask] for each in (one, other))
    torch.testing.assert_close(*sides, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("how", "stored"),
    [
        ({"size": 6}, {(3, 6, 6)}),
        ({"size": 6, "resize": "fit", "channels": 1}, {(1, 6, 4)}),
        ({"size": 6, "mask": True}, {(3, 11, 8), (1, 11, 8)}),
        ({"crop": 4, "channels": 1}, {(3, 11, 8)}),
        ({"dataset": "edge2shoes", "size": (4, 3)}, {(3, 4, 3)}),
        ({"size": 6, "several": True}, {(3, 6, 6)}),
    ],
)
def test_photographs_are_decoded_once(
    how: dict[str, Any], stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stored at the size of examples where they are not cropped or masked."""
    data_dir, how = pictures(tmp_path, COUNT), {**how, "cache": tmp_path / "cache"}
    for number in range(COUNT):
        save(tmp_path / f"M/{number}.png", pixels(number, SIZE + 3, channels=1) // 128)
        save(tmp_path / f"train/{number}.png", pixels(number, 8, 2 * SIZE))
    data_dir += f",mask={tmp_path}/M" if how.pop("mask", False) else ""
    data_dir = str(tmp_path) if "dataset" in how else data_dir
    data_dir = f"{tmp_path}/A,{tmp_path}/B;{tmp_path}/B" if how.pop("several", False) else data_dir
    known = [load(data_dir, **{**how, "cache": None}).read(index) for index in range(COUNT)]
    for index, example in enumerate(known):
        same(load(data_dir, **how).read(index), example)
    assert {
        tuple(load_file(path)["picture"].shape) for path in how["cache"].glob("*.safetensors")
    } == stored
    monkeypatch.setattr(images, "open_image", lambda *_, **__: pytest.fail("decoded again"))
    pairs = pickle.loads(pickle.dumps(load(data_dir, **how)))
    for index in (*range(COUNT), 0):
        same(pairs.read(index), known[index])
    assert len(vars(pairs.reader.cache)["_mapped"]) <= 3


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    """And one folder serves several kinds of examples."""
    data_dir = pictures(tmp_path, 1)
    kinds: list[Any] = [
        {"size": 4},
        {"size": 6},
        {"size": 6, "resize": "fit"},
        {"size": 4, "channels": 1},
    ]
    for how in kinds:
        before = load(data_dir, **how).read(0).source
        assert torch.equal(load(data_dir, cache=tmp_path / "cache", **how).read(0).source, before)
    save(tmp_path / "A/0.png", pixels(77, SIZE + 3))
    changed = load(data_dir, size=4).read(0).source
    assert torch.equal(load(data_dir, size=4, cache=tmp_path / "cache").read(0).source, changed)
    for path in (tmp_path / "cache").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"cache/\w+\.safetensors has changed since it was written: delete it"
    ):
        load(data_dir, size=4, cache=tmp_path / "cache").read(0)


def test_what_another_process_writes_stays(tmp_path: Path) -> None:
    data_dir = pictures(tmp_path, 1)
    load(data_dir, cache=tmp_path / "cache", size=4)
    for name, seconds in (("a", 0), ("b", 90_000)):  # now, and more than a day ago
        (writing := tmp_path / f"cache/.{name}.safetensors.0123abcd.tmp").mkdir()
        changed = time.time() - seconds
        os.utime(writing, (changed, changed))
    load(data_dir, cache=tmp_path / "cache", size=4)
    assert [path.name[:2] for path in (tmp_path / "cache").glob(".*.tmp")] == [".a"]


def test_a_slice_of_a_series_that_changes_is_decoded_again(tmp_path: Path) -> None:
    for side in "AB":
        (tmp_path / side).mkdir()
        write_dicom(tmp_path / side / "p", located(0, (2, 4, 4)), [0, 1])
    known = (
        valued(f"{tmp_path}/A,{tmp_path}/B", slices="axial", cache=tmp_path / "cache")
        .read(0)
        .source
    )
    for side in "AB":
        write_dicom(tmp_path / side / "p", located(1, (2, 4, 4)), [0, 1])
    changed = (
        valued(f"{tmp_path}/A,{tmp_path}/B", slices="axial", cache=tmp_path / "cache")
        .read(0)
        .source
    )
    assert not torch.equal(changed, known)
    assert torch.equal(changed, valued(f"{tmp_path}/A,{tmp_path}/B", slices="axial").read(0).source)


def test_the_header_of_a_series_is_that_of_its_slices_as_they_are(tmp_path: Path) -> None:
    """Slices that are written again leave the time of their folder as it is."""
    for thickness in (1, 3):
        write_dicom(tmp_path / "p", located(0, (2, 4, 4)), [0, thickness])
        os.utime(tmp_path / "p", (1, 1))
        spacing = cell_of(tmp_path / "p", "p").header().geometry.spacing
        assert spacing is not None
        assert spacing[0] == thickness


class Read(Pairs):
    """Pairs that say which were read, or end the process."""

    seen: list[int]
    interrupted: int | None = None

    def read(
        self, index: int, seed: int = 0, row: Row | None = None, stored: bool = False
    ) -> Example:
        self.seen.append(index)
        if index == self.interrupted:
            raise KeyboardInterrupt
        return super().read(index, seed, row, stored)


@pytest.fixture
def pairs(tmp_path: Path) -> Read:
    read = Read(read_rows("paired", pictures(tmp_path, COUNT)), Spec(size=SIZE))
    read.seen = []
    return read


def codec_of(seed: int = 0) -> Codec:
    """4 channels of a half of the size, by one convolution."""
    torch.manual_seed(seed)
    return wrap_codec(
        nn.Conv2d(3, 4, 2, 2), lambda m, image: m(image), lambda _, latents: latents, 4, 2
    )


def encoded(codec: Codec, sides: list[Any], flip: bool) -> torch.Tensor:
    """(B, 4, H / 2, W / 2) float64 of uint8, by hand; with ``flip``, each is followed by its mirrored one."""
    weight, bias = (v.detach().double() for v in codec.module.parameters())
    both = torch.stack(
        [each for picture in sides for each in ([picture, picture.flip(-1)] if flip else [picture])]
    )
    cells = (both.double() / 127.5 - 1).unfold(2, 2, 2).unfold(3, 2, 2)  # B, 3, H', W', 2, 2
    return torch.einsum("bchwij,ocij->bohw", cells, weight) + bias[:, None, None]


class TestLatents:
    @pytest.mark.parametrize("flip", [False, True])
    def test_and_their_statistics_are_those_of_the_pictures(
        self, flip: bool, pairs: Read, tmp_path: Path
    ) -> None:
        made = LatentDataset(pairs, codec := codec_of(), tmp_path / "cache", flip)
        assert (len(made), made.image_size, made.flip, made.codec) == (
            COUNT,
            SIZE,
            flip,
            codec.description(),
        )
        assert (made.digest(), made.names_digest()) == (pairs.digest(), pairs.names_digest())
        assert made.order(3)(0, 5) == pairs.order(3)(0, 5)
        statistics = asdict(measure(made, codec)), asdict(measure(pairs, codec, flip))
        for place, name in enumerate(("source", "target")):
            wanted = encoded(codec, [pairs.read(index)[place] for index in range(COUNT)], flip)
            sides: list[Any] = [made.read(index)[place] for index in range(COUNT)]
            found = torch.stack(sides)
            torch.testing.assert_close(
                found.double().reshape(wanted.shape), wanted, rtol=0, atol=1e-5
            )
            for each in statistics:
                np.testing.assert_allclose(each[f"{name}_mean"], wanted.mean((0, 2, 3)), atol=1e-5)
                np.testing.assert_allclose(
                    each[f"{name}_std"], wanted.std((0, 2, 3), correction=0), rtol=1e-4
                )

    def test_of_mirrored_pairs_have_mirrored_images(self, tmp_path: Path) -> None:
        """Masks, classes and tokens stay."""
        data_dir = pictures(tmp_path, 3, SIZE)
        (tmp_path / "c.csv").write_text("0,a\n1,b\n2,b")
        for number in range(3):
            save(tmp_path / f"sar/{number}.png", pixels(50 + number, channels=1))
            save(tmp_path / f"text/{number}.npy", np.ones((1 + number, 2), np.float32))
        data_dir += (
            f",mask={tmp_path}/sar,sar={tmp_path}/sar,text={tmp_path}/text,style={tmp_path}/c.csv"
        )
        pairs = load(data_dir, conditions=read_kinds("sar=image,text=tokens,style=class"))
        made = LatentDataset(pairs, codec_of(), tmp_path / "cache", True)
        assert made.read(0).conditions["text"].tolist() == [[1, 1]]
        found, sar = made.read(1), pixels(51, channels=1)[None]
        assert (found.conditions["sar"].numpy() == np.stack([sar, sar[..., ::-1]])).all()
        assert found.conditions["text"].tolist() == [[1, 1], [1, 1]]
        assert int(found.conditions["style"]) == 1
        assert (found.mask.numpy() == (sar != 0)).all()

    def test_are_made_once_and_an_interrupted_cache_is_completed(
        self, pairs: Read, tmp_path: Path
    ) -> None:
        folder, codec, pairs.interrupted = tmp_path / "cache", codec_of(), 3
        with pytest.raises(KeyboardInterrupt):
            LatentDataset(pairs, codec, folder)
        assert sorted(path.name for path in folder.glob("[!.]*")) == [ENTRIES[0], "manifest.json"]
        # of a process that was killed days ago
        (leftover := folder / f".{ENTRIES[1]}.0123abcd.tmp").touch()
        os.utime(leftover, (0, 0))
        pairs.interrupted, pairs.seen = None, []
        first = LatentDataset(pairs, codec, folder)
        assert pairs.seen == [2, 3, 4]
        assert not list(folder.glob("*.tmp"))
        sent = pickle.dumps(first)
        for each in (LatentDataset(pairs, codec, folder), pickle.loads(sent)):
            assert all(torch.equal(each[index][0], first[index][0]) for index in range(COUNT))
        assert len(pairs.seen) == 3
        assert len(pickle.dumps(first)) == len(sent)  # a worker's copy holds no tensors
        assert torch.equal(first.read(-1).source, first.read(COUNT - 1).source)
        with pytest.raises(IndexError):
            first.read(COUNT)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": 4}, "image_size 8, now 4"),
            ({"direction": "BtoA"}, "direction AtoB, now BtoA"),
            ({"files": True}, r"files \w{8}, now \w{8}"),
            ({"block": 3}, "block 2, now 3"),  # of which examples would be taken for others
            ({"codec": 1}, r"codec.* \w{8}, now \w{8}"),
            ({"flip": True}, "flip False, now True"),
        ],
    )
    def test_of_something_else_are_refused(
        self, change: dict[str, Any], message: str, pairs: Read, tmp_path: Path, monkeypatch: Any
    ) -> None:
        LatentDataset(pairs, codec_of(), folder := tmp_path / "cache")
        monkeypatch.setattr(latents, "BLOCK", change.pop("block", 2))
        codec, flip = codec_of(change.pop("codec", 0)), change.pop("flip", False)
        if change.pop("files", False):
            save(tmp_path / "A/0.png", pixels(77, SIZE + 3))
        refused = rf"manifest\.json is of other latents \({message}\): give another folder"
        with pytest.raises(ValueError, match=refused):
            LatentDataset(
                load(f"{tmp_path}/A,{tmp_path}/B", **{"size": SIZE, **change}), codec, folder, flip
            )

    def test_of_changed_files_and_of_crops_are_refused(self, pairs: Read, tmp_path: Path) -> None:
        folder = tmp_path / "cache"

        def refused(message: str, of: Pairs = pairs, where: Path = folder) -> None:
            with pytest.raises(ValueError, match=message):
                LatentDataset(of, codec_of(), where).read(3)

        first = LatentDataset(pairs, codec_of(), folder)[3]
        content = (path := folder / ENTRIES[1]).read_bytes()
        for changed in (content[:-1], b""):
            path.write_bytes(changed)
            refused(rf"{path} has changed since it was written: delete it")
        path.unlink()
        assert torch.equal(LatentDataset(pairs, codec_of(), folder)[3][0], first[0])
        for changed in ("{", "[]", "my own text"):
            (folder / "manifest.json").write_text(changed)
            refused(r"cannot read .*manifest\.json: delete .*cache")
        (folder / "manifest.json").unlink()
        refused(r"safetensors is of no cache of latents, without .*manifest\.json")
        assert (folder / ENTRIES[0]).exists()
        for dataset, how in (("paired", {"crop": 4}), ("unpaired", {"size": SIZE})):
            refused(
                "are others in each epoch",
                load(f"{tmp_path}/A,{tmp_path}/B", dataset, **how),
                tmp_path / "other",
            )
