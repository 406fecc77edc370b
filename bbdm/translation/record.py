"""What made results: the settings of all, a line for each, and what of a folder is a result.

``settings.json`` has the settings and the names that are planned, and ``results.jsonl`` a line for each
finished file: its SHA-256, the digest of the settings, and what is of this result alone. A file is a result
only where its line is of the file as it is now, and of what would be made now.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bbdm.base import manifest
from bbdm.base.atomic import content_sha256, make_folder, remove, remove_leftovers, write_atomically
from bbdm.data.names import RowName
from bbdm.data.provenance import in_threads
from bbdm.networks.base import state_hash
from bbdm.pictures import Derivation
from bbdm.sampling.sampler import BridgeSampler

SETTINGS = "settings.json"
TABLE = "results.jsonl"
PARTS = ".results.*.jsonl"  # the lines of processes, until the first one merges them
Line = Mapping[str, Any]
Item = Mapping[str, Any]  # what is of a result alone, as plain values


def describe(sampler: BridgeSampler, weights: str | None = None) -> dict[str, Any]:
    """What decides the results of a sampler, as plain values.

    Args:
        sampler: with its solver and steps.
        weights: the SHA-256 of the network, where it is known; None to compute that of the sampler's.
    """
    codec = sampler.codec
    spec = sampler.pictures
    described: dict[str, Any] = {
        "weights": state_hash(sampler.unet.state_dict()) if weights is None else weights,
        "unet": sampler.unet.description(),
        "codec": None if codec is None else {**codec.description(), **codec.config()},
        "bridge": sampler.bridge.config(),
        "solver": sampler.solver,
        "timesteps": sampler.table.timesteps.tolist(),
        "dtype": str(sampler.dtype).removeprefix("torch."),
        "source_values": spec.source_values.config(),
        "target_values": spec.target_values.config(),
        "slices": spec.slices,
        "crop": spec.crop,
    }
    if sampler.direction is not None:
        described["direction"] = sampler.direction
    return manifest.as_json(described)


def settings_digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings."""
    return hashlib.sha256(
        json.dumps(manifest.as_json(settings), sort_keys=True).encode()
    ).hexdigest()


def derivation_of(settings: Mapping[str, Any], seeds: Sequence[int]) -> Derivation | None:
    """What the file of a result says of what made it; None for plain files.

    Args:
        settings: of the results, with weights, solver and nfe.
        seeds: of the samples that the result is of.
    """
    if settings.get("plain_files"):
        return None
    return Derivation(settings["weights"], settings["solver"], settings["nfe"], tuple(seeds))


