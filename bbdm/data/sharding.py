"""Writing a data set as shards: tars in WebDataset's layout, with an index of their counts.

The bytes of picture files are copied as they are. Shard i holds the pairs from i times the shard's size on.
So an interrupted folder is completed shard by shard, and ends with the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.atomic import file_sha256, make_folder, remove_all_leftovers, write_atomically
from bbdm.data import tar
from bbdm.data.collection import FORMATS, Entry, as_label
from bbdm.data.examples import PairExamples
from bbdm.data.loading import with_short_errors
from bbdm.data.pairs import PairedDataset
from bbdm.data.shards import INDEX, KIND
from bbdm.data.survey import BadPicturesError
from bbdm.data.told import opened
from bbdm.networks.conditions import Kind
from bbdm.pictures import images
from bbdm.pictures.formats import numpy_files

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg"}  # of formats whose suffix is not their name


class Encoded(NamedTuple):
    """An example as the files of a sample, by ending, or why it cannot be read."""

    key: str
    files: dict[str, bytes]
    reason: str = ""


def _encoded(dataset: PairedDataset, resized: bool, index: int) -> Encoded:
    """An example as a sample; its pictures are decoded once, to see that they can be read."""
    pair = dataset.pairs[index]
    folder, _, name = pair.name.rpartition("/")
    key = f"{folder}/{name.replace('.', '_')}".lstrip("/")  # a key ends at the first dot
    try:
        if not tar.is_inside(pair.name):
            raise ValueError(f"{pair}: its name is no relative path")
        if resized:
            parts = [images.to_png(side) for side in dataset.images(index) if side is not None]
        else:
            parts = pair.encoded()
        files = zip(("source", "target"), parts, strict=False)
        made = {f"{column}.{_suffix(part, str(pair))}": part for column, part in files}
        dataset.told.check(pair)
        kinds = dataset.told.config.kinds
        return Encoded(key, made | dict(_condition(pair, name, kinds[name]) for name in dataset.told.own))
    except (ValueError, FileNotFoundError) as error:
        return Encoded(key, {}, " ".join(str(error).split()))


def _suffix(data: bytes, name: str) -> str:
    """The suffix of a picture's format. Raises ValueError where it cannot be read."""
    images.convert(images.decode(data, name, FORMATS))
    with Image.open(io.BytesIO(data)) as image:
        kind = str(image.format)
    return SUFFIXES.get(kind, kind.lower())


def _condition(entry: Entry, name: str, kind: Kind) -> tuple[str, bytes]:
    """The file of a condition, by its ending: text of a class, a picture as it is, and else an array."""
    raw = entry.told(name)
    if kind == "class":
        return f"{name}.txt", as_label(raw).encode()
    if isinstance(raw, Path) and raw.suffix.lower() in images.SUFFIXES:
        raw = raw.read_bytes()
        return f"{name}.{_suffix(raw, str(entry))}", raw
    if isinstance(raw, bytes) and not raw.startswith(numpy_files.MAGIC):
        return f"{name}.{_suffix(raw, f'{name} of {entry}')}", raw
    found = opened(entry, name)
    if found.nodata is not None:
        raise ValueError(f"{found.path}: shards keep no value that stands for none (nodata)")
    return f"{name}.npy", numpy_files.encoded(found[()][0] if kind == "tokens" else found[()])


