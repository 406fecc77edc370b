"""Names on the Hugging Face Hub: which file a name stands for, and what is fetched of a repository.

Only files of given names are fetched, all of one commit: no pickle, and no code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bbdm.base import optional

CARD = "README.md"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>.+))?", re.ASCII)
# what ends so is a file, though it may not exist
FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")


class HubError(OSError):
    """A file of a repository cannot be fetched, or a model cannot be pushed; the message says why."""


@contextmanager
def hub_errors(beginning: str) -> Iterator[None]:
    """Turns an error of huggingface_hub in the ``with`` block into a :class:`HubError`, with a beginning."""
    try:
        yield
    except Exception as error:
        # of many kinds: the disk's, and those of its HTTP client, which changes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"{beginning}: {reason[:1000]}") from error


def find_checkpoint(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The file of a checkpoint: a repository's, that of a folder of the same layout, or the path itself.

    What exists is a path, and so is what has the suffix of a file.

    Args:
        name_or_path: a path; or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face Hub.
        revision: a branch, a tag or a commit; None for the main branch.
        token: for what is not public; None for the one of ``HF_TOKEN`` or of a login.
        cache_dir: None for the cache of huggingface_hub.

    Raises:
        HubError: a file cannot be fetched.
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: a revision was given twice, or for a path; or the repository is of something else.
    """
    path = Path(name_or_path)
    match = find(path)
    if match is None:
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is of a repository OWNER/NAME, and {path} is a path"
            )
        return path / WEIGHTS if (path / WEIGHTS).is_file() else path
    if revision is not None and match["revision"] is not None:
        raise ValueError(f"revision={revision!r} was given, and {path} names another one")
    folder = fetch(match, [WEIGHTS, CONFIG], revision, token=token, cache_dir=cache_dir)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{path} on the Hugging Face Hub is no model of bbdm: it has no {WEIGHTS}")
    return folder / WEIGHTS


def find(path: Path) -> re.Match[str] | None:
    """``name`` and ``revision`` of a repository; None of a path that exists or has the suffix of a file."""
    if path.exists() or path.suffix in FILES:
        return None
    return NAME.fullmatch(path.as_posix())


def fetch(
    match: re.Match[str], patterns: list[str], revision: str | None = None, **where: Any
) -> Path:
    """The folder with some files of a :func:`find`; ``where`` is as in :func:`find_checkpoint`.

    Raises:
        HubError: a file cannot be fetched.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    beginning = f"there is no path {match.string}, and a name on the Hugging Face Hub"
    hub = optional.package("huggingface_hub", beginning)
    where["revision"] = revision or match["revision"]
    with hub_errors(beginning):
        return Path(hub.snapshot_download(match["name"], allow_patterns=patterns, **where))
