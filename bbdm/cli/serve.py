"""Serve a network over HTTP: bbdm serve CHECKPOINT [flags].

POST a picture (PNG, JPEG, WebP) to /translate, and get its translation as PNG. The query takes solver, steps
and seed:
curl --data-binary @drawing.png 'http://127.0.0.1:8000/translate?steps=20&seed=0' -o result.png
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bbdm.base.scripts import Command
from bbdm.serving.config import ServeConfig


@dataclass(frozen=True, kw_only=True)
class Serve(Command, ServeConfig):
    """A server of a network."""

    FIRST: ClassVar[tuple[str, ...]] = ("model", "host", "port", "replicas", "threads", "solver", "steps")

    def run(self) -> None:
        """Serve until a signal."""
        from bbdm.serving.cluster import connected

        with connected() as (machine,):
            from bbdm.serving import server  # which imports Ray, after the environment says where it listens

            server.run(self, machine)


main = Serve.main
