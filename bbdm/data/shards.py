"""Pairs in shards: tars in WebDataset's layout, on a disk here or anywhere.

The order of an epoch is a function of its seed: the shards in random order, :data:`MIXED` of them mixed at a
time. The counts of the shards say which shard a position is in, and where. So a reader goes to any position
at once, several readers need no agreement, and memory holds the places of a few shards.

A file ``index.json`` in the folder of the shards, in the form of WebDataset's wids, holds the counts. Shards
without one are read once to count their pairs.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bbdm.base import manifest
from bbdm.base.atomic import file_sha256, stamp
from bbdm.base.seeds import seed_of
from bbdm.data import fetching, table, tar
from bbdm.data.collection import EncodedPair, Order, Pairs

INDEX = "index.json"
KIND = "wids-shard-index-v1"
MIXED = 8  # shards
MOST = 10**7  # samples in a shard
COLUMNS = "source,target"


@dataclass(frozen=True)
class Shard:
    """A tar: its path or URL, the number of its samples, and its SHA-256 where an index holds it."""

    url: str
    count: int
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name; a command and a part of a table have none of their own."""
        return self.url if self.url.startswith(fetching.OTHERS) else self.url.rpartition("/")[2]


class Shards(Pairs):
    """The samples of some tars.

    Args:
        shards: the tars, with their counts.
        columns: the endings of source and target, or of sources alone.
        told: the endings of conditions, by name.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        columns: tuple[str, ...] = ("source", "target"),
        told: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.shards = list(shards)
        self.columns = columns
        self.told = dict(told)
        self._all = (*columns, *self.told.values())
        self.has_targets = len(columns) > 1
        self.names = "\n".join([*(f"{shard.name} {shard.count}" for shard in self.shards), ",".join(self._all)])
        self._ends = list(accumulate(shard.count for shard in self.shards))
        if not len(self):
            raise ValueError(f"there are no samples in {self.shards[0].url if self.shards else 'no shards'}")
        self._tar = lru_cache(maxsize=2 * MIXED)(self._opened)
        self._ahead = fetching.Ahead()

    @classmethod
    def open(
        cls, data_dir: str, split: str, columns: str = COLUMNS, told: Mapping[str, str] = MappingProxyType({})
    ) -> Shards:
        """The shards of a folder, which holds its splits as folders or one split, or of paths and URLs.

        ``{split}`` is filled in, and ``{000000..000009}`` stands for the numbers. For errors see
        :func:`find`.
        """
        kinds = tuple(columns.split(","))
        if len(kinds) > 2 or not all(kinds) or len(set(kinds)) < len(kinds):
            raise ValueError(f"columns must be SOURCE,TARGET or SOURCE, got {columns!r}")
        return cls(find(data_dir.replace("{split}", split), split, (*kinds, *told.values())), kinds, told)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def at(self, index: int) -> EncodedPair:
        """A sample, which is read when it is asked for."""
        number, place = self._place(index)
        shard, (_, found) = self.shards[number], self._tar(number)
        own = f"{Path(shard.name).stem}-{place}"  # for a sample without a name that can be one of a result
        if place >= len(found.samples) or shard.count == place + 1 < len(found.samples):
            why = found.reason or f"{shard.url} has {len(found.samples)} samples, and {shard.count} are expected"
            name, where = own, shard.url
        else:
            sample = found.samples[place]
            where = f"{sample.name!r} of {shard.url}"
            why = sample.reason and f"cannot read {where}: {sample.reason}"
            name = sample.name if tar.is_inside(sample.name) else own
        at = number, place, why
        return EncodedPair(name, where, partial(self._read, *at, self.columns), partial(self._told, *at))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and (self.shards, self._all) == (other.shards, other._all)

    def _place(self, index: int) -> tuple[int, int]:
        """The number of a sample's shard, and its place in it."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number] - self.shards[number].count)

    def _opened(self, number: int) -> tuple[Path, tar.Tar]:
        """A shard as a file here, and its samples; those of the last few shards are kept as ``_tar``."""
        path = fetching.local(self.shards[number].url)
        return path, tar.index(path, self._all)

    def _told(self, number: int, place: int, why: str, name: str) -> bytes:
        """The bytes of a sample's condition."""
        return self._read(number, place, why, (self.told[name],))[0]

    def _read(self, number: int, place: int, why: str, columns: tuple[str, ...]) -> list[bytes]:
        """The bytes of some of a sample's files; ValueError that says why there are none."""
        if why:
            raise ValueError(why)
        if not self._tar(number)[0].exists():  # deleted from the cache of fetched files since
            self._tar.cache_clear()
        path, found = self._tar(number)
        sample, parts = found.samples[place], list[bytes]()
        with path.open("rb") as file:
            for offset, size in (sample.spans[self._all.index(column)] for column in columns):
                file.seek(offset)
                parts.append(file.read(size))
                if len(parts[-1]) < size:
                    raise ValueError(f"cannot read {sample.name!r} of {self.shards[number].url}: the tar is cut off")
        return parts

    def order(self, seed: int) -> Order:
        """The order of an epoch: shards in random order, and :data:`MIXED` of them at a time mixed."""
        import torch

        shuffled = torch.randperm(len(self.shards), generator=torch.Generator().manual_seed(seed))
        groups: list[list[int]] = [group.tolist() for group in shuffled.split(MIXED)]
        ends = list(accumulate(sum(self.shards[i].count for i in group) for group in groups))

        @lru_cache(maxsize=2)
        def mixed(number: int) -> Any:
            parts = [torch.arange(self._ends[i] - self.shards[i].count, self._ends[i]) for i in groups[number]]
            indices = torch.cat(parts)
            generator = torch.Generator().manual_seed(seed_of(f"group {number}", seed))
            return indices[torch.randperm(len(indices), generator=generator)]

        def order(start: int, end: int) -> list[int]:
            found: list[int] = []
            while start < min(end, ends[-1]):
                number = bisect_right(ends, start)
                before = ends[number] - len(mixed(number))
                found += mixed(number)[start - before : end - before].tolist()
                start = ends[number]
            return found

        return order

    def prefetched(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices, while the shards of the next ones are fetched."""
        if all(fetching.is_local(shard.url) for shard in self.shards):
            yield from order
            return
        reach = sum(heapq.nlargest(MIXED, (shard.count for shard in self.shards)))
        coming: deque[int] = deque()
        seen: deque[int] = deque(maxlen=2 * MIXED)  # shards
        for index in order:
            number, _ = self._place(index)
            if number not in seen:
                seen.append(number)
                self._ahead.fetch([self.shards[number].url])
            coming.append(index)
            if len(coming) > reach:
                yield coming.popleft()
        yield from coming

    def digest(self, before: str = "") -> str:
        """SHA-256 of a text, and of the names and the content of all shards."""
        digest = hashlib.sha256(before.encode())
        for shard in self.shards:
            digest.update(f"{shard.name} {shard.sha256 or file_sha256(fetching.local(shard.url))}\n".encode())
        digest.update(",".join(self._all).encode())
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.shards, self.columns, self.told)  # each process reads the tars itself


def find(place: str, split: str, columns: tuple[str, ...]) -> list[Shard]:
    """The shards of a folder, of a path or URL with braces, or of a table, with their counts.

    Raises:
        FileNotFoundError: there is no such folder or shard.
        ValueError: a folder without shards, an index that is damaged or unfinished, more samples than a shard
            has room for, or bad braces.
        OSError: a shard cannot be fetched.
    """
    from braceexpand import braceexpand
    from tqdm.auto import tqdm  # here, since the names of data sets are read at each start of a command

    hub = place.startswith(table.PREFIX)
    urls = table.parts(place.removeprefix(table.PREFIX), split) if hub else list(braceexpand(place, escape=False))
    folder = Path(place)
    if fetching.is_local(place) and folder.is_dir():
        if any((folder / name).is_dir() for name in ("train", "val")):
            folder = folder / split
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        urls = sorted(path.as_posix() for path in folder.glob("*.tar"))
        if not urls:
            raise ValueError(f"there are no shards in {folder} (looked for .tar)")
    for url in urls:
        if fetching.is_local(url) and not fetching.local(url).is_file():
            raise FileNotFoundError(f"there is no shard {url}")
    indexes: dict[str, Any] = {}
    found: list[Shard] = []
    for url in tqdm(urls, "looking at shards", unit="shard", leave=False, disable=None):
        above, _, name = url.rpartition("/")
        if above not in indexes:
            indexes[above] = _index(url)
        count, digest = indexes[above].get(name, (0, None))
        count = count or _count(url, columns)  # of 0, an index says nothing
        room = fetching.local(url).stat().st_size // tar.BLOCK + 1 if fetching.is_local(url) else MOST
        if not 0 <= count <= room:  # memory is asked for by this number
            raise ValueError(f"{url} cannot have {count} samples: make its index again, or delete it")
        found.append(Shard(url, count, digest))
    return found


def _index(url: str) -> dict[str, tuple[int, str | None]]:
    """Counts and SHA-256 of shards by name, from the index in the folder of a shard; empty without one."""
    beside = fetching.read_beside(url, INDEX)
    if beside is None:
        return {}
    place, data = beside
    found: dict[str, tuple[int, str | None]] = {}
    with manifest.parsing(place, "make it again, or delete it"):
        content = json.loads(data)
        for entry in content["shardlist"]:
            count, digest = entry["nsamples"], entry.get("sha256")
            if type(count) is not int or count < 0 or not isinstance(digest, str | None):
                raise ValueError("nsamples must be an integer of at least 0, and sha256 text")
            found[str(entry["url"]).rpartition("/")[2]] = count, digest
        missing = int(content.get("made_of", {}).get("shards", 0)) - len(found)
    if missing > 0:
        raise ValueError(f"{place} is not finished: {missing} shards are still to be written")
    return found


def _count(url: str, columns: tuple[str, ...]) -> int:
    """The number of a shard's samples, remembered for the file; what is damaged at the end counts as one."""
    path = fetching.local(url)
    key = path.stem  # of what may be fetched again
    if fetching.is_local(url):
        key = hashlib.sha256(stamp(path.absolute()).encode()).hexdigest()
    kept = fetching.cache() / f"{key}.count.json"
    if kept.exists():
        with manifest.reading(kept, "delete it") as content:
            count = int(content["samples"])
        if count > 0:
            return count
    found = tar.index(path, columns)
    count = len(found.samples) + bool(found.reason)
    with suppress(OSError):  # it is counted again where nothing can be written
        manifest.write(kept, {"samples": count})
    return count
