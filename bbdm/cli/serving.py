"""The commands of the app, of the server, and of many machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bbdm.base.scripts import Command
from bbdm.serving.config import AppConfig, ClusterConfig, ServeConfig


@dataclass(frozen=True, kw_only=True)
class App(Command, AppConfig):
    """Translate pictures in the browser: bbdm app MODEL [flags].

    MODEL is a checkpoint, a folder that save_pretrained wrote, or a name on the Hub. Without any, the page
    shows the bundled networks. It is at http://127.0.0.1:7860, and fetches nothing from the internet.
    """

    FIRST: ClassVar[str] = "model host port device solver steps max_steps max_pixels"

    def run(self) -> None:
        """Show the page until a signal."""
        from bbdm.serving.app import launch

        launch(self)


@dataclass(frozen=True, kw_only=True)
class Serve(Command, ServeConfig):
    """Serve a network over HTTP: bbdm serve MODEL [flags].

    POST a picture (PNG, JPEG, WebP) to /translate, and get its translation as PNG. The query takes solver,
    steps and seed:
    curl --data-binary @drawing.png 'http://127.0.0.1:8000/translate?steps=20&seed=0' -o result.png
    """

    FIRST: ClassVar[str] = "model host port solver steps"

    def run(self) -> None:
        """Serve until a signal."""
        from bbdm.serving.cluster import connected

        with connected() as (machine,):
            from bbdm.serving import server  # which imports Ray, after the environment says where it listens

            server.run(self, machine)


@dataclass(frozen=True, kw_only=True)
class TranslateRay(Command, ClusterConfig):
    """Translate pictures on many machines: bbdm translate-ray SOURCES RESULTS CHECKPOINT [flags].

    SOURCES is a folder of pictures, RESULTS a folder outside of it, at the same paths on all machines: on a
    shared disk, or a bucket that is mounted. Results are those of bbdm translate folder, and the same command
    makes what is missing.
    """

    FIRST: ClassVar[str] = (
        "data_dir output_dir model solver steps num_samples seed image_size batch_size threads address overwrite"
    )

    def run(self) -> None:
        """Translate, and print what was left out and where the results are."""
        from bbdm.serving.cluster import translate

        count, kept, bad = translate(self)
        for reason in bad:
            print(f"left out: {reason}")
        print(f"{count} results in {self.output_dir}{f', and {kept} that were there' if kept else ''}")