def write_shards(
    dataset: PairExamples,
    folder: Path,
    pairs_in_shard: int = 1000,
    resized: bool = False,
    skip_bad: bool = False,
    workers: int = 0,
    progress: bool = False,
    report: Callable[[str], object] = print,
) -> tuple[int, int]:
    """Write the pairs of a data set as ``000000.tar``, ... and ``index.json``.

    Args:
        dataset: the pairs, or sources alone.
        folder: of the shards, made where it does not exist. An interrupted one is checked and completed.
        pairs_in_shard: the last shard may have fewer.
        resized: write the pictures as the data set makes them, as PNG; otherwise their files as they are.
        skip_bad: leave out pairs that cannot be read. The index names them, and ``report`` is called.
        workers: processes that read pictures.
        progress: show a progress bar.
        report: called with what is left out.

    Returns:
        The numbers of pairs in the shards, and of pairs that were left out.

    Raises:
        BadPicturesError: a pair cannot be read.
        ValueError: two pairs of a shard have the same key; or the folder holds other shards, or changed ones.
    """
    if pairs_in_shard < 1:
        raise ValueError(f"pairs_in_shard must be at least 1, got {pairs_in_shard}")
    if not isinstance(dataset, PairedDataset):
        raise ValueError(f"shards hold pictures of 8 bits, and {dataset.pairs[0]} has other values")
    if dataset.direction != "AtoB" or dataset.degradation is not None:
        raise ValueError("shards hold pairs as they are: direction must be 'AtoB', and degradation None")
    about = {"pairs": len(dataset), "pairs_in_shard": pairs_in_shard, "names": dataset.names_digest()}
    about |= {"shards": -(-len(dataset) // pairs_in_shard), "image_size": dataset.image_size if resized else None}
    if dataset.told:
        about["conditions"] = dataset.told.digest(dataset.pairs, "")
    index = {"__kind__": KIND, "wids_version": 1, "made_of": manifest.as_json(about), "shardlist": []}
    entries = index["shardlist"] = _begun(folder, index)
    start = len(entries) * pairs_in_shard
    order, every = dataset.prefetched(range(start, len(dataset))), range(len(dataset))
    how: Any = {"sampler": order, "num_workers": workers, "collate_fn": partial(_encoded, dataset, resized)}
    loader = DataLoader(every, batch_size=None, **how)  # pyright: ignore[reportArgumentType] a sequence is enough
    with tqdm(total=len(dataset), initial=start, unit="pair", disable=not progress) as bar:
        samples = iter(with_short_errors(loader))
        for number in range(len(entries), about["shards"]):
            path = folder / _name(number)
            entry: dict[str, Any] = {"url": path.name, "nsamples": 0, "left_out": {}}
            write_atomically(path, partial(_write_tar, islice(samples, pairs_in_shard), entry, skip_bad, bar))
            for reason in entry["left_out"].values():
                report(f"left out: {reason}")
            entries.append({**entry, "filesize": path.stat().st_size, "sha256": file_sha256(path)})
            manifest.write(folder / INDEX, index)
    return sum(entry["nsamples"] for entry in entries), sum(len(entry["left_out"]) for entry in entries)


def _begun(folder: Path, index: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the shards that are written, all checked; writes the index of a new folder."""
    make_folder(folder)
    remove_all_leftovers(folder)
    made_of = index["made_of"]
    if not (folder / INDEX).exists():
        if any(folder.glob("*.tar")):
            raise ValueError(f"{folder} holds shards without {INDEX}: give another folder")
        manifest.write(folder / INDEX, index)
        return []
    with manifest.reading(folder / INDEX, f"delete {folder}") as content:
        differing = manifest.differences(content["made_of"], made_of)
        entries = [] if differing else [dict(entry) for entry in content["shardlist"]]
        for number, entry in enumerate(entries):
            pairs = min(made_of["pairs_in_shard"], made_of["pairs"] - number * made_of["pairs_in_shard"])
            counted = entry["nsamples"] + len(dict(entry["left_out"]))
            if (entry["url"], counted) != (_name(number), pairs) or pairs < 1:
                raise ValueError(f"entry {number} is not of {pairs} pairs")
    if differing:
        raise ValueError(f"{folder} holds other shards ({differing}): give another folder, or delete it")
    for entry in entries:
        path = folder / entry["url"]
        if not path.is_file() or file_sha256(path) != entry.get("sha256"):
            raise ValueError(f"{path} has changed since it was written: delete {folder}")
    return entries


def _name(number: int) -> str:
    return f"{number:06d}.tar"


def _write_tar(samples: Iterator[Encoded], entry: dict[str, Any], skip_bad: bool, bar: tqdm[Any], path: Path) -> None:
    """Write a shard, and count its samples and name what is left out in its entry of the index."""
    from webdataset.writer import TarWriter

    keys: set[str] = set()
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
        for sample in samples:
            if sample.reason and not skip_bad:
                raise BadPicturesError(sample.reason)
            bar.update()
            if sample.reason:
                entry["left_out"][sample.key] = sample.reason
                continue
            if sample.key in keys:
                raise ValueError(f"two pairs of a shard are named {sample.key!r}, where dots count as _: rename one")
            keys.add(sample.key)
            writer.write({"__key__": sample.key, **sample.files})
    entry["nsamples"] = len(keys)
