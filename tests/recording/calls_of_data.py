"""Cases of ``bbdm.data``: rows and examples of each layout, with all that decides what an example is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bbdm import Values
from bbdm.data import Condition, MappedDataset, Pairs, Spec, read_rows
from tests.recording.running import Case, tried
from tests.recording.world import colours, numbers, save_geotiff, save_image, save_itk

WIDE: dict[str, Any] = {
    "source": Values(0, 4000, dtype="uint16"),
    "target": Values(-1024, 3071, "HU", "int16"),
}
UNIT: dict[str, Any] = {
    "source": Values(0, 4000, dtype="uint16"),
    "target": Values(0, 1, dtype="float32"),
}
BANDS: dict[str, Any] = {
    "source": Values((-25, -32), (0, -5), "dB", "float32"),
    "target": Values((0, 0, 0), (10000, 9000, 8000), dtype="uint16"),
}
SCAN: dict[str, Any] = {
    "source": Values(0, 900, dtype="int16"),
    "target": Values(-1024, 3071, "HU", "int16"),
}
SCANS = "scans/{split}/*/mr,scans/{split}/*/ct"
COLUMNS = "data,sar=sar,style=labels.csv,text=text"
CONDITIONS = {
    "sar": Condition("image", Values(0, 51)),
    "style": Condition("class"),
    "text": Condition("tokens"),
}
LAYOUTS = {
    "edge2shoes": ("edge2shoes", "data"),
    "edge2handbags": ("edge2handbags", "data"),
    "celeba": ("celeba", "faces"),
    "face2comics": ("face2comics", "faces"),
    "cityscapes": ("cityscapes", "city"),
    "paired": ("paired", "pairs/A/{split},pairs/B/{split}"),
    "paired without a split": ("paired", "pairs/A/train,pairs/B/train"),
    "paired of two sources": ("paired", "pairs/A/{split},pairs/B/{split};pairs/B/{split}"),
    "paired of patients": ("paired", f"{SCANS},mask=scans/{{split}}/*/mask"),
    "paired with a mask": ("paired", "pairs/A/{split},pairs/B/{split},mask=masks"),
    "paired with columns": ("paired", "pairs/A/{split},pairs/B/{split},sar=sar,style=labels.csv"),
    "folder": ("folder", "own"),
    "folder with a split": ("folder", "pairs/A"),
    "table": ("table", "table_{split}.csv"),
    "unpaired": ("unpaired", "pairs/A/{split},other/{split}"),
    "tars": ("hub", "{split}-*.tar"),
    "tars as a stream": ("stream", "{split}-*.tar"),
    "hub": ("hub", "hub"),
    "hub with names": ("hub", "hub,source=photo,target=edges,style=style"),
    "parquet as a stream": ("stream", "hub/{split}*.parquet"),
}
REFUSED = {
    "an unknown layout": ("shoes", "data"),
    "a path as layout": ("data", "data"),
    "no folder": ("edge2shoes", "gone"),
    "no split": ("edge2shoes", "pairs"),
    "one folder": ("paired", "pairs/A/train"),
    "two sources with a comma": ("paired", "pairs/A/train,pairs/B/train,pairs/B/train"),
    "other names": ("paired", "pairs/A/train,pairs/B/val"),
    "no pictures": ("folder", "nothing"),
    "no pictures in a folder of text": ("folder", "text"),
    "a file as folder": ("folder", "labels.csv"),
    "the layout of celeba": ("edge2shoes", "faces"),
    "a column without files": ("edge2shoes", "data,sar=gone"),
    "a column of other names": ("edge2shoes", "data,sar=own"),
    "a column twice": ("edge2shoes", "data,source=sar"),
    "no labels": ("edge2shoes", "data,style=gone.csv"),
    "labels of three cells": ("edge2shoes", "data,style=table_train.csv"),
    "no table": ("table", "gone.csv"),
    "a table without a source": ("table", "labels.csv"),
    "no tars": ("hub", "gone-*.tar"),
    "no table of datasets": ("hub", "gone"),
    "no such column": ("hub", "hub,source=drawing"),
    "unpaired with a column": ("unpaired", "pairs/A/train,other/train,sar=sar"),
    "unpaired of one folder": ("unpaired", "pairs/A/train"),
}


def plain(cell: Any) -> Any:
    """A cell of a row as text; of bytes their number."""
    if isinstance(cell, bytes):
        return f"{len(cell)} bytes"
    if isinstance(cell, tuple):
        return [plain(each) for each in cell]
    return str(cell)


def rows_of(dataset: str, data_dir: str, split: str = "train") -> Any:
    """The rows of a layout as texts."""
    return [
        {name: plain(cell) for name, cell in row.items()}
        for row in read_rows(dataset, data_dir, split)
    ]


def pairs_of(
    data_dir: str, dataset: str = "paired", split: str = "train", **settings: Any
) -> Pairs:
    """The pairs of a layout; settings of Pairs by their names, all others are the spec's."""
    more = {
        name: settings.pop(name) for name in ("cache", "prepare", "skip_bad") if name in settings
    }
    return Pairs(read_rows(dataset, data_dir, split), Spec(**settings), **more)


