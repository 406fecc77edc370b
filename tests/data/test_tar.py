"""Samples of tars: WebDataset's own grouping, and what is damaged, missing or a trick."""

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bbdm.data import tar
from tests.data.tars import png, sample, write, write_members

COLUMNS = ("source", "target")


def test_samples_and_bytes_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    from webdataset.tariterators import tarfile_samples

    others = [sample(7, "deep/er/7"), {**sample(8), "json": b"{}"}, {"__key__": "9", "jpg": b"x"}, sample(10)]
    path = write(tmp_path / "a.tar", [sample(0), *others])
    theirs: list[dict[str, Any]] = list(tarfile_samples([{"url": str(path)}]))  # pyright: ignore[reportArgumentType]
    found = tar.index(path, COLUMNS)
    assert found.reason == ""
    assert [each.name for each in found.samples] == [each["__key__"] for each in theirs]
    content = path.read_bytes()
    for ours, other in zip(found.samples, theirs, strict=True):
        parts = [content[offset : offset + size] for offset, size in ours.spans]
        assert parts == [other[f"{column}.png"] for column in COLUMNS if f"{column}.png" in other]


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [(("jpg", "edges.png"), ["photo", "edges"]), (("edges", "jpg"), ["edges", "photo"]), (("jpg",), ["photo"])],
)
def test_columns_are_endings(columns: tuple[str, ...], wanted: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [{"__key__": "1", "jpg": b"photo", "edges.png": b"edges", "txt": b"no"}])
    (found,) = tar.index(path, columns).samples
    content = path.read_bytes()
    assert [content[offset : offset + size].decode() for offset, size in found.spans] == wanted


OUTSIDE = ["../../etc/a", "/etc/a", "b/../../a", "C:/a", "c:a", "\\a", "\\\\host\\a", "a\nb", "a\x1b[2J"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (["a.source.png"], "it has no target, but source.png"),
        (["a.jpg", "a.txt"], "it has no source and no target, but jpg, txt"),
        (["a.source.pickle", "a.target.png"], "it has no source, but source.pickle, target.png"),
        (["a.source.png", "a.source.jpg", "a.target.png"], "it has several source"),
        *(([f"{key}.source", f"{key}.target"], "its name is no relative path") for key in OUTSIDE),
    ],
)
def test_samples_that_cannot_be_read(members: list[str], reason: str, tmp_path: Path) -> None:
    (found,) = tar.index(write_members(tmp_path / "a.tar", [(name, b"x") for name in members]), COLUMNS).samples
    assert (found.spans, found.reason) == ([], reason)


def test_links_devices_and_folders_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    members: list[tuple[str | tarfile.TarInfo, bytes]] = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo("a.source.png")
        info.type, info.linkname = kind, str(tmp_path / "secret")
        members.append((info, b""))
    path = write_members(tmp_path / "a.tar", [*members, ("a.target.png", b"y"), ("README", b"no dot")])
    (found,) = tar.index(path, COLUMNS).samples
    assert found.reason == "it has no source, but target.png"


THIRD = 2 * 2 * 1024  # a sample is two members of two blocks: header and content
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], int]] = {  # what it does, and the samples that are left
    "cut in a member": (lambda content: content[: THIRD + 600], 2),
    "cut in a header": (lambda content: content[: THIRD + 100], 2),
    "cut between members": (lambda content: content[:THIRD], 2),
    "a header overwritten": (lambda content: content[:THIRD] + b"\xff" * 512 + content[THIRD + 512 :], 2),
    "text": (lambda _: b"this is no tar" * 100, 0),
    "empty": (lambda _: b"", 0),
    "compressed": (gzip.compress, 0),
}


@pytest.mark.parametrize(("damage", "left"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_tars_keep_what_is_before(damage: Callable[[bytes], bytes], left: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [sample(i) for i in range(4)])
    assert len(png(0)) < 512
    path.write_bytes(damage(path.read_bytes()))
    found = tar.index(path, COLUMNS)
    assert [(each.name, each.reason) for each in found.samples] == [("000", ""), ("001", "")][:left]
    assert f"{path} is a damaged tar: " in found.reason


@pytest.mark.parametrize("size", [-tarfile.BLOCKSIZE, -1, 2**40, 2**80])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, b"7", b"M"])
def test_sizes_that_lead_out_of_the_file(size: int, kind: bytes, tmp_path: Path) -> None:
    """Backwards, where tarfile reads the same members for ever, and to where there is no memory for it."""
    path = write(tmp_path / "a.tar", [sample(i) for i in range(3)])
    content = bytearray(path.read_bytes())
    second = 2 * 2 * tarfile.BLOCKSIZE  # the header of its source
    header = tarfile.TarInfo("001.source.png")
    header.size, header.type = size, kind
    content[second : second + tarfile.BLOCKSIZE] = header.tobuf(tarfile.GNU_FORMAT)[: tarfile.BLOCKSIZE]
    path.write_bytes(content)
    found = tar.index(path, COLUMNS)
    assert [each.name for each in found.samples if not each.reason] == ["000"]
    assert f"{path} is a damaged tar: " in found.reason


def test_a_size_in_a_global_header(tmp_path: Path) -> None:
    """It is of the members that follow, and tarfile looks for the next one where their own headers say."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"size": str(10**19)}) as written:
        written.addfile(tarfile.TarInfo("a.source.png"))
        written.addfile(tarfile.TarInfo("a.target.png"))
    found = tar.index(path, COLUMNS)
    assert found.samples == []
    assert f"{path} is a damaged tar: the member at" in found.reason
