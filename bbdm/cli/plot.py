"""The command that draws training runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bbdm.base import optional
from bbdm.base.scripts import Command
from bbdm.base.settings import position, setting


@dataclass(frozen=True, kw_only=True)
class Plot(Command):
    """Draw the losses, scores and grids of training runs: bbdm plot RUN... [-o OUT.png].

    RUN is the folder of a run, such as OUT.run, also while it trains. Several are drawn in the same panels.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder is no run's, or has no metrics yet.
    """

    HEADING: ClassVar[str] = "plot"
    FIRST: ClassVar[str] = "output"

    runs: tuple[Path, ...] = position(
        "the folders of runs, or the weights OUT.pt beside them", metavar="RUN"
    )
    output: Path = setting(Path("out/plot.png"), "the picture, a PNG, which is written anew", "-o")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix != ".png":
            raise ValueError(f"output is a PNG, whose name ends in .png, got {self.output}")

    @property
    def opening(self) -> str:
        """Which runs."""
        return f"drawing {', '.join(map(str, self.runs))}"

    def run(self) -> None:
        """Draw, and print where the picture is."""
        from bbdm.training.curves import draw, read_run

        optional.package("matplotlib", "bbdm plot")

        runs = [read_run(path) for path in self.runs]
        draw(runs, self.output)
        print(f"to look at: {self.output}")
