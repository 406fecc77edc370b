"""Translate pictures without PyTorch: python -m bbdm.runtime FOLDER PICTURE... -o OUT."""

from __future__ import annotations

import sys
from pathlib import Path

from bbdm.base import images, scripts
from bbdm.base.atomic import write_atomically
from bbdm.runtime.sampler import OnnxBridgeSampler


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = scripts.Parser(__doc__, prog="python -m bbdm.runtime")
    parser.add_argument("folder", type=Path, help="what export/to_onnx.py wrote, or a name on the Hub")
    parser.add_argument("pictures", type=Path, nargs="+", help="sources")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for the results; files of the same names are replaced"
    )
    parser.add_argument("--seed", type=int, help="picture i gets SEED + i; drawn and printed if unset")
    parser.add_argument("--steps", type=int, help="network evaluations; as exported if unset")
    parser.add_argument("--solver", help="as exported if unset")
    parser.add_argument(
        "--provider", help="such as CUDAExecutionProvider; CUDA where there is one, else the CPU, if unset"
    )
    parser.add_argument("--threads", type=int, help="threads of the CPU provider; one a core if unset")
    args = parser.parse_args(argv)
    providers = None if args.provider is None else [args.provider]
    results = [args.output / f"{path.stem}.png" for path in args.pictures]
    sources = {path.resolve() for path in args.pictures}
    for i, path in enumerate(results):
        if path.resolve() in sources:
            raise ValueError(f"{path} would replace a source: give another output folder")
        if path in results[:i]:
            raise ValueError(f"two of the pictures have the name {path.stem}, and so would their results")
    for path in args.pictures:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give pictures, such as {path}/*.png")
    pictures = [images.open_image(path) for path in args.pictures]
    sampler = OnnxBridgeSampler.from_pretrained(
        args.folder, providers=providers, threads=args.threads, solver=args.solver, steps=args.steps
    )
    made = sampler(pictures, args.seed, progress=sys.stderr.isatty())
    for path, picture in zip(results, made, strict=True):
        write_atomically(path, lambda temporary, picture=picture: picture.save(temporary, "png"))
    first, last = sampler.last_seeds[0], sampler.last_seeds[-1]
    print(f"{len(made)} results in {args.output}, seeds {first} to {last}")


if __name__ == "__main__":
    scripts.run(main)
