"""Translate pictures on many machines: python examples/translate_ray.py SOURCES RESULTS CHECKPOINT [flags].

SOURCES is a folder of pictures or of parquet files, RESULTS a folder outside of it. Both are paths or
addresses such as s3://BUCKET/FOLDER, which all machines reach. The same command makes what is missing.
"""

from __future__ import annotations

from pathlib import Path

from bbdm.base import scripts
from bbdm.base.settings import add_flags, flag_names, from_values
from bbdm.data.survey import BadPicturesError
from bbdm.evaluation.results import ResultsError
from bbdm.files.weights import IncompleteFileError
from bbdm.sampling.network_config import FileConfig
from bbdm.serving.translation import ClusterConfig, translate

HINTS: dict[type[Exception], str] = {
    BadPicturesError: "--skip_bad leaves them out",
    IncompleteFileError: f"the flags are {flag_names(FileConfig)}",
    ResultsError: "give another folder for results, or --overwrite to make all results again",
}


def parse(argv: list[str] | None = None) -> ClusterConfig:
    """The settings of the command line."""
    parser = scripts.Parser(__doc__)
    parser.add_argument("sources", help="a folder of pictures, or of parquet files")
    parser.add_argument("results", help="a folder for the results")
    parser.add_argument("model", metavar="checkpoint", type=Path, help="the weights, at the same path on all machines")
    add_flags(parser, ClusterConfig)
    return from_values(ClusterConfig, vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> None:
    config = parse(argv)
    outcome = translate(config, scripts.is_shown(config.show_verbose, config.quiet))
    for reason in outcome.bad.values():
        print(f"left out: {reason}")
    kept = f", and {outcome.kept} that were there" if outcome.kept else ""
    print(f"{outcome.made} results in {config.results}{kept}")


if __name__ == "__main__":
    scripts.run(main, "results are kept, and the same command makes what is missing", HINTS)
