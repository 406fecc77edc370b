"""The folders of the challenges SynthRAD 2023 and 2025: a patient in each, with MR or CBCT, CT, and a mask.

Such are ``Task1/AB/1ABA001/mr.mha``, ``ct.mha`` and ``mask.mha``, or ``Task2/brain/2BA001/cbct.nii.gz``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from bbdm.data.collection import Pair
from bbdm.pictures import formats
from bbdm.pictures.values import AnyValues, Percentiles, Values

HU = Values(-1024, 3071, "HU", "int16")
SOURCES: dict[str, AnyValues] = {"mr": Percentiles(0.5, 99.5), "cbct": HU}
WANTED = "a folder for each patient, with mr.mha or cbct.mha, ct.mha and mask.mha, or .nii.gz"
VALIDATED = 10  # of as many patients, one is for validation


def patients(data_dir: str, split: str) -> list[Pair]:
    """The patients of a split, by their folders below ``data_dir``.

    Where it has no folders ``train`` and ``val``, a tenth of the patients is for validation. Their names
    decide which. Where no patient has a CT, each split has all of them, as sources alone.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no patients, or too few; or one lacks a picture, which is named.
    """
    root = Path(data_dir.replace("{split}", split))
    divided = any((root / name).is_dir() for name in ("train", "val"))
    root = root / split if divided else root
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    found: dict[Path, dict[str, Path]] = {}
    for path in sorted(root.rglob("*")):
        name = formats.stem_of(path) if formats.suffix_of(path) else ""
        if name in (*SOURCES, "ct", "mask"):
            if name in found.setdefault(path.parent, {}):
                raise ValueError(f"{path.parent} has {name} twice: remove one")
            found[path.parent][name] = path
    kinds = {name for files in found.values() for name in files.keys() & SOURCES.keys()}
    if len(kinds) != 1:
        what = "both mr and cbct: give the folder of one task" if kinds else f"no patients: {WANTED}, is wanted"
        raise ValueError(f"{root} has {what}")
    (source,) = kinds
    with_target = any("ct" in files for files in found.values())
    for folder, files in found.items():
        if missing := [name for name in (source, "mask", *(["ct"] if with_target else [])) if name not in files]:
            others = ", or no ct of any patient" if missing[0] == "ct" else ""
            raise ValueError(f"patient {folder} has no {missing[0]}: {WANTED}, is wanted{others}")
    made = [
        Pair(folder.relative_to(root).as_posix(), files[source], files.get("ct"), mask=files["mask"])
        for folder, files in found.items()
    ]
    return made if divided or not with_target else _divided(made, split)


def _divided(pairs: list[Pair], split: str) -> list[Pair]:
    if len(pairs) < 2:
        raise ValueError(f"{pairs[0].source.parent} is the only patient, and one is needed for validation too")
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair.source.parent.name.encode()).hexdigest())
    validation = order[: max(1, round(len(pairs) / VALIDATED))]
    return [pair for pair in pairs if (pair in validation) == (split != "train")]


def values(pair: Pair, direction: str) -> tuple[AnyValues, AnyValues]:
    """The values of sources and targets: an MR's own percentiles; -1024 to 3071 HU of CT and CBCT."""
    source = SOURCES[formats.stem_of(pair.source)]
    return (source, HU) if direction == "AtoB" else (HU, source)
