"""A look at all pictures of a data set before work begins: which cannot be read, or differ in shape."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.atomic import stamp
from bbdm.data.collection import Files
from bbdm.data.examples import BadPicturesError as BadPicturesError
from bbdm.data.examples import PairExamples

SHAPES_DIFFER = 1.1  # ratio of the sides' widths over heights
THREADS = 4 * (os.cpu_count() or 1)  # they wait for the disk


@dataclass(frozen=True)
class Survey:
    """What was found; pairs are listed by name, in the data set's order."""

    bad: dict[str, str] = field(default_factory=dict)  # why a pair cannot be read
    stretched: list[str] = field(default_factory=list)  # pairs whose sides' shapes differ by more than a tenth


def survey(dataset: PairExamples, whole: bool = False, kept: Path | None = None, progress: bool = False) -> Survey:
    """Look at all pictures of a data set, in parallel.

    Args:
        dataset: the pairs, or sources alone.
        whole: decode the pictures; otherwise only their headers are read.
        kept: a JSON file. Where it is of the same unchanged files, its content is returned.
        progress: show a progress bar.
    """
    about: dict[str, str | bool] = {"whole": whole}
    if kept is not None:
        about["files"] = digest_of(dataset)
        about["pairs"] = files_digest(dataset)
        with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is made again
            content = json.loads(kept.read_text())
            if {name: content[name] for name in about} == about:
                return Survey(dict(content["bad"]), list(content["stretched"]))
    found = Survey()
    with ThreadPoolExecutor(THREADS) as pool:
        count = len(dataset.pairs)
        looks = pool.map(lambda place: _look(dataset, place, whole), range(count))
        bar = tqdm(looks, "looking at pictures", count, unit="pair", leave=False, disable=not progress)
        for pair, (reason, shapes) in zip(dataset.pairs, bar, strict=True):
            if reason:
                found.bad[pair.name] = reason
            elif shapes and max(shapes) > SHAPES_DIFFER * min(shapes):
                found.stretched.append(pair.name)
    if kept is not None:
        manifest.write(kept, {**about, **asdict(found)})
    return found


def readable(
    dataset: PairExamples,
    skip_bad: bool,
    report: Callable[[str], object],
    kept: Path | None = None,
    progress: bool = False,
) -> PairExamples:
    """The data set, of which all pictures were looked at; with ``skip_bad``, decoded, and bad ones left out.

    ``report`` is called with what is left out or stretched. For ``kept`` and ``progress`` see :func:`survey`.
    Shards and tables are not looked at: with ``skip_bad``, what cannot be read is left out as it is met.

    Raises:
        BadPicturesError: pictures cannot be read, without ``skip_bad``; or none can.
    """
    if not isinstance(dataset.pairs, Files):
        return dataset.skipping() if skip_bad else dataset
    found = survey(dataset, skip_bad, kept, progress)
    reasons = list(found.bad.values())
    if reasons and (not skip_bad or len(reasons) == len(dataset.pairs)):
        raise BadPicturesError(
            reasons[0] + (f" ({len(reasons)} of {len(dataset.pairs)} pairs)" if len(reasons) > 1 else "")
        )
    for reason in reasons:
        report(f"left out: {reason}")
    if found.stretched:
        count = "1 pair has" if len(found.stretched) == 1 else f"{len(found.stretched)} pairs have"
        report(f"{count} sides of different shapes, first {found.stretched[0]!r}: each side is stretched to one size")
    return dataset.without(found.bad) if found.bad else dataset


def _look(dataset: PairExamples, place: int, whole: bool) -> tuple[str, list[float]]:
    """Why a pair cannot be read, or the ratios of width to height of its sides."""
    try:
        sides = dataset.look(place, whole)
    except (OSError, ValueError) as error:
        return str(error), []
    return "", [width / height for width, height in sides]


def files_digest(dataset: PairExamples) -> str:
    """SHA-256 of the names, sizes and times of the pairs' own files, whatever examples are made of them."""
    digest = hashlib.sha256()
    for path in sorted({path for pair in dataset.pairs for path in pair.files}):
        digest.update(f"{stamp(path)}\n".encode())
    return digest.hexdigest()


def digest_of(dataset: PairExamples, told: bool = True) -> str:
    """SHA-256 of settings, and of names, sizes and times of files; ``told``, of those of conditions too."""
    names = dataset.told.names(dataset.pairs) if told else ""
    digest = hashlib.sha256(f"{dataset.channels}{dataset.settings}{names}\n".encode())
    for pair in dataset.pairs:
        for path in (*pair.files, *(pair.told_files if told else ())):
            digest.update(f"{stamp(path)}\n".encode())
    return digest.hexdigest()
