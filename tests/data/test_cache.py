"""Caches of pictures and of latents: the data set's tensors, made once, completed, refused if they differ."""

import errno
import hashlib
import json
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from bbdm.base import atomic, manifest
from bbdm.base.atomic import LOCK
from bbdm.codec import VQGANCodec
from bbdm.data import cache
from bbdm.data.cache import ImageCache, TensorCache
from bbdm.data.examples import Examples
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import PairedDataset
from tests.conftest import SIZE, SavePicture
from tests.data.conftest import COUNT
from tests.networks.test_vqgan import tiny_vqgan

Make = Callable[..., TensorCache]  # of pairs, in the folder "cache"
BLOCKS = {"pictures": "train-{:05d}.safetensors", "latents": "{:05d}.safetensors"}
MANIFESTS = {"pictures": "train.json", "latents": "manifest.json"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bbdm.data.cache.EARLIER", 2)
    for kind in (ImageCache, LatentDataset):
        monkeypatch.setattr(kind, "in_block", 2)
        monkeypatch.setattr(kind, "at_once", 2)


@pytest.fixture
def codec() -> VQGANCodec:
    return VQGANCodec(tiny_vqgan())


@pytest.fixture(params=[*BLOCKS])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(kind: str, codec: VQGANCodec, folder: Path) -> Make:
    if kind == "pictures":
        return lambda pairs: ImageCache(pairs, folder)
    return lambda pairs, **given: LatentDataset(pairs, **{"codec": codec, "folder": folder, **given})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def assert_same(cached: Examples, pairs: PairedDataset) -> None:
    """Bit for bit, as floats and as they are stored."""
    assert len(cached) == len(pairs)
    for i in range(len(pairs)):
        for made, wanted in zip((*cached[i], *cached.pixels(i)), (*pairs[i], *pairs.pixels(i)), strict=True):
            assert made.dtype == wanted.dtype
            assert torch.equal(made, wanted)


def same(one: TensorCache, other: Any) -> bool:
    """Whether the tensors of all pairs are equal, of two caches or of a cache and a list."""
    return all(torch.equal(a, b) for i in range(COUNT) for a, b in zip(one[i], other[i], strict=True))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK}


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_are_those_of_the_data_set(workers: int, pairs: PairedDataset, folder: Path) -> None:
    cached = ImageCache(pairs, folder, workers=workers)
    assert_same(cached, pairs)
    assert (cached.image_size, cached.direction, cached.digest()) == (SIZE, "AtoB", pairs.digest())
    few = PairedDataset(pairs.pairs[:2], SIZE)
    for _ in range(2):  # splits share a folder
        assert_same(ImageCache(few, folder, "val"), few)
        assert_same(ImageCache(pairs, folder), pairs)


def test_grey_pictures_that_are_not_square(pairs: PairedDataset, folder: Path) -> None:
    grey = PairedDataset(pairs.pairs, (SIZE, 2 * SIZE), "BtoA", channels=1)
    for _ in range(2):
        assert_same(ImageCache(grey, folder), grey)
    with pytest.raises(ValueError, match=r"train\.json is of other pictures \(channels 1, now 3\)"):
        ImageCache(PairedDataset(pairs.pairs, (SIZE, 2 * SIZE), "BtoA"), folder)


def test_the_size_of_blocks_is_that_of_the_cache(kind: str, make: Make, pairs: PairedDataset, monkeypatch: Any) -> None:
    """Another version may have larger blocks: one that is missing is made in the old size."""
    first = make(pairs)
    wanted = [first[i] for i in range(COUNT)]
    monkeypatch.setattr(type(first), "in_block", 3)
    (first.folder / BLOCKS[kind].format(0)).unlink()
    assert same(make(pairs), wanted)


@pytest.mark.parametrize("flip", [False, True])
def test_latents_are_those_of_the_pictures(flip: bool, pairs: PairedDataset, codec: VQGANCodec, folder: Path) -> None:
    cached = LatentDataset(pairs, codec, folder, flip)
    assert (len(cached), cached.image_size) == (COUNT, SIZE)
    for i in range(COUNT):
        for picture, made in zip(pairs[i], cached[i], strict=True):
            expected = codec.latents(torch.stack([picture, picture.flip(-1)] if flip else [picture]))
            torch.testing.assert_close(made, expected if flip else expected[0], rtol=1e-4, atol=1e-5)


