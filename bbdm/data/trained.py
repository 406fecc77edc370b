"""What a network was trained on, and what that and other rows have in common.

The folder of a run keeps the content of all pairs that its network has learned from, a
:class:`~bbdm.data.provenance.Record`. Nothing here imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bbdm.base.runs import folder_beside
from bbdm.base.sizes import number_of
from bbdm.data.cells import ROLES
from bbdm.data.provenance import (
    Record,
    contents,
    counted,
    distinct_roles,
    first_names,
    groups,
    in_threads,
    pictures_of,
)
from bbdm.data.rows import Row

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs

log = logging.getLogger(__name__)
UNKNOWN = "no record says which pairs were in the training of %s: they cannot be told from new ones"


class Origin(NamedTuple):
    """Where a network comes from."""

    path: Path  # the file
    run: Path | None = None  # the folder of its training run, as the file says it
    # the identity of the record of all that it has learned from, as the file says it
    record: str | None = None

    @property
    def folders(self) -> list[Path]:
        """Where its record may be: as the file says, moved with it, in OUT.run of OUT.pt, or beside it."""
        folders = [folder_beside(self.path), self.path.parent]
        if self.run is not None:
            folders = [self.run, self.path.parent / self.run.name, *folders]
        return folders


@dataclass(frozen=True)
class Trained:
    """The pairs of a training.

    Args:
        where: what says so, for messages.
        record: their contents and groups.
    """

    where: str
    record: Record

    @classmethod
    def of(cls, rows: Sequence[Row], where: str) -> Trained:
        """The pairs of rows; those that cannot be read were in no training."""
        of_rows = contents(rows, skip_bad=True)
        return cls(
            where, Record(of_rows.digests, of_rows.stamps, [group for _, group in groups(rows)])
        )

    @classmethod
    def of_origin(cls, origin: Origin | None, *folders: Path) -> Trained | None:
        """The pairs that a network was trained on, by the record of its run. Warnings say what is not known.

        Args:
            origin: of the network's weights; None where they came from no file.
            *folders: that may hold the record, beside those of the origin.

        Returns:
            What the record says; None where there is none.
        """
        if origin is None:
            log.warning(UNKNOWN, "this network, which came from no file")
            return None
        for folder in (*origin.folders, *folders):
            record = Record.read(folder, origin.record or "")
            if record is None:
                continue
            for name in record.unknown:
                log.warning(UNKNOWN, f"{name}, from which {origin.path} goes on")
            return cls(str(folder), record)
        log.warning(UNKNOWN, origin.path)
        return None

    @cached_property
    def _pairs(self) -> dict[frozenset[str], str]:
        """The name of a row by its pictures, whichever of them is the source."""
        names: dict[frozenset[str], str] = {}
        for part in (self.record.contents, *self.record.earlier):
            for name, digests in part.items():
                names.setdefault(frozenset(digests), name)
        return names

    @cached_property
    def _pictures(self) -> dict[str, list[str]]:
        """The names of the rows that a picture is in."""
        rows: dict[str, list[str]] = {}
        for digests, name in self._pairs.items():
            for digest in digests:
                names = rows.setdefault(digest, [])
                if name not in names:
                    names.append(name)
        return rows

    def overlap(self, pairs: Pairs) -> Overlap:
        """What a data set and the training have in common.

        A source that several pairs of the training share tells none of them from others, and does not count
        alone. Constant pictures, such as blank ones, do not count at all.
        """
        contents = pairs.contents
        overlap = Overlap(
            self.where,
            len(contents.digests),
            "pair" if pairs.paired else "picture",
            unknown=self.record.unknown,
        )
        known: list[str] = []
        for name, digests in contents.digests.items():
            if not self._pictures.keys().isdisjoint(digests):
                known.append(name)
        rows = pictures_of(pairs.rows)
        distinct = in_threads(
            lambda name: (
                distinct_roles(rows[contents.rows[name]]) if name in contents.rows else ROLES
            ),
            known,
        )
        for name, roles in zip(known, distinct, strict=True):
            digests = contents.digests[name]
            same_pair = self._pairs.get(frozenset(digests))
            of_source = self._pictures.get(digests[0], ())
            of_target = self._pictures.get(digests[-1], ())
            if not roles:
                continue
            if same_pair is not None:
                overlap.pairs[name] = same_pair
            elif of_target and len(digests) == 1:
                overlap.pairs[name] = of_target[0]
            elif of_target and "target" in roles:
                overlap.targets[name] = of_target[0]
            elif len(of_source) == 1 and "source" in roles:
                overlap.sources[name] = of_source[0]
        trained = {*self.record.groups}
        for name, group in groups(pairs.rows):
            if group in trained and name not in overlap.names:
                overlap.groups.setdefault(group, name)
        return overlap


@dataclass(frozen=True)
class Overlap:
    """What a data set and a training have in common.

    Args:
        where: what says what was trained on.
        count: the number of the data set's items.
        noun: what an item is: a pair, or a picture of a set without pairs.
        pairs: of the items that were in training, the name in training by their own.
        targets: the same of the other items whose target was in training.
        sources: the same of those whose source alone was.
        groups: of the groups that were in training too, the name of the first item that was not.
        unknown: the files of weights that the training goes on from whose own pairs are not known.
    """

    where: str
    count: int
    noun: str = "pair"
    pairs: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    unknown: Sequence[str] = ()

    @property
    def names(self) -> Mapping[str, str]:
        """Of all items that were in training, or whose target or source was, the name in training."""
        return {**self.pairs, **self.targets, **self.sources}

    def __str__(self) -> str:
        """How many pairs, targets and sources were in training, and the first names; "" where none was."""
        parts: list[str] = []
        for role, names in (("", self.pairs), ("target", self.targets), ("source", self.sources)):
            if names:
                by = "" if parts else f", by {self.where}"
                shown: list[str] = []
                for name, in_training in names.items():
                    shown.append(name if name == in_training else f"{name} (as {in_training})")
                count = self._count(role, len(names))
                parts.append(f"{count} in training{by}: {first_names(shown)}")
        return "; ".join(parts)

    def _count(self, role: str, number: int) -> str:
        """How many pairs were, or the targets or sources of how many."""
        of_all = f"{number} of {number_of(self.count, self.noun)}"
        if not role:
            return f"{of_all} was" if self.count == 1 else f"{of_all} were"
        return f"the {role} of {of_all} was" if number == 1 else f"the {role}s of {of_all} were"

    def check_groups(self, remedy: str) -> None:
        """Raise ValueError where a group has pairs in training, and others here; ``remedy`` ends it."""
        if not self.groups:
            return
        shown = [f"{group!r} (of {name})" for group, name in self.groups.items()]
        count = counted(len(shown), "group")
        raise ValueError(
            f"{count} in training too, by {self.where}: {first_names(shown)}; {remedy}"
        )
