"""Files from anywhere as local files: paths, ``pipe:COMMAND``, ``hub:`` parts of tables, and URLs of fsspec.

What is not on a disk here is fetched whole into a cache, once for all processes of a machine; the files that
were used longest ago are deleted. The cache is ``~/.cache/bbdm/shards``, or the folder that the environment
variable ``BBDM_SHARDS`` names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from bbdm.base.atomic import remove_leftovers, write_atomically
from bbdm.base.places import file_system
from bbdm.data import table

KEPT = 24  # files in the cache
PIPE = "pipe:"
OTHERS = (PIPE, table.PREFIX)  # what fsspec does not know


def is_local(url: str) -> bool:
    """Whether it is a path or a ``file://`` URL."""
    return url.startswith("file://") or ("://" not in url and not url.startswith(OTHERS))


def cache() -> Path:
    """The folder of fetched files."""
    return Path(os.environ.get("BBDM_SHARDS") or Path.home() / ".cache" / "bbdm" / "shards")


def local(url: str) -> Path:
    """The file, which is fetched where it is not on a disk here.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be fetched.
    """
    from filelock import FileLock

    if is_local(url):
        return Path(file_system(url)[1] if url.startswith("file://") else url)
    with _as_os_error(url):
        about = url
        if url.startswith(table.PREFIX):
            about = f"{url} with labels"  # which earlier versions left out
        elif not url.startswith(PIPE):
            system, path = file_system(url)
            about = f"{url} {system.ukey(path)}"  # another one once the file has changed
        place = cache() / f"{hashlib.sha256(about.encode()).hexdigest()}.tar"
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if not place.exists():
                remove_leftovers(place)
                write_atomically(place, lambda temporary: _copy(url, temporary))
                _forget(place)
            with suppress(FileNotFoundError):
                os.utime(place)
    return place


@contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    """Any error of any backend as an OSError: it says nothing about the content of the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {url}") from error
    except Exception as error:
        raise OSError(getattr(error, "errno", None), f"cannot fetch {url}: {error}") from error


def _copy(url: str, place: Path) -> None:
    if url.startswith(table.PREFIX):
        table.write_part(url, place)
        return
    if url.startswith(PIPE):
        from webdataset.gopen import gopen

        source = gopen(url)
    else:
        system, path = file_system(url)
        source = system.open(path, "rb")
    with source, place.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)


def _forget(newest: Path) -> None:
    """Delete the files that were used longest ago; a process that needs one fetches it again."""
    files: dict[Path, float] = {}
    for path in newest.parent.glob("*.tar"):
        with suppress(FileNotFoundError):
            files[path] = path.stat().st_mtime
    for path in sorted(set(files) - {newest}, key=files.__getitem__)[: max(0, len(files) - KEPT)]:
        path.unlink(missing_ok=True)


def read_beside(url: str, name: str) -> tuple[str, bytes] | None:
    """Where a file lies in the folder of a path or URL, and its content; None where there is none."""
    if url.startswith(OTHERS):
        return None
    place = f"{url.rpartition('/')[0]}/{name}" if "/" in url else name
    with suppress(FileNotFoundError), _as_os_error(place):
        system, path = file_system(place)
        return place, system.cat_file(path)
    return None


class Ahead:
    """Fetches files one after the other in a thread. An error is left for who needs the file."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[str] = SimpleQueue()
        self._thread: Thread | None = None

    def fetch(self, urls: Iterable[str]) -> None:
        """Fetch these after those that were asked for before."""
        for url in urls:
            self._wanted.put(url)
        if self._thread is None or not self._thread.is_alive():  # a process that was forked has none
            self._thread = Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with suppress(OSError):
                local(self._wanted.get())
