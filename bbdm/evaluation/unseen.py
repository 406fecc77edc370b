"""Pairs that are to calibrate intervals must be ones that training has not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bbdm.base.atomic import file_sha256
from bbdm.data.rows import Row, paths_of, shown
from bbdm.pictures import files

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.files.content import Origin


class SeenPairsError(ValueError):
    """Pairs that are to calibrate were in training."""


def check_unseen(pairs: Pairs, origin: Origin | None) -> None:
    """Raise SeenPairsError where pairs are those that a network was trained on, by the records of its run.

    A checkpoint that training resumes from has digests of its pairs, and so has the folder of a run,
    ``OUT.run`` of ``OUT.pt`` or the one that the file is in: of names, and of files with sizes and times.
    """
    if origin is None:
        return
    known = [("their names", origin.pairs)]
    for folder in (origin.path.with_suffix(".run"), origin.path.parent):
        with suppress(OSError, ValueError, LookupError, TypeError):  # it may be of another program
            known.append((str(folder / "config.json"), json.loads((folder / "config.json").read_text())["pairs"]))
    own = {"names": pairs.names_digest(), "stamps": pairs.stamps_digest()}
    for where, record in known:
        if isinstance(record, Mapping) and any(value and record.get(name) == value for name, value in own.items()):
            raise SeenPairsError(
                f"these {len(pairs)} pairs were in training, by {where}: calibrate on others, or give other pictures "
                "other names"
            )


def check_copies(pairs: Pairs, trained: Sequence[Row]) -> None:
    """Raise SeenPairsError where a row's files have the content of those of a training row."""
    own = {paths_of(row): row for row in pairs.rows}
    others = {paths_of(row): row for row in trained}
    if () in own or () in others or own.keys() & others.keys():
        return  # pictures inside tables, or the parts are the same folder

    def sizes(paths: Sequence[Path]) -> tuple[int, ...]:
        return tuple(file.stat().st_size for path in paths for file in files.files_of(path))

    def content(paths: Sequence[Path]) -> tuple[str, ...]:
        return tuple(file_sha256(file) for path in paths for file in files.files_of(path))

    alike = {sizes(paths) for paths in own}  # only files of one size are compared
    known = {content(paths): row for paths, row in others.items() if sizes(paths) in alike}
    for paths, row in own.items() if known else ():
        if (other := known.get(content(paths))) is not None:
            raise SeenPairsError(
                f"{shown(row)} has the content of {shown(other)}, a training pair: calibrate on others"
            )