class Lines:
    """The lines of the results that one process makes, in a file of this process alone.

    Args:
        folder: that the results are in.
        settings: all that decides the results, besides what is of one alone.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self._digest = settings_digest(settings)
        self._file = folder / PARTS.replace("*", secrets.token_hex(8))

    def add(self, path: Path, item: Item) -> None:
        """Say what made a result, once its file is written.

        Args:
            path: the file of the result, below the folder.
            item: what is of this result alone.
        """
        name = path.relative_to(self.folder).as_posix()
        line = {
            "name": name,
            "sha256": content_sha256(path),
            "settings": self._digest,
            "item": item,
        }
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def known(self) -> set[Path]:
        """The files of results that any process has said something of."""
        return {self.folder / name for name in _read(self.folder)}


def _read(folder: Path) -> dict[str, Line]:
    """The lines of all files of a folder by name; one that was cut off by a kill says nothing."""
    lines: dict[str, Line] = {}
    for path in (folder / TABLE, *sorted(folder.glob(PARTS))):
        text = path.read_text(errors="replace") if path.is_file() else ""
        for each in text.splitlines():
            with suppress(ValueError, LookupError, TypeError, RecursionError):
                line = json.loads(each)
                lines[str(line["name"])] = line
    return lines


def _write(folder: Path, lines: Mapping[str, Line]) -> None:
    """Write the lines in the order of their names, and delete the files of processes."""
    text = "".join(json.dumps(lines[name]) + "\n" for name in sorted(lines))
    write_atomically(folder / TABLE, lambda temporary: temporary.write_text(text))
    for part in folder.glob(PARTS):
        part.unlink(missing_ok=True)


class Record:
    """What a folder has of results, before they are made, and its files of settings and lines.

    One process has it; others, and this one, add :class:`Lines`. Temporary files that a killed process left
    beside results are deleted, and so is each file of ours that is no result of what would be made now.

    Args:
        folder: of the results, which is made where it does not exist.
        settings: all that decides the results, besides what is of one alone.
        names: the files of the results that are planned, as paths below the folder.
        item: gives what is of one result alone, by its name.
        overwrite: delete the planned results that there are; of other settings, all that the folder's files
            list.

    Attributes:
        settings: plain values, as they are written.
        existing: the names of planned results that there are, and that stay.
        changed: the names of those that are made anew: their file, source or seed is another.

    Raises:
        ValueError: there are results of other settings, a file of a planned name that nothing lists, or
            damaged settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        names: Collection[str],
        item: Callable[[str], Item],
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.settings = manifest.as_json(settings)
        self._digest = settings_digest(settings)
        for above in {(folder / name).parent for name in names} | {folder}:
            remove_leftovers(above)
        before, listed = self._before()
        lines = _read(folder)
        known = listed | lines.keys()
        self._check_known(names, known)
        differing = "" if before is None else manifest.differences(before, self.settings)
        if differing and not overwrite:
            raise ValueError(
                f"{folder} holds results of other settings ({differing}): give another folder, or --overwrite"
            )
        if overwrite:
            # others of these settings are results
            again = known if differing else known.intersection(names)
            self._delete(again)
            known = known - again
            lines = {name: line for name, line in lines.items() if name not in again}
        there = [name for name in names if (folder / name).exists()]
        kept = in_threads(lambda name: self._is_result(name, lines.get(name), item), there)
        self.existing = {name for name, keeps in zip(there, kept, strict=True) if keeps}
        anew = {*there} - self.existing
        self.changed = anew & lines.keys()
        self._delete(anew)
        make_folder(folder)
        _write(folder, {name: line for name, line in lines.items() if name not in anew})
        self._names = known.union(names)
        manifest.write(
            folder / SETTINGS, {"settings": self.settings, "results": sorted(self._names)}
        )

    def _before(self) -> tuple[Mapping[str, Any] | None, set[str]]:
        """The settings of the results that are there, None without any, and the names that were planned."""
        path = self.folder / SETTINGS
        if not path.is_file():
            return None, set()
        with manifest.reading(
            path, f"give another folder of results, or delete {self.folder}"
        ) as content:
            settings = content["settings"]
            names = content["results"]
            if not isinstance(settings, dict) or not all(isinstance(name, str) for name in names):
                raise ValueError("no settings, or no names of results")
            return settings, {*names}

    def _check_known(self, names: Collection[str], known: Collection[str]) -> None:
        """Raise ValueError where a planned file is there that nothing lists: it is not ours."""
        unknown = sorted(
            name for name in names if name not in known and (self.folder / name).exists()
        )
        if unknown:
            no = f"no {self.folder / SETTINGS} says what made it"
            raise ValueError(f"{self.folder}/{unknown[0]} exists, but {no}: give another folder")

    def _is_result(self, name: str, line: Line | None, item: Callable[[str], Item]) -> bool:
        """Whether a file is what would be made now; where its source cannot be read, it stays."""
        if line is None or line.get("settings") != self._digest:
            return False
        if line.get("sha256") != content_sha256(self.folder / name):
            return False
        try:
            return line.get("item") == item(name)
        except (FileNotFoundError, PermissionError):
            return True

    def _delete(self, names: Collection[str]) -> None:
        """Delete files; ValueError, before one is deleted, where a name leads out of the folder."""
        paths = [RowName(name).below(self.folder, "") for name in names]
        for path in paths:
            remove(path)

    def close(self) -> None:
        """Write the lines of all processes as one file; without results, delete it and the folder."""
        lines = {
            name: line for name, line in _read(self.folder).items() if (self.folder / name).exists()
        }
        _write(self.folder, lines)
        if any((self.folder / name).exists() for name in self._names):
            return
        for name in (TABLE, SETTINGS):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