def test_tensors_are_made_once(make: Make, pairs: PairedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(pairs)
    sent = pickle.dumps(first)
    expected = [first[i] for i in range(COUNT)]
    assert len(pickle.dumps(first)) == len(sent)  # a worker's copy holds no tensors
    monkeypatch.setattr(PairedDataset, "_read", lambda *_: pytest.fail("decoded again"))
    for cached in (make(pairs), pickle.loads(sent)):
        assert same(cached, expected)
    assert all(torch.equal(a, b) for a, b in zip(first[-1], first[COUNT - 1], strict=True))  # as in a list
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            first[index]


def test_two_runs_make_a_cache_once(make: Make, pairs: PairedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def slow(path: Path, content: Any) -> None:
        written.append(path)
        time.sleep(0.05)
        atomic.write_atomically(path, content)

    monkeypatch.setattr(cache, "write_atomically", slow)
    with ThreadPoolExecutor(2) as both:
        one, other = both.map(lambda _: make(pairs), range(2))
    assert len(written) == len(set(written)) == 3
    assert same(one, other)


@pytest.mark.parametrize("during", ["write_atomically", "file_sha256"])
def test_an_interrupted_cache_is_completed(
    during: str, kind: str, make: Make, pairs: PairedDataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second block: the pictures of the first are not read again."""
    whole, calls = getattr(cache, during), []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cache, during, interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(pairs)
    written = [BLOCKS[kind].format(number) for number in range(1 if during == "write_atomically" else 2)]
    assert names(folder) == {MANIFESTS[kind], *written}
    leftover = folder / ".00001.safetensors.0123abcd.tmp"  # of a killed process
    leftover.touch()
    read: list[int] = []
    whole = PairedDataset._read
    monkeypatch.setattr(PairedDataset, "_read", lambda *place: read.append(place[1]) or whole(*place))
    cached = make(pairs)
    assert read == [2, 3, 4]
    assert names(folder) == {MANIFESTS[kind], *(BLOCKS[kind].format(number) for number in range(3))}
    (folder / MANIFESTS[kind]).unlink()
    for number in range(3):
        (folder / BLOCKS[kind].format(number)).unlink()
    assert same(cached, make(pairs))


def test_a_full_disk_leaves_no_part(kind: str, make: Make, pairs: PairedDataset, folder: Path, monkeypatch: Any):
    """5 pairs of 2 x 3 x 512 x 512 bytes are 7.5 MiB, and of 2 x 3 x 32 x 32 floats 0.12 MiB."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_atomically", full)
    size, room = (512, "8") if kind == "pictures" else (64, "0")
    with pytest.raises(OSError, match=rf"no room for {room} MiB of {kind}: make some.*00000\.safetensors"):
        make(PairedDataset(pairs.pairs, size))
    assert names(folder) == {MANIFESTS[kind]}


@pytest.mark.parametrize(
    ("kind", "change"),
    [*product(BLOCKS, ["image_size", "direction", "pictures"]), ("latents", "codec"), ("latents", "flip")],
)
def test_a_cache_of_something_else_is_refused(
    change: str, kind: str, make: Make, pairs: PairedDataset, tmp_path: Path, save_picture: SavePicture
) -> None:
    make(pairs)
    given: dict[str, Any] = {"codec": {"codec": VQGANCodec(tiny_vqgan(seed=1))}, "flip": {"flip": True}}.get(change, {})
    if change == "image_size":
        pairs = PairedDataset(pairs.pairs, 2 * SIZE)
    elif change == "direction":
        pairs = PairedDataset(pairs.pairs, SIZE, "BtoA")
    elif change == "pictures":
        save_picture(tmp_path / "A" / "0.png", Image.new("RGB", (SIZE, SIZE), "red"))
    message = rf"{MANIFESTS[kind]} is of other {kind} \({change}[. ].*, now .*\): give another folder, or delete this"
    with pytest.raises(ValueError, match=message):
        make(pairs, **given)


@pytest.mark.parametrize(
    "change", [lambda content: bytes([*content[:-1], content[-1] ^ 1]), lambda content: content[:-1]]
)
def test_a_changed_file_is_refused(change: Any, kind: str, make: Make, pairs: PairedDataset, folder: Path) -> None:
    whole = make(pairs)
    path = folder / BLOCKS[kind].format(1)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path} has changed since it was written: delete it"):
        make(pairs)
    path.unlink()
    assert same(whole, make(pairs))


@pytest.mark.parametrize("content", ["{", "[]", "{}", "my own text"])
def test_a_damaged_manifest_is_refused(content: str, kind: str, make: Make, pairs: PairedDataset, folder: Path) -> None:
    make(pairs)
    (folder / MANIFESTS[kind]).write_text(content)
    with pytest.raises(ValueError, match=rf"cannot read .*{MANIFESTS[kind]}: delete .*cache$"):
        make(pairs)


@pytest.mark.parametrize("number", [-1, 0, 1, 3, 1.5, "2 pairs", None])
def test_a_manifest_of_blocks_of_another_size_is_refused(
    number: Any, kind: str, make: Make, pairs: PairedDataset, folder: Path
) -> None:
    """Whose pairs would be taken for others."""
    make(pairs)
    content = json.loads((folder / MANIFESTS[kind]).read_text())
    assert content["in_block"] == 2
    (folder / MANIFESTS[kind]).write_text(json.dumps({**content, "in_block": number}))
    with pytest.raises(ValueError, match=rf"cannot read .*{MANIFESTS[kind]}: .*delete .*cache$"):
        make(pairs)


def test_files_of_something_else_are_kept(kind: str, make: Make, pairs: PairedDataset, folder: Path) -> None:
    folder.mkdir()
    path = folder / BLOCKS[kind].format(0)
    path.write_bytes(b"my own numbers")
    message = rf"{path} is of no cache of {kind}, without .*{MANIFESTS[kind]}: give another folder"
    with pytest.raises(ValueError, match=message):
        make(pairs)
    assert path.read_bytes() == b"my own numbers"
    path.rename(folder / "notes.txt")
    if kind == "latents":  # which have a folder of their own
        with pytest.raises(ValueError, match=r"notes\.txt is of no cache of latents"):
            make(pairs)


@pytest.mark.parametrize("digest", [None, "0" * 64], ids=["interrupted", "deleted"])
def test_pictures_of_an_earlier_version_are_read(
    digest: str | None, pairs: PairedDataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files, written by hand: one of all pictures, and a manifest alone, from which blocks are made."""
    folder.mkdir()
    np.save(folder / "train.npy", np.stack([np.stack([v.numpy() for v in pairs.pixels(i)]) for i in range(COUNT)]))
    content = {
        "version": 1,
        "pictures": {"count": COUNT, "files": pairs.digest()},
        "direction": "AtoB",
        "image_size": SIZE,
        "channels": 3,
        "sha256": hashlib.sha256((folder / "train.npy").read_bytes()).hexdigest(),
    }
    manifest.write(folder / "train.json", content)
    expected = [pairs[i] for i in range(COUNT)]
    with monkeypatch.context() as patch:
        patch.setattr(PairedDataset, "_read", lambda *_: pytest.fail("decoded again"))
        cached = pickle.loads(pickle.dumps(ImageCache(pairs, folder)))
        assert same(cached, expected)
    (folder / "train.npy").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"train\.npy has changed since it was written: delete it"):
        ImageCache(pairs, folder)
    manifest.write(folder / "train.json", {**content, "sha256": digest})
    (folder / "train.npy").unlink(missing_ok=digest is None)
    for _ in range(2):
        assert_same(ImageCache(pairs, folder), pairs)
    assert names(folder) == {"train.json", *(BLOCKS["pictures"].format(number) for number in range(3))}


def test_latents_of_an_earlier_version_are_read(pairs: PairedDataset, codec: VQGANCodec, folder: Path) -> None:
    """Its files, written by hand: numbers that no encoder would give."""
    folder.mkdir()
    numbers = torch.arange(COUNT * 2 * 3 * 16, dtype=torch.float32).reshape(COUNT, 2, 1, 3, 4, 4)
    shards = {}
    for index, part in enumerate(numbers.split(2)):
        path = folder / f"0000{index}.safetensors"
        source, target = (v.contiguous() for v in part.unbind(1))
        safetensors.torch.save_file({"source": source, "target": target}, path)
        shards[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    content = {"version": 1, "pictures": {"count": COUNT, "files": pairs.digest()}, "image_size": SIZE}
    content |= {"direction": "AtoB", "flip": False, "codec": codec.description(), "shards": shards}
    manifest.write(folder / "manifest.json", content)
    cached = LatentDataset(pairs, codec, folder)
    for i in range(COUNT):
        assert torch.equal(torch.stack(cached[i]), numbers[i, :, 0])
