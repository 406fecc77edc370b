"""What examples are told besides the source: images, classes and tokens of files, shards and tables."""

import io
import json
import pickle
import re
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.cli import shard
from bbdm.codec import VQGANCodec
from bbdm.data.cache import ImageCache
from bbdm.data.config import PicturesConfig, read_places
from bbdm.data.examples import PairExamples
from bbdm.data.latents import LatentDataset
from bbdm.data.loading import Batches
from bbdm.data.mapped import MappedDataset
from bbdm.data.pairs import load_dataset
from bbdm.data.slices import Slices
from bbdm.data.survey import BadPicturesError, readable
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures.values import Values
from tests.conftest import SIZE
from tests.networks.test_vqgan import tiny_vqgan

COUNT, WIDTH = 4, 3
LABELS = ["ink", "oil", "ink", "10"]
NETWORK = ConditionsConfig(
    images={"sar": 1}, classes={"style": ("10", "oil", "ink")}, tokens={"text": WIDTH}, drop={"text": 0.1}
)


def rows(number: int) -> np.ndarray[Any, Any]:
    """Tokens: as many as the number, and one."""
    return np.arange(1, 1 + (number + 1) * WIDTH, dtype=np.float32).reshape(-1, WIDTH)


def grey(number: int, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray[Any, Any]:
    """A picture of one band."""
    return np.random.default_rng(100 + number).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pairs in A and B, and for both splits sar/, text/ and labels.csv."""
    for name in ("A", "B", "sar", "text"):
        (tmp_path / name / "x").mkdir(parents=True)
    for i in range(COUNT):
        for side in "AB":
            pixels = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / side / "x" / f"{i}.png")
        Image.fromarray(grey(i)).save(tmp_path / "sar" / "x" / f"{i}.png")
        np.save(tmp_path / "text" / "x" / f"{i}.npy", rows(i))
    lines = ["name,class", *(f"x/{i},{label}" for i, label in enumerate(LABELS)), "others,wax"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path


def places(folder: Path, **settings: Any) -> PicturesConfig:
    images, classes, tokens = f"{folder}/sar", f"{folder}/labels.csv", f"{folder}/text"
    given: dict[str, Any] = {"images": {"sar": images}, "classes": {"style": classes}, "tokens": {"text": tokens}}
    return PicturesConfig(**{**given, **settings})


def load(
    folder: Path, known: ConditionsConfig | None = None, size: int = SIZE, cache: Path | None = None, **settings: Any
) -> PairExamples:
    data = f"{folder}/A,{folder}/B"
    return load_dataset("paired", data, image_size=size, pictures=places(folder, **settings), cache=cache, known=known)


def test_places_are_read() -> None:
    assert read_places("sar=A/{split},depth=B=c@0:9") == {"sar": "A/{split}", "depth": "B=c@0:9"}
    for text in ("sar", "=A", "sar=", "s r=A", "sar=A,sar=B"):
        with pytest.raises(ValueError, match="NAME=PLACE, with commas, each name once"):
            read_places(text)
    with pytest.raises(ValueError, match="two conditions are named 'a'"):
        load_dataset("paired", "", pictures=PicturesConfig(images={"a": "x"}, tokens={"a": "x"}))


def test_folders_and_labels(folder: Path) -> None:
    pairs = load(folder)
    assert pairs.further == ConditionsConfig(
        images={"sar": 1}, classes={"style": ("10", "ink", "oil")}, tokens={"text": WIDTH}
    )
    example = pairs.read(3)
    assert torch.equal(example.conditions["sar"], torch.from_numpy(grey(3))[None])
    assert (example.conditions["style"].dtype, example.conditions["style"].shape) == (torch.int64, ())
    assert [int(pairs.read(i).conditions["style"]) for i in range(COUNT)] == [1, 2, 1, 0]
    assert torch.equal(example.conditions["text"], torch.from_numpy(rows(3)))
    assert pickle.loads(pickle.dumps(pairs)).read(3).conditions.keys() == example.conditions.keys()


def test_a_batch_has_zeros_where_tokens_end(folder: Path) -> None:
    (batch,) = Batches(load(folder), COUNT, torch.device("cpu"))()
    tokens = batch.conditions["text"]
    assert tokens.shape == (COUNT, COUNT, WIDTH)
    for i in range(COUNT):
        assert torch.equal(tokens[i, : i + 1], torch.from_numpy(rows(i)))
        assert not tokens[i, i + 1 :].any()
    assert batch.conditions["style"].tolist() == [1, 2, 1, 0]
    wanted = torch.from_numpy(np.stack([grey(i) for i in range(COUNT)])[:, None] / 127.5 - 1).float()
    torch.testing.assert_close(batch.conditions["sar"], wanted, rtol=0, atol=1e-6)


def test_images_are_resized_as_sources_are(folder: Path) -> None:
    pairs = load(folder, size=SIZE // 2)
    resized = Image.fromarray(grey(1)).resize((SIZE // 2, SIZE // 2), Image.Resampling.BILINEAR)
    assert torch.equal(pairs.read(1).conditions["sar"], torch.from_numpy(np.array(resized))[None])


def test_images_are_cropped_as_sources_are(folder: Path) -> None:
    for i in range(COUNT):
        Image.fromarray(np.asarray(Image.open(folder / "A" / "x" / f"{i}.png"))[..., 0]).save(
            folder / "sar" / "x" / f"{i}.png"
        )
    pairs = load(folder, crop=4)
    windows = set()
    for seed in range(3):
        example = pairs.read(2, seed)
        assert torch.equal(example.conditions["sar"], example.source[:1])
        windows.add(example.source.numpy().tobytes())
    assert len(windows) > 1
    Image.fromarray(grey(0, (SIZE, 5))).save(folder / "sar" / "x" / "1.png")
    with pytest.raises(ValueError, match=r"sar/x/1.png and .*B/x/1.png lie on different grids"):
        pairs.read(1)


def test_the_other_direction_is_told_the_same(folder: Path) -> None:
    one = load(folder).read(1).conditions
    other = load_dataset("paired", f"{folder}/A,{folder}/B", "train", SIZE, "BtoA", pictures=places(folder))
    assert all(torch.equal(value, one[name]) for name, value in other.read(1).conditions.items())


def test_values_of_other_images(folder: Path) -> None:
    decibels = np.linspace(-25, 0, SIZE * SIZE, dtype=np.float32).reshape(1, SIZE, SIZE).repeat(2, 0)
    for path in (folder / "sar" / "x").iterdir():
        np.save(path.with_suffix(".npy"), decibels)
        path.unlink()
    told = load(folder, images={"sar": f"{folder}/sar@-25:0"}).read(0).conditions["sar"]
    torch.testing.assert_close(told, torch.from_numpy(decibels / 12.5 + 1), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"'sar' has values from -25 to 0 in float32: .* sar=PLACE@LOW:HIGH"):
        load(folder).read(0)
    bands = load(folder, images={"sar": f"{folder}/sar@-25:0;-100:100"}).read(0).conditions["sar"]
    torch.testing.assert_close(bands[1], torch.from_numpy(decibels[1] / 100), rtol=0, atol=1e-6)
    shares = load(folder, images={"sar": f"{folder}/sar@p0:100"}).read(0).conditions["sar"]
    torch.testing.assert_close(shares, told, rtol=0, atol=1e-6)
    for path in (folder / "sar" / "x").iterdir():
        np.save(path, decibels / 25)
    assert torch.equal(load(folder).read(0).conditions["sar"], torch.from_numpy(decibels / 25))


def test_a_network_has_its_own_classes(folder: Path) -> None:
    pairs = load(folder, NETWORK)
    assert pairs.further.classes == {"style": ("10", "oil", "ink")}
    assert [int(pairs.read(i).conditions["style"]) for i in range(COUNT)] == [2, 1, 2, 0]
    same = load(folder, NETWORK, classes={"style": "oil"}, tokens=None)
    assert [int(same.read(i).conditions["style"]) for i in range(COUNT)] == [1] * COUNT
    assert (same.told.left_out, "text" in same.read(0).conditions) == (("text",), False)
    assert same.digest() != load(folder, NETWORK, classes={"style": "ink"}, tokens=None).digest()


WRONG: dict[str, tuple[Mapping[str, Any], str]] = {
    "label": ({}, r"A/x/0.png: 'ink' is no class of 'style', which are oil, wax"),
    "class": ({"classes": {"style": "comik"}}, "'comik' is no file, and no class of 'style', which are oil, wax"),
    "unknown": ({"classes": {"stile": "oil"}}, "classes 'stile' are given, and this network is told 'sar' "),
    "missing": ({"images": None}, r"this network is told .*: give images, sar=PLACE"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG)
def test_what_a_network_does_not_know_is_named(folder: Path, settings: Mapping[str, Any], message: str) -> None:
    known = replace(NETWORK, classes={"style": ("oil", "wax")})
    with pytest.raises(ValueError, match=message):
        load(folder, known, **settings)


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "labels.csv").write_text("x/0,ink\nx/1,ink\nx/3,oil")
    with pytest.raises(ValueError, match=r"A/x/2.png has no style in .*labels.csv: .* name 'x/2'"):
        load(folder)
    (folder / "labels.csv").write_text("x/0,ink,3")
    with pytest.raises(ValueError, match=r"line 1 of .*labels.csv must be NAME,CLASS, got 'x/0,ink,3'"):
        load(folder)
    (folder / "labels.csv").write_text("x/0,ink\nx/0,oil")
    with pytest.raises(ValueError, match=r"line 2 of .*: 'x/0' is of the class 'ink' above; .*labels_"):
        load(folder)
    (folder / "text" / "x" / "1.npy").unlink()
    with pytest.raises(ValueError, match=r"A/x/1.png has no text in .*text"):
        load(folder, classes=None)
    with pytest.raises(ValueError, match="sar: there is no folder elsewhere"):
        load(folder, images={"sar": "elsewhere"})


def test_volumes_are_no_images_of_pictures(folder: Path) -> None:
    for i in range(COUNT):
        (folder / "sar" / "x" / f"{i}.png").unlink()
        np.save(folder / "sar" / "x" / f"{i}.npy", np.zeros((1, 2, SIZE, SIZE), np.float32))
    with pytest.raises(ValueError, match=r"sar/x/0.npy: it has 3 axes, and pictures have 2"):
        load(folder).read(0)
    with pytest.raises(ValueError, match=r"sar/x/0.npy and .*B/x/0.png lie on different grids, 2 x 8 x 8 and 8 x 8"):
        load(folder, source_values=Values(0, 255))


def test_a_look_finds_what_does_not_fit(folder: Path) -> None:
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "sar" / "x" / "1.png")  # becomes grey
    np.save(folder / "text" / "x" / "2.npy", np.ones((2, WIDTH + 1), np.float32))
    (folder / "sar" / "x" / "3.png").write_bytes(b"no picture")
    pairs = load(folder)
    with pytest.raises(BadPicturesError, match=r"x/2.npy: tokens are 4 wide, and 'text' are 3 \(2 of 4 pairs\)"):
        readable(pairs, False, print)
    left = readable(pairs, True, lambda _: None)
    assert [pair.name for pair in left.pairs] == ["x/0", "x/1"]
    assert not left.read(1).conditions["sar"].any()


def test_digests_are_of_conditions_too(folder: Path) -> None:
    def digests() -> tuple[str, str]:
        pairs = load(folder)
        return pairs.digest(), pairs.names_digest()

    before = digests()
    assert before == digests()
    np.save(folder / "text" / "x" / "0.npy", rows(0) + 1)
    after = digests()
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    (folder / "labels.csv").write_text("\n".join(f"x/{i},{label}" for i, label in enumerate(reversed(LABELS))))
    assert (digests()[0] != after[0], digests()[1] != after[1]) == (True, True)


def test_caches_hold_conditions(folder: Path, tmp_path: Path) -> None:
    pairs = load(folder)
    cached = ImageCache(pairs, tmp_path / "cache")
    for i in range(COUNT):
        for name, value in pairs.read(i).conditions.items():
            assert torch.equal(cached.read(i).conditions[name], value)
    assert cached.further == pairs.further
    assert json.loads((tmp_path / "cache" / "train.json").read_text())["pictures"]["conditions"]["tokens"] == {
        "text": 3
    }
    with pytest.raises(ValueError, match=r"is of other pictures \(.*conditions.classes.style"):
        ImageCache(load(folder, NETWORK), tmp_path / "cache")


def test_items_of_a_mapping() -> None:
    side = np.zeros((1, 4, 4), np.float32)
    items = [
        {"source": side, "target": side, "conditions": {"style": i, "text": rows(i), "sar": torch.zeros(2, 4, 4)}}
        for i in range(3)
    ]
    batch = next(Batches(MappedDataset(items), 3, torch.device("cpu"))())
    assert batch.conditions["style"].tolist() == [0, 1, 2]
    assert batch.conditions["text"].shape == (3, 3, WIDTH)
    assert batch.conditions["sar"].shape == (3, 2, 4, 4)
    other = [items[0], {**items[1], "conditions": {**items[1]["conditions"], "style": 2}}, items[2]]
    assert MappedDataset(items).digest() != MappedDataset(other).digest()
    wider = [items[0], {**items[1], "conditions": {**items[1]["conditions"], "text": np.zeros((1, 5))}}]
    with pytest.raises(ValueError, match=r"item 1 .*: text is of shape \(1, 5\), and that of item 0 .*'L', 3"):
        MappedDataset(wider).read(1)
    with pytest.raises(ValueError, match=r"item 0 .*: style must be the number of a class.*got 0.5"):
        MappedDataset([{**items[0], "conditions": {"style": 0.5}}])


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def read_tokens(shard: Path) -> torch.Tensor:
    texts = PicturesConfig(tokens={"text": "text.npy"})
    return load_dataset("shards", str(shard), image_size=SIZE, pictures=texts).read(0).conditions["text"]


def test_shards(tmp_path: Path) -> None:
    from tests.data.tars import png, sample, write

    def told(number: int) -> dict[str, Any]:
        extra = {"cls": LABELS[number].encode(), "sar.png": png(7 * number), "text.npy": npy(rows(number))}
        return {**sample(number), **extra, "bands.npy": npy(np.full((2, 8, 8), number / 4, np.float32))}

    write(tmp_path / "a.tar", [told(i) for i in range(COUNT)])
    config = PicturesConfig(
        images={"sar": "sar.png", "bands": "bands.npy"}, classes={"style": "cls"}, tokens={"text": "text.npy"}
    )
    pairs = load_dataset("shards", str(tmp_path), image_size=SIZE, pictures=config)
    assert pairs.further == ConditionsConfig(
        images={"bands": 2, "sar": 3}, classes={"style": ("10", "ink", "oil")}, tokens={"text": WIDTH}
    )
    pairs = pickle.loads(pickle.dumps(pairs))
    example = pairs.read(3)
    assert example.conditions["sar"].unique().tolist() == [21]
    assert example.conditions["bands"].unique().tolist() == [0.75]
    assert int(example.conditions["style"]) == 0
    assert torch.equal(example.conditions["text"], torch.from_numpy(rows(3)))
    assert torch.equal(example.source, load_dataset("shards", str(tmp_path), image_size=SIZE).read(3).source)
    known = replace(NETWORK, classes={"style": ("oil",)}, images={"sar": 3})
    pictures = PicturesConfig(images={"sar": "sar.png"}, classes={"style": "cls"})
    pairs = load_dataset("shards", str(tmp_path), image_size=SIZE, pictures=pictures, known=known)
    with pytest.raises(ValueError, match=r"'000' of .*a.tar: 'ink' is no class of 'style', which are oil"):
        pairs.read(0)
    with pytest.raises(ValueError, match=r"cannot read '000' of .*a.tar: it has no txt, but bands.npy, cls"):
        load_dataset("shards", str(tmp_path), image_size=SIZE, pictures=PicturesConfig(tokens={"t": "txt"}))
    for data, message in {
        npy(rows(3))[:-4]: "cannot read the picture {}: it has 172 bytes, which are not (4, 3) of float32",
        npy(np.ones((2, 3), np.int32)): "{}: tokens must be (L, D) of floats, got (2, 3) of int32",
        npy(rows(1) * np.nan): "{}: tokens have NaN or infinity",
        png(0): "{}: tokens must be (L, D) of floats, got (3, 8, 8) of uint8",
    }.items():
        shard = write(tmp_path / "c.tar", [{**sample(0), "text.npy": data}])
        with pytest.raises(ValueError, match=re.escape(message.format(f"text of '000' of {shard}"))):
            read_tokens(shard)
    write(tmp_path / "b.tar", [{**sample(9), "cls": b"oil"}, {**sample(8)}])
    classes = PicturesConfig(classes={"style": "cls"})
    pairs = load_dataset("shards", f"{tmp_path}/b.tar", image_size=SIZE, pictures=classes).skipping()
    assert pairs.read(1).name == "009"  # in place of the one without a label


def test_conditions_are_written_as_shards(folder: Path, tmp_path: Path) -> None:
    """Of files, of a CSV and, from the shards themselves, of bytes; floats in other formats become .npy."""
    np.save(folder / "sar" / "x" / "1.npy", rows(1)[None, :, :1] / 100)
    (folder / "sar" / "x" / "1.png").unlink()
    flags = ["--images", f"sar={folder}/sar", "--classes", f"style={folder}/labels.csv"]
    flags += ["--tokens", f"text={folder}/text"]
    shard.main(["paired", f"{folder}/A,{folder}/B", str(tmp_path / "one"), "--splits", "train", *flags])
    with tarfile.open(tmp_path / "one" / "train" / "000000.tar") as tar:
        found = {name.partition(".")[2] for name in tar.getnames() if name.startswith("x/1.")}
    assert found == {"source.png", "target.png", "sar.npy", "style.txt", "text.npy"}
    endings: dict[str, Any] = {"classes": {"style": "style.txt"}, "tokens": {"text": "text.npy"}}
    flags = ["--classes", "style=style.txt", "--tokens", "text=text.npy"]
    shard.main(["shards", str(tmp_path / "one"), str(tmp_path / "two"), "--splits", "train", *flags])
    before = load(folder, images=None)
    for place in ("one", "two"):
        pairs = load_dataset("shards", str(tmp_path / place), "train", SIZE, pictures=PicturesConfig(**endings))
        assert pairs.further == before.further
        for i in range(COUNT):
            made, wanted = pairs.read(i).conditions, before.read(i).conditions
            assert made.keys() == wanted.keys()
            assert all(torch.equal(made[name], wanted[name]) for name in wanted)


def test_other_conditions_are_other_shards(folder: Path, tmp_path: Path) -> None:
    """Shards of an interrupted command are completed with the same conditions alone."""
    command = ["paired", f"{folder}/A,{folder}/B", str(tmp_path / "out"), "--splits", "train", "--classes"]
    shard.main([*command, f"style={folder}/labels.csv"])
    lines = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(lines.replace("x/0,ink", "x/0,oil"))
    with pytest.raises(ValueError, match="holds other shards"):
        shard.main([*command, f"style={folder}/labels.csv"])


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    pictures = [Image.fromarray(grey(i)) for i in range(COUNT)]
    columns = {
        "a": pictures,
        "b": pictures,
        "sar": pictures,
        "style": [2, 0, 2, 1],
        "word": LABELS,
        "number": [10, 9, 10, -1],
        "text": [rows(i).tolist() for i in range(COUNT)],
    }
    kinds = {name: datasets.Image() for name in ("a", "b", "sar")}
    kinds |= {"style": datasets.ClassLabel(names=["wax", "ink", "oil"]), "word": datasets.Value("string")}
    kinds |= {"number": datasets.Value("int64"), "text": datasets.List(datasets.List(datasets.Value("float32")))}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).save_to_disk(tmp_path / "t")

    def load(**settings: Any) -> PairExamples:
        return load_dataset("hub", str(tmp_path / "t"), image_size=SIZE, pictures=PicturesConfig(**settings))

    every = {name: name for name in ("style", "word", "number")}
    pairs = load(images={"sar": "sar"}, classes=every, tokens={"text": "text"})
    assert pairs.further == ConditionsConfig(
        images={"sar": 1},
        classes={"style": ("wax", "ink", "oil"), "word": ("10", "ink", "oil"), "number": ("9", "10", "-1")},
        tokens={"text": WIDTH},
    )
    told = pickle.loads(pickle.dumps(pairs)).read(3).conditions
    assert torch.equal(told["sar"], torch.from_numpy(grey(3))[None])
    assert [int(told[name]) for name in every] == [1, 0, 2]
    assert torch.equal(told["text"], torch.from_numpy(rows(3)))
    assert len({load(images={"sar": "sar"}, classes={"s": name}).digest() for name in every}) == 3
    monkeypatch.setenv("BBDM_SHARDS", str(tmp_path / "fetched"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "p").mkdir()
    datasets.load_from_disk(tmp_path / "t").to_parquet(tmp_path / "p" / "train-00000-of-00001.parquet")  # pyright: ignore
    config = PicturesConfig(images={"sar": "sar"}, classes=every, tokens={"text": "text"})
    streamed = load_dataset("shards", f"hub:{tmp_path / 'p'}", image_size=SIZE, columns="a,b", pictures=config)
    assert streamed.further.classes["style"] == ("ink", "oil", "wax")  # by the alphabet
    again = streamed.read(3).conditions
    assert int(again["style"]) == 0
    assert all(torch.equal(again[name], told[name]) for name in ("sar", "word", "number", "text"))
    with pytest.raises(ValueError, match="the column 'text' has no labels, but List"):
        load(images={"sar": "sar"}, classes={"s": "text"})
    with pytest.raises(ValueError, match=r"tokens of row 0 is neither a picture nor an array, but 'ink'"):
        load(images={"sar": "sar"}, tokens={"tokens": "word"})
    with pytest.raises(ValueError, match="the table has no column 'cls', but a, b, sar, style"):
        load(classes={"style": "cls"})


def test_slices_of_volumes(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)
    for name in ("A", "B", "sar"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", volume)
    (tmp_path / "labels.csv").write_text("0,mr")
    unit = Values(-1, 1, dtype="float32")
    settings = {"source_values": unit, "target_values": unit, "slices": "axial", "tokens": None}
    pairs = load(tmp_path, **settings, crop=2)
    example = pairs.read(2, 5)
    torch.testing.assert_close(example.conditions["sar"], example.source, rtol=0, atol=1e-6)
    assert int(example.conditions["style"]) == 0
    whole = load(tmp_path, **settings)
    assert isinstance(whole.pairs, Slices)
    assert torch.equal(whole.conditions(whole.pairs.volumes[0])["sar"], torch.from_numpy(volume))
    assert whole.digest() != load(tmp_path, **{**settings, "classes": None}).digest()


def test_latents_of_mirrored_pairs_have_mirrored_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentDataset, "at_once", 2)  # a block is of batches with tokens of other lengths
    codec = VQGANCodec(tiny_vqgan())
    plain = LatentDataset(load(folder), codec, tmp_path / "plain").read(3).conditions
    flipped = LatentDataset(load(folder), codec, tmp_path / "flipped", flip=True).read(3).conditions
    assert torch.equal(plain["sar"], torch.from_numpy(grey(3))[None])
    assert torch.equal(flipped["sar"], torch.stack([plain["sar"], plain["sar"].flip(-1)]))
    for told in (plain, flipped):
        assert torch.equal(told["text"], torch.from_numpy(rows(3)))
        assert int(told["style"]) == 0
