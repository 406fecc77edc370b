"""Restore photographs: bbdm restore PHOTO... -o DIR [flags].

JPEGs of any quality, noise, blur and pictures that were enlarged, of any size, in grey or colour of 8 or 16
bits. The result is the expected picture, which is nearest to the clean one; --samples N gives N random ones,
with grain. Results are PNG files, of colours of 16 bits TIFF, with the bits, the transparency and the colour
profile of their photographs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from bbdm.base import demo
from bbdm.base.scripts import Command, StoppedError
from bbdm.base.settings import flag_fields, position, setting
from bbdm.translation.config import TranslateConfig

FIRST = ("photographs", "output_dir", "model", "samples", "steps", "seed", "device", "dtype", "compile", "overwrite")
FURTHER = ("window", "overlap", "margin", "memory", "show_verbose", "quiet")


@dataclass(frozen=True, kw_only=True)
class Restore(Command, TranslateConfig):
    """A restoration of photographs: a translation of them by a network that restores.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    FIRST: ClassVar[tuple[str, ...]] = FIRST
    HIDDEN: ClassVar[frozenset[str]] = frozenset(flag_fields(TranslateConfig)) - {*FIRST, *FURTHER}

    dataset: str = "folder"  # pictures alone
    data_dir: str = ""  # the pictures have positions of their own
    batch_size: int = 16
    photographs: tuple[Path, ...] = position("a file, or a folder of them", metavar="PHOTO")
    output_dir: Path = setting(Path("restored"), "the folder of the results", "-o")
    model: Path = setting(demo.PHOTOGRAPHS, "a network that restores, a file or a name on the Hub")
    samples: int | None = setting(
        None,
        "random results of each photograph, in place of the expected picture, which is nearest to the clean one",
        least=1,
    )
    steps: int | None = setting(
        None, "network calls for each random result; those of the network's file if unset", least=1
    )
    dtype: Literal["bf16", "fp32"] | None = setting(None, "of the network's arithmetic; the faster here if unset")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is None and (self.steps is not None or self.seed):
            raise ValueError("steps and seed are of random results: give samples too")

    def run(self) -> None:
        """Restore, and print each result, what was there, and what is wrong with others.

        Raises:
            StoppedError: a photograph was not restored; the others are.
        """
        from bbdm.translation.restore import restore

        config = replace(self, solver="mean") if self.samples is None else replace(self, num_samples=self.samples)
        outcome = restore(self.photographs, config)
        for path in outcome.results:
            print(path)
        for path in outcome.kept:
            print(f"{path} was there: --overwrite makes it again")
        for error in outcome.errors:
            print(f"error: {error}", file=sys.stderr)
        if failed := len(outcome.errors):
            raise StoppedError(f"{failed} photograph{'s were' if failed > 1 else ' was'} not restored")


main = Restore.main
