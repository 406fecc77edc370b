"""Translate pictures without PyTorch: python -m bbdm.runtime FOLDER PICTURE... -o OUT."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bbdm.base import scripts
from bbdm.base.atomic import check_folder, write_atomically
from bbdm.base.seeds import resolve_seeds
from bbdm.base.settings import add_flags, from_values
from bbdm.files.bridge_json import conditions_of
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import files, suffixes
from bbdm.pictures.picture import Picture
from bbdm.sampling.options import GuidanceOptions

with scripts.imports():
    from bbdm.runtime.sampler import OnnxBridgeSampler


def read_words(words: Sequence[str], known: ConditionsConfig) -> dict[str, Any]:
    """Conditions of a call from words NAME=VALUE. ValueError for a word of another form."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known.each:
            raise ValueError(f"--condition takes NAME=VALUE, of the conditions {known.described}; got {word!r}")
        values[name] = known.each[name].parse(value)
    return values


def _write(path: Path, picture: Picture | Image.Image) -> None:
    """Write a result, whole or not at all."""
    if isinstance(picture, Image.Image):
        write_atomically(path, lambda temporary: picture.save(temporary, "png"))
    else:
        picture.save(path)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = scripts.Parser(__doc__, prog="python -m bbdm.runtime")
    parser.add_argument("folder", type=Path, help="an export of `bbdm export`, or a name on the Hub")
    parser.add_argument("pictures", type=Path, nargs="+", help="sources")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for the results; files of the same names are replaced"
    )
    parser.add_argument("-b", "--batch_size", type=int, default=16, help="pictures at once, or windows of one")
    parser.add_argument("--seed", type=int, help="picture i gets SEED + i; drawn and printed if unset")
    parser.add_argument("--steps", type=int, help="network calls; as exported, or --solver's default, if unset")
    parser.add_argument("--solver", help="as exported if unset")
    parser.add_argument(
        "--provider", help="such as CUDAExecutionProvider; CUDA where there is one, else the CPU, if unset"
    )
    parser.add_argument("--threads", type=int, help="threads of the CPU provider; one a core if unset")
    add_flags(parser, GuidanceOptions)
    parser.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a class, a .npy of tokens (L, D) or of an image (C, H, W) in [-1, 1], or none; one flag for each",
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, got {args.batch_size}")
    options = from_values(GuidanceOptions, vars(args))
    check_folder(args.output)
    providers = None if args.provider is None else [args.provider]
    for path in args.pictures:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give pictures, such as {path}/*.png")
    for stem, count in Counter(map(suffixes.stem_of, args.pictures)).items():
        if count > 1:
            raise ValueError(f"{count} of the pictures have the name {stem}, and so would their results")
    sampler = OnnxBridgeSampler.from_pretrained(
        args.folder, providers=providers, threads=args.threads, solver=args.solver, steps=args.steps
    )
    kind, channels = sampler.pictures, sampler.settings["image_channels"]
    results: list[Path] = []
    sources = {path.resolve() for path in args.pictures}
    for path in args.pictures:
        _ = files.header(path)  # before any is translated
        suffix = suffixes.suffix_of_result(suffixes.suffix_of(path), channels, kind.target)
        results.append(args.output / f"{suffixes.stem_of(path)}{suffix}")
        if results[-1].resolve() in sources:
            raise ValueError(f"{results[-1]} would replace a source: give another output folder")
    conditions = read_words(args.condition, conditions_of(sampler.settings))
    seeds = resolve_seeds(args.seed, len(results))
    count, settings = args.batch_size, {**options.call, "conditions": conditions or None}
    if options.window_of(sampler.pictures.crop) is not None:  # pictures may be large
        count, settings["batch_size"] = 1, count
    for start in range(0, len(results), count):
        batch = slice(start, start + count)
        made = sampler(args.pictures[batch], seeds[batch], progress=sys.stderr.isatty(), **settings)
        for path, picture in zip(results[batch], made, strict=True):
            _write(path, picture)
    print(f"{len(results)} results in {args.output}, seeds {seeds[0]} to {seeds[-1]}")


if __name__ == "__main__":
    scripts.run(main)
