"""What the first bytes of a file of weights say of its network, so that a command says at once what it does.

Nothing here imports torch, which takes seconds.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbdm import bridges
from bbdm.base.sizes import number_of
from bbdm.defaults import Defaults
from bbdm.files.repository import WEIGHTS

LENGTH = 8  # bytes of the length of a .safetensors file's header
LONGEST = 100_000_000  # bytes of a header, as safetensors has it
FORMAT = "bbdm"  # of a checkpoint


@dataclass(frozen=True)
class Header:
    """A network's file, before it is read.

    Args:
        path: of the file, or what else names a network.
        settings: what the file says of its network; empty where it is no .safetensors of this library.
        parameters: the number of the network's weights; 0 where it is not known.
    """

    path: Path
    settings: dict[str, Any]
    parameters: int

    def __str__(self) -> str:
        """The name of the file, with the size of its network."""
        if not self.parameters:
            return str(self.path)
        return f"{self.path.stem} ({self.parameters / 1e6:.1f} M parameters)"

    def calls(self, solver: str | None, steps: int | None) -> str:
        """The steps and the solver of results in words; nothing where they are not known.

        Args:
            solver: that was chosen; None for the file's own.
            steps: that were chosen; None for those of the solver.
        """
        if not self.settings:
            return ""
        try:
            chosen = Defaults.from_config(self.settings).over(solver, steps)
            count = len(chosen.table(bridges.from_config(self.settings["bridge"])))
        except (KeyError, TypeError, ValueError):  # which who reads the file says better
            return ""
        return f", {number_of(count, 'step')} of {chosen.chosen}"


def read_header(path: Path) -> Header:
    """The header of a network's file, or of the one in a folder; without settings where there is none."""
    file = path / WEIGHTS if path.is_dir() else path
    unknown = Header(path, {}, 0)
    if file.suffix != ".safetensors":
        return unknown
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(LENGTH))
            if length > LONGEST:
                return unknown
            header = json.loads(stream.read(length))
        settings = json.loads(header["__metadata__"][FORMAT])
        count = _parameters(header, "ema.") or _parameters(header, "weights.")
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ):
        return unknown  # who reads the file says what is wrong
    if not isinstance(settings, dict):
        return unknown
    return Header(path, settings, count)


def _parameters(header: dict[str, Any], beginning: str) -> int:
    """The number of values of tensors whose names begin so."""
    return sum(
        math.prod(entry["shape"]) for name, entry in header.items() if name.startswith(beginning)
    )
