"""Translate pictures on many machines: bbdm translate-ray SOURCES RESULTS CHECKPOINT [flags].

SOURCES is a folder of pictures, RESULTS a folder outside of it. Both are paths or addresses such as
s3://BUCKET/FOLDER, which all machines reach. Results are those of bbdm translate folder, and the same command
makes what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bbdm.base.scripts import Parser, is_shown
from bbdm.base.settings import add_flags, from_values
from bbdm.translation.config import ClusterConfig


def parse(argv: Sequence[str]) -> ClusterConfig:
    """The settings of the command line."""
    parser = Parser(__doc__, prog="bbdm translate-ray")
    parser.add_argument("sources", help="a folder of pictures")
    parser.add_argument("results", help="a folder for the results")
    parser.add_argument("model", metavar="checkpoint", type=Path, help="the weights, at the same path on all machines")
    add_flags(parser, ClusterConfig)
    return from_values(ClusterConfig, vars(parser.parse_args(argv)))


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    config = parse(argv)
    from bbdm.serving.cluster import translate

    outcome = translate(config, is_shown(config.show_verbose, config.quiet))
    for reason in outcome.bad.values():
        print(f"left out: {reason}")
    kept = f", and {outcome.kept} that were there" if outcome.kept else ""
    print(f"{outcome.results} results in {config.results}{kept}")
