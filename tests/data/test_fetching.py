"""Files from commands and from fsspec: the same bytes, fetched once, with errors of one kind."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bbdm.data import fetching
from tests.conftest import wait_until


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BBDM_SHARDS", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def test_files_here_stay_where_they_are(cache: Path, tmp_path: Path) -> None:
    assert fetching.local("a/b.tar") == Path("a/b.tar")
    assert fetching.local(f"file://{tmp_path}/b.tar") == tmp_path / "b.tar"
    assert not cache.exists()


def test_a_command_runs_once(cache: Path, tmp_path: Path) -> None:
    url = f"pipe:echo run >> {tmp_path}/runs; echo content"
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(fetching.local, [url] * 8))
    assert [place.read_bytes() for place in places] == [b"content\n"]
    assert (tmp_path / "runs").read_text() == "run\n"
    assert [path.suffix for path in cache.iterdir() if path.suffix != ".lock"] == [".tar"]


def test_a_file_that_changes_is_fetched_again(memory: Any) -> None:
    for content in (b"one", b"another"):
        memory.pipe_file("/a.tar", content)
        assert fetching.local("memory://a.tar").read_bytes() == content


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://gone.tar", FileNotFoundError),
        ("pipe:echo half; exit 3", OSError),
        ("nowhere://a.tar", OSError),  # fsspec raises ValueError
    ],
)
def test_what_cannot_be_fetched_is_an_os_error(url: str, kind: type[Exception], cache: Path) -> None:
    with pytest.raises(kind, match=url.split(";")[0]):
        fetching.local(url)
    assert not list(cache.glob("*.tar"))
    assert not list(cache.glob(".*.tmp"))


def test_files_used_longest_ago_are_deleted(memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "KEPT", 2)
    urls = [f"memory://{i}.tar" for i in range(3)]
    for i, url in enumerate(urls):
        memory.pipe_file(f"/{i}.tar", bytes([i]))
        place = fetching.local(url)
        os.utime(place, (i, i))
    os.utime(fetching.local(urls[1]))  # used again
    assert fetching.local(urls[0]).read_bytes() == b"\0"
    kept = [path.read_bytes() for path in cache.glob("*.tar")]
    assert sorted(kept) == [b"\0", b"\1"]


def test_a_file_beside(memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/deep/index.json", b"{}")
    assert fetching.read_beside("memory://deep/a.tar", "index.json") == ("memory://deep/index.json", b"{}")
    (tmp_path / "index.json").write_text("[]")
    assert fetching.read_beside(f"{tmp_path}/a.tar", "index.json") == (f"{tmp_path}/index.json", b"[]")
    for url in ("memory://elsewhere/a.tar", f"{tmp_path}/deep/a.tar", "pipe:cat a/b.tar"):
        assert fetching.read_beside(url, "index.json") is None


def test_ahead_fetches_in_a_thread(memory: Any, cache: Path) -> None:
    ahead = fetching.Ahead()
    memory.pipe_file("/b.tar", b"b")
    ahead.fetch(["memory://gone.tar", "memory://b.tar"])  # an error stops nothing
    wait_until(lambda: list(cache.glob("*.tar")), "the file", 20)


def test_a_damaged_cache_is_of_whole_files_alone(cache: Path) -> None:
    """A process that was killed while it fetched leaves a temporary file, which the next one deletes."""
    place = fetching.local("pipe:echo content")
    place.unlink()
    leftover = cache / f".{place.name}.0123.tmp"
    leftover.write_bytes(b"con")
    assert fetching.local("pipe:echo content").read_bytes() == b"content\n"
    assert not leftover.exists()
