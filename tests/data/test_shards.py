"""Pairs in shards: the pictures, their order for any ranks, readers and place, and what is broken."""

import json
import logging
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data import fetching, shards
from bbdm.data.cache import ImageCache
from bbdm.data.examples import PairExamples
from bbdm.data.loading import Batches
from bbdm.data.pairs import load_dataset
from bbdm.data.shards import Shard, Shards
from bbdm.data.survey import readable, survey
from bbdm.evaluation.files import files_of
from bbdm.evaluation.results import plan
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from tests.data.tars import SIDE, png, sample, write, write_members

CPU = torch.device("cpu")
COUNTS = [5, 1, 4, 7, 3, 2, 6]  # of pairs in shards
PAIRS = sum(COUNTS)


@pytest.fixture(autouse=True)
def few_are_mixed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MIXED", 3)
    monkeypatch.setenv("BBDM_SHARDS", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tars by WebDataset's writer, without an index."""
    numbers = iter(range(PAIRS))
    for shard, count in enumerate(COUNTS):
        write(tmp_path / "data" / f"{shard:06d}.tar", [sample(next(numbers)) for _ in range(count)])
    return tmp_path / "data"


def load(place: Path | str, **settings: Any) -> PairExamples:
    return load_dataset("shards", str(place), image_size=SIDE, **settings)


def first_value(v: torch.Tensor) -> list[int]:
    """The numbers of samples, from their pictures of one grey in [-1, 1]."""
    return ((v[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


class TestPictures:
    def test_pairs_are_those_of_the_tars(self, folder: Path) -> None:
        pairs = load(folder)
        assert len(pairs) == PAIRS
        assert [pair.name for pair in pairs.pairs] == [f"{i:03d}" for i in range(PAIRS)]
        for i in range(PAIRS):
            source, target = pairs.pixels(i)
            assert torch.equal(source, torch.full((3, SIDE, SIDE), i, dtype=torch.uint8))
            assert torch.equal(target, torch.full((3, SIDE, SIDE), 255 - i, dtype=torch.uint8))

    @pytest.mark.parametrize("kind", ["path", "pipe", "file", "memory"])
    def test_any_place_has_the_same(self, kind: str, folder: Path) -> None:
        braces = "{000000..000006}.tar"
        memory = fsspec.filesystem("memory")
        for path in folder.iterdir():
            memory.pipe_file(f"/data/{path.name}", path.read_bytes())
        place = {"path": folder, "pipe": f"pipe:cat {folder}", "file": f"file://{folder}", "memory": "memory://data"}
        pairs = load(f"{place[kind]}/{braces}")
        assert len(pairs) == PAIRS
        assert [int(pairs.pixels(i)[0][0, 0, 0]) for i in range(PAIRS)] == list(range(PAIRS))
        assert pairs.order(5)(0, PAIRS) == load(folder).order(5)(0, PAIRS)
        copied = pickle.loads(pickle.dumps(pairs.pairs))
        assert copied == pairs.pairs
        assert copied[3].encoded() == pairs.pairs[3].encoded()

    def test_splits(self, folder: Path, tmp_path: Path) -> None:
        place = tmp_path / "splits"
        for split, number in (("train", 1), ("val", 2)):
            write(place / split / "0.tar", [sample(number)])
        for address in (place, place / "{split}", f"{place}/{{split}}/{{0..0}}.tar"):
            for split, number in (("train", 1), ("val", 2)):
                pairs = load(address, split=split)
                assert [int(pairs.pixels(i)[0][0, 0, 0]) for i in range(len(pairs))] == [number]
            with pytest.raises(FileNotFoundError, match="there is no"):
                load(address, split="test")
        assert load(folder).pairs == load(folder, split="val").pairs  # a run says that it has no validation pairs

    def test_sources_alone_are_degraded(self, folder: Path) -> None:
        pairs = load(folder, columns="source", degrade="inpaint")
        source, target = pairs.images(3)
        assert target is not None
        assert np.asarray(target)[0, 0, 0] == 3
        assert (np.asarray(source) == 128).any()
        with pytest.raises(ValueError, match=r"without targets .*'000' has one"):
            load(folder, degrade="inpaint")

    @pytest.mark.parametrize("columns", ["", "a,b,c", "a,a", "a,"])
    def test_bad_columns(self, columns: str, folder: Path) -> None:
        with pytest.raises(ValueError, match=f"columns must be SOURCE,TARGET or SOURCE, got '{columns}'"):
            load(folder, columns=columns)
        with pytest.raises(ValueError, match=r"columns are of the data sets shards, hub, got 'a,b' for 'folder'"):
            load_dataset("folder", str(folder), columns="a,b")

    def test_a_shard_that_was_deleted_from_the_cache_comes_again(self, folder: Path) -> None:
        pairs = load(f"pipe:cat {folder}/{{000000..000006}}.tar")
        for _ in range(2):
            assert int(pairs.pixels(7)[0][0, 0, 0]) == 7
            for path in fetching.cache().glob("*.tar"):
                path.unlink()

    def test_nothing_but_pictures_is_decoded(self, tmp_path: Path) -> None:
        trap = b"\x80\x04\x95cposix\nsystem\n."
        write(tmp_path / "0.tar", [{"__key__": "a", "source.png": trap, "target.png": png(1)}])
        with pytest.raises(ValueError, match=r"cannot read the picture 'a' of .*0\.tar: it is not PNG, JPEG"):
            load(tmp_path).pixels(0)


class TestIndex:
    def write_index(self, folder: Path, counts: list[Any], **others: Any) -> None:
        entries = [{"url": f"../x/{i:06d}.tar", "nsamples": count} for i, count in enumerate(counts)]
        (folder / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": entries, **others}))

    def test_counts_are_taken_from_it(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without = load(folder)
        self.write_index(folder, COUNTS)
        monkeypatch.setattr(shards, "_count", lambda *_: pytest.fail("counted"))
        assert load(folder).pairs == without.pairs

    def test_shards_are_counted_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without = load(folder)
        with monkeypatch.context() as context:
            context.setattr(shards.tar, "index", lambda *_: pytest.fail("read again"))
            assert load(folder).pairs == without.pairs
        write(folder / "000002.tar", [sample(1)])
        assert len(load(folder)) == PAIRS - COUNTS[2] + 1

    def test_damaged_unfinished_or_a_trick(self, folder: Path) -> None:
        for counts in ([-1], [1.5], ["1"], [True], [None], COUNTS):
            self.write_index(folder, counts, made_of={"shards": math.inf if counts is COUNTS else 1})
            with pytest.raises(ValueError, match=r"cannot read .*index\.json: make it again, or delete it"):
                load(folder)
        self.write_index(folder, COUNTS[:5], made_of={"shards": 7})
        with pytest.raises(ValueError, match=r"index\.json is not finished: 2 shards are still to be written"):
            load(folder)
        (folder / "index.json").write_text("[")
        with pytest.raises(ValueError, match=r"cannot read .*index\.json"):
            load(folder)
        entry = {"url": f"pipe:touch {folder}/ran; cat {folder}/000000.tar", "nsamples": 5}
        (folder / "index.json").write_text(json.dumps({"shardlist": [entry]}))
        assert len(load(folder)) == PAIRS
        assert not (folder / "ran").exists()  # a command in it is never run

    @pytest.mark.parametrize("count", [1000, 10**9, 10**30])
    def test_more_samples_than_a_shard_has_room_for(self, count: int, folder: Path) -> None:
        """Memory would be asked for by that number."""
        self.write_index(folder, [*COUNTS[:2], count, *COUNTS[3:]])
        with pytest.raises(ValueError, match=rf"000002\.tar cannot have {count} samples: make its index again"):
            load(folder)

    def test_fewer_samples_than_a_shard_has(self, folder: Path) -> None:
        """None is left out in silence."""
        self.write_index(folder, [0, *COUNTS[1:3], COUNTS[3] - 1, *COUNTS[4:]])
        pairs = load(folder)
        assert len(pairs) == PAIRS - 1
        last = sum(COUNTS[:4]) - 2
        with pytest.raises(ValueError, match=r"000003\.tar has 7 samples, and 6 are expected"):
            pairs.pixels(last)
        assert [int(pairs.pixels(i)[0][0, 0, 0]) for i in range(last)] == list(range(last))

    @pytest.mark.parametrize("kept", ["-5", "0", "1e400", "null", "1000000000000"])
    def test_a_damaged_count(self, kept: str, folder: Path) -> None:
        load(folder)
        for path in fetching.cache().glob("*.count.json"):
            path.write_text(f'{{"samples": {kept}}}')
        if kept in ("0", "-5"):
            assert len(load(folder)) == PAIRS
            return
        with pytest.raises(ValueError, match=r"000000\.tar cannot have|cannot read .*count\.json: delete it"):
            load(folder)


def of_counts(counts: list[int]) -> Shards:
    return Shards(Shard(f"{i}.tar", count) for i, count in enumerate(counts))


class TestOrder:
    @pytest.mark.parametrize("counts", [COUNTS, [4], [1, 1], [3, 0, 0, 5, 0], list(range(20))], ids=str)
    def test_all_pairs_once_and_any_slice_of_it(self, counts: list[int]) -> None:
        total = sum(counts)
        whole = of_counts(counts).order(7)(0, total)
        assert sorted(whole) == list(range(total))
        for start in range(0, total + 1):
            for end in {start, start + 1, (start + total) // 2, total, total + 9}:
                assert of_counts(counts).order(7)(start, end) == whole[start:end]

    def test_few_shards_are_open_at_a_time(self) -> None:
        """In random order, three at a time, whose pairs are mixed."""
        counts = [100] * 30
        order = np.array(of_counts(counts).order(1)(0, 3000)) // 100
        groups = [set(part) for part in np.split(order, 10)]
        assert [len(group) for group in groups] == [3] * 10
        assert set.union(*groups) == set(range(30))
        assert sum(sorted(group) == list(range(min(group), max(group) + 1)) for group in groups) < 3
        for part in np.split(order, 10):  # of 300 pairs, those of a shard are everywhere: 5 sigma
            places = np.flatnonzero(part == part[0])
            assert abs(places.mean() - 149.5) < 5 * 300 / np.sqrt(12 * 100)  # false alarm 6e-6 in all
        orders = {seed: tuple(of_counts(COUNTS).order(seed)(0, PAIRS)) for seed in range(50)}
        assert len(set(orders.values())) == 50  # it is a function of the seed

    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_ranks_and_readers_share_the_batches_of_one(self, workers: int, folder: Path) -> None:
        """28 pairs in batches of 6: the last 4 of an epoch's order are left for other epochs."""
        wanted = load(folder).order(1)(0, 24)
        for count in (1, 2, 3):
            parts: list[list[int]] = []
            for rank in range(count):
                pairs = load(folder)
                config, team = TrainConfig(batch_size=6), SimpleNamespace(rank=rank, count=count)
                run: Any = SimpleNamespace(train=pairs, config=config, processes=team, share=6 // count)
                run.epoch, run.steps_per_epoch = 1, 4
                batches = Batches(pairs, run.share, CPU, workers)
                made = [first_value(y) for y, *_ in batches(Trainer._order(run, 0))]
                again = [first_value(y) for y, *_ in batches(Trainer._order(run, 3))]
                batches.close()
                assert again == made[3:]
                parts.append([value for batch in made for value in batch])
            shares = np.array(parts).reshape(count, 4, -1).swapaxes(0, 1)
            assert shares.flatten().tolist() == wanted

    def test_memory_is_that_of_a_few_shards(self, folder: Path) -> None:
        pairs = load(folder).pairs
        assert isinstance(pairs, Shards)
        for index in pairs.order(0)(0, PAIRS):
            pairs[index].encoded()
        assert pairs._tar.cache_info().currsize <= 6

    def test_what_comes_is_fetched_while_pairs_are_read(self, folder: Path) -> None:
        pairs = load(f"pipe:cat {folder}/{{000000..000006}}.tar").pairs
        assert isinstance(pairs, Shards)
        asked: list[str] = []
        pairs._ahead = SimpleNamespace(fetch=asked.extend)  # pyright: ignore[reportAttributeAccessIssue]
        order = pairs.order(2)(0, PAIRS)
        coming = pairs.prefetched(order)
        first = next(coming)
        assert len(asked) > 3  # all of a group, and more
        assert [first, *coming] == order
        assert sorted(asked) == sorted(shard.url for shard in pairs.shards)


@pytest.fixture
def broken(folder: Path) -> Path:
    """One picture cut off, one half missing, one tar cut off, one tar that is none."""
    whole = png(6)
    write(folder / "000002.tar", [{**sample(6), "source.png": whole[: len(whole) // 2]}, *map(sample, (7, 8, 9))])
    write(folder / "000003.tar", [sample(10), {"__key__": "011", "source.png": png(11)}, *map(sample, range(12, 17))])
    path = folder / "000004.tar"
    path.write_bytes(path.read_bytes()[: 2 * 2048 + 100])  # two samples, and the third's header in part
    (folder / "000005.tar").write_bytes(b"no tar")
    return folder


BAD = {
    6: r"'006' of .*000002\.tar",
    11: r"'011' of .*000003\.tar: it has no target, but source\.png",
    19: r"000004\.tar is a damaged tar: ",
    20: r"000005\.tar is a damaged tar: ",
}


class TestBroken:
    def test_each_is_named(self, broken: Path) -> None:
        pairs = load(broken)
        assert len(pairs) == PAIRS - 1  # of the tar that is none, one is counted
        for index, message in BAD.items():
            with pytest.raises(ValueError, match=message):
                pairs.pixels(index)
        batches = Batches(pairs, 5, CPU, 1)
        with pytest.raises(ValueError, match=r"^cannot read the picture '006' of .*000002\.tar.*"):
            list(batches())
        batches.close()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_next_takes_its_place(self, workers: int, broken: Path, caplog: pytest.LogCaptureFixture) -> None:
        pairs = readable(load(broken), True, pytest.fail)
        batches = Batches(pairs, 5, CPU, workers)
        with caplog.at_level(logging.WARNING):
            list(batches())
            made = [value for y, *_ in batches() for value in first_value(y)]  # named once
        batches.close()
        numbers = [*range(6), 7, 7, 8, 9, 10, 12, *range(12, 19), 22, 22, *range(22, 28)]
        assert made == numbers
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == len(pairs.left_out) == 4
        assert all(line.startswith("left out: ") and f"({i + 1} so far)" in line for i, line in enumerate(lines))

    def test_a_shard_shorter_than_its_index(self, folder: Path) -> None:
        entries = [{"url": f"{i:06d}.tar", "nsamples": count + (i == 1)} for i, count in enumerate(COUNTS)]
        (folder / "index.json").write_text(json.dumps({"shardlist": entries}))
        with pytest.raises(ValueError, match=r"000001\.tar has 1 samples, and 2 are expected"):
            load(folder).pixels(6)
        assert int(load(folder).skipping().pixels(6)[0][0, 0, 0]) == 6

    def test_a_network_that_fails_is_never_skipped(self, folder: Path) -> None:
        pairs = load(f"pipe:cat {folder}/{{000000..000006}}.tar").skipping()
        assert isinstance(pairs.pairs, Shards)
        pairs.pairs.shards[0] = Shard("pipe:exit 7", COUNTS[0])
        with pytest.raises(OSError, match="cannot fetch pipe:exit 7"):
            pairs.pixels(0)

    def test_names_stay_inside_a_folder_of_results(self, tmp_path: Path) -> None:
        names = ["../../a", "/a", "b"]
        members = [(f"{name}.{side}.png", png(1)) for name in names for side in ("source", "target")]
        write_members(tmp_path / "0.tar", members)
        pairs = load(tmp_path)
        bad = survey(pairs, whole=True).bad
        assert list(bad) == ["0-0", "0-1"]
        assert all("its name is no relative path" in reason for reason in bad.values())
        paths = [job.path for job in plan(files_of(pairs, None, "train", 3), tmp_path / "results", 1, 0)]
        assert [path.parent for path in paths] == [tmp_path / "results"] * 3
        write_members(tmp_path / "none" / "0.tar", [("a.source.png", b"x"), ("b.target.png", b"y")])
        with pytest.raises(ValueError, match="none of 2 pairs can be read; the first: cannot read 'a' of"):
            load(tmp_path / "none").skipping().pixels(0)


def test_caches(folder: Path, broken: Path, tmp_path: Path) -> None:
    """A bad pair is left out, and other shards are refused."""
    pairs = load(broken).skipping()
    cached = ImageCache(pairs, tmp_path / "pictures", workers=1)
    assert len(pairs.left_out) == 4
    assert int(cached.pixels(6)[0][0, 0, 0]) == 7
    assert cached.order(3)(0, PAIRS - 1) == pairs.order(3)(0, PAIRS - 1)
    write(folder / "000006.tar", [sample(i) for i in range(6)])
    with pytest.raises(ValueError, match="is of other pictures"):
        ImageCache(load(folder), tmp_path / "pictures")


def test_no_shards(tmp_path: Path) -> None:
    for place, kind, message in (
        (tmp_path, ValueError, "there are no shards in"),
        (tmp_path / "gone.tar", FileNotFoundError, r"there is no shard .*gone\.tar"),
        (f"{tmp_path}/{{0..", ValueError, "braces"),
    ):
        with pytest.raises(kind, match=message):
            load(place)
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    write(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match="there are no samples in"):
        load(tmp_path)