def read_example(pairs: Pairs, index: int, seed: int) -> tuple[Any, ...]:
    """All that an example has, for the epoch of a seed."""
    return tuple(pairs.read(index, seed))


def examples_of(pairs: Pairs, dataset: str = "") -> Any:
    """Sizes, channels and all examples of pairs: as items, and as they are read for two epochs."""
    found: dict[str, Any] = {"count": len(pairs)}
    found["size"] = tried(lambda: pairs.image_size)
    found["channels"] = tried(lambda: [pairs.source_channels, pairs.channels])
    # that of hub depends on the folder's path
    found["digest"] = "" if dataset == "hub" else tried(pairs.digest)
    found["spec"] = tried(lambda: pairs.spec.config())
    indices = range(min(len(pairs), 12))
    found["items"] = [tried(lambda index=index: pairs[index]) for index in indices]
    for seed in (0, 1):
        found[f"read, seed {seed}"] = [
            tried(partial(read_example, pairs, index, seed)) for index in indices
        ]
        found[f"order, seed {seed}"] = tried(
            lambda seed=seed: list(pairs.order(seed)(0, len(pairs)))
        )
    return found


def read(data_dir: str, dataset: str = "paired", **settings: Any) -> Callable[[], Any]:
    """A case of the examples of a layout."""
    return lambda: examples_of(pairs_of(data_dir, dataset, **settings), dataset)


def both_splits(layout: tuple[str, str]) -> Any:
    """The rows of a layout in train and val, and its examples at one size."""
    found = {
        split: tried(lambda split=split: rows_of(*layout, split))
        for split in ("train", "val", "test")
    }
    dataset, data_dir = layout
    sized: dict[str, Any] = {"size": 8} if "scans" not in data_dir else {**SCAN, "slices": "axial"}
    return found | {
        "examples": tried(lambda: examples_of(pairs_of(data_dir, dataset, **sized), dataset))
    }


def cached(data_dir: str, **settings: Any) -> Callable[[], Any]:
    """Examples by a cache, when it is made and when it is opened again without the files."""

    def case() -> Any:
        found: list[Any] = []
        for _ in range(2):
            pairs = pairs_of(data_dir, cache=Path("cache"), **settings)
            found.append(
                [tried(lambda i=i, pairs=pairs: tuple(pairs.read(i, 1))) for i in range(len(pairs))]
            )
        return found

    return case


def foreign_cache() -> Any:
    """A folder of something else is no cache."""
    return [
        tried(lambda: pairs_of("pairs/A/train,pairs/B/train", cache=Path("text"))),
        tried(lambda: pairs_of("pairs/A/train,pairs/B/train", cache=Path("labels.csv"))),
    ]


