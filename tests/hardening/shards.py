"""Shards among the mutated files: a tar, and the JSON files that say what is in it."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from bbdm.data.sharding import write_shards
from bbdm.data.tar import index
from PIL import Image

from bbdm.data.examples import PairExamples
from bbdm.data.pairs import load_dataset
from tests.conftest import SIZE
from tests.hardening.mutations import Subject, of_json, of_tar

KEYS = ["00", "01é", "02" + "long" * 40, "03", "04", "05"]  # two of them need extended headers
IN_SHARD = 4  # pairs, so that the second shard has two
MOST = 100  # pairs that are read, whatever number a file claims
Pair = tuple[int, int]  # source and target, each of one grey


def _written(folder: Path, in_shard: int = IN_SHARD) -> tuple[PairExamples, Path]:
    """Pairs, and the folder of their shards; counts of shards are remembered in another folder."""
    os.environ["BBDM_SHARDS"] = str(folder / "counts")
    for side, first in (("A", 0), ("B", 128)):
        (folder / side).mkdir()
        for number, key in enumerate(KEYS):
            Image.new("RGB", (SIZE, SIZE), (first + number,) * 3).save(folder / side / f"{key}.png")
    pairs = load_dataset("paired", f"{folder / 'A'},{folder / 'B'}", image_size=SIZE)
    write_shards(pairs, folder / "shards", in_shard)
    return pairs, folder / "shards"


def _greys(pairs: PairExamples, number: int) -> Pair:
    source, target, *_ = pairs.read(number)
    return int(source[0, 0, 0]), int(target[0, 0, 0])


def _pairs(place: Path) -> list[Pair | ValueError]:
    """What each number of the shards gives; the errors must name a file in their folder."""
    pairs = load_dataset("shards", str(place), image_size=SIZE)
    count = min(len(pairs), MOST)
    assert len(set(pairs.order(0)(0, MOST))) == count
    found: list[Pair | ValueError] = []
    for number in range(count):
        try:
            found.append(_greys(pairs, number))
        except ValueError as error:
            found.append(error)
    unnamed = [each for each in found if isinstance(each, ValueError) and str(place) not in str(each)]
    assert not unnamed, f"an error does not name the file: {unnamed[0]}"
    good = [number for number, pair in enumerate(found) if isinstance(pair, tuple)]
    if good and count == len(pairs):  # with skip_bad, the next one takes the place
        taken = [min(good, key=lambda n: (n - number) % count) for number in range(count)]
        assert [_greys(pairs.skipping(), number) for number in range(count)] == [found[number] for number in taken]
    return found


def _all(found: list[Pair | ValueError]) -> list[Pair | ValueError]:
    """What was found, where there is no error in it; raises the first."""
    for each in found:
        if isinstance(each, ValueError):
            raise each
    return found


def indexed(folder: Path) -> Subject:
    """A tar whose number of pairs is in an index; the pixels have no checksum."""
    _, place = _written(folder)
    path = place / "000000.tar"
    whole, wanted = path.read_bytes(), _all(_pairs(place))
    starts = [sample.spans[0].offset for sample in index(path, ("source", "target")).samples]  # behind the names

    def read() -> Any:
        shutil.rmtree(folder / "counts", ignore_errors=True)
        changed = (at for at, (a, b) in enumerate(zip(whole, path.read_bytes(), strict=False)) if a != b)
        same = next(changed, path.stat().st_size)
        before = max(0, sum(start <= same for start in starts) - 1)  # a member's name can add it to those before it
        found = _pairs(place)
        assert found[:before] == wanted[:before], "pairs before it are lost"
        assert found[IN_SHARD - len(KEYS) :] == wanted[IN_SHARD:], "pairs of another shard are lost"
        return _all(found)

    return Subject(path, read, of_tar, exact=False)


def without_index(folder: Path) -> Subject:
    """A tar whose pairs are counted."""
    subject = indexed(folder)
    (folder / "shards" / "index.json").unlink()
    return subject


def of_index(folder: Path) -> Subject:
    """An index of whole tars."""
    _, place = _written(folder)
    return Subject(place / "index.json", lambda: _all(_pairs(place)), of_json)


def of_count(folder: Path) -> Subject:
    """The count of a tar without an index, as it is remembered."""
    _, place = _written(folder)
    (place / "index.json").unlink()
    (place / "000001.tar").unlink()
    _pairs(place)
    (path,) = (folder / "counts").glob("*.count.json")
    return Subject(path, lambda: _all(_pairs(place)), of_json)


def to_complete(folder: Path) -> Subject:
    """The index of shards of which the last is still to be written."""
    pairs, place = _written(folder, 2)
    path = place / "index.json"
    kept = {tar: tar.read_bytes() for tar in sorted(place.glob("*.tar"))[:-1]}
    content = json.loads(path.read_bytes())
    content["shardlist"].pop()
    path.write_text(json.dumps(content))

    def unfinished(data: bytes, rng: random.Random) -> bytes:
        shutil.rmtree(place)
        place.mkdir()
        for tar, whole in kept.items():
            tar.write_bytes(whole)
        return of_json(data, rng)

    def read() -> Any:
        return (
            write_shards(pairs, place, 2),
            [tar.read_bytes() for tar in sorted(place.glob("*.tar"))],
            _all(_pairs(place)),
        )

    return Subject(path, read, unfinished)
