"""Models on the Hugging Face Hub: which file a name stands for, and how it comes here. Nothing needs torch.

A repository, and a folder of the same layout, holds ``model.safetensors``, the checkpoint; ``config.json``, a
readable copy of its settings; and where there is an export, ``onnx/``. Files are fetched one by one, by these
names and of one commit. So nothing else of a repository is ever downloaded: no pickle, and no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bbdm.base import optional
from bbdm.base.atomic import file_sha256

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
PICTURE = "examples.png"  # of the card
ONNX = "onnx"
NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>.+))?", re.ASCII)
FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")  # what ends so is a file, though it may not exist
ACCESS = "give a token that has access, by token= or HF_TOKEN"
SHOWN = 8  # files of a repository of something else, in a message


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
        """The path of a file in the cache; what is not there is downloaded, and compared with its hash.

        Raises:
            HubError: it cannot be fetched.
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        tried = f"there is no path {self}, and"
        hub = optional.package("huggingface_hub", f"{tried} a name on the Hugging Face Hub")
        place = {"cache_dir": self.cache_dir, "revision": self.commit or self.revision}
        with plain_errors(f"{tried} on the Hugging Face Hub", file):
            before = hub.try_to_load_from_cache(self.name, file, **place)
            path = Path(hub.hf_hub_download(self.name, file, token=self.token, **place))
        if str(path) != before and _is_damaged(path):
            (path.parent / os.readlink(path)).unlink()
            path.unlink()
            raise HubError(f"{file} of {self} arrived damaged: its hash is another. The same call fetches it anew")
        self.commit = path.parents[file.count("/")].name
        return path

    def holds(self) -> str:
        """The first files of the repository, for a message."""
        with plain_errors(f"{self}:", "the list of its files"):
            api = optional.package("huggingface_hub", "the Hub").HfApi(token=self.token)
            files = api.list_repo_files(self.name, revision=self.commit)
        return ", ".join(sorted(files)[:SHOWN]) + (", ..." if len(files) > SHOWN else "")


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
        raise ValueError(f"{found} is no model of bbdm: its {CONFIG} is of something else; it holds {found.holds()}")
    return found.fetch(WEIGHTS)


def _is_damaged(path: Path) -> bool:
    """Whether a file of the cache has another hash than the repository's, after which its content is named.

    huggingface_hub compares sizes only. Where links are not possible, the name of the content is not known;
    then the hashes in a checkpoint and in ``bridge.json``, which their readers compare, have to do.
    """
    if not path.is_symlink():
        return False
    name = Path(os.readlink(path)).name
    if len(name) == 64:  # of a large file, SHA-256
        return file_sha256(path) != name
    content = path.read_bytes()
    return len(name) == 40 and hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != name  # as git does


@contextmanager
def plain_errors(beginning: str, file: str) -> Iterator[None]:
    """Turns an error of huggingface_hub in the ``with`` block into a :class:`HubError`, with a beginning."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:  # of many kinds: the disk's, and those of its HTTP client, which changes
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        if isinstance(cause, errors.GatedRepoError):
            reason = f"the repository has conditions to accept there; then {ACCESS}"
        elif isinstance(cause, errors.RepositoryNotFoundError):
            reason = f"there is no public repository of that name; for a private one, {ACCESS}"
        elif isinstance(cause, errors.RevisionNotFoundError):
            reason = "the repository has no such revision"
        elif getattr(getattr(cause, "response", None), "status_code", None) in (401, 403):
            reason = f"there is no permission: {ACCESS}"
        elif isinstance(error, errors.LocalEntryNotFoundError):
            reason = f"the repository cannot be reached, and {file} is not in the cache: {_first_line(cause)}"
        elif isinstance(cause, errors.EntryNotFoundError):
            reason = f"the repository has no {file}"
        else:
            reason = f"{file} cannot be transferred: {_first_line(cause)}"
        raise HubError(f"{beginning} {reason}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