def bad_among_others(skip_bad: bool) -> Callable[[], Any]:
    """Pairs of which one is damaged."""

    def case() -> Any:
        path = Path("pairs/A/train/01.png")
        path.write_bytes(path.read_bytes()[:200])
        return examples_of(pairs_of("pairs/A/train,pairs/B/train", size=8, skip_bad=skip_bad))

    return case


def all_bad() -> Any:
    """Pairs of which none can be read."""
    for path in Path("pairs/A/train").iterdir():
        path.write_bytes(b"no picture")
    return [
        tried(lambda skip=skip: examples_of(pairs_of("pairs/A/train,pairs/B/train", skip_bad=skip)))
        for skip in (0, 1)
    ]


def other_sizes() -> Any:
    """A target of another size, which only a size of examples makes one."""
    save_image(Path("pairs/B/train/00.png"), colours(1, 20, 30))
    settings: list[dict[str, Any]] = [{}, {"size": 8}, {"crop": 8}, {"size": (8, 12)}]
    return [
        tried(lambda more=more: examples_of(pairs_of("pairs/A/train,pairs/B/train", **more)))
        for more in settings
    ]


def other_grids() -> Any:
    """Sources that lie elsewhere than their targets."""
    from rasterio.transform import Affine

    bands = numbers(1, (2, 20, 24), np.float32, -30, 1)
    save_geotiff(
        Path("S1/train/0.tif"), bands, None, transform=Affine(10, 0, 500_040, 0, -10, 5_400_000)
    )
    volume = numbers(1, (6, 20, 24), np.float32, 0, 900)
    save_itk(Path("scans/train/p1/mr.mha"), volume, spacing=(1.0, 1.5, 2.0))
    return [
        tried(lambda: examples_of(pairs_of("S1/{split},S2/{split}", **BANDS))),
        tried(lambda: examples_of(pairs_of(SCANS, slices="axial", **SCAN))),
    ]


def small_files() -> Any:
    """Pairs that are smaller than crops, and rows without targets."""
    unread = pairs_of("own", "folder")
    return [
        tried(lambda: examples_of(pairs_of("pairs/A/train,pairs/B/train", crop=40))),
        tried(lambda: unread[0]),
        tried(lambda: pairs_of("own", "folder", slices="axial")),
        tried(lambda: pairs_of(SCANS)),
        tried(lambda: pairs_of("pairs/A/train,pairs/B/train", axes=3)),
        tried(lambda: Pairs([])),
    ]


def flawed_specs() -> Any:
    """Settings that are refused."""
    settings: tuple[dict[str, Any], ...] = (
        {"size": 0},
        {"size": "8"},
        {"size": (1, 2, 3)},
        {"crop": -1},
        {"crops": 2},
        {"slices": "across"},
        {"neighbours": 1},
        {"neighbours": -1, "slices": "axial"},
        {"axes": 3, "slices": "axial"},
        {"axes": 4},
        {"channels": 2},
        {"direction": "CtoD"},
        {"direction": "both", "slices": "axial", "neighbours": 1},
        {"spacing": (1, 2)},
        {"nodata": "none"},
        {"target": "0:1"},
        {"resize": "crop", "size": 8},
    )
    return [tried(lambda more=more: Spec(**more)) for more in settings]


def unknown_values() -> Any:
    """Pictures of more than 8 bits without a range, and values outside of it."""
    narrow: dict[str, Any] = {"source": Values(0, 100), "target": Values(0, 1, dtype="float32")}
    return [
        tried(lambda: examples_of(pairs_of("npy/A/{split},npy/B/{split}"))),
        tried(lambda: examples_of(pairs_of("wide/{split}/A,wide/{split}/B"))),
        tried(lambda: examples_of(pairs_of("npy/A/{split},npy/B/{split}", **narrow))),
        tried(lambda: examples_of(pairs_of("npy/A/{split},npy/B/{split}", channels=3, **narrow))),
        tried(
            lambda: examples_of(
                pairs_of("S1/{split},S2/{split}", source=BANDS["target"], target=BANDS["target"])
            )
        ),
    ]


