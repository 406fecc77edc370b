"""Commands whose work several processes share, one for each GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bbdm.base.command import Command
from bbdm.base.settings import setting


@dataclass(frozen=True, kw_only=True)
class GPUsCommand(Command):
    """A command that may start a process for each GPU."""

    use_multi_gpus: bool = setting(False, "a process for each GPU here", "-use_multi_gpus", group="run")

    @classmethod
    def main(cls, words: Sequence[str]) -> None:
        """Parse words, and run: in a process for each GPU where that is asked for."""
        command = cls.parse(words)
        if command.use_multi_gpus:
            from bbdm.execution.processes import start_on_each_gpu

            start_on_each_gpu([cls.program().removeprefix("bbdm "), *words])
        command.run()
