"""Write a data set as shards: bbdm shard edge2shoes DATA OUT [flags].

OUT gets a folder for each split, train and val, with tars in WebDataset's layout and an index of their
counts. `bbdm train shards OUT OUT.pt` trains on them. If it ends early, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bbdm.base.atomic import check_folder
from bbdm.base.scripts import Parser, is_shown
from bbdm.base.settings import add_flags, flag_type
from bbdm.data.config import DATASETS, ColumnsConfig, ConditionsPlaces, PicturesConfig
from bbdm.pictures.images import read_size


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(__doc__, prog="bbdm shard")
    flag = parser.add_argument
    flag("dataset", choices=sorted(DATASETS), help="the layout of the data set, as for bbdm train")
    flag("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS")
    flag("output_dir", metavar="OUT", type=Path)
    flag("--splits", nargs="+", default=["train", "val"], help="parts of the data set (default: train val)")
    flag("--pairs_in_shard", type=int, default=1000, help="the most in a shard")
    flag("--image_size", type=flag_type(read_size), help="side, or HxW, to resize to; pictures become PNG files")
    add_flags(parser, ColumnsConfig)
    add_flags(parser, ConditionsPlaces)
    flag("--skip_bad", action="store_true", help="leave out pairs with a picture that cannot be read")
    flag("--workers", type=int, default=0, help="processes that read pictures")
    flag("--show_verbose", action="store_true", help="a progress bar, as on a terminal")
    flag("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    args = parse(argv)
    from bbdm.data.pairs import load_dataset
    from bbdm.data.sharding import write_shards

    check_folder(args.output_dir)
    progress, resized = is_shown(args.show_verbose, args.quiet), args.image_size is not None
    told = PicturesConfig(images=args.images, classes=args.classes, tokens=args.tokens)
    made: list[object] = []
    for split in args.splits:
        kind = (args.image_size, "AtoB", 3, "stretch") if resized else (1, "AtoB", 3, "keep")
        try:
            dataset = load_dataset(args.dataset, args.data_dir, split, *kind, columns=args.columns, pictures=told)
        except FileNotFoundError as error:
            if split == args.splits[0]:
                raise
            print(f"without the split {split}: {error}")
            continue
        if dataset.pairs in made:
            print(f"without the split {split}: it is another one's pairs; write {{split}} in the paths")
            continue
        made.append(dataset.pairs)
        folder = args.output_dir / split
        pairs, bad = write_shards(
            dataset, folder, args.pairs_in_shard, resized, args.skip_bad, args.workers, progress, print
        )
        print(f"{folder}: {pairs} pairs" + (f", and {bad} left out" if bad else ""))
