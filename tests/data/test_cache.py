"""Caches of examples and of latents: the data set's tensors, made once, completed, refused if they differ."""

import errno
import json
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bbdm.base.atomic import LOCK, write_atomically
from bbdm.codec import Codec, wrap_codec
from bbdm.data import cache as cache_module
from bbdm.data.cache import Cache, CachedExamples
from bbdm.data.examples import Example, Examples
from bbdm.data.latents import LatentDataset, measure
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec, read_conditions
from tests.data.making import SIZE, Array, folders, load, pictures, pixels, save, valued

COUNT = 5
Make = Callable[..., CachedExamples]


class Read(Pairs):
    """Pairs that say which were read, or end the process."""

    seen: list[int]
    interrupted: int | None = None

    def read(self, index: Any, seed: int = 0) -> Example:
        self.seen.append(index)
        if index == self.interrupted:
            raise KeyboardInterrupt
        return super().read(index, seed)


@pytest.fixture
def pairs(tmp_path: Path) -> Read:
    read = Read(read_rows("paired", pictures(tmp_path, COUNT)), Spec(size=SIZE))
    read.seen = []
    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def codec_of(seed: int = 0) -> Codec:
    """4 channels of a half of the size, by one convolution."""
    torch.manual_seed(seed)
    return wrap_codec(nn.Conv2d(3, 4, 2, 2), lambda m, image: m(image), lambda _, latents: latents, 4, 2)


def encoded(codec: Codec, pixels_of: torch.Tensor) -> torch.Tensor:
    """(B, 4, H / 2, W / 2) float64 of (B, 3, H, W) uint8, by hand."""
    weight, bias = (v.detach().double() for v in codec.module.parameters())  # pyright: ignore[reportAttributeAccessIssue]
    scaled = (pixels_of.double() / 127.5 - 1).unfold(2, 2, 2).unfold(3, 2, 2)  # B, 3, H', W', 2, 2
    return torch.einsum("bchwij,ocij->bohw", scaled, weight) + bias[:, None, None]


