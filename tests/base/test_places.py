"""Folders here and on fsspec's and pyarrow's file systems."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bbdm.base.places import Place, file_system


@pytest.mark.parametrize("address", ["out", "memory://bucket/out"])
def test_a_folder(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.chdir(tmp_path)
    place = Place.of(address)
    assert place.list() == []
    place.write("a/b.png", b"first")
    place.write("a/b.png", b"second")
    place.write("a/.b.png.0123abcd.tmp", b"half")
    assert Place.of(address).read("a/b.png") == b"second"
    assert (place.exists("a/b.png"), place.exists("a")) == (True, False)
    assert place.existing(["a/b.png", "a", "c.png"]) == {"a/b.png"}
    place.remove_leftovers(["a/c.png", "b/c.png"])
    assert place.list() == ["a/b.png"]
    place.remove(["a/b.png"])
    assert place.list() == []


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Place.of(str(tmp_path / "out"))
    place.write("a/b.png", b"second")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left on device")))
    for name in ("a/b.png", "c.png"):
        with pytest.raises(OSError, match="no space left"):
            place.write(name, b"third")
    assert place.list() == ["a/b.png"]
    assert place.read("a/b.png") == b"second"


def test_links_are_followed(tmp_path: Path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert Place.of(str(tmp_path / "in")).list() == ["link/a.png"]
    with pytest.raises(ValueError, match=r"a\.png is a file, and a folder is needed there"):
        Place.of(str(tmp_path / "far" / "a.png")).list()


def test_places_that_overlap(tmp_path: Path):
    outer, inner, other = (Place.of(str(tmp_path / name)) for name in ("in", "in/out", "input"))
    assert outer.overlaps(inner)
    assert inner.overlaps(outer)
    assert not outer.overlaps(other)
    assert not outer.overlaps(Place.of(f"memory://{tmp_path}/in"))


def test_pyarrow_reads_what_fsspec_lacks_a_package_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyarrow.fs as fs

    monkeypatch.setitem(sys.modules, "s3fs", None)
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    opened = SimpleNamespace(from_uri=lambda uri: (store, uri.removeprefix("s3://")))
    monkeypatch.setattr(fs, "FileSystem", opened)
    place = Place.of("s3://bucket/out")
    place.write("a/b.png", b"whole")
    assert (tmp_path / "bucket" / "out" / "a" / "b.png").read_bytes() == place.read("a/b.png") == b"whole"
    assert place.list() == ["a/b.png"]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(ImportError, match="adlfs"):  # which pyarrow does not know either
        file_system("adl://bucket/out")
    with pytest.raises(ValueError, match="cannot open nothing://x"):
        Place.of("nothing://x")
