"""Translate pictures on many machines: bbdm translate-ray SOURCES RESULTS CHECKPOINT [flags].

SOURCES is a folder of pictures, RESULTS a folder outside of it. Both are paths or addresses such as
s3://BUCKET/FOLDER, which all machines reach. Results are those of bbdm translate folder, and the same command
makes what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bbdm.base.scripts import Command
from bbdm.serving.config import ClusterConfig


@dataclass(frozen=True, kw_only=True)
class TranslateRay(Command, ClusterConfig):
    """A translation on many machines. The checkpoint is at the same path on all."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("sources", "results", "model", "solver", "steps", "num_samples", "seed", "image_size", "batch_size"),
        *("workers", "threads", "address", "overwrite"),
    )

    def run(self) -> None:
        """Translate, and print what was left out and where the results are."""
        from bbdm.serving.cluster import translate

        outcome = translate(self)
        for reason in outcome.bad.values():
            print(f"left out: {reason}")
        kept = f", and {outcome.kept} that were there" if outcome.kept else ""
        print(f"{outcome.results} results in {self.results}{kept}")


main = TranslateRay.main