@pytest.fixture(params=["pictures", "latents"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A cache of pairs, two in a block."""
    monkeypatch.setattr("bbdm.data.latents.BLOCK", 2)
    monkeypatch.setattr("bbdm.data.latents.AT_ONCE", 2)
    if kind == "pictures":
        return lambda pairs: CachedExamples(pairs, folder, block=2, at_once=2)
    return lambda pairs, codec=0, flip=False: LatentDataset(pairs, codec_of(codec), folder, flip)


def assert_same(made: Examples, wanted: Examples) -> None:
    """Bit for bit, masks and conditions too."""
    assert len(made) == len(wanted)
    for index in range(len(wanted)):
        one, other = made.read(index), wanted.read(index)
        assert one.conditions.keys() == other.conditions.keys()
        sides = [(one.source, other.source), (one.target, other.target)]
        told = [(one.conditions[name], other.conditions[name]) for name in one.conditions]
        for a, b in [*sides, *told, *([] if other.mask is None else [(one.mask, other.mask)])]:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK}


class TestOfExamples:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_of_photographs(self, workers: int, pairs: Read, folder: Path) -> None:
        cached = CachedExamples(pairs, folder, block=3, at_once=2, workers=workers)
        assert_same(cached, pairs)
        assert (cached.image_size, cached.channels, cached.digest()) == (SIZE, 3, pairs.digest())
        assert (cached.names_digest(), cached.order(3)(0, 5)) == (pairs.names_digest(), pairs.order(3)(0, 5))

    def test_of_slices_with_masks_and_conditions(self, tmp_path: Path, folder: Path) -> None:
        folders(tmp_path, ".nii.gz", 2, (4, 5, 6))
        rows = ["name,source,target,mask,style,text"]
        for number in range(2):
            mask = np.zeros((4, 5, 6), np.uint8)
            mask[number : number + 2, 2:4] = 1
            save(tmp_path / f"M/{number}.nii.gz", mask)
            save(tmp_path / f"T/{number}.npy", np.ones((1 + number, 3), np.float32))
            parts = [f"{name}/{number}.nii.gz" for name in "ABM"]
            rows.append(",".join([str(number), *parts, f"s{number}", f"T/{number}.npy"]))
        (tmp_path / "t.csv").write_text("\n".join(rows))
        pairs = valued(tmp_path / "t.csv", dataset="table", slices="axial", neighbours=1,
                       conditions=read_conditions("style=class,text=tokens"))  # fmt: skip
        cached = CachedExamples(pairs, folder, block=3)
        assert_same(cached, pairs)
        assert (cached.further, cached.masked, cached.spacing) == (pairs.further, True, pairs.spacing)

    def test_of_crops_is_refused(self, tmp_path: Path, folder: Path) -> None:
        with pytest.raises(ValueError, match="crops are others in each epoch"):
            CachedExamples(load(pictures(tmp_path), crop=4), folder)

    def test_of_a_damaged_picture_is_an_error_that_names_it(self, pairs: Read, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "B/3.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"B/3\.png"):
            CachedExamples(pairs, folder, block=2, at_once=2)
        pairs.skip_bad = True
        cached = CachedExamples(pairs, folder, block=2, at_once=2)
        assert_same(cached, pairs)
        assert len(cached.left_out) == 1


def test_examples_are_made_once(make: Make, pairs: Read) -> None:
    first = make(pairs)
    assert pairs.seen == list(range(COUNT))
    sent = pickle.dumps(first)
    for cached in (make(pairs), pickle.loads(sent)):
        assert_same(cached, first)
    assert pairs.seen == list(range(COUNT))
    assert len(pickle.dumps(first)) == len(sent)  # a worker's copy holds no tensors
    assert torch.equal(first.read(-1).source, first.read(COUNT - 1).source)
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            first.read(index)


def test_an_interrupted_cache_is_completed(make: Make, pairs: Read, folder: Path) -> None:
    pairs.interrupted = 3
    with pytest.raises(KeyboardInterrupt):
        make(pairs)
    assert names(folder) == {"manifest.json", "00000.safetensors"}
    (folder / ".00001.safetensors.0123abcd.tmp").touch()  # of a killed process
    pairs.interrupted, pairs.seen = None, []
    cached = make(pairs)
    assert pairs.seen == [2, 3, 4]
    assert names(folder) == {"manifest.json", *(f"{number:05d}.safetensors" for number in range(3))}
    again = [cached.read(index).source.clone() for index in range(COUNT)]
    for path in folder.glob("*.*"):
        path.unlink()
    assert all(torch.equal(make(pairs).read(index).source, again[index]) for index in range(COUNT))


def test_two_runs_make_a_cache_once(make: Make, pairs: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def slow(path: Path, content: Any) -> None:
        written.append(path)
        time.sleep(0.05)
        write_atomically(path, content)

    monkeypatch.setattr(cache_module, "write_atomically", slow)
    with ThreadPoolExecutor(2) as both:
        one, other = both.map(lambda _: make(pairs), range(2))
    assert len(written) == len(set(written)) == 3
    assert_same(one, other)


def test_a_full_disk_leaves_no_part(
    kind: str, make: Make, pairs: Read, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "write_atomically", full)
    with pytest.raises(OSError, match=rf"no room for 0 MiB more of {kind}: make some.*00000\.safetensors"):
        make(pairs)
    assert names(folder) == {"manifest.json"}


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"size": 4}, "image_size 8, now 4"),
            ({"direction": "BtoA"}, "direction AtoB, now BtoA"),
            ({"files": True}, r"files \w{8}, now \w{8}"),
            ({"codec": 1}, r"codec\.weights.* \w{8}, now \w{8}"),
            ({"flip": True}, "flip False, now True"),
        ],
        ids=lambda each: next(iter(each), "") if isinstance(each, dict) else "",
    )
    def test_a_cache_of_something_else(
        self, change: dict[str, Any], message: str, kind: str, make: Make, pairs: Read, tmp_path: Path
    ) -> None:
        make(pairs)
        given = {name: change[name] for name in ("codec", "flip") if name in change}
        if given and kind == "pictures":
            return
        if "files" in change:
            save(tmp_path / "A/0.png", pixels(77, SIZE + 3))
        settings = {name: value for name, value in change.items() if name in ("size", "direction")}
        other = load(f"{tmp_path}/A,{tmp_path}/B", **{"size": SIZE, **settings})
        with pytest.raises(ValueError, match=rf"manifest\.json is of other {kind} \(.*{message}.*\): give another folder"):
            make(other, **given)

    def test_of_other_blocks(self, pairs: Read, folder: Path) -> None:
        """Whose examples would be taken for others."""
        CachedExamples(pairs, folder, block=2)
        with pytest.raises(ValueError, match="block 2, now 3"):
            CachedExamples(pairs, folder, block=3)

    @pytest.mark.parametrize("change", [lambda b: bytes([*b[:-1], b[-1] ^ 1]), lambda b: b[:-1], lambda _: b""])
    def test_a_changed_file(self, change: Callable[[bytes], bytes], make: Make, pairs: Read, folder: Path) -> None:
        whole = make(pairs)
        kept = [whole.read(index).source.clone() for index in range(COUNT)]
        path = folder / "00001.safetensors"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match=rf"{path} has changed since it was written: delete it"):
            make(pairs)
        path.unlink()
        again = make(pairs)
        assert all(torch.equal(again.read(index).source, kept[index]) for index in range(COUNT))

    def test_a_flipped_bit_anywhere_in_an_entry(self, folder: Path) -> None:
        cache = Cache(folder, "numbers", {})
        cache("a", lambda: {"x": torch.arange(6.0).reshape(2, 3), "y": torch.ones(3, dtype=torch.uint8)})
        path = folder / "a.safetensors"
        whole = path.read_bytes()
        assert cache.missing(["a", "b"]) == ["b"]
        for place in range(len(whole)):
            path.write_bytes(bytes([*whole[:place], whole[place] ^ 1, *whole[place + 1 :]]))
            with pytest.raises(ValueError, match=r"a\.safetensors has changed"):
                cache.missing(["a"])

    @pytest.mark.parametrize("content", ["{", "[]", "1", "my own text"])
    def test_a_damaged_manifest(self, content: str, make: Make, pairs: Read, folder: Path) -> None:
        make(pairs)
        (folder / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"cannot read .*manifest\.json: delete .*cache"):
            make(pairs)

    def test_files_of_something_else(self, kind: str, make: Make, pairs: Read, folder: Path) -> None:
        folder.mkdir()
        (folder / "notes.txt").write_text("my own")
        with pytest.raises(ValueError, match=rf"notes\.txt is of no cache of {kind}, without .*manifest\.json"):
            make(pairs)
        assert (folder / "notes.txt").read_text() == "my own"


def test_an_entry_is_made_once_and_mapped(folder: Path) -> None:
    made: list[int] = []

    def entry() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.arange(4)}

    cache = Cache(folder, "numbers", {"of": 1})
    for each in (cache, Cache(folder, "numbers", {"of": 1}), pickle.loads(pickle.dumps(cache))):
        assert each("a", entry)["x"].tolist() == [0, 1, 2, 3]
    assert made == [1]
    assert json.loads((folder / "manifest.json").read_text())["of"] == 1
    with pytest.raises(ValueError, match="of 1, now 2"):
        Cache(folder, "numbers", {"of": 2})


class TestLatents:
    @pytest.mark.parametrize("flip", [False, True])
    def test_are_those_of_the_pictures(self, flip: bool, pairs: Read, folder: Path) -> None:
        codec = codec_of()
        cached = LatentDataset(pairs, codec, folder, flip)
        assert (len(cached), cached.image_size, cached.flip, cached.codec) == (COUNT, SIZE, flip, codec.description())
        for index in range(COUNT):
            for picture, made in zip(pairs.read(index)[:2], cached.read(index)[:2], strict=True):
                wanted = encoded(codec, torch.stack([picture, picture.flip(-1)] if flip else [picture]))
                torch.testing.assert_close(made.double(), wanted if flip else wanted[0], rtol=0, atol=1e-5)

    def test_of_mirrored_pairs_have_mirrored_images(self, tmp_path: Path, folder: Path) -> None:
        data_dir = pictures(tmp_path, 3, SIZE)
        sar: list[Array] = [pixels(50 + number, channels=1) for number in range(3)]
        for number in range(3):
            save(tmp_path / f"sar/{number}.png", sar[number])
            save(tmp_path / f"text/{number}.npy", np.ones((1 + number, 2), np.float32))
        (tmp_path / "c.csv").write_text("0,a\n1,b\n2,a")
        data_dir += f",sar={tmp_path}/sar,text={tmp_path}/text,style={tmp_path}/c.csv"
        pairs = load(data_dir, conditions=read_conditions("sar=image,text=tokens,style=class"))
        plain, flipped = (LatentDataset(pairs, codec_of(), folder / str(flip), flip) for flip in (False, True))
        told = flipped.read(1).conditions
        assert (plain.read(1).conditions["sar"].numpy() == sar[1]).all()
        assert (told["sar"].numpy() == np.stack([sar[1][None], sar[1][None, :, ::-1]])).all()
        assert (told["text"].shape, int(told["style"])) == ((2, 2), 1)

    @pytest.mark.parametrize("flip", [False, True])
    def test_statistics_are_those_of_the_pictures(self, flip: bool, pairs: Read, folder: Path) -> None:
        codec, wanted = codec_of(), {}
        for place, name in enumerate(("source", "target")):
            whole = torch.stack([pairs.read(index)[place] for index in range(COUNT)])
            found = encoded(codec, torch.cat([whole, whole.flip(-1)]) if flip else whole)
            wanted[f"{name}_mean"], wanted[f"{name}_std"] = found.mean((0, 2, 3)), found.std((0, 2, 3), correction=0)
        cached = measure(LatentDataset(pairs, codec, folder, flip), codec)
        for found in (cached, measure(pairs, codec, flip)):
            for name, value in asdict(found).items():
                np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5)