def flawed_floats() -> Any:
    """Numbers that are not finite in a source, and in a target."""
    found: list[Any] = []
    for side, wrong in (("A", np.nan), ("B", np.inf)):
        path = Path(f"npy/{side}/train/0.npy")
        array = np.load(path).astype(np.float32)
        array[0, 3, 4] = wrong
        np.save(path, array)
        found.append(tried(lambda: tuple(pairs_of("npy/A/{split},npy/B/{split}", **UNIT).read(0))))
    return found


def damaged_conditions() -> Any:
    """Rows whose conditions are missing, of other widths, or of no known class."""
    found = [tried(lambda: pairs_of("data", "edge2shoes", conditions=CONDITIONS))]
    np.save("text/01.npy", np.zeros((2, 5), np.float32))
    found.append(
        tried(lambda: examples_of(pairs_of(COLUMNS, "edge2shoes", size=8, conditions=CONDITIONS)))
    )
    np.save("text/01.npy", np.zeros((2, 5, 7, 9, 11), np.float32))
    found.append(
        tried(lambda: examples_of(pairs_of(COLUMNS, "edge2shoes", size=8, conditions=CONDITIONS)))
    )
    shutil.rmtree("sar")
    found.append(tried(lambda: pairs_of(COLUMNS, "edge2shoes", conditions=CONDITIONS)))
    return found


