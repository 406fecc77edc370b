"""Models on the Hugging Face Hub: which files a name stands for, and how they come here. Nothing needs torch.

A repository, and a folder of the same layout, holds ``model.safetensors``, the checkpoint; ``config.json``, a
readable copy of its settings; and where there is an export, ``onnx/``. Only files of these names are fetched,
all of one commit: no pickle, and no code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bbdm.base import optional

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
ONNX = "onnx"
NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>.+))?", re.ASCII)
FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")  # what ends so is a file, though it may not exist


class HubError(OSError):
    """A file of a repository cannot be fetched, or a model cannot be pushed; the message says why."""


def fetch(
    name_or_path: str | os.PathLike[str],
    files: list[str],
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The path itself where it is one, else the folder in the cache with files of a repository.

    What exists is a path, and so is what has the suffix of a file.

    Args:
        name_or_path: a path; or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face Hub.
        files: the names of the files that are fetched, or patterns of them; the first must be there.
        revision: a branch, a tag or a commit; None for the main branch.
        token: for what is not public; None for the one of ``HF_TOKEN`` or of a login.
        cache_dir: None for the cache of huggingface_hub.

    Raises:
        HubError: a file cannot be fetched.
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: a revision was given twice, or for a path; or the repository is of something else.
    """
    path = Path(name_or_path)
    match = None if path.exists() or path.suffix in FILES else NAME.fullmatch(path.as_posix())
    if match is None:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is of a repository OWNER/NAME, and {path} is a path")
        return path
    if revision is not None and match["revision"] is not None:
        raise ValueError(f"revision={revision!r} was given, and {path} names another one")
    beginning = f"there is no path {path}, and a name on the Hugging Face Hub"
    hub = optional.package("huggingface_hub", beginning)
    where = {"revision": revision or match["revision"], "token": token, "cache_dir": cache_dir}
    with hub_errors(beginning):
        folder = Path(hub.snapshot_download(match["name"], allow_patterns=files, **where))
    if not (folder / files[0]).is_file():
        raise ValueError(f"{path} on the Hugging Face Hub is no model of bbdm: it has no {files[0]}")
    return folder


def find_checkpoint(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The file of a checkpoint: a repository's, that of a folder of the same layout, or the path itself.

    Arguments and errors are those of :func:`fetch`.
    """
    path = fetch(name_or_path, [WEIGHTS, CONFIG], revision, token, cache_dir)
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


@contextmanager
def hub_errors(beginning: str) -> Iterator[None]:
    """Turns an error of huggingface_hub in the ``with`` block into a :class:`HubError`, with a beginning."""
    try:
        yield
    except Exception as error:  # of many kinds: the disk's, and those of its HTTP client, which changes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"{beginning}: {reason[:1000]}") from error
