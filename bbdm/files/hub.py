"""Models on the Hugging Face Hub: which file a name stands for, and how it comes here. Nothing needs torch.

A repository, and a folder of the same layout, holds ``model.safetensors``, the checkpoint; ``config.json``, a
readable copy of its settings; and where there is an export, ``onnx/``. Files are fetched one by one, by these
names and of one commit. So nothing else of a repository is ever downloaded: no pickle, and no code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bbdm.base import optional

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
PICTURE = "examples.png"  # of the card
ONNX = "onnx"
NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>.+))?", re.ASCII)
FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")  # what ends so is a file, though it may not exist
ACCESS = "give a token that has access, by token= or HF_TOKEN"
REASONS = {  # by the name of an error of huggingface_hub
    "GatedRepoError": f"the repository has conditions to accept there; then {ACCESS}",
    "RepositoryNotFoundError": f"there is no public repository of that name; for a private one, {ACCESS}",
    "RevisionNotFoundError": "the repository has no such revision",
    "EntryNotFoundError": "the repository has no {file}",
    "RemoteEntryNotFoundError": "the repository has no {file}",
    "LocalEntryNotFoundError": "the repository cannot be reached, and {file} is not in the cache: {cause}",
}


class HubError(OSError):
    """A file of a repository cannot be fetched, or a model cannot be pushed; the message says why."""


@dataclass
class Repository:
    """A repository at a commit: the one at which its first file is found."""

    name: str  # OWNER/NAME
    revision: str | None = None  # a branch, a tag or a commit; None for the main branch
    token: str | None = None  # for what is not public; None for the one of HF_TOKEN or of a login
    cache_dir: str | os.PathLike[str] | None = None  # None for the cache of huggingface_hub
    commit: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def fetch(self, file: str) -> Path:
        """The path of a file in the cache; what is not there is downloaded.

        Raises:
            HubError: it cannot be fetched.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        beginning = f"there is no path {self}, and"
        hub = optional.package("huggingface_hub", f"{beginning} a name on the Hugging Face Hub")
        revision = self.commit or self.revision
        with hub_errors(f"{beginning} on the Hugging Face Hub", file):
            found = hub.hf_hub_download(self.name, file, token=self.token, cache_dir=self.cache_dir, revision=revision)
        path = Path(found)
        self.commit = path.parents[file.count("/")].name
        return path


def repository(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Repository | None:
    """The repository of a name, OWNER/NAME or OWNER/NAME@REVISION; None for a path.

    What exists is a path, and so is what has the suffix of a file.

    Raises:
        ValueError: a revision was given twice, or for a path.
    """
    path = Path(name_or_path)
    match = None if path.exists() or path.suffix in FILES else NAME.fullmatch(path.as_posix())
    if match is None:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is of a repository OWNER/NAME, and {path} is a path")
        return None
    if revision is not None and match["revision"] is not None:
        raise ValueError(f"revision={revision!r} was given, and {path} names another one")
    return Repository(match["name"], revision or match["revision"], token, cache_dir)


def find_checkpoint(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The file of a checkpoint: a repository's, that of a folder of the same layout, or the path itself.

    The arguments are those of :class:`Repository`.

    Raises:
        HubError: the repository's file cannot be fetched.
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: the repository is of something else, or a revision was given for a path.
    """
    found = repository(name_or_path, revision, token, cache_dir)
    if found is None:
        path = Path(name_or_path)
        return path / WEIGHTS if (path / WEIGHTS).is_file() else path
    try:
        config = json.loads(found.fetch(CONFIG).read_text())
    except ValueError:
        config = None
    if not isinstance(config, dict) or config.get("format") != "bbdm":
        raise ValueError(f"{found} is no model of bbdm: its {CONFIG} is of something else")
    return found.fetch(WEIGHTS)


@contextmanager
def hub_errors(beginning: str, file: str) -> Iterator[None]:
    """Turns an error of huggingface_hub in the ``with`` block into a :class:`HubError`, with a beginning."""
    try:
        yield
    except Exception as error:  # of many kinds: the disk's, and those of its HTTP client, which changes
        kinds = [type(each).__name__ for each in (error.__cause__, error) if each is not None]
        cause = str(error.__cause__ or error).strip().split("\n")[0] or kinds[0]
        denied = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        other = f"there is no permission: {ACCESS}" if denied else f"{file} cannot be transferred: {cause}"
        reason = next((REASONS[kind] for kind in kinds if kind in REASONS), other)
        raise HubError(f"{beginning} {reason.format(file=file, cause=cause)}") from error
