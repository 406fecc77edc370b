"""Files written whole or not at all, and their hashes. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def check_suffix(path: Path) -> None:
    """Raise ValueError where a file of weights cannot have that name."""
    if path.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"the name of a file of weights ends in .pt or .safetensors, got {path}")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, flush it to the disk, and rename it into place."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode  # as the user's umask has it; safetensors makes its files private
    try:
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
