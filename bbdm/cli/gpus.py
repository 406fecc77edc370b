"""Commands whose work several processes share, one for each GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bbdm.base.scripts import IMPORT, Command, imported
from bbdm.base.settings import setting


@dataclass(frozen=True, kw_only=True)
class GPUsCommand(Command):
    """A command that may start a process for each GPU."""

    SCRIPT: ClassVar[str | None] = None  # the file that is started, where it is not the command bbdm

    use_multi_gpus: bool = setting(False, "a process for each GPU here", "-use_multi_gpus", group="run")

    @classmethod
    def main(cls, words: Sequence[str] | None = None) -> None:
        """Parse words, and run: in a process for each GPU where that is asked for."""
        words = sys.argv[1:] if words is None else words
        command = cls.parse(words)
        if command.use_multi_gpus:
            from bbdm.execution.processes import start_on_each_gpu

            start = [word for module in imported for word in (IMPORT, module)]
            start += [] if cls.SCRIPT else [cls.program().removeprefix("bbdm ")]
            start_on_each_gpu([*start, *words], cls.SCRIPT)
        command.run()
