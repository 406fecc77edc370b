"""Restore photographs: bbdm restore PHOTO... -o DIR [flags].

JPEGs of any quality, noise, blur and pictures that were enlarged, of any size, in grey or colour of 8 or 16
bits. The result is the expected picture, which is nearest to the clean one; --samples N gives N random ones,
with grain. Results are PNG files with the bits, the transparency and the colour profile of their photographs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bbdm.base.scripts import Parser, StoppedError
from bbdm.base.settings import add_flags, from_values
from bbdm.translation.config import RestoreConfig


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    parser = Parser(__doc__, prog="bbdm restore")
    parser.add_argument("photographs", metavar="PHOTO", type=Path, nargs="+", help="a file, or a folder of them")
    parser.add_argument("-o", "--output_dir", type=Path, default=Path("restored"), help="where results are written")
    add_flags(parser, RestoreConfig)
    args = vars(parser.parse_args(argv))
    config = from_values(RestoreConfig, {**args, "photographs": tuple(args["photographs"])})
    from bbdm.translation.restore import restore

    outcome = restore(config)
    for path in outcome.results:
        print(path)
    for path in outcome.kept:
        print(f"{path} was there: --overwrite makes it again")
    for error in outcome.errors:
        print(f"error: {error}", file=sys.stderr)
    if failed := len(outcome.errors):
        raise StoppedError(f"{failed} photograph{'s were' if failed > 1 else ' was'} not restored")
