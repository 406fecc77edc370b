"""Whether pairs were in the training of a network, as far as its file and its run's folder tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bbdm.base import manifest
from bbdm.data.slices import Slices

if TYPE_CHECKING:
    from bbdm.data.collection import Entry
    from bbdm.data.examples import Examples, PairExamples
    from bbdm.files.content import Origin


class SeenPairsError(ValueError):
    """Pairs that are to calibrate were in training."""


def check_unseen(pairs: Examples, origin: Origin | None) -> None:
    """Raise SeenPairsError where pairs are those that a network was trained on, by the records of its run.

    A checkpoint that training resumes from has the names of its pairs, and so has the folder of a run,
    ``OUT.run`` of ``OUT.pt`` or the one that the file is in. Of data sets of files that the command looked
    at, the folder has a digest of the files instead.
    """
    if origin is None:
        return
    from bbdm.data.examples import PairExamples
    from bbdm.data.survey import digest_of, files_digest

    seen, names = f"these {len(pairs)} pairs were in training, by", "their names"
    others = "calibrate on others, or give other pictures other names"
    if _named(pairs, origin.pairs):
        raise SeenPairsError(f"{seen} {names}: {others}")
    for folder in (origin.path.with_suffix(".run"), origin.path.parent):
        looked, config = folder / "pictures_train.json", folder / "config.json"
        if looked.is_file() and isinstance(pairs, PairExamples):
            with manifest.reading(looked, "delete it, and training looks at its pictures again") as content:
                known = {content["files"], content.get("pairs")}
            if known & {files_digest(pairs), digest_of(pairs), digest_of(pairs, told=False)}:  # the last: older ones
                raise SeenPairsError(f"{seen} {looked}: calibrate on others")
        elif config.is_file():
            known = None
            with suppress(ValueError, LookupError, TypeError):  # it may be of another program
                known = json.loads(config.read_text())["pairs"]
            if _named(pairs, known):
                raise SeenPairsError(f"{seen} {names} in {config}: {others}")


def _named(pairs: Examples, known: Any) -> bool:
    """Whether the names of pairs are the known ones; ``known`` may be of something else."""
    if not isinstance(known, Mapping):
        return False
    own = {pairs.names_digest(), pairs.names_digest(told=False)}  # told the same, or whatever they are told
    return any(known.get(name) in own for name in ("names", "names_alone"))


def check_copies(pairs: PairExamples, trained: list[Entry]) -> None:
    """Raise SeenPairsError where a pair's files have the content of those of a training pair."""
    entries = pairs.pairs.volumes if isinstance(pairs.pairs, Slices) else pairs.pairs
    own = [entry for entry in entries if entry.files]
    if not own or not all(path.is_file() for entry in own for path in entry.files):
        return
    if {entry.files for entry in trained} & {entry.files for entry in own}:
        return  # the parts are the same folder

    def size(entry: Entry) -> tuple[int, ...]:
        return tuple(path.stat().st_size for path in entry.files if path.is_file())

    sizes = {size(entry) for entry in own}  # only files of one size are compared
    others = {tuple(entry.hashes()): entry for entry in trained if size(entry) in sizes}
    for entry in own if others else []:
        if (other := others.get(tuple(entry.hashes()))) is not None:
            raise SeenPairsError(f"{entry} has the content of {other}, a training pair: calibrate on others")