class Items:
    """A data set of items of any kind."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def mapped() -> Any:
    """Items of other libraries: tensors, arrays, pictures, mappings, and what is refused."""
    tensor = torch.rand(3, 8, 8) * 2 - 1
    array = colours(1, 8, 8).transpose(2, 0, 1)
    image = Image.fromarray(colours(2, 8, 8))
    wide = numbers(3, (1, 8, 8), np.uint16, 0, 4000)
    full = {
        "source": tensor,
        "target": -tensor,
        "name": "a",
        "mask": torch.ones(1, 8, 8),
        "conditions": {"style": 1, "sar": tensor[:1], "text": torch.rand(4, 3)},
    }
    items: dict[str, Items] = {
        "tensors": Items((tensor, -tensor), (tensor, tensor)),
        "arrays": Items((array, 255 - array)),
        "pictures": Items((image, image)),
        "mappings": Items(full, full),
        "volumes": Items((tensor[:1, None], tensor[:1, None])),
        "values without a range": Items((wide, wide)),
        "one picture": Items(tensor),
        "a mapping without a target": Items({"source": tensor}),
        "two axes": Items((tensor[0], tensor[0])),
        "other sizes": Items((tensor, tensor[:, :4])),
        "not finite": Items((tensor / 0, tensor)),
        "texts": Items(("a", "b")),
        "none": Items(),
    }
    found: dict[str, Any] = {
        name: tried(lambda each=each: examples_of(MappedDataset(each)))
        for name, each in items.items()
    }
    found["values"] = tried(
        lambda: examples_of(MappedDataset(Items((wide, wide)), spec=Spec(crop=4, crops=2, **WIDE)))
    )
    found["by a function"] = tried(
        lambda: examples_of(MappedDataset(Items(tensor), lambda item: (item, item)))
    )
    found["no data set"] = tried(lambda: MappedDataset(7))  # pyright: ignore[reportArgumentType]
    return found


PAIRED = "pairs/A/{split},pairs/B/{split}"
EXAMPLES: dict[str, Callable[[], Any]] = {
    "8 bits": read(PAIRED),
    "8 bits, from B to A": read(PAIRED, direction="BtoA"),
    "8 bits, both ways": read(PAIRED, direction="both"),
    "8 bits, a size": read(PAIRED, size=(8, 12)),
    "8 bits, a size to fit": read(PAIRED, size=(8, 12), resize="fit"),
    "8 bits, grey": read(PAIRED, channels=1),
    "8 bits, crops": read(PAIRED, crop=8, crops=3),
    "8 bits, a mask": read(f"{PAIRED},mask=masks", size=8),
    "8 bits, a mask and crops": read(f"{PAIRED},mask=masks", crop=(4, 8)),
    "table with a mask and classes": read(
        "table_{split}.csv", "table", conditions={"style": Condition("class")}
    ),
    "stream of tars": read("{split}-*.tar", "stream", conditions={"style": Condition("class")}),
    "hub with classes": read("hub", "hub", conditions={"style": Condition("class")}, size=8),
    "unpaired": read("pairs/A/{split},other/{split}", "unpaired", size=8),
    "unpaired, crops": read("pairs/A/{split},other/{split}", "unpaired", crop=8),
    "conditions": read(COLUMNS, "edge2shoes", conditions=CONDITIONS),
    "conditions and crops": read(
        COLUMNS, "edge2shoes", conditions={"sar": CONDITIONS["sar"]}, crop=8
    ),
    "a class of all": read(
        COLUMNS, "edge2shoes", conditions={"style": Condition("class", size=("a", "b"), label="b")}
    ),
    "16 bits": read("wide/{split}/A,wide/{split}/B", **WIDE),
    "16 bits, crops": read("wide/{split}/A,wide/{split}/B", crop=8, crops=2, **WIDE),
    "16 bits, a size": read("wide/{split}/A,wide/{split}/B", size=8, **WIDE),
    "16 bits, from B to A": read("wide/{split}/A,wide/{split}/B", direction="BtoA", **WIDE),
    "floats": read("npy/A/{split},npy/B/{split}", **UNIT),
    "bands with nodata": read("S1/{split},S2/{split}", **BANDS),
    "bands with nodata, crops": read("S1/{split},S2/{split}", crop=8, crops=2, **BANDS),
    "volumes": read(f"{SCANS},mask=scans/{{split}}/*/mask", axes=3, **SCAN),
    "volumes, crops": read(f"{SCANS},mask=scans/{{split}}/*/mask", axes=3, crop=(4, 8, 8), **SCAN),
    **{
        f"volumes, {plane}": read(SCANS, slices=plane, **SCAN)
        for plane in ("axial", "coronal", "sagittal")
    },
    "volumes, axial, neighbours": read(SCANS, slices="axial", neighbours=1, **SCAN),
    "volumes, axial, a mask and crops": read(
        f"{SCANS},mask=scans/{{split}}/*/mask", slices="axial", neighbours=2, crop=8, **SCAN
    ),
    "cache of 8 bits": cached(PAIRED, size=8),
    "cache of crops": cached(PAIRED, crop=8),
    "cache of slices": cached(SCANS, slices="axial", neighbours=1, crop=8, **SCAN),
    "cache of 16 bits": cached("wide/{split}/A,wide/{split}/B", size=8, **WIDE),
    "cache of something else": foreign_cache,
    "a damaged picture": bad_among_others(False),
    "a damaged picture is skipped": bad_among_others(True),
    "no picture that can be read": all_bad,
    "other sizes": other_sizes,
    "other grids": other_grids,
    "too small, without targets, of other axes": small_files,
    "flawed specs": flawed_specs,
    "values without a range": unknown_values,
    "numbers that are not finite": flawed_floats,
    "flawed conditions": damaged_conditions,
    "map-style data sets": mapped,
}
CASES: dict[str, Case] = {
    **{
        f"data: rows of {name}": lambda layout=layout: both_splits(layout)
        for name, layout in LAYOUTS.items()
    },
    "data: rows that are refused": lambda: {
        name: tried(lambda layout=layout: rows_of(*layout)) for name, layout in REFUSED.items()
    },
    **{f"data: {name}": call for name, call in EXAMPLES.items()},
}
