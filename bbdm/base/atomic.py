"""Files written whole or not at all, and their hashes. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = ".lock"  # the file of a folder that is locked
SUFFIXES = (".pt", ".safetensors")  # of files of weights


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, of the names and the bytes of all files in it."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\n{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stamp(path: Path) -> str:
    """Path, size and time of a file, which change with its content."""
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents; ValueError where it cannot be, as :func:`check_folder` says."""
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)


class InUseError(ValueError):
    """Another process works in a folder."""


@contextmanager
def locked(folder: Path, patience: float = -1) -> Iterator[None]:
    """Make a folder, and keep other processes that ask for it out until the context ends.

    Args:
        folder: where the lock is; on a file system without locks nobody is kept out.
        patience: seconds to wait for another process; -1 for any time.

    Raises:
        InUseError: another process has the folder yet.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        with suppress(NotImplementedError):
            lock.acquire(timeout=patience)
    except Timeout:
        raise InUseError(
            f"another process works in {folder}: wait for it, or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_place(path: Path) -> None:
    """Raise ValueError where no file can be written: a folder, below a file, or without write access."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a file is to be written there")
    check_folder(path.absolute().parent)


def check_folder(path: Path) -> None:
    """Raise ValueError where no folder can be made and written: below a file, or without write access."""
    path = path.absolute()
    above = next(folder for folder in (path, *path.parents) if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{above} is a file, and a folder is needed there")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{path} cannot be written: {above} is not writable")


def check_suffix(path: Path) -> None:
    """Raise ValueError unless a file of weights can have that name and be written there."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the name of a file of weights ends in .pt or .safetensors, got {path}")
    check_place(path)


def short(value: Any) -> str:
    """A value for a message, with each SHA-256 cut to its first 8 digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", str(value))


def temporary_name(name: str) -> str:
    """The name of a file while it is written, another at each call."""
    return f".{name}.{secrets.token_hex(4)}.tmp"


def remove_leftovers(folder: Path, name: str | None = None, age: float = 0) -> None:
    """Delete what killed processes left of files that were to be written in a folder.

    Args:
        folder: that the files are written to.
        name: of the file whose leftovers are meant; None for all.
        age: seconds since a leftover was made. 0 is for folders that no other process writes to.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[0-9a-f]{{8}}\.tmp")
    for leftover in folder.glob(".*.tmp"):
        if not pattern.fullmatch(leftover.name) or not _is_older(leftover, age):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=age > 0)
        else:
            leftover.unlink(missing_ok=True)


def _is_older(path: Path, age: float) -> bool:
    """Whether a file or a folder changed at least ``age`` seconds ago."""
    with suppress(FileNotFoundError):  # of another process, which has written it
        return time.time() - path.stat().st_mtime >= age
    return False


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` on a file of the same name in a temporary folder, flush it, and move it to ``path``.

    It may be a folder, which takes the place of one that is there. Further files that are written beside it
    are moved before it. An OSError names the file, also that of a full disk.
    """
    path = path.resolve()
    make_folder(path.parent)
    folder = path.with_name(temporary_name(path.name))
    folder.mkdir()
    mode = folder.stat().st_mode & 0o666  # by the user's umask; safetensors makes its files private
    try:
        write(folder / path.name)
        for written in sorted(folder.iterdir(), key=lambda each: each.name == path.name):
            target = path.with_name(written.name)
            for file in [written, *written.rglob("*")]:
                if file.is_file():
                    file.chmod(mode)
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
            if written.is_dir() and target.is_dir():
                # and away with the temporary folder
                target.replace(folder / temporary_name(target.name))
            written.replace(target)
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:  # of NumPy and GDAL, whose texts name no file
            raise OSError(f"cannot write {path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
