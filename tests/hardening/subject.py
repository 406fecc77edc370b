"""A file that is mutated: where it lies, how it is read, and what a mutation is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hardening.mutations import Mutate, of_bytes
from tests.hardening.watch import ROOM


@dataclass(frozen=True)
class Subject:
    """A file in a folder of its own.

    ``read`` returns what was read, which is right where it equals what the whole file gave. ``exact`` is
    False where a change of values makes another valid file, or where a format has no checksums. ``room`` is
    the memory besides twice the file's size: a small picture may say that it is a large white one.
    """

    path: Path
    read: Callable[[], Any]
    mutate: Mutate = of_bytes
    exact: bool = True
    room: int = ROOM
