"""Restoring photographs: a translation of files and folders, each photograph at its own size, by windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from bbdm.data.rows import Row
from bbdm.data.spec import Spec
from bbdm.execution.device import best_dtype, find_device
from bbdm.pictures import files, header, suffixes
from bbdm.translation.config import TranslateConfig
from bbdm.translation.photographs import Photographs, check_photograph
from bbdm.translation.results import paths_of
from bbdm.translation.translator import Translator


class Outcome(NamedTuple):
    """What became of photographs."""

    results: list[Path]  # those that were made
    kept: list[Path]  # those that were there
    errors: list[str]  # why others have none; each names its file


def restore(photographs: Iterable[Path], config: TranslateConfig) -> Outcome:
    """Restore photographs, files or folders; what is wrong with one is named, and the others are done.

    The name of a photograph, of which its seeds are a function, is its path below the folder that was given,
    without suffix; of a file, its name.

    Raises:
        DiskFullError: the disk is full.
        FileNotFoundError: there is no such network.
        ResultsError: the folder has results of other settings.
        ValueError: two results have one name, or a photograph's name; or a folder has no picture.
    """
    rows: dict[str, Row] = {}
    errors: list[str] = []
    for name, path in _files(photographs):
        try:
            check_photograph(path, header(path))
        except (ValueError, FileNotFoundError, PermissionError) as error:
            errors.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        if name in rows:
            raise ValueError(f"{rows[name]['source']} and {path} would both become {name}.png: rename one")
        rows[name] = {"name": name, "source": path}
    if not rows:
        return Outcome([], [], errors)
    device = find_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = "bf16" if best_dtype(device) == torch.bfloat16 else "fp32"
    config = replace(config, dtype=config.dtype or dtype)
    translator = Translator(config, [*rows.values()], Spec(channels=3), Photographs, independent=True)
    planned = paths_of(translator.plan(config.folder))
    kept = [] if config.overwrite else [path for path in planned if path.exists()]
    jobs, _ = translator.run(config.solver, config.steps, config.folder)
    results = [path for path in paths_of(jobs) if path not in kept]
    return Outcome(results, kept, [*errors, *translator.bad.values()])


def _files(given: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The names and paths of files, and of all pictures in folders, those of kinds that are not read too."""
    others = Image.registered_extensions().keys() - suffixes.SUFFIXES.keys()
    for path in given:
        if not path.is_dir():
            yield suffixes.stem_of(path), path
            continue
        found = sorted(files.pictures_in(path))
        found = [each for each in found if files.is_picture(each) or each.suffix.lower() in others]
        found = [each for each in found if not any(part.startswith(".") for part in each.relative_to(path).parts)]
        if not any(map(files.is_picture, found)):
            raise ValueError(f"there is no picture in {path}; suffixes are {', '.join(sorted(suffixes.SUFFIXES))}")
        for each in found:
            yield each.with_name(suffixes.stem_of(each)).relative_to(path).as_posix(), each
