"""Caches of examples and of latents: the data set's tensors, made once, completed, refused if they differ."""

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bbdm.codec import Codec, wrap_codec
from bbdm.data.cached import CachedExamples, LatentDataset, measure
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row, read_rows
from bbdm.data.spec import Spec, read_conditions
from tests.data.making import SIZE, folders, load, pictures, pixels, save, valued

COUNT = 5
ENTRIES = [f"{number:05d}.safetensors" for number in range(3)]


class Read(Pairs):
    """Pairs that say which were read, or end the process."""

    seen: list[int]
    interrupted: int | None = None

    def read(self, index: int, seed: int = 0, row: Row | None = None) -> Example:
        self.seen.append(index)
        if index == self.interrupted:
            raise KeyboardInterrupt
        return super().read(index, seed, row)


@pytest.fixture
def pairs(tmp_path: Path) -> Read:
    read = Read(read_rows("paired", pictures(tmp_path, COUNT)), Spec(size=SIZE))
    read.seen = []
    return read


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are of two examples, and codecs encode two pairs at a time; both get their sizes back."""
    monkeypatch.setattr(CachedExamples, "BLOCK", 2)
    monkeypatch.setattr("bbdm.data.cached.ENCODED_AT_ONCE", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached(pairs: Pairs, folder: Path, block: int = 2, **how: Any) -> CachedExamples:
    """Of a few examples in an entry."""
    CachedExamples.BLOCK = block
    return CachedExamples(pairs, folder, **how)


def assert_same(made: Pairs, wanted: Pairs) -> None:
    """Bit for bit, masks and conditions too."""
    assert len(made) == len(wanted)
    for index in range(len(wanted)):
        one, other = made.read(index).tensors(), wanted.read(index).tensors()
        assert one.keys() == other.keys()
        assert all(one[name].dtype == v.dtype and torch.equal(one[name], v) for name, v in other.items())


class TestOfExamples:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_of_photographs(self, workers: int, pairs: Read, folder: Path) -> None:
        made = cached(pairs, folder, 3, workers=workers)
        assert_same(made, pairs)
        assert (made.image_size, made.channels, made.digest()) == (SIZE, 3, pairs.digest())
        assert (made.names_digest(), made.order(3)(0, 5)) == (pairs.names_digest(), pairs.order(3)(0, 5))

    def test_of_slices_with_masks_and_conditions(self, tmp_path: Path, folder: Path) -> None:
        data_dir = folders(tmp_path, ".nii.gz", 2, (4, 5, 6))
        (tmp_path / "c.csv").write_text("0,a\n1,b")
        for number in range(2):
            mask = np.zeros((4, 5, 6), np.uint8)
            mask[number : number + 2, 2:4] = 1
            save(tmp_path / f"M/{number}.nii.gz", mask)
            save(tmp_path / f"T/{number}.npy", np.ones((1 + number, 3), np.float32))
        data_dir += f",mask={tmp_path}/M,text={tmp_path}/T,style={tmp_path}/c.csv"
        told = read_conditions("style=class,text=tokens")
        pairs = valued(data_dir, slices="axial", neighbours=1, conditions=told)
        made = cached(pairs, folder, 3)
        assert_same(made, pairs)
        assert (made.further, made.masked, made.spacing) == (pairs.further, True, pairs.spacing)
        assert made.ends == pairs.ends == [2, 4]  # slices of a volume stay one picture's

    def test_crops_are_refused_and_damaged_pictures_named(self, pairs: Read, tmp_path: Path, folder: Path) -> None:
        with pytest.raises(ValueError, match="crops are others in each epoch"):
            CachedExamples(load(f"{tmp_path}/A,{tmp_path}/B", crop=4), folder)
        (tmp_path / "B/3.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"B/3\.png"):
            cached(pairs, folder)
        pairs.skip_bad = True
        assert_same(cached(pairs, folder), pairs)


def test_examples_are_made_once(pairs: Read, folder: Path) -> None:
    first = cached(pairs, folder)
    sent = pickle.dumps(first)
    for each in (cached(pairs, folder), pickle.loads(sent)):
        assert_same(each, first)
    assert pairs.seen == list(range(COUNT))
    assert len(pickle.dumps(first)) == len(sent)  # a worker's copy holds no tensors
    assert torch.equal(first.read(-1).source, first.read(COUNT - 1).source)
    with pytest.raises(IndexError):
        first.read(COUNT)


def test_an_interrupted_cache_is_completed(pairs: Read, folder: Path) -> None:
    pairs.interrupted = 3
    with pytest.raises(KeyboardInterrupt):
        cached(pairs, folder)
    assert sorted(path.name for path in folder.glob("[!.]*")) == [ENTRIES[0], "manifest.json"]
    (folder / f".{ENTRIES[1]}.0123abcd.tmp").touch()  # of a killed process
    pairs.interrupted, pairs.seen = None, []
    made = cached(pairs, folder)
    assert pairs.seen == [2, 3, 4]
    assert not list(folder.glob("*.tmp"))
    assert_same(made, pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 4}, "image_size 8, now 4"),
        ({"direction": "BtoA"}, "direction AtoB, now BtoA"),
        ({"files": True}, r"files \w{8}, now \w{8}"),
        ({"block": 3}, "block 2, now 3"),  # of which examples would be taken for others
    ],
)
def test_a_cache_of_something_else_is_refused(
    change: dict[str, Any], message: str, pairs: Read, tmp_path: Path, folder: Path
) -> None:
    cached(pairs, folder)
    block = change.pop("block", 2)
    if change.pop("files", False):
        save(tmp_path / "A/0.png", pixels(77, SIZE + 3))
    other = load(f"{tmp_path}/A,{tmp_path}/B", **{"size": SIZE, **change})
    with pytest.raises(ValueError, match=rf"manifest\.json is of other pictures \({message}\): give another folder"):
        cached(other, folder, block)


def test_changed_files_are_refused(pairs: Read, folder: Path) -> None:
    cached(pairs, folder)
    content = (path := folder / ENTRIES[1]).read_bytes()
    for changed in (bytes([*content[:-1], content[-1] ^ 1]), content[:-1], b""):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"{path} has changed since it was written: delete it"):
            cached(pairs, folder)
    path.unlink()
    assert_same(cached(pairs, folder), pairs)
    for changed in ("{", "[]", "my own text"):
        (folder / "manifest.json").write_text(changed)
        with pytest.raises(ValueError, match=r"cannot read .*manifest\.json: delete .*cache"):
            cached(pairs, folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"safetensors is of no cache of pictures, without .*manifest\.json"):
        cached(pairs, folder)
    assert (folder / ENTRIES[0]).exists()


def codec_of(seed: int = 0) -> Codec:
    """4 channels of a half of the size, by one convolution."""
    torch.manual_seed(seed)
    return wrap_codec(nn.Conv2d(3, 4, 2, 2), lambda m, image: m(image), lambda _, latents: latents, 4, 2)


def encoded(codec: Codec, sides: list[Any], flip: bool) -> torch.Tensor:
    """(B, 4, H / 2, W / 2) float64 of uint8, by hand; with ``flip``, each is followed by its mirrored one."""
    weight, bias = (v.detach().double() for v in codec.module.parameters())  # pyright: ignore[reportAttributeAccessIssue]
    both = torch.stack([each for picture in sides for each in ([picture, picture.flip(-1)] if flip else [picture])])
    cells = (both.double() / 127.5 - 1).unfold(2, 2, 2).unfold(3, 2, 2)  # B, 3, H', W', 2, 2
    return torch.einsum("bchwij,ocij->bohw", cells, weight) + bias[:, None, None]


class TestLatents:
    @pytest.mark.parametrize("flip", [False, True])
    def test_and_their_statistics_are_those_of_the_pictures(
        self, flip: bool, pairs: Read, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        codec = codec_of()
        monkeypatch.setattr(CachedExamples, "BLOCK", 3)
        made = LatentDataset(pairs, codec, folder, flip)
        assert (len(made), made.image_size, made.flip, made.codec) == (COUNT, SIZE, flip, codec.description())
        statistics = asdict(measure(made, codec)), asdict(measure(pairs, codec, flip))
        for place, name in enumerate(("source", "target")):
            wanted = encoded(codec, [pairs.read(index)[place] for index in range(COUNT)], flip)
            sides: list[Any] = [made.read(index)[place] for index in range(COUNT)]
            found = torch.stack(sides)
            torch.testing.assert_close(found.double().reshape(wanted.shape), wanted, rtol=0, atol=1e-5)
            for each in statistics:
                np.testing.assert_allclose(each[f"{name}_mean"], wanted.mean((0, 2, 3)), atol=1e-5)
                np.testing.assert_allclose(each[f"{name}_std"], wanted.std((0, 2, 3), correction=0), rtol=1e-4)
        for other, mirrored, message in ((1, flip, r"codec.* \w{8}, now \w{8}"), (0, not flip, f"flip {flip}, now")):
            with pytest.raises(ValueError, match=rf"is of other latents \({message}"):
                LatentDataset(pairs, codec_of(other), folder, mirrored)

    def test_of_mirrored_pairs_have_mirrored_images(self, tmp_path: Path, folder: Path) -> None:
        data_dir = pictures(tmp_path, 3, SIZE)
        for number in range(3):
            save(tmp_path / f"sar/{number}.png", pixels(50 + number, channels=1))
            save(tmp_path / f"text/{number}.npy", np.ones((1 + number, 2), np.float32))
        told = read_conditions("sar=image,text=tokens")
        pairs = load(f"{data_dir},sar={tmp_path}/sar,text={tmp_path}/text", conditions=told)
        found = LatentDataset(pairs, codec_of(), folder, True).read(1).conditions
        sar = pixels(51, channels=1)[None]
        assert (found["sar"].numpy() == np.stack([sar, sar[..., ::-1]])).all()
        assert found["text"].tolist() == [[1, 1], [1, 1]]
