"""Translate pictures on many machines: bbdm translate-ray SOURCES RESULTS CHECKPOINT [flags].

SOURCES is a folder of pictures, RESULTS a folder outside of it, at the same paths on all machines: on a
shared disk, or a bucket that is mounted. Results are those of bbdm translate folder, and the same command
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
        *("data_dir", "output_dir", "model", "solver", "steps", "num_samples", "seed", "image_size", "batch_size"),
        *("workers", "threads", "address", "overwrite"),
    )

    def run(self) -> None:
        """Translate, and print what was left out and where the results are."""
        from bbdm.serving.cluster import translate

        count, kept, bad = translate(self)
        for reason in bad:
            print(f"left out: {reason}")
        print(f"{count} results in {self.output_dir}{f', and {kept} that were there' if kept else ''}")


main = TranslateRay.main
